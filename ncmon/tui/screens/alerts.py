"""Alerts: what, run, layer, class, since when, acknowledged; and what to do about the one under the cursor."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Mapping
from typing import ClassVar

from rich.style import Style
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.css.query import NoMatches

from ncmon.alerts import RULES, title_of
from ncmon.feed import Snapshot, SourceState
from ncmon.model import Alert, Run
from ncmon.tui import palette
from ncmon.tui.format import ago, day_clock, moment, number, printable
from ncmon.tui.screens.base import DataScreen, Sheet, key_of
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.status import Text
from ncmon.tui.widgets.table import Cell, Column, Table

COLUMNS = (
    Column(title="", width=1, rank=0, right=False),
    Column(title="WHAT", width=23, rank=0, right=False),
    Column(title="RUN", width=14, rank=1, right=False),
    Column(title="LAYER", width=16, rank=2, right=False),
    Column(title="CLASS", width=7, rank=2, right=False),
    Column(title="SINCE", width=6, rank=1),
    Column(title="STATE", width=5, rank=1, right=False),
    Column(title="EPOCH", width=6, rank=4),
    Column(title="VALUE", width=9, rank=5),
    Column(title="SPLIT", width=12, rank=6, right=False),
    Column(title="WHY", width=24, rank=3, right=False, grows=True),
)
SMALL_HEIGHT = 12
_ADVICE = {rule.name: rule for rule in RULES}


class AlertsScreen(DataScreen):
    """Screen 7."""

    PANELS = ("alert-table", "alert-text")
    HINTS = (("enter", "go"), ("A", "ack"), ("o", "open only"), ("{ }", "alert"), ("q", "back"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "only_open", "open alerts alone, or what is over as well", id="only-open"),
        Binding("z", "maximise", "one panel alone", id="maximise"),
        Binding("escape,q", "back", "back", id="back"),
    ]

    def __init__(self) -> None:
        super().__init__(id="alerts")
        self._said: tuple[str, int] = ("", 0)
        """What is shown that the clock changes: how long ago something was, and which day it is."""

    def compose_body(self) -> ComposeResult:
        """Make the widgets."""
        with Container(id="alerts-body"):
            yield Table(id="alert-table")
            yield Text(id="alert-text")

    def on_mount(self) -> None:
        """The table has the keys."""
        self.query_one(Table).focus()

    def on_resize(self, event: events.Resize) -> None:
        """Small terminals show the table alone."""
        self.make_panels(event.size.width, event.size.height)

    def make_panels(self, width: int, height: int) -> None:
        """Show the panels that have room."""
        large = self.large or ("alert-table" if height < SMALL_HEIGHT else None)
        self.set_class(large is not None, "-one")
        self.set_class(height < 5, "-tiny")
        self.only(large)

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        pressing, standing = len(snapshot.open_alerts), sum(alert.open for alert in snapshot.alerts)
        over = len(snapshot.alerts) - standing
        said = f"  {pressing} to look at  {standing - pressing} seen or news  {over} over"
        return [(" alerts", palette.BOLD), (said, palette.NULL)]

    def tick(self, snapshot: Snapshot) -> None:
        """Times are of the day and stand still; how long ago something was changes once a minute."""
        with contextlib.suppress(NoMatches):
            if self._by_the_clock(snapshot) == self._said:
                self.show_status(snapshot)
            else:
                self.show(snapshot)

    def _by_the_clock(self, snapshot: Snapshot) -> tuple[str, int]:
        chosen = next((alert for alert in snapshot.alerts if key_of(alert) == self.cursor), None)
        passed = "" if chosen is None else ago(snapshot.taken_at - chosen.since)
        return passed, time.localtime(snapshot.taken_at).tm_yday

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        self.show_status(snapshot)
        table, text = self.query_one(Table), self.query_one("#alert-text", Text)
        alerts = self._listed(snapshot)
        runs = {summary.run.run_id: summary.run for summary in snapshot.runs}
        table.empty = _empty(snapshot)
        ascii_only = self.ncmon.ascii_only
        table.show(
            COLUMNS,
            [key_of(alert) for alert in alerts],
            lambda place: _cells(alerts[place], runs, snapshot.taken_at, ascii=ascii_only),
            cursor=self.ncmon.alert_at,
        )
        if text.display:
            chosen = next((alert for alert in alerts if key_of(alert) == table.cursor), None)
            rows = _explained(chosen, runs, text.size.width, snapshot.taken_at) if chosen is not None else []
            text.show(rows)
        self._said = self._by_the_clock(snapshot)

    @property
    def cursor(self) -> tuple[str, int] | None:
        """The alert under the cursor."""
        key = self.query_one(Table).cursor
        return key if isinstance(key, tuple) else None

    def _listed(self, snapshot: Snapshot) -> list[Alert]:
        return [alert for alert in snapshot.alerts if alert.open or not self.ncmon.look.alerts_open]

    # -- keys ---------------------------------------------------------------------------------------------------------

    @on(Table.Moved)
    def moved(self, message: Table.Moved) -> None:
        """The cursor is on another alert: that is the one that A and enter mean."""
        if isinstance(message.key, tuple):
            self.ncmon.alert_at = message.key
        self.again()

    @on(Table.Chosen)
    def chosen(self, message: Table.Chosen) -> None:
        """Go to where it can be seen."""
        snapshot = self.ncmon.shown
        alert = next((a for a in snapshot.alerts if key_of(a) == message.key), None) if snapshot is not None else None
        if alert is not None:
            self.ncmon.go_to(alert)

    def action_only_open(self) -> None:
        """Open alerts alone, or all that are known."""
        self.ncmon.look.alerts_open = not self.ncmon.look.alerts_open
        self.again()

    def action_back(self) -> None:
        """Back to the overview, from a large panel to both first."""
        self.lead_back()

    def sheet(self) -> Sheet | None:
        """Return the alerts."""
        snapshot = self.ncmon.shown
        if snapshot is None or not snapshot.alerts:
            return None
        runs = {summary.run.run_id: summary.run for summary in snapshot.runs}
        rows = []
        for one in self._listed(snapshot):
            run = runs.get(one.run_id)
            name = run.name if run is not None else one.run_id
            class_name = run.class_name(one.class_index) if run is not None and one.class_index is not None else ""
            where = (one.layer, class_name, one.split, one.epoch if one.epoch >= 0 else None)
            rows.append(
                (one.rule, one.severity, name, *where, one.since, one.cleared, one.acknowledged, one.value, one.text)
            )
        heads = "what severity run layer class split epoch since cleared acknowledged value text"
        return heads.split(), rows


def _empty(snapshot: Snapshot) -> list[str]:
    if snapshot.error:
        return ["Nothing to show", printable(snapshot.error)]
    lines = ["Nothing to look at: no rule has raised anything"]
    if snapshot.source is not SourceState.LIVE:
        lines += ["", "Rules look on while a daemon runs:", "    ncmon serve"]
    return [*lines, "", "What the rules look for:", "    ncmon alerts --rules"]


def style_of(alert: Alert) -> tuple[str, Style]:
    """Return the glyph and the style of an alert."""
    if not alert.open:
        return "○", palette.DIM
    if alert.severity == "info":
        return "i", palette.SOURCE_STYLES[SourceState.REPLAY]
    if alert.acknowledged is not None:
        return "!", palette.DIM
    return "!", palette.BAD if alert.severity == "alert" else palette.WARN


def _cells(alert: Alert, runs: Mapping[str, Run], now: float, *, ascii: bool) -> list[Cell]:
    glyph, style = style_of(alert)
    run = runs.get(alert.run_id)
    plain = palette.NULL if alert.open else palette.DIM
    index = alert.class_index
    name = run.class_name(index) if run is not None and index is not None else "" if index is None else str(index)
    state = "over" if not alert.open else "seen" if alert.acknowledged is not None else "open"
    kind = "exact" if alert.exact else ""
    return [
        ("o" if ascii and glyph == "○" else glyph, style),
        (title_of(alert.rule), style),
        (run.name if run is not None else alert.run_id, plain),
        (alert.layer or "-", plain),
        (name or "-", plain),
        (day_clock(alert.since, now), plain),
        (state, style if state == "open" else palette.DIM),
        (str(alert.epoch + 1) if alert.epoch >= 0 else "-", plain),
        (number(alert.value), plain),
        (f"{alert.split} {kind}".strip() or "-", palette.DIM),
        (alert.text, plain),
    ]


def _explained(alert: Alert, runs: Mapping[str, Run], width: int, now: float) -> list[Row]:
    """Return what an alert says, what its rule means, and what to do."""
    glyph, style = style_of(alert)
    run = runs.get(alert.run_id)
    head = f"{title_of(alert.rule)}  {printable(run.name if run is not None else alert.run_id)}"
    rows: list[Row] = [((f" {glyph} ", style), (head, palette.BOLD)), *_wrapped(alert.text, width, palette.NULL)]
    times = [f"since {moment(alert.since, now)}, {ago(now - alert.since)}"]
    if alert.epoch >= 0:
        times.append(f"epoch {alert.epoch + 1}")
    if alert.cleared is not None:
        times.append(f"over at {moment(alert.cleared, now)}")
    if alert.acknowledged is not None:
        times.append(f"acknowledged at {moment(alert.acknowledged, now)}")
    rows.append(((f"  {', '.join(times)}", palette.DIM),))
    rule = _ADVICE.get(alert.rule)
    if rule is not None:
        rows += [(), *_wrapped(rule.meaning, width, palette.DIM), *_wrapped(rule.advice, width, palette.NULL)]
    return rows


def _wrapped(text: str, width: int, style: Style) -> list[Row]:
    return [((f"  {line}", style),) for line in textwrap.wrap(printable(text), max(width - 3, 20))]
