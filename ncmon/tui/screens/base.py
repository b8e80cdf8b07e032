"""What all screens share: a status line, a footer, being shown a snapshot, and saying what they show as a table."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen

from ncmon.alerts import title_of
from ncmon.detail import Detail, main_split
from ncmon.feed import RunState, Snapshot, SourceState
from ncmon.model import Alert
from ncmon.tui import palette
from ncmon.tui.format import age, clock, cut, day_clock, fit, middle, printable, width
from ncmon.tui.widgets.footer import Foot, Hint
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.status import Text
from ncmon.tui.widgets.table import Table

if TYPE_CHECKING:
    from ncmon.tui.app import NcmonApp

ROOM_FOR_TITLE = 120
"""Columns from which the status line says what an alert is about, and not only that there is one."""

ROOM_FOR_CLOCK = 60
"""Columns from which it says what time it is."""

LEAST_CUT = 12
"""Columns of a text that is cut, below which it is left out."""

Sheet = tuple[Sequence[str], Sequence[Sequence[object]]]
"""Headings and rows: what `y` copies and `e` exports."""


LONGEST_NAME = 32
"""Of a run or a layer in the status line: behind it stands what else has to be seen."""


def key_of(alert: Alert) -> tuple[str, int]:
    """Return what tells an alert apart, of whichever target it came from."""
    return alert.run_id, alert.alert_id


class DataScreen(Screen[None]):
    """A screen that draws snapshots."""

    HINTS: ClassVar[Sequence[Hint]] = ()
    PANELS: ClassVar[Sequence[str]] = ()
    """The widgets of which `z` shows one alone."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.large: str | None = None

    def compose(self) -> ComposeResult:
        """Make the widgets: what there is in between is the screen's own."""
        yield Text(id="status")
        yield from self.compose_body()
        yield Foot(self.id or "", self.HINTS)

    def compose_body(self) -> ComposeResult:
        """Make the screen's own widgets."""
        raise NotImplementedError

    @property
    def ncmon(self) -> NcmonApp:
        """The application, by its own type."""
        return cast("NcmonApp", self.app)

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        raise NotImplementedError

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        raise NotImplementedError

    def tick(self, snapshot: Snapshot) -> None:
        """Draw what the clock alone changes: nothing else came."""
        self.show_status(snapshot)

    def sheet(self) -> Sheet | None:
        """Return what is shown, as a table; None when there is nothing."""
        return None

    def copied(self) -> Sheet | None:
        """Return what `y` copies: what is in sight, for a clipboard is small."""
        return self.sheet()

    def again(self) -> None:
        """Draw what there is, as soon as there are widgets to draw on; the footer is the last of them."""
        if (snapshot := self.ncmon.shown) is not None:
            # While the application ends, widgets go one by one and a last snapshot may still come.
            with contextlib.suppress(NoMatches):
                self.query_one("#foot")
                self.show(snapshot)

    def on_screen_resume(self) -> None:
        """Draw what came while the screen was hidden."""
        self.call_after_refresh(self.again)

    def show_status(self, snapshot: Snapshot) -> None:
        """Write the status line: what this is on the left, how fresh it is on the right."""
        with contextlib.suppress(NoMatches):
            line = self.query_one("#status", Text)
            line.show([justified(self.left(snapshot), self.freshness(snapshot), line.size.width)])

    def freshness(self, snapshot: Snapshot) -> list[Span]:
        """Return the spans that say what stands behind the picture, and since when it stands still."""
        spans = self.behind(snapshot)
        if count := len(snapshot.open_alerts):
            spans.insert(0, (f"! {self._alerted(snapshot, count)}  ", palette.BAD))
        if (at := moment_text(snapshot)) and snapshot.selection.view != "overview":
            spans.insert(0, (f"◂ {at}  ", palette.WARN))
        if self.ncmon.frozen_at is not None:
            behind = age(self.ncmon.clock() - self.ncmon.frozen_at)
            spans.insert(0, (f"FROZEN +{behind}  ", palette.WARN))
        if snapshot.source is not SourceState.REPLAY:
            # Of a narrow line the name of the run needs that room more.
            if self.size.width >= ROOM_FOR_CLOCK:
                spans.append((f"  {clock(snapshot.taken_at)}", palette.DIM))
        elif (heard := last_heard(snapshot)) is not None:
            spans.append((f" {day_clock(heard, snapshot.taken_at)}", palette.DIM))
        return [("  ", palette.NULL), *spans, (" ", palette.NULL)]

    def _alerted(self, snapshot: Snapshot, count: int) -> str:
        """Return how many alerts press; where there is room, what the first of the run in sight is about."""
        run_id = snapshot.detail.run.run_id if snapshot.detail is not None else None
        own = [alert for alert in snapshot.open_alerts if alert.run_id == run_id]
        if own and self.size.width >= ROOM_FOR_TITLE and snapshot.selection.view != "overview":
            return title_of(own[0].rule) + (f" +{count - 1}" if count > 1 else "")
        return f"{count} alert{'s' * (count != 1)}"

    def behind(self, snapshot: Snapshot) -> list[Span]:
        """Return the spans that say what stands behind the picture: of several targets, the one whose run it shows."""
        state, label = snapshot.source, ""
        if snapshot.detail is not None and (source := snapshot.source_of(snapshot.detail.run.run_id)) is not None:
            state, label = source.state, f" {source.label}"
        glyph = palette.SOURCE_GLYPHS[state] if snapshot.sources else "●"
        return [(f"{glyph}{label} {state.value}", palette.SOURCE_STYLES[state])]

    # -- one panel alone ----------------------------------------------------------------------------------------------

    def action_maximise(self) -> None:
        """The focused panel alone, and back."""
        focused = self.focused.id if self.focused is not None else None
        self.large = None if self.large else (focused if focused in self.PANELS else self.PANELS[0])
        self.make_panels(self.size.width, self.size.height)

    def make_panels(self, width: int, height: int) -> None:
        """Show the panels that have room."""

    def lead_back(self) -> None:
        """From a large panel to all of them, the table with the keys; from all of them to the overview."""
        if not self.large:
            self.ncmon.action_screen("overview")
            return
        self.action_maximise()
        if tables := list(self.query(Table)):
            tables[0].focus()

    def only(self, large: str | None) -> None:
        """Show one panel, or all."""
        for name in self.PANELS:
            self.query_one(f"#{name}").display = large in (None, name)
        # A hidden widget has no keys: they go to the one that is left, and to the table when it is back.
        if self.is_current:
            alone = self.query_one(f"#{large}") if large is not None else None
            table = next((w for w in self.query(Table) if w.display), None)
            if alone is not None and alone.can_focus:
                alone.focus()
            elif table is not None and (self.focused is None or not self.focused.display):
                table.focus()
        self.call_after_refresh(self.again)


