"""Overview: which runs there are, how they do, and the one under the cursor in a few words."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.css.query import NoMatches
from textual.widgets import Input

from ncmon import cells
from ncmon.alerts import title_of
from ncmon.detail import Detail
from ncmon.feed import RunState, Snapshot, SourceState
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store.results import RunSummary
from ncmon.tui import palette
from ncmon.tui.format import age, delivery, fit, number, printable, width
from ncmon.tui.plots import framed, moment
from ncmon.tui.screens.base import DataScreen, Sheet
from ncmon.tui.screens.run import picture_of
from ncmon.tui.verdicts import course
from ncmon.tui.widgets.chart import Chart
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.runs import COLUMNS, SORTS, RunTable
from ncmon.tui.widgets.status import Text

CHARTS = ("nc1", "cosine", "loss")
"""Of the run under the cursor, where there is room."""
WIDE, TALL = 140, 36
MOST_SOURCE_ROWS = 4
"""For the states of several targets."""


class OverviewScreen(DataScreen):
    """Screen 1."""

    HINTS = (("/", "filter"), ("space", "mark"), ("s", "sort"), ("*", "baseline"), ("q", "quit"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open the run", show=True),
        Binding("slash", "filter", "filter runs", id="filter"),
        Binding("n", "match(1)", "the next run that matches, the first after the last", id="next-match"),
        Binding("N", "match(-1)", "the run before that matches", id="previous-match"),
        Binding("s", "sort", "sort by the next column", id="sort"),
        Binding("S", "reverse", "reverse the order", id="reverse"),
        Binding("space", "mark", "mark the run for Compare", id="mark"),
        Binding("asterisk", "baseline", "compare others with this run", id="baseline"),
        Binding("escape,q", "leave", "quit", id="back"),
    ]

    def __init__(self) -> None:
        super().__init__(id="overview")
        self.filter = ""

    def compose_body(self) -> ComposeResult:
        """Make the widgets."""
        yield Input(placeholder="name, tag or status; Enter keeps it, Esc clears it", id="filter")
        yield Text(id="sources")
        yield RunTable(id="runs", ascii=self.ncmon.ascii_only)
        yield Text(id="preview")
        with Container(id="overview-charts"):
            for name in CHARTS:
                yield Chart(id=f"overview-{name}", ascii=self.ncmon.ascii_only)

    def on_mount(self) -> None:
        """The table has the keys; the filter appears when it is asked for."""
        field = self.query_one("#filter", Input)
        field.display, field.cursor_blink = False, False
        field.value = self.filter
        self.query_one("#sources").display = False
        table = self.query_one(RunTable)
        table.begin_at(self.ncmon.selection.run_id)
        table.focus()

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        states = {summary.run.run_id: snapshot.state(summary) for summary in snapshot.runs}
        live = sum(state is RunState.LIVE for state in states.values())
        left: list[Span] = [(" ncmon", palette.BOLD)]
        if snapshot.host:
            left.append((f"  {printable(snapshot.host)}", palette.DIM))
        left.append((f"  {live} live  {len(states) - live} stored", palette.NULL))
        if self.filter:
            left.append((f"  /{printable(self.filter)}", palette.BOLD))
        look = self.ncmon.look
        if look.run_sort or look.run_reversed:
            turned = " reversed" if look.run_reversed else ""
            left.append((f"  by {SORTS[look.run_sort % len(SORTS)]}{turned}", palette.DIM))
        if told := delivery(snapshot.counters):
            # The first to go on a narrow terminal, and whole: half of a sum says nothing.
            taken = sum(width(text) for text, _ in (*left, *self.freshness(snapshot)))
            if taken + 2 + width(told) <= self.size.width:
                left.append((f"  {told}", palette.WARN if snapshot.counters.get("rejected") else palette.DIM))
        return left

    def tick(self, snapshot: Snapshot) -> None:
        """The table says how long runs have been silent; charts know nothing of the clock."""
        with contextlib.suppress(NoMatches):
            self._draw_runs(snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        self._draw_runs(snapshot)
        self._draw_charts(snapshot)

    def _draw_runs(self, snapshot: Snapshot) -> None:
        states = {summary.run.run_id: snapshot.state(summary) for summary in snapshot.runs}
        self.show_status(snapshot)
        self._show_sources(snapshot)
        table = self.query_one(RunTable)
        table.sources = tuple(source.label for source in snapshot.sources)
        table.marked, table.baseline = self.ncmon.marked, self.ncmon.baseline
        table.alerts = Counter(alert.run_id for alert in snapshot.open_alerts)
        table.empty = _empty(snapshot, bool(self.filter))
        table.show(self._arranged(snapshot.runs, states), states, snapshot.taken_at)
        self._preview(snapshot, table.cursor)

    def behind(self, snapshot: Snapshot) -> list[Span]:
        """Return how many of several targets are in which state."""
        if not snapshot.sources:
            return super().behind(snapshot)
        counted = Counter(source.state for source in snapshot.sources)
        return [
            (f" {palette.SOURCE_GLYPHS[state]} {count} {state.value}", palette.SOURCE_STYLES[state])
            for state in SourceState
            if (count := counted[state])
        ]

    def _show_sources(self, snapshot: Snapshot) -> None:
        """Say of each of several targets how it does."""
        panel = self.query_one("#sources", Text)
        rows = source_rows(snapshot, self.size.width, min(MOST_SOURCE_ROWS, max(self.size.height // 6, 1)))
        if panel.display != bool(rows) or (rows and panel.size.height != len(rows)):
            panel.display, panel.styles.height = bool(rows), len(rows)
        panel.show(rows)

    def _arranged(self, runs: Sequence[RunSummary], states: dict[str, RunState]) -> list[RunSummary]:
        words = self.filter.lower().split()

        def matches(summary: RunSummary) -> bool:
            run = summary.run
            text = " ".join((run.name, run.run_id, states[run.run_id].value, *run.tags)).lower()
            return all(word in text for word in words)

        kept = [summary for summary in runs if matches(summary)]
        name = SORTS[self.ncmon.look.run_sort % len(SORTS)]
        if name == "name":
            kept.sort(key=lambda summary: summary.run.name)
        elif name != "started":
            column = next(column for column in COLUMNS if column.title == name)
            known = [s for s in kept if not _missing(column.key(s))]
            kept = sorted(known, key=lambda s: float(column.key(s))) + [s for s in kept if _missing(column.key(s))]
        return kept[::-1] if self.ncmon.look.run_reversed else kept

    def _preview(self, snapshot: Snapshot, summary: RunSummary | None) -> None:
        panel = self.query_one("#preview", Text)
        if summary is None:
            panel.show([])
            return
        width = panel.size.width
        rule = "─"
        name = printable(summary.run.name)
        alert = next((one for one in snapshot.open_alerts if one.run_id == summary.run.run_id), None)
        if alert is not None:
            name = fit(f"{name}  ! {title_of(alert.rule)}: {printable(alert.text)}", max(width - 4, 1)).rstrip()
        heading = f"{rule} {name} {rule * max(0, width - len(name) - 3)}"
        style = palette.DIM if alert is None else palette.WARN
        panel.show([((heading[:width], style),), *_lines(snapshot, summary, width)])

    def on_resize(self, event: events.Resize) -> None:
        """Large terminals show the charts of the run under the cursor as well."""
        large = event.size.width >= WIDE and event.size.height >= TALL
        self.query_one("#overview-charts").display = large
        self.call_after_refresh(self.again)

    def _draw_charts(self, snapshot: Snapshot) -> None:
        detail = snapshot.detail
        if detail is None or not self.query_one("#overview-charts").display:
            return
        for name in CHARTS:
            picture = picture_of(name, detail, self.ncmon.look)
            cursor = moment(detail, snapshot.selection, self.ncmon.look)
            chart = self.query_one(f"#overview-{name}", Chart)
            chart.show(framed(picture, self.ncmon.look, cursor=cursor, zoom=self.ncmon.zoom))

    def on_run_table_chosen(self, message: RunTable.Chosen) -> None:
        """Open a run."""
        self.ncmon.open_run(message.run_id)

    def on_run_table_moved(self, message: RunTable.Moved) -> None:
        """The preview follows the cursor, and so does what the feed reads."""
        self.ncmon.select(run_id=message.run_id)
        if (snapshot := self.ncmon.shown) is not None:
            self._preview(snapshot, self.query_one(RunTable).cursor)

    def on_input_changed(self, message: Input.Changed) -> None:
        """Filter while typing."""
        self.filter = message.value
        self.again()

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Keep the filter and go back to the table."""
        self.query_one("#filter").display = False
        self.query_one(RunTable).focus()

    def action_open(self) -> None:
        """Open the run under the cursor."""
        self.query_one(RunTable).action_open()

    def action_filter(self) -> None:
        """Ask for a filter."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_match(self, by: int) -> None:
        """Go on to the next run that the filter leaves, around the ends."""
        self.query_one(RunTable).action_round(by)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self.ncmon.look.run_sort = (self.ncmon.look.run_sort + 1) % len(SORTS)
        self.again()

    def action_reverse(self) -> None:
        """Turn the order around."""
        self.ncmon.look.run_reversed = not self.ncmon.look.run_reversed
        self.again()

    def action_mark(self) -> None:
        """Mark the run under the cursor for the comparison, or take the mark away; then go on to the next."""
        table = self.query_one(RunTable)
        if (summary := table.cursor) is None:
            return
        run_id = summary.run.run_id
        if run_id in self.ncmon.marked:
            del self.ncmon.marked[run_id]
        else:
            self.ncmon.marked[run_id] = None
        self.again()
        table.action_move(1)

    def action_baseline(self) -> None:
        """Compare the others with this run."""
        if (summary := self.query_one(RunTable).cursor) is not None:
            run_id = summary.run.run_id
            self.ncmon.baseline = None if self.ncmon.baseline == run_id else run_id
            self.again()

    def sheet(self) -> Sheet | None:
        """Return the runs."""
        snapshot = self.ncmon.shown
        if snapshot is None or not snapshot.runs:
            return None
        names = list(snapshot.runs[0].values)
        return ("run", "name", "state", "epoch", "step", *names), [
            (s.run.run_id, s.run.name, snapshot.state(s).value, s.epoch, s.step, *(s.values[n] for n in names))
            for s in snapshot.runs
        ]

    def action_leave(self) -> None:
        """Clear the filter; at the root, quit. Training and daemon go on."""
        field = self.query_one("#filter", Input)
        if field.display or self.filter:
            field.value, self.filter, field.display = "", "", False
            self.query_one(RunTable).focus()
            self.again()
        else:
            self.app.exit()


def source_rows(snapshot: Snapshot, width: int, most: int) -> list[Row]:
    """Return the states of several targets, as many to a row as have room; what has none is counted at the end."""
    found: list[list[Span]] = [[]]
    used = 0
    calm = (SourceState.LIVE, SourceState.REPLAY)
    for told, source in enumerate(sorted(snapshot.sources, key=lambda source: source.state in calm)):
        text = f"{palette.SOURCE_GLYPHS[source.state]} {source.label} {source.state.value}"
        if source.state is SourceState.STALE and source.heard:
            text += f" {age(snapshot.taken_at - source.heard)}"
        if source.error and source.state is not SourceState.LIVE and len(snapshot.sources) <= most:
            text += f" {printable(source.error)}"
        text = f" {text} "
        if used and used + cells.width(text) > width - (12 if len(found) == most else 0):
            if len(found) == most:
                found[-1].append((f" +{len(snapshot.sources) - told} more", palette.DIM))
                break
            found.append([])
            used = 0
        found[-1].append((cells.cut(text, width), palette.SOURCE_STYLES[source.state]))
        used += cells.width(text)
    return [tuple(spans) for spans in found if spans]


def _missing(value: float | str) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _empty(snapshot: Snapshot, filtered: bool) -> list[str]:
    if snapshot.error:
        return ["Nothing to show", printable(snapshot.error)]
    if filtered:
        return ["No run matches the filter", "Esc clears it"]
    if snapshot.source is SourceState.DOWN:
        return [
            "No daemon answers and there is no database yet",
            "",
            "ncmon serve        start the daemon",
            "ncmon demo         train a small network under one",
        ]
    return [
        "No run yet",
        "",
        "In the training script:",
        "    monitor = ncmon_client.watch(model, criterion=criterion)",
        "or, to have a look:",
        "    ncmon demo",
    ]


def _lines(snapshot: Snapshot, summary: RunSummary, width: int) -> list[Row]:
    """Return what there is to say of a run: how it does, what it is, how it was configured."""
    return [_verdict(snapshot, summary, width), _facts(snapshot, summary, width), _config(summary, width)]


def _verdict(snapshot: Snapshot, summary: RunSummary, width: int) -> Row:
    """Return in words whether it collapses, which class lags and beside which, and what is certified."""
    detail = snapshot.detail
    if detail is None or detail.run.run_id != summary.run.run_id:
        return ((fit(f" {course(summary.trend)}", width), palette.BOLD),)
    history = detail.series.get(summary.split, {}).get("nc1_pinv")
    said = [course(history.value if history is not None and detail.layer is not None else summary.trend)]
    window = detail.latest.get(summary.split)
    found = window.layers.get(CLASSIFIER_INPUT) if window is not None else None
    arrays = found.class_arrays if found is not None else {}
    if "nearest_class" in arrays and np.isfinite(intra := arrays["intra_cos"]).any():
        worst = int(np.nanargmin(intra))
        nearest = arrays["nearest_class"][worst]
        beside = f", next to {detail.run.class_name(int(nearest))}" if np.isfinite(nearest) else ""
        said.append(f"{detail.run.class_name(worst)} lags{beside}")
    if (certified := detail.certified(summary.split)) is not None:
        said.append(f"certified {certified[0]}/{certified[1]}")
    return ((fit(" " + " | ".join(printable(part) for part in said if part), width), palette.BOLD),)


def _facts(snapshot: Snapshot, summary: RunSummary, width: int) -> Row:
    run = summary.run
    parts = [f"{summary.n_layers} layers", f"{run.n_classes} classes", f"{summary.n_windows} windows"]
    detail: Detail | None = snapshot.detail
    if detail is not None and detail.run.run_id == run.run_id and detail.gaps:
        parts.append(f"{detail.gaps} gaps")
    parts.append(f"on {run.host}" if run.host else run.run_id)
    return ((fit(" " + " | ".join(parts), width), palette.NULL),)


def _config(summary: RunSummary, width: int) -> Row:
    config = summary.run.config
    text = "  ".join(f"{key} {number(v) if isinstance(v, float) else v}" for key, v in config.items())
    return ((fit(f" {text}", width), palette.DIM),)
