"""Compare: one metric of several runs in one chart, beside the baseline, and in what their configurations differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from ncmon.feed import Snapshot
from ncmon.metrics import METRICS
from ncmon.store.results import Columns, RunSummary
from ncmon.store.screens import Compared
from ncmon.tui import palette
from ncmon.tui.format import fit, middle, number, percent, printable
from ncmon.tui.look import AXES, COMPARE_METRICS, Look
from ncmon.tui.plots import framed, x_of
from ncmon.tui.screens.base import DataScreen, Sheet
from ncmon.tui.widgets.chart import Chart, Line, Picture
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.status import Text
from ncmon.tui.widgets.table import Cell, Column, Table

COLUMNS = (
    Column(title="", width=2, rank=0, right=False),
    Column(title="RUN", width=12, rank=0, right=False, grows=True, most=60),
    Column(title="LAST", width=8, rank=0),
    Column(title="TO BASE", width=8, rank=1),
    Column(title="REACHED", width=8, rank=2),
    Column(title="EPOCH", width=6, rank=3),
    Column(title="LOSS", width=8, rank=4),
    Column(title="ACC%", width=5, rank=4),
    Column(title="NC1", width=8, rank=5),
    Column(title="INTRA", width=6, rank=6),
)
TITLES = {
    "nc1_pinv": "NC1",
    "intra_cos_min": "min intra cosine",
    "inter_cos_max": "max inter cosine",
    "cert_intra_min": "certified min intra cosine",
    "nc2_maxangle": "NC2 angles",
    "nc3_cos_min": "NC3 min cosine",
    "ce_loss": "loss",
    "ce_gap": "loss gap",
    "accuracy": "accuracy",
    "ncc_acc": "nearest class mean right",
    "effective_depth": "effective depth",
}
"""As the other screens call them; the registry's titles leave no room for the names of the runs."""
BETTER = {metric.name: metric.better for metric in METRICS}
SMALL_WIDTH, SMALL_HEIGHT, NAME = 60, 14, 18


