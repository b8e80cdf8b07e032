"""What all screens share: a status line, a footer, and being shown a snapshot."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

from rich.style import Style
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import Footer

from ncmon.feed import Snapshot, SourceState
from ncmon.tui import palette
from ncmon.tui.format import age, clock
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.status import Text

if TYPE_CHECKING:
    from ncmon.tui.app import NcmonApp


class DataScreen(Screen[None]):
    """A screen that draws snapshots."""

    @property
    def ncmon(self) -> NcmonApp:
        """The application, by its own type."""
        return cast("NcmonApp", self.app)

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        raise NotImplementedError

    def again(self) -> None:
        """Draw what there is, as soon as there are widgets to draw on; the footer is the last of them."""
        if (snapshot := self.ncmon.shown) is not None and self.query(Footer):
            # While the application ends, widgets go one by one and a last snapshot may still come.
            with contextlib.suppress(NoMatches):
                self.show(snapshot)

    def on_screen_resume(self) -> None:
        """Draw what came while the screen was hidden."""
        self.call_after_refresh(self.again)

    def status(self, left: list[Span], snapshot: Snapshot) -> None:
        """Write the status line: what this is on the left, how fresh it is on the right."""
        line = self.query_one("#status", Text)
        line.show([justified(left, self.freshness(snapshot), line.size.width)])

    def freshness(self, snapshot: Snapshot) -> list[Span]:
        """Return the spans that say what stands behind the picture, and since when it stands still."""
        spans: list[Span] = [(f"● {snapshot.source.value}", palette.SOURCE_STYLES[snapshot.source])]
        if self.ncmon.frozen_at is not None:
            behind = age(self.ncmon.clock() - self.ncmon.frozen_at)
            spans.insert(0, (f"FROZEN +{behind}  ", Style(color=palette.ORANGE, bold=True)))
        if snapshot.source is not SourceState.REPLAY:
            spans.append((f"  {clock(snapshot.taken_at)}", palette.DIM))
        return [*spans, (" ", palette.NULL)]


def justified(left: list[Span], right: list[Span], width: int) -> Row:
    """Return a row with spans at both ends; what has no room on the left is cut, the right end stays."""
    room = width - sum(len(text) for text, _ in right)
    if room < 0:
        return tuple(right)
    kept: list[Span] = []
    for text, style in left:
        part = text[: max(room, 0)]
        room -= len(part)
        if part:
            kept.append((part, style))
    return (*kept, (" " * max(room, 0), palette.NULL), *right)
