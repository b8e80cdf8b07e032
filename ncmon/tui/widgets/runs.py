"""The table of runs: only the rows in sight are made, however many runs there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from ncmon import cells
from ncmon.feed import RunState
from ncmon.store.results import RunSummary
from ncmon.tui import palette
from ncmon.tui.format import age, fit, middle, number, percent
from ncmon.tui.raster import sparkline
from ncmon.tui.widgets.lines import Lines, Row, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: wider terminals show more of them, by `rank`."""

    title: str
    width: int
    rank: int
    text: Callable[[RunSummary], str]
    key: Callable[[RunSummary], float | str]


def _value(summary: RunSummary, name: str) -> float:
    return float(summary.values.get(name, np.nan))


def _epoch(summary: RunSummary) -> str:
    if summary.epoch is None:
        return "-"
    total = summary.run.config.get("epochs")
    done = summary.epoch + 1 if summary.epoch >= 0 else 0
    return f"{done}/{total}" if isinstance(total, int) else str(done)


COLUMNS = (
    Column(title="EPOCH", width=7, rank=1, text=_epoch, key=lambda s: float(s.epoch or 0)),
    Column(
        title="LOSS", width=7, rank=2, text=lambda s: number(_value(s, "ce_loss")), key=lambda s: _value(s, "ce_loss")
    ),
    Column(
        title="NC1", width=7, rank=0, text=lambda s: number(_value(s, "nc1_pinv")), key=lambda s: _value(s, "nc1_pinv")
    ),
    Column(
        title="minINTRA",
        width=8,
        rank=3,
        text=lambda s: number(_value(s, "intra_cos_min")),
        key=lambda s: _value(s, "intra_cos_min"),
    ),
    Column(
        title="maxINTER",
        width=8,
        rank=4,
        text=lambda s: number(_value(s, "inter_cos_max")),
        key=lambda s: _value(s, "inter_cos_max"),
    ),
    Column(
        title="NCC%", width=5, rank=5, text=lambda s: percent(_value(s, "ncc_acc")), key=lambda s: _value(s, "ncc_acc")
    ),
    Column(
        title="ACC%",
        width=5,
        rank=7,
        text=lambda s: percent(_value(s, "accuracy")),
        key=lambda s: _value(s, "accuracy"),
    ),
)
NAME_WIDTH, TREND_WIDTH, MOST_TREND = 14, 8, 32
ROOM_FOR_BOTH = 100
"""Columns from which a silent run shows its numbers too."""
TREND_RANK = 5
"""Columns of this rank and above come after the trend."""
ALERT_WIDTH, LEAST_WITH_ALERTS = 4, 40
SORTS = ("started", "name", *(column.title for column in COLUMNS))


