"""Classes: which lag, with whom they are confused, and what is certified of each beside what is measured."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

import numpy as np
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from ncmon.feed import Snapshot, target_of
from ncmon.model import CLASSIFIER_INPUT, FloatArray, Run
from ncmon.store.screens import ClassPart, arranged, class_array
from ncmon.tui import palette
from ncmon.tui.format import cosine, number, percent, printable, width
from ncmon.tui.look import AXES, CLASS_SORTS, Look
from ncmon.tui.plots import framed, moment, timeline, x_of
from ncmon.tui.raster import Scale
from ncmon.tui.screens.base import OneRunScreen, Sheet, shown_split, whole
from ncmon.tui.verdicts import ROUNDING
from ncmon.tui.widgets.chart import Chart, Level, Line, Picture
from ncmon.tui.widgets.heatmap import HeatMap, HeatPicture
from ncmon.tui.widgets.lines import Span
from ncmon.tui.widgets.status import Text
from ncmon.tui.widgets.table import Cell, Column, Table

COLUMNS = (
    Column(title="CLASS", width=6, rank=0, right=False, grows=True, most=24),
    Column(title="INTRA", width=6, rank=0),
    Column(title="CERTIFIED", width=9, rank=2, right=False),
    Column(title="NEAREST", width=7, rank=1, right=False, grows=True, most=24),
    Column(title="COS", width=6, rank=1),
    Column(title="ACC%", width=5, rank=3),
    Column(title="LOSS", width=7, rank=4),
    Column(title="NC3", width=6, rank=5),
    Column(title="N", width=6, rank=6),
)
WIDE, SMALL_WIDTH, SMALL_HEIGHT = 140, 60, 14
MOST_DIAGONAL = 128
"""With more classes a cell holds several, and pairs within a class would hide those between classes."""
NOT_KEPT = "of hidden layers only some windows' cosines are kept"


class ClassesScreen(OneRunScreen):
    """Screen 4."""

    PANELS = ("pairs", "class-table", "class-history")
    HINTS = (("s", "sort"), ("t", "split"), ("[ ]", "layer"), (", .", "time"), ("z", "zoom"), ("q", "back"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "sort: worst, class, confused, accuracy", id="sort"),
        Binding("S", "reverse", "reverse the order", id="reverse"),
        Binding("x", "axis", "x axis: epoch, step, minutes, log step", id="axis"),
        Binding("left,h", "app.travel(-1)", "one window back", show=False),
        Binding("right,l", "app.travel(1)", "one window forward", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="classes")
        self._reversed = False
        self._chose = ""
        """The run of which a class was chosen by hand; until then the first of the table is looked at."""

    def compose_body(self) -> ComposeResult:
        """Make the widgets."""
        with Container(id="classes-body"):
            with Container(id="classes-above"):
                yield HeatMap(id="pairs")
                yield Table(id="class-table")
            yield Chart(id="class-history", ascii=self.ncmon.ascii_only)
        yield Text(id="classes-note")

    def on_mount(self) -> None:
        """The table has the keys."""
        self.query_one("#pairs").can_focus = True
        self.query_one("#class-history").can_focus = True
        self.query_one(Table).empty = ("No window yet",)
        self.query_one(Table).focus()

    def on_resize(self, event: events.Resize) -> None:
        """Small terminals show the table alone."""
        self.make_panels(event.size.width, event.size.height)

    def make_panels(self, width: int, height: int) -> None:
        """Show the panels that have room."""
        small = width < SMALL_WIDTH or height < SMALL_HEIGHT
        large = self.large or ("class-table" if small else None)
        self.set_class(large is not None, "-one")
        self.set_class(height < 5, "-tiny")
        self.query_one("#classes-above").display = large != "class-history"
        self.only(large)

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        detail = snapshot.detail
        return self.heading(snapshot, shown_split(detail, snapshot.selection.split) if detail is not None else "")

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        detail, part = snapshot.detail, snapshot.classes
        self.show_status(snapshot)
        if detail is None or part is None:
            return
        run = detail.run
        pairs, table, chart = self.query_one(HeatMap), self.query_one(Table), self.query_one(Chart)
        sort = CLASS_SORTS[self.ncmon.look.class_sort]
        order = arranged(part.arrays, run.n_classes, sort, turned=self._reversed)
        # Who leads the table may be another class with every window: the feed finds it out and reads its history.
        wanted = "" if self._chose == run.run_id else f"-{sort}" if self._reversed else sort
        if order and self.ncmon.selection.run_id in (None, run.run_id):
            self.ncmon.select(order=wanted)
        index = part.index if wanted else self.ncmon.selection.index
        if wanted and snapshot.selection.order != wanted and order:
            index = order[0]
        index = min(max(index, 0), max(run.n_classes - 1, 0))
        if pairs.display:
            self._make_room(pairs, chart, run)
            pairs.show(pair_picture(part, run, index))
        if table.display:
            table.show(COLUMNS, order, lambda place: _cells(part, run, order[place]), cursor=index)
        if chart.display:
            picture = history(part, run, self.ncmon.look)
            cursor = moment(detail, snapshot.selection, self.ncmon.look)
            chart.show(framed(picture, self.ncmon.look, cursor=cursor, zoom=self.ncmon.zoom))
        note = self.query_one("#classes-note", Text)
        note.show([tuple(whole(_note(part, run), note.size.width))])

    def _make_room(self, pairs: HeatMap, chart: Chart, run: Run) -> None:
        """Give the map the width that its classes need, somewhat less than half of the screen, and the height."""
        if self.has_class("-one"):
            pairs.styles.width = chart.styles.height = "1fr"
            return
        below = max(min(self.size.height - 3 - run.n_classes - 2, self.size.height * 2 // 5), 7)
        if chart.styles.height is None or str(chart.styles.height) != str(below):
            chart.styles.height = below
            self.call_after_refresh(self.again)
        names = min(_longest(_names(run.n_classes, run.class_names)), 8) + 2
        room = self.size.width * 9 // 20
        each = next((cell for cell in (4, 3, 2) if names + run.n_classes * cell + 1 <= room), 2)
        wanted = min(max(names + run.n_classes * each + 2, 36), room)
        if pairs.styles.width is None or pairs.styles.width.value != wanted:
            pairs.styles.width = wanted
            self.call_after_refresh(self.again)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_sort(self) -> None:
        """Sort by something else."""
        look = self.ncmon.look
        look.class_sort = (look.class_sort + 1) % len(CLASS_SORTS)
        self.again()

    def action_reverse(self) -> None:
        """Turn the order around."""
        self._reversed = not self._reversed
        self.again()

    def action_axis(self) -> None:
        """The next x axis."""
        self.ncmon.look.axis = (self.ncmon.look.axis + 1) % len(AXES)
        self.again()

    @on(Table.Moved)
    def moved(self, message: Table.Moved) -> None:
        """The cursor is on another class."""
        if isinstance(message.key, int):
            self._choose(message.key)

    @on(Table.Chosen)
    def chosen(self, message: Table.Chosen) -> None:
        """Show the history of the class alone; q leads back."""
        self.large = "class-history"
        self.make_panels(self.size.width, self.size.height)

    def on_heat_map_picked(self, message: HeatMap.Picked) -> None:
        """Look at the class that was clicked."""
        self._choose(message.row)

    def keep(self, run_id: str) -> None:
        """The class that is looked at was chosen elsewhere; it stays, instead of the worst one."""
        self._chose = run_id

    def _choose(self, index: int) -> None:
        snapshot = self.ncmon.shown
        if snapshot is not None and snapshot.detail is not None:
            self._chose = snapshot.detail.run.run_id
            self.ncmon.select(index=index, order="")
            self.again()

    def on_chart_picked(self, message: Chart.Picked) -> None:
        """Look at the moment that was clicked."""
        snapshot = self.ncmon.shown
        if snapshot is not None and snapshot.detail is not None and (columns := timeline(snapshot.detail)) is not None:
            x = x_of(columns, snapshot.detail.run, self.ncmon.look)
            self.ncmon.travel_to(int(np.argmin(np.abs(x - message.x))))

    def sheet(self) -> Sheet | None:
        """Return the table of classes."""
        snapshot = self.ncmon.shown
        part = snapshot.classes if snapshot is not None else None
        if snapshot is None or snapshot.detail is None or part is None:
            return None
        names, run = list(part.arrays), snapshot.detail.run
        rows = [(i, run.class_name(i), *(part.arrays[name][i] for name in names)) for i in range(run.n_classes)]
        return ("class", "name", *names), rows


def _of(part: ClassPart, name: str, n_classes: int) -> FloatArray:
    return class_array(part.arrays, name, n_classes)


@lru_cache(maxsize=4)
def _names(count: int, given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(printable(given[i]) if i < len(given) else str(i) for i in range(count))


@lru_cache(maxsize=4)
def _longest(names: tuple[str, ...]) -> int:
    return max(map(width, names), default=0)


def pair_picture(part: ClassPart, run: Run, index: int) -> HeatPicture:
    """Return the picture classes x classes: the cosines between classes, within them on the diagonal."""
    count = run.n_classes
    names = _names(count, run.class_names)
    values = np.full((count, count), np.nan) if part.matrix is None else part.matrix
    low = 0.0 if np.isnan(part.matrix_low) else part.matrix_low
    if part.matrix is not None and count <= MOST_DIAGONAL and values.shape == (count, count):
        values = values.copy()
        np.fill_diagonal(values, _of(part, "intra_cos", count))
        low = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    nearest = _of(part, "nearest_class", count)[index] if count else np.nan
    target = target_of("inter_cos_max", count) if count > 1 else None
    floor = min(-0.2 if target is None else float(np.floor(target * 10) / 10), float(np.floor(low * 10) / 10))
    return HeatPicture(
        title="cosines",
        values=values,
        scale=Scale(low=max(floor, -1.0), high=1.0),
        row_names=names,
        column_names=names,
        row=index,
        column=-1 if np.isnan(nearest) else int(nearest),
        row_pool="max",
        column_pool="max",
        cell=4 if count <= 12 else 2,
        tall=2,
        empty=NOT_KEPT if part.layer != CLASSIFIER_INPUT else "no cosines kept yet",
    )


def history(part: ClassPart, run: Run, look: Look) -> Picture:
    """Return one class over time: what is measured within it and to its nearest class, and what is certified."""
    name = printable(run.class_name(part.index))[:16]
    lines = [
        Line(name=title, x=x_of(columns, run, look), y=columns.value, style=style, pattern=pattern)
        for metric, title, style, pattern in (
            ("intra_cos", "intra", palette.SERIES[0], palette.PATTERNS[0]),
            ("nearest_cos", "nearest", palette.SERIES[1], palette.PATTERNS[1]),
            ("cert_intra", "certified", palette.BOUND, palette.PATTERNS[2]),
        )
        if (columns := part.history.get(metric)) is not None and len(columns)
    ]
    low = min([-0.2, *(float(np.nanmin(line.y)) for line in lines if np.isfinite(line.y).any())])
    target = target_of("nearest_cos", run.n_classes) if run.n_classes > 1 else None
    levels = (Level(name="simplex", value=target),) if target is not None else ()
    where = "" if part.layer == CLASSIFIER_INPUT else f" at {CLASSIFIER_INPUT}"
    return Picture(
        title=f"class {name}{where}", lines=tuple(lines), levels=levels, span=(low - 0.05, 1.05), empty="no value yet"
    )


def _cells(part: ClassPart, run: Run, index: int) -> list[Cell]:
    def at(name: str) -> float:
        found = part.arrays.get(name)
        return float(found[index]) if found is not None and len(found) == run.n_classes else float("nan")

    intra, bound, nearest = at("intra_cos"), at("cert_intra"), at("nearest_class")
    other = "-" if math.isnan(nearest) else printable(run.class_name(int(nearest)))
    if math.isnan(bound):
        certified: Cell = ("x no" if "cert_intra" in part.arrays else "-", palette.DIM)
    elif intra - bound < -ROUNDING:
        certified = (f"! {bound:.3f}", palette.BAD)
    else:
        certified = (f"= {bound:.3f}", palette.GOOD)
    close = at("nearest_cos")
    confused = close > intra
    return [
        (printable(run.class_name(index)), palette.NULL),
        (cosine(intra), palette.NULL),
        certified,
        (other, palette.BAD if confused else palette.NULL),
        (cosine(close), palette.BAD if confused else palette.NULL),
        (percent(at("class_accuracy")), palette.NULL),
        (number(at("class_loss"), 7), palette.NULL),
        (cosine(at("nc3_cos_class")), palette.NULL),
        ("-" if math.isnan(at("count")) else f"{at('count'):.0f}", palette.DIM),
    ]


def _note(part: ClassPart, run: Run) -> list[Span]:
    """Return in words which pair is the closest, and how many classes are certified."""
    count = run.n_classes
    close, nearest = _of(part, "nearest_cos", count), _of(part, "nearest_class", count)
    if np.isnan(close).all():
        return [(f" {NOT_KEPT}" if part.layer != CLASSIFIER_INPUT else " waiting for the first window", palette.DIM)]
    worst = int(np.nanargmax(close))
    names = f"{printable(run.class_name(worst))} ~ {printable(run.class_name(int(nearest[worst])))}"
    spans: list[Span] = [
        (f" closest pair {names}", palette.BOLD),
        (f" {cosine(float(close[worst]))}", palette.NULL),
    ]
    if "cert_intra" in part.arrays:
        bound, present = part.arrays["cert_intra"], int(np.count_nonzero(part.arrays["count"] > 0))
        kind = "certified" if part.exact else "certified (est.)"
        spans.append((f"  {kind} {int(np.count_nonzero(~np.isnan(bound)))}/{present}", palette.NULL))
        slack = part.arrays["intra_cos"] - bound
        if np.isfinite(slack).any():
            spans.append((f"  slack min {number(float(np.nanmin(slack)))}", palette.DIM))
    return spans
