"""A widget that is rows of text: it compares new rows with the old ones and redraws only those that changed.

Textual sends a whole region again when a widget refreshes; over ssh a chart that repaints every second is most of the
traffic. Here a refresh that changes nothing sends nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from ncmon.tui import palette

Span = tuple[str, Style]
"""A piece of text and its style."""
Row = tuple[Span, ...]


ASCII = str.maketrans("●○▸◂▲▼…─│└┄┃·⠤▁▂▃▄▅▆▇█▌≥≤−", "*o><^v~-|+.|.-__..-=###><-")
"""What stands for a glyph where the terminal knows ASCII only."""


def ascii_text(text: str) -> str:
    """Return a text of the same length in ASCII."""
    return text.translate(ASCII).encode("ascii", "replace").decode("ascii")


class Lines(Widget):
    """Draws the rows that `compose_rows` returns for the present size.

    Every segment gets a style: one without crashes the filter that NO_COLOR puts in.
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Row] = []

    @property
    def _kind(self) -> str:
        return palette.kind_of(self.app.current_theme)

    @property
    def ink(self) -> Literal["colour", "blocks", "digits"]:
        """How a heat map can be drawn here: without colour by shade, in ASCII by digits."""
        if getattr(self.app, "ascii_only", False):
            return "digits"
        plain = self._kind in (palette.MONO, palette.ANSI) or bool(os.environ.get("NO_COLOR"))
        return "blocks" if plain or self.app.console.color_system in (None, "standard") else "colour"

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return the rows to show; a shorter list leaves the rest blank."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Compose again and refresh what changed."""
        width, height = self.size
        if not (width and height):
            return
        new = list(self.compose_rows(width, height))[:height]
        if getattr(self.app, "ascii_only", False):
            new = [tuple((ascii_text(text), style) for text, style in row) for row in new]
        new += [()] * (height - len(new))
        old, self._rows = self._rows, new
        changed = [y for y in range(height) if y >= len(old) or old[y] != new[y]]
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def on_resize(self) -> None:
        """A new size is a new picture."""
        self._rows = []
        self.redraw()

    def render_line(self, y: int) -> Strip:
        """Return one row."""
        width = self.size.width
        if y >= len(self._rows):
            return Strip([Segment(" " * width, self.rich_style)], width)
        base, kind = self.rich_style, self._kind
        segments = [Segment(text, base + palette.inked(style, kind)) for text, style in self._rows[y] if text]
        return Strip(segments).adjust_cell_length(width, base)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Fill what there is."""
        return container.height