class RunTable(Lines, can_focus=True):
    """Runs with a cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("g,home", "edge(0)", "first", show=False),
        Binding("G,end", "edge(-1)", "last", show=False),
        Binding("enter,l,right", "open", "open", show=False),
    ]

    class Chosen(Message):
        """A run is to be opened."""

        def __init__(self, run_id: str) -> None:
            super().__init__()
            self.run_id = run_id

    class Moved(Message):
        """The cursor is on another run."""

        def __init__(self, run_id: str) -> None:
            super().__init__()
            self.run_id = run_id

    def __init__(self, *, id: str | None = None, ascii: bool = False) -> None:
        super().__init__(id=id)
        self.ascii_only = ascii
        self.empty: Sequence[str] = ()
        self.marked: Collection[str] = ()
        self.baseline: str | None = None
        self.sources: Sequence[str] = ()
        """Labels of several targets: then each run says which it is of."""
        self.alerts: Mapping[str, int] = {}
        """How many alerts press, of runs that have any."""
        self._runs: tuple[RunSummary, ...] = ()
        self._states: dict[str, RunState] = {}
        self._now = 0.0
        self._cursor_id: str | None = None
        self._top = 0

    @property
    def cursor(self) -> RunSummary | None:
        """The run under the cursor."""
        place = self._place()
        return self._runs[place] if self._runs else None

    def begin_at(self, run_id: str | None) -> None:
        """Put the cursor on a run before there are any."""
        self._cursor_id = run_id

    def show(self, runs: Sequence[RunSummary], states: dict[str, RunState], now: float) -> None:
        """Show these runs; the cursor stays on its run."""
        self._runs, self._states, self._now = tuple(runs), states, now
        self.redraw()

    def _place(self) -> int:
        for place, summary in enumerate(self._runs):
            if summary.run.run_id == self._cursor_id:
                return place
        return 0

    def _go(self, place: int) -> None:
        if not self._runs:
            return
        place = min(max(place, 0), len(self._runs) - 1)
        self._cursor_id = self._runs[place].run.run_id
        self.redraw()
        self.post_message(self.Moved(self._cursor_id))

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._go(self._place() + by)

    def action_round(self, by: int) -> None:
        """Move the cursor, from the last run to the first and back."""
        if self._runs:
            self._go((self._place() + by) % len(self._runs))

    def action_page(self, by: int) -> None:
        """Move the cursor by a page."""
        self._go(self._place() + by * max(self.size.height - 2, 1))

    def action_edge(self, place: int) -> None:
        """Go to the first (0) or last (-1) run."""
        self._go(place if place >= 0 else len(self._runs) - 1)

    def action_open(self) -> None:
        """Open the run under the cursor."""
        if (summary := self.cursor) is not None:
            self.post_message(self.Chosen(summary.run.run_id))

    def on_click(self, event: events.Click) -> None:
        """Go to the run that was clicked; open it where the cursor is there already."""
        place = self._top + event.y - 1
        if 0 <= place < len(self._runs) and event.y >= 1:
            if place == self._place() and event.chain >= 2:
                self.action_open()
            self._go(place)

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return the heading and the runs in sight; the last column is that of alerts, where there are any."""
        if not self.alerts or width < LEAST_WITH_ALERTS:
            return self._listed(width, height)
        rows = self._listed(width - ALERT_WIDTH, height)
        counts = [self.alerts.get(summary.run.run_id, 0) for summary in self._runs[self._top :]]
        shown = [
            ("  !", palette.DIM),
            *((f" !{count if count > 1 else ''}" if count else "", palette.BAD) for count in counts),
        ]
        return [
            (*row, (" " * max(width - ALERT_WIDTH - sum(cells.width(text) for text, _ in row), 0), palette.NULL), flag)
            for row, flag in zip(rows, shown, strict=False)
        ]

    def _listed(self, width: int, height: int) -> Sequence[Row]:
        lane = min(max(map(len, ("SOURCE", *self.sources))), max(width // 6, 6)) + 1 if self.sources else 0
        name_width, columns, trend = _layout(width - lane)
        heading = f"    {fit('RUN', name_width)}{fit(' SOURCE', lane)} STATE"
        heading += "".join(f" {column.title:>{column.width}}" for column in columns)
        if trend:
            heading += f"  {'NC1 trend' if trend > TREND_WIDTH else 'NC1':<{trend}}"
        rows: list[Row] = [((fit(heading, width), palette.DIM),)]
        if not self._runs:
            return [
                *rows,
                *(((f"    {line}", palette.NULL if i else palette.BOLD),) for i, line in enumerate(self.empty)),
            ]
        cursor, visible = self._place(), max(height - 1, 1)
        self._top = min(max(self._top, cursor - visible + 1), cursor)
        self._top = max(0, min(self._top, len(self._runs) - visible))
        for place in range(self._top, min(self._top + visible, len(self._runs))):
            rows.append(self._row(self._runs[place], place == cursor, name_width, lane, columns, trend, width))
        return rows

    def _flag(self, run_id: str) -> Span:
        """Return what says that a run is marked, or is what others are compared with."""
        if run_id == self.baseline:
            return "*", palette.WARN
        return ("+", palette.GOOD) if run_id in self.marked else (" ", palette.NULL)

    def _row(
        self,
        summary: RunSummary,
        here: bool,
        name_width: int,
        lane: int,
        columns: Sequence[Column],
        trend: int,
        width: int,
    ) -> Row:
        state = self._states.get(summary.run.run_id, RunState.LIVE)
        mark = "▸" if here else " "
        name_style = palette.BOLD if here else palette.NULL
        spans: list[Span] = [
            (mark, palette.BOLD),
            self._flag(summary.run.run_id),
            (f"{palette.RUN_GLYPHS[state]} ", palette.RUN_STYLES[state]),
            (fit(middle(summary.run.name, name_width), name_width), name_style),
            (fit(f" {summary.run.run_id.rpartition('@')[2]}", lane) if lane else "", palette.DIM),
            (f" {_word(state)}", palette.RUN_STYLES[state]),
        ]
        silent = ""
        if state is RunState.STALE and summary.run.last_seen is not None:
            silent = f" silent for {age(self._now - summary.run.last_seen)}"
        if width < ROOM_FOR_BOTH:
            spans.append((silent, palette.RUN_STYLES[state]))
        dim = palette.DIM if state in (RunState.ENDED, RunState.FAILED) else palette.NULL
        if not silent or width >= ROOM_FOR_BOTH:
            spans += [(f" {column.text(summary):>{column.width}}", dim) for column in columns]
        if trend and (not silent or width >= ROOM_FOR_BOTH):
            drawn = sparkline(summary.trend, trend, ascii=self.ascii_only)
            spans.append((f"  {drawn:<{trend}}", Style(color=palette.SKY)))
        if silent and width >= ROOM_FOR_BOTH:
            spans.append((f" {silent}", palette.RUN_STYLES[state]))
        return tuple(spans)


def _word(state: RunState) -> str:
    return {RunState.LIVE: "live ", RunState.STALE: "stale", RunState.ENDED: "ended", RunState.FAILED: "fail "}[state]


def _layout(width: int) -> tuple[int, Sequence[Column], int]:
    """Return the width of the name, the columns that fit, and the width of the trend."""
    left = width - (4 + NAME_WIDTH + 6)
    chosen: list[Column] = []
    trend = 0
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        if column.rank >= TREND_RANK and not trend and left >= TREND_WIDTH + 2:
            # Where a run is heading says more than the rest of the numbers.
            trend = TREND_WIDTH
            left -= trend + 2
        if left >= column.width + 1:
            chosen.append(column)
            left -= column.width + 1
    if trend:
        more = min(left, MOST_TREND - trend)
        trend, left = trend + more, left - more
    columns = [column for column in COLUMNS if column in chosen]
    return NAME_WIDTH + max(0, min(left, 30)), columns, trend