class CompareScreen(DataScreen):
    """Screen 6."""

    PANELS = ("compare-chart", "compare-table", "compare-config")
    HINTS = (
        ("m", "metric"),
        ("*", "baseline"),
        ("space", "unmark"),
        ("L", "log"),
        ("x", "axis"),
        ("z", "zoom"),
        ("q", "back"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "metric", "the next metric", id="metric"),
        Binding("L", "log", "logarithmic or linear", id="log"),
        Binding("x", "axis", "x axis: epoch, step, minutes, log step", id="axis"),
        Binding("z", "maximise", "one panel alone", id="maximise"),
        Binding("asterisk", "baseline", "compare others with this run", id="baseline"),
        Binding("space", "mark", "take the run out, or put it back", id="mark"),
        Binding("escape,q", "back", "back", id="back"),
    ]

    def __init__(self) -> None:
        super().__init__(id="compare")

    @staticmethod
    def metric(look: Look) -> str:
        """Return the metric that is compared."""
        return COMPARE_METRICS[look.compare_metric]

    def compose_body(self) -> ComposeResult:
        """Make the widgets."""
        with Container(id="compare-body"):
            yield Chart(id="compare-chart", ascii=self.ncmon.ascii_only)
            yield Table(id="compare-table")
            yield Text(id="compare-config")

    def on_mount(self) -> None:
        """The table has the keys."""
        self.query_one("#compare-chart").can_focus = True
        self.query_one(Table).empty = ("No run to compare", "mark runs with space on the overview (1)")
        self.query_one(Table).focus()

    def on_resize(self, event: events.Resize) -> None:
        """Small terminals show the table alone."""
        self.make_panels(event.size.width, event.size.height)

    def make_panels(self, width: int, height: int) -> None:
        """Show the panels that have room."""
        small = width < SMALL_WIDTH or height < SMALL_HEIGHT
        large = self.large or ("compare-table" if small else None)
        self.set_class(large is not None, "-one")
        self.set_class(height < 5, "-tiny")
        self.only(large)

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        count = len(snapshot.compared)
        return [
            (" compare", palette.BOLD),
            (f"  {count} run{'s' * (count != 1)}", palette.NULL),
            ("" if self.ncmon.marked else "  the newest: mark others with space on the overview", palette.DIM),
        ]

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        self.show_status(snapshot)
        if snapshot.selection.view != "compare":
            return
        look, runs = self.ncmon.look, snapshot.compared
        base = self._base(runs)
        chart, table, config = (
            self.query_one(Chart),
            self.query_one(Table),
            self.query_one("#compare-config", Text),
        )
        metric = snapshot.selection.metric
        if chart.display:
            chart.show(framed(overlay(runs, metric, look), look, cursor=None, zoom=self.ncmon.zoom))
        if table.display:
            self._make_room(table, len(runs))
            summaries = {summary.run.run_id: summary for summary in snapshot.runs}
            keys = [one.run.run_id for one in runs]
            ascii_only = self.ncmon.ascii_only
            table.show(
                COLUMNS,
                keys,
                lambda place: _cells(place, runs[place], base, summaries.get(keys[place]), metric, ascii=ascii_only),
            )
        if config.display:
            config.show(differences(runs, config.size.width))

    def _base(self, runs: Sequence[Compared]) -> Compared | None:
        wanted = self.ncmon.baseline
        return next((one for one in runs if one.run.run_id == wanted), runs[-1] if runs else None)

    def _make_room(self, table: Table, runs: int) -> None:
        wanted = "1fr" if self.has_class("-one") else min(runs + 1, max(self.size.height // 3, 3))
        if table.styles.height is None or str(table.styles.height) != str(wanted):
            table.styles.height = wanted
            self.call_after_refresh(self.again)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_metric(self) -> None:
        """The next metric."""
        look = self.ncmon.look
        look.compare_metric = (look.compare_metric + 1) % len(COMPARE_METRICS)
        self.ncmon.select(metric=self.metric(look))

    def action_log(self) -> None:
        """Logarithmic or linear."""
        self.ncmon.look.log = not self.ncmon.look.log
        self.again()

    def action_axis(self) -> None:
        """The next x axis."""
        self.ncmon.look.axis = (self.ncmon.look.axis + 1) % len(AXES)
        self.again()

    def action_baseline(self) -> None:
        """Compare the others with the run under the cursor."""
        if (key := self.query_one(Table).cursor) is not None:
            self.ncmon.baseline = str(key)
            self.again()

    def action_mark(self) -> None:
        """Take the run under the cursor out of the comparison."""
        snapshot, key = self.ncmon.shown, self.query_one(Table).cursor
        if snapshot is None or key is None:
            return
        marked = self.ncmon.marked
        if not marked:
            marked.update(dict.fromkeys(one.run.run_id for one in snapshot.compared))
        marked.pop(str(key), None)
        self.ncmon.select(marked=tuple(marked))

    @on(Table.Chosen)
    def chosen(self, message: Table.Chosen) -> None:
        """Open the run."""
        self.ncmon.open_run(str(message.key))

    def action_back(self) -> None:
        """Back to the overview, from a large panel to all of them first."""
        self.lead_back()

    def copied(self) -> Sheet | None:
        """Return the last value of every run."""
        snapshot = self.ncmon.shown
        if snapshot is None or not snapshot.compared:
            return None
        rows = [(one.run.run_id, one.run.name, one.split, last(one.columns)) for one in snapshot.compared]
        return ("run", "name", "split", snapshot.selection.metric), rows

    def sheet(self) -> Sheet | None:
        """Return the histories of all runs."""
        snapshot = self.ncmon.shown
        if snapshot is None or not snapshot.compared:
            return None
        rows = [
            (one.run.run_id, one.run.name, one.split, int(step), int(epoch), value)
            for one in snapshot.compared
            for step, epoch, value in zip(one.columns.step, one.columns.epoch, one.columns.value, strict=True)
        ]
        return ("run", "name", "split", "step", "epoch", snapshot.selection.metric), rows


def manner(place: int) -> tuple[object, str]:
    """Return the style and the pattern of a run's line, by its place: eighteen that differ."""
    return palette.SERIES[place % 6], palette.PATTERNS[(place + place // 6) % 3]


def overlay(runs: Sequence[Compared], metric: str, look: Look) -> Picture:
    """Return one line a run."""
    lines = []
    for place, one in enumerate(runs):
        if len(one.columns):
            style, pattern = manner(place)
            x = x_of(one.columns, one.run, look)
            name = middle(one.run.name, NAME)
            lines.append(Line(name=name, x=x, y=one.columns.value, style=style, pattern=pattern))  # type: ignore[arg-type]
    values = [line.y[np.isfinite(line.y)] for line in lines]
    positive = all((value > 0).all() for value in values)
    return Picture(
        title=TITLES.get(metric, metric), lines=tuple(lines), log=look.log and positive and "cos" not in metric
    )


def reached(columns: Columns, value: float, better: str) -> int | None:
    """Return where in a history a value was first reached, None where it never was."""
    if better not in ("lower", "higher") or np.isnan(value):
        return None
    with np.errstate(invalid="ignore"):
        found = np.flatnonzero(columns.value <= value if better == "lower" else columns.value >= value)
    return int(found[0]) if found.size else None


def last(columns: Columns) -> float:
    """Return the last value there is."""
    known = columns.value[~np.isnan(columns.value)]
    return float(known[-1]) if known.size else float("nan")


def _cells(
    place: int, one: Compared, base: Compared | None, summary: RunSummary | None, metric: str, *, ascii: bool
) -> list[Cell]:
    style, pattern = manner(place)
    is_base = base is not None and base.run.run_id == one.run.run_id
    value = last(one.columns)
    goal = last(base.columns) if base is not None else float("nan")
    at = reached(one.columns, goal, BETTER.get(metric, "neither"))
    if at is None:
        when = "-"
    else:
        epoch = int(one.columns.epoch[at])
        when = f"ep {epoch + 1}" if epoch >= 0 else f"st {int(one.columns.step[at])}"

    def said(name: str) -> float:
        return float(summary.values.get(name, np.nan)) if summary is not None else float("nan")

    difference = value - goal
    sample = "*+ox#"[place % 5] * 2 if ascii else palette.SAMPLES[pattern]
    epoch_now = "-" if summary is None or summary.epoch is None else str(summary.epoch + 1)
    return [
        (sample, style),  # type: ignore[list-item]
        (f"{'* ' if is_base else ''}{printable(one.run.name)}", palette.NULL),
        (number(value), palette.NULL),
        (
            "base"
            if is_base
            else "-"
            if np.isnan(difference)
            else f"{'+' if difference >= 0 else ''}{number(difference)}",
            palette.DIM,
        ),
        (when, palette.NULL),
        (epoch_now, palette.DIM),
        (number(said("ce_loss")), palette.DIM),
        (percent(said("accuracy")), palette.DIM),
        (number(said("nc1_pinv")), palette.DIM),
        (number(said("intra_cos_min"), 6), palette.DIM),
    ]


def differences(runs: Sequence[Compared], width: int) -> list[Row]:
    """Return in what the configurations differ: a line a key, the values in the order of the runs."""
    if len(runs) < 2:
        return [((" mark two runs or more to see in what they differ", palette.DIM),)]
    keys = dict.fromkeys(key for one in runs for key in one.run.config)
    rows: list[Row] = []
    for key in keys:
        values = [one.run.config.get(key) for one in runs]
        if all(value == values[0] for value in values):
            continue
        spans: list[Span] = [(f" {fit(key, 16)} ", palette.DIM)]
        for place, value in enumerate(values):
            text = "-" if value is None else number(value) if isinstance(value, float) else printable(str(value))[:NAME]
            style, _ = manner(place)
            spans += [(text, style), ("  ", palette.NULL)]  # type: ignore[list-item]
        rows.append(tuple(spans))
    head = " configurations differ in" if rows else " the configurations are the same"
    return [((head[:width], palette.BOLD),), *rows]