class OneRunScreen(DataScreen):
    """A screen about one run."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left_square_bracket", "layer(-1)", "previous layer", id="previous-layer", show=False),
        Binding("right_square_bracket", "layer(1)", "next layer", id="next-layer", show=False),
        Binding("t", "split", "train or test", id="split", show=False),
        Binding("z", "maximise", "one panel alone", id="maximise", show=False),
        Binding("escape,q", "back", "back", id="back", show=False),
    ]

    def heading(self, snapshot: Snapshot, *more: str) -> list[Span]:
        """Return the left of the status line: run, layer, epoch, and what is not as it should be."""
        detail = snapshot.detail
        if detail is None:
            return [(f" {printable(snapshot.error)}" if snapshot.error else " no run", palette.BOLD)]
        summary = next((s for s in snapshot.runs if s.run.run_id == detail.run.run_id), None)
        spans: list[Span] = [(f" {middle(detail.run.name, LONGEST_NAME)}", palette.BOLD)]
        if summary is not None and (state := snapshot.state(summary)) is not RunState.LIVE:
            text = state.value
            if state is RunState.STALE and detail.run.last_seen is not None:
                text = f"STALE {age(snapshot.taken_at - detail.run.last_seen)}"
            spans.append((f" {palette.RUN_GLYPHS[state]} {text}", palette.RUN_STYLES[state]))
        if detail.layer is not None:
            names = [key.name for key in detail.layers]
            place = names.index(detail.layer.name) + 1
            spans.append((f"  {fit(detail.layer.name, LONGEST_NAME).rstrip()} [{place}/{len(names)}]", palette.NULL))
        spans += [(f"  {printable(text)}", palette.NULL) for text in more]
        if summary is not None and summary.epoch is not None and snapshot.selection.step is None:
            total = detail.run.config.get("epochs")
            done = summary.epoch + 1
            spans.append((f"  epoch {done}/{total}" if isinstance(total, int) else f"  epoch {done}", palette.NULL))
        if detail.gaps:
            spans.append((f"  {detail.gaps} gaps", palette.RUN_STYLES[RunState.STALE]))
        return spans

    def action_layer(self, by: int) -> None:
        """Show the layer before or behind, in the order of the forward pass."""
        snapshot = self.ncmon.shown
        if snapshot is None or snapshot.detail is None or snapshot.detail.layer is None:
            return
        names = [key.name for key in snapshot.detail.layers]
        place = names.index(snapshot.detail.layer.name) + by
        self.ncmon.select(layer=names[min(max(place, 0), len(names) - 1)])

    def action_split(self) -> None:
        """The next split."""
        snapshot = self.ncmon.shown
        if snapshot is None or snapshot.detail is None or not snapshot.detail.splits:
            return
        splits = snapshot.detail.splits
        now = shown_split(snapshot.detail, snapshot.selection.split)
        self.ncmon.select(split=splits[(splits.index(now) + 1) % len(splits)])

    def action_back(self) -> None:
        """Back to the overview, from a large panel to all of them first."""
        self.lead_back()


def shown_split(detail: Detail, wanted: str | None) -> str:
    """Return the split that a view shows."""
    return wanted if wanted in detail.splits and wanted is not None else main_split(detail.splits)


def moment_text(snapshot: Snapshot) -> str:
    """Return which past moment is looked at, empty while the picture follows the run."""
    detail, step = snapshot.detail, snapshot.selection.step
    if detail is None or step is None:
        return ""
    epochs = [window.epoch for window in detail.latest.values() if window.epoch >= 0]
    return f"epoch {max(epochs) + 1}" if epochs else f"step {step}"


def last_heard(snapshot: Snapshot) -> float | None:
    """Return when the run that is looked at, or any of them, was last heard of."""
    wanted = snapshot.detail.run.run_id if snapshot.detail is not None else None
    heard = [
        summary.run.last_seen
        for summary in snapshot.runs
        if summary.run.last_seen is not None and wanted in (None, summary.run.run_id)
    ]
    return max(heard, default=None)


def whole(spans: list[Span], room: int) -> list[Span]:
    """Return what has room, each piece whole or not at all: half a number is another number."""
    kept: list[Span] = []
    for text, style in spans:
        if (room := room - width(text)) < 0:
            break
        kept.append((text, style))
    return kept


def justified(left: list[Span], right: list[Span], room: int) -> Row:
    """Return a row with spans at both ends; the right end stays.

    What has no room on the left is cut where enough of it stays to be read, and left out where not: half of
    `epoch 40/40` says nothing.
    """
    room -= sum(width(text) for text, _ in right)
    if room < 0:
        return tuple(right)
    kept: list[Span] = []
    for text, style in left:
        part = cut(text, room)
        if kept and part != text:
            if room < LEAST_CUT:
                break
            part = fit(text, room)
        room -= width(part)
        if part:
            kept.append((part, style))
    return (*kept, (" " * max(room, 0), palette.NULL), *right)
