"""Bounds: what is measured, what is guaranteed, how far they are apart, and on what the guarantee rests.

The screen knows no bound by name: rows, assumptions and charts come from the registry.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from ncmon import detail as details
from ncmon.detail import Detail
from ncmon.feed import Snapshot
from ncmon.model import FloatArray, Run
from ncmon.store.results import WindowReadings
from ncmon.tui import palette
from ncmon.tui.format import fit, number, printable
from ncmon.tui.look import AXES
from ncmon.tui.plots import framed, moment, timeline, x_of
from ncmon.tui.screens.base import OneRunScreen, Sheet
from ncmon.tui.verdicts import GLYPHS, STYLES, TITLES, Verdict, verdicts
from ncmon.tui.widgets.chart import Chart, Line, Picture
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.status import Text
from ncmon.tui.widgets.table import Cell, Column, Table

COLUMNS = (
    Column(title="QUANTITY", width=15, rank=0, right=False, grows=True, most=40),
    Column(title="MEASURED", width=8, rank=1),
    Column(title="BOUND", width=10, rank=1, right=False),
    Column(title="SLACK", width=7, rank=2),
    Column(title="STATE", width=14, rank=0, right=False),
    Column(title="BY", width=5, rank=3, right=False),
    Column(title="OF", width=7, rank=4, right=False),
    Column(title="NAME", width=16, rank=5, right=False),
)
FAMILIES = {"cert_plus": "cert+", "cert": "cert", "sharp": "sharp", "thm_tight": "thm+", "thm": "thm"}
"""Which proof a bound is of, by how its name begins, the longer beginning first: several bound the same quantity."""
MORE_CHARTS = 2
SMALL_WIDTH, SMALL_HEIGHT, SIDE_BY_SIDE = 60, 14, 140


class BoundsScreen(OneRunScreen):
    """Screen 5."""

    PANELS = ("bound-chart", "bound-table", "bound-text")
    HINTS = (
        ("enter", "why"),
        ("t", "split"),
        (", .", "time"),
        ("L", "log"),
        ("x", "axis"),
        ("z", "zoom"),
        ("[ ]", "layer"),
        ("q", "back"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("L", "log", "logarithmic or linear", id="log"),
        Binding("x", "axis", "x axis: epoch, step, minutes, log step", id="axis"),
        Binding("left,h", "app.travel(-1)", "one window back", show=False),
        Binding("right,l", "app.travel(1)", "one window forward", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="bounds")
        self._log = False
        self._name: str | None = None

    def compose_body(self) -> ComposeResult:
        """Make the widgets."""
        with Container(id="bounds-body"):
            with Container(id="bound-charts"):
                yield Chart(id="bound-chart", ascii=self.ncmon.ascii_only)
                for place in range(MORE_CHARTS):
                    yield Chart(id=f"bound-chart-{place}", ascii=self.ncmon.ascii_only)
            with Container(id="bounds-below"):
                yield Table(id="bound-table")
                yield Text(id="bound-text")

    def on_mount(self) -> None:
        """The table has the keys."""
        self.query_one("#bound-chart").can_focus = True
        self.query_one(Table).empty = (
            "No bound of this layer",
            "most are about the classifier's input: press ] for the last layer",
        )
        self.query_one(Table).focus()

    def on_resize(self, event: events.Resize) -> None:
        """Small terminals show the table alone."""
        self.make_panels(event.size.width, event.size.height)

    def make_panels(self, width: int, height: int) -> None:
        """Show the panels that have room."""
        small = width < SMALL_WIDTH or height < SMALL_HEIGHT
        large = self.large or ("bound-table" if small else None)
        self.set_class(large is not None, "-one")
        wide = width >= SIDE_BY_SIDE and large is None
        self.set_class(wide, "-wide")
        for place in range(MORE_CHARTS):
            self.query_one(f"#bound-chart-{place}").display = wide
        self.query_one("#bound-charts").display = large in (None, "bound-chart")
        self.set_class(height < 5, "-tiny")
        self.query_one("#bounds-below").display = large != "bound-chart"
        self.only(large)

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        detail = snapshot.detail
        return self.heading(snapshot, bounds_split(detail, snapshot.selection.split) if detail is not None else "")

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        detail = snapshot.detail
        self.show_status(snapshot)
        if detail is None:
            return
        split = bounds_split(detail, snapshot.selection.split)
        window = detail.latest.get(split)
        said = self._said(snapshot)
        names = [verdict.bound.name for verdict in said]
        table, chart, text = self.query_one(Table), self.query_one(Chart), self.query_one("#bound-text", Text)
        if self._name not in names:
            # One number a window has a history; arrays come second.
            scalar = [verdict.bound.name for verdict in said if verdict.bound.scope not in ("class", "pair")]
            self._name = next(iter((*scalar, *names)), None)
        if table.display:
            self._make_room(table, len(names))
            table.show(COLUMNS, names, lambda place: _cells(said[place], detail.run), cursor=self._name)
        chosen = next((verdict for verdict in said if verdict.bound.name == self._name), None)
        if chart.display:
            look = self.ncmon.look
            picture = self._picture(detail, split, chosen, window)
            if not picture.x_whole:
                cursor = moment(detail, snapshot.selection, look)
                picture = framed(picture, look, cursor=cursor, zoom=self.ncmon.zoom)
            chart.show(picture)
        self._draw_more(detail, split, said, chosen, window)
        if text.display:
            exact = window is not None and window.exact
            bars = _with_slacks(chosen, said) if self.has_class("-wide") else chosen
            rows = _explained(chosen, bars, detail.run, *text.size, exact=exact) if chosen is not None else []
            text.show(rows, more="  …" if self.has_class("-one") else MORE)

    def _draw_more(
        self, detail: Detail, split: str, said: list[Verdict], chosen: Verdict | None, window: WindowReadings | None
    ) -> None:
        """Draw, beside the bound under the cursor, its likes on what else the theorem is about."""
        if chosen is None or not self.query_one("#bound-chart-0").display:
            return
        family = chosen.bound.name.partition("_")[0]
        scalar = [verdict for verdict in said if verdict.bound.scope not in ("class", "pair")]
        scalar.sort(key=lambda verdict: not verdict.bound.name.startswith(family))
        shown = {chosen.bound.of if chosen.slacks is None else ""}
        look = self.ncmon.look
        for place in range(MORE_CHARTS):
            other = next((verdict for verdict in scalar if verdict.bound.of not in shown), None)
            chart = self.query_one(f"#bound-chart-{place}", Chart)
            picture = self._picture(detail, split, other, window)
            cursor = moment(detail, self.ncmon.selection, look)
            chart.show(framed(picture, look, cursor=cursor, zoom=self.ncmon.zoom))
            shown.add(other.bound.of if other is not None else "")

    def _make_room(self, table: Table, bounds: int) -> None:
        wanted = (
            "1fr"
            if self.has_class("-one") or self.has_class("-wide")
            else min(bounds + 1, max(self.size.height // 3, 4))
        )
        if table.styles.height is None or str(table.styles.height) != str(wanted):
            table.styles.height = wanted
            self.call_after_refresh(self.again)

    def _said(self, snapshot: Snapshot) -> list[Verdict]:
        detail = snapshot.detail
        if detail is None or detail.layer is None:
            return []
        window = detail.latest.get(bounds_split(detail, snapshot.selection.split))
        found = window.layers.get(detail.layer.name) if window is not None else None
        return [] if found is None else verdicts(found, snapshot.pairs)

    def _picture(self, detail: Detail, split: str, verdict: Verdict | None, window: WindowReadings | None) -> Picture:
        """Return measured and guaranteed over time; of an array of classes, over the classes."""
        if verdict is None:
            return Picture(title="measured and guaranteed", lines=(), empty="no bound of this layer")
        bound = verdict.bound
        series = detail.series.get(split, {})
        lines = []
        for name, title, style, pattern in (
            (bound.of, "measured", palette.SERIES[0], palette.PATTERNS[0]),
            (bound.name, "guaranteed", palette.BOUND, palette.PATTERNS[2]),
        ):
            columns = series.get(name)
            if columns is not None and len(columns):
                x = x_of(columns, detail.run, self.ncmon.look)
                lines.append(Line(name=title, x=x, y=columns.value, style=style, pattern=pattern))
        if verdict.slacks is not None and window is not None and detail.layer is not None:
            arrays = window.layers[detail.layer.name].class_arrays
            return _class_picture(verdict, arrays[bound.of], arrays[bound.name])
        title = TITLES.get(bound.of, bound.of)
        empty = "kept as a whole: the table says the least slack" if verdict.of else "no value yet"
        return Picture(title=title, lines=tuple(lines), log=self._log, empty=empty)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_log(self) -> None:
        """Logarithmic or linear."""
        self._log = not self._log
        self.again()

    def action_axis(self) -> None:
        """The next x axis."""
        self.ncmon.look.axis = (self.ncmon.look.axis + 1) % len(AXES)
        self.again()

    def action_split(self) -> None:
        """The next split."""
        snapshot = self.ncmon.shown
        if snapshot is not None and snapshot.detail is not None and (splits := snapshot.detail.splits):
            now = bounds_split(snapshot.detail, snapshot.selection.split)
            self.ncmon.select(split=splits[(splits.index(now) + 1) % len(splits)])

    @on(Table.Moved)
    def moved(self, message: Table.Moved) -> None:
        """The cursor is on another bound."""
        self._name = str(message.key)
        self.again()

    @on(Table.Chosen)
    def chosen(self, message: Table.Chosen) -> None:
        """Show what it rests on alone; q leads back."""
        self.large = "bound-text"
        self.make_panels(self.size.width, self.size.height)

    def on_chart_picked(self, message: Chart.Picked) -> None:
        """Look at the moment that was clicked."""
        snapshot = self.ncmon.shown
        if snapshot is not None and snapshot.detail is not None and (columns := timeline(snapshot.detail)) is not None:
            x = x_of(columns, snapshot.detail.run, self.ncmon.look)
            self.ncmon.travel_to(int(np.argmin(np.abs(x - message.x))))

    def sheet(self) -> Sheet | None:
        """Return the table of bounds."""
        if self.ncmon.shown is None:
            return None
        rows = [
            (v.bound.of, v.measured, v.bound.name, v.bound.side, v.value, v.slack, v.state, v.reason)
            for v in self._said(self.ncmon.shown)
        ]
        return ("quantity", "measured", "bound", "side", "value", "slack", "state", "reason"), rows


def bounds_split(detail: Detail, wanted: str | None) -> str:
    """Return the split that is shown: where none is wanted, one measured at frozen weights, for that is a guarantee."""
    return wanted if wanted is not None and wanted in detail.splits else details.bounds_split(detail)


def _class_picture(verdict: Verdict, measured: FloatArray, value: FloatArray) -> Picture:
    """Return what is measured and what is guaranteed of every class, the least slack first."""
    assert verdict.slacks is not None
    order = np.argsort(verdict.slacks, kind="stable")
    x = np.arange(len(order), dtype=np.float64)
    title = TITLES.get(verdict.bound.of, verdict.bound.of)
    lines = (
        Line(name="measured", x=x, y=measured[order], style=palette.SERIES[0]),
        Line(name="guaranteed", x=x, y=value[order], style=palette.BOUND, pattern=palette.PATTERNS[2]),
    )
    return Picture(title=f"{title} of every class, least slack first", lines=lines, x_title="class", x_whole=True)


def _cells(verdict: Verdict, run: Run) -> list[Cell]:
    state, bound = verdict.state, verdict.bound
    sign = "≥" if bound.side == "lower" else "≤"
    name = TITLES.get(bound.of, bound.of)
    slack = verdict.slack
    return [
        (name, palette.NULL),
        (number(verdict.measured), palette.NULL),
        (f"{sign} {number(verdict.value)}", palette.BOUND if verdict.value is not None else palette.DIM),
        ("-" if slack is None else f"{slack:+.4f}" if abs(slack) >= 1e-4 else f"{slack:+.0e}", STYLES[state]),
        (f"{GLYPHS[state]} {state}", STYLES[state]),
        (next((family for name, family in FAMILIES.items() if bound.name.startswith(name)), ""), palette.DIM),
        (f"{verdict.held}/{verdict.of}" if verdict.of else "-", palette.DIM),
        (bound.name, palette.DIM),
    ]


def _with_slacks(chosen: Verdict | None, said: Sequence[Verdict]) -> Verdict | None:
    """Return the bound of every class that the one under the cursor is the least of, or else the first there is."""
    if chosen is None or chosen.slacks is not None:
        return chosen
    arrays = [verdict for verdict in said if verdict.slacks is not None]
    own = [verdict for verdict in arrays if chosen.bound.name.startswith(verdict.bound.name)]
    return next(iter((*own, *arrays)), chosen)


def _explained(verdict: Verdict, bars: Verdict | None, run: Run, width: int, height: int, *, exact: bool) -> list[Row]:
    """Return what the bound says, why it may say nothing, the slack of each class, and what it rests on."""
    bound = verdict.bound
    rows: list[Row] = [((f" {bound.title}", palette.BOLD),)]
    if verdict.reason:
        rows += _wrapped(verdict.reason, width, STYLES[verdict.state])
    elif verdict.where:
        names = " and ".join(printable(run.class_name(index)) for index in verdict.where)
        rows.append(((f" tightest at {'pair' if len(verdict.where) > 1 else 'class'} {names}", palette.NULL),))
    standing = (
        "a guarantee: the weights stood still in this window"
        if exact
        else "an estimate: the weights moved inside this window; exact windows (monitor.measure) make it a guarantee"
    )
    rows += _wrapped(standing, width, palette.GOOD if exact else palette.WARN)
    if bars is not None and bars.slacks is not None:
        rows += _bars(bars, run, width, MOST_BARS if height >= 18 else 6)
    rows.append(((" assumes", palette.BOLD),))
    for text in bound.assumptions:
        rows += _wrapped(text, width, palette.NULL, first="- ")
    rows += _wrapped(f"{bound.name} = {bound.definition}", width, palette.DIM)
    rows += _wrapped(bound.source, width, palette.DIM)
    return rows


def _wrapped(text: str, width: int, style: object, *, first: str = "") -> list[Row]:
    lines = textwrap.wrap(printable(text), max(width - 4, 20), initial_indent=first, subsequent_indent=" " * len(first))
    return [((f"  {line}", style),) for line in lines]  # type: ignore[misc]


MOST_BARS = 12
MORE = "  … enter shows all of it"


def _bars(verdict: Verdict, run: Run, width: int, most: int) -> Sequence[Row]:
    """Return a bar a class: its slack, least first; classes without a bound are counted."""
    assert verdict.slacks is not None
    slacks = verdict.slacks
    without = int(np.count_nonzero(np.isnan(slacks)))
    known = len(slacks) - without
    if not known:
        return []
    order = np.argsort(slacks, kind="stable")  # NaN comes last
    shown = order[: min(most, known)].tolist()
    top = max(float(slacks[order[known - 1]]), 1e-9)
    names = min(max(len(run.class_name(i)) for i in shown), 10)
    room = max(min(width, 120) // 2 - names - 12, 4)
    cells: list[tuple[Row, int]] = []
    for i in shown:
        size = max(float(slacks[i]), 0.0) / top * room
        style = STYLES["VIOLATED"] if slacks[i] < -1e-5 else palette.SERIES[2]
        bar = "█" * int(size) + ("▌" if size - int(size) >= 0.5 else "")
        row: Row = (
            (f"  {fit(run.class_name(i), names)} ", palette.DIM),
            (f"{bar:<{room + 1}}", style),
            (f"{slacks[i]:+.3f}", palette.NULL),
        )
        cells.append((row, names + room + 10))
    rows: list[Row] = []
    half = -(-len(cells) // 2)
    for y in range(half):
        row = cells[y][0]
        if y + half < len(cells) and width >= 60:
            row = (*row, *cells[y + half][0])
        rows.append(row)
    if width < 60:
        rows += [row for row, _ in cells[half:]]
    more = known - len(cells)
    if more or without:
        text = ", ".join(
            part for part in (f"{more} more" if more else "", f"{without} without" if without else "") if part
        )
        rows.append(((f"  {text}", palette.DIM),))
    return [((f" slack of each class, {verdict.bound.name}", palette.BOLD),), *rows]
