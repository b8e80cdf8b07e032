"""A widget that is rows of text: it compares new rows with the old ones and redraws only those that changed.

Textual sends a whole region again when a widget refreshes; over ssh a chart that repaints every second is most of the
traffic. Here a refresh that changes nothing sends nothing, and of a row that changes only the part that does.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Literal

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from ncmon.cells import width as cell_width
from ncmon.tui import palette

Span = tuple[str, Style]
"""A piece of text and its style."""
Row = tuple[Span, ...]


ASCII = str.maketrans("●○▸◂▲▼…─│└┄┃·⠤▁▂▃▄▅▆▇█▌≥≤−", "*o><^v~-|+.|.-__..-=###><-")
"""What stands for a glyph where the terminal knows ASCII only."""


def ascii_text(text: str) -> str:
    """Return a text of the same width in ASCII."""
    text = text.translate(ASCII)
    return text if text.isascii() else "".join(c if c.isascii() else "?" * cell_width(c) for c in text)


def joined(row: Row, room: int = 0) -> Row:
    """Return the row, filled up to a width, with neighbours of one style made one: each costs forty bytes to send."""
    spans: list[Span] = []
    missing = room - sum(cell_width(text) for text, _ in row)
    for text, style in (*row, (" " * missing, palette.NULL)):
        if not text:
            continue
        if spans and (spans[-1][1] is style or spans[-1][1] == style):
            spans[-1] = (spans[-1][0] + text, style)
        else:
            spans.append((text, style))
    return tuple(spans)


def changed_part(old: Row | None, new: Row, room: int) -> tuple[int, int]:
    """Return from where to where a row has to be drawn again; nothing when both are the same."""
    if old == new:
        return 0, 0
    if old is None:
        return 0, room
    before, after = "".join(text for text, _ in old), "".join(text for text, _ in new)
    # Characters that are two cells wide, or none, would need counting: rare enough to draw the whole row.
    if not (_simple(before) and _simple(after)):
        return 0, room
    start = _common(old, new)
    if len(before) != len(after):
        return min(start, room), room
    return min(start, room), min(len(after) - _common(old[::-1], new[::-1], backwards=True), room)


def _simple(text: str) -> bool:
    """Whether every letter takes one cell."""
    return text.isascii() or cell_width(text) == len(text)


def _common(old: Sequence[Span], new: Sequence[Span], *, backwards: bool = False) -> int:
    """Return how many cells two rows have in common from one end."""
    found = 0
    for (text, style), (other, other_style) in zip(old, new, strict=False):
        if style != other_style:
            return found
        if text == other:
            found += len(text)
            continue
        pairs = zip(text[::-1], other[::-1], strict=False) if backwards else zip(text, other, strict=False)
        return found + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return found


class Lines(Widget):
    """Draws the rows that `compose_rows` returns for the present size.

    Every segment gets a style: one without crashes the filter that NO_COLOR puts in.
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Row] = []
        self._bases: dict[tuple[str, bool], Style] = {}

    def notify_style_update(self) -> None:
        """Forget what the style was."""
        self._bases = {}
        super().notify_style_update()

    @property
    def _base(self) -> Style:
        """The style below all text: Textual asks every ancestor for it, which takes longer than to draw a row."""
        key = (self.app.theme, self.has_focus)
        if key not in self._bases:
            self._bases[key] = self.rich_style
        return self._bases[key]

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
        self._bases = {}
        if not (width and height):
            return
        new = [joined(row, width) for row in list(self.compose_rows(width, height))[:height]]
        if getattr(self.app, "ascii_only", False):
            new = [tuple((ascii_text(text), style) for text, style in row) for row in new]
        new += [joined((), width)] * (height - len(new))
        old, self._rows = self._rows, new
        changed = [
            Region(start, y, end - start, 1)
            for y in range(height)
            for start, end in (changed_part(old[y] if y < len(old) else None, new[y], width),)
            if end > start
        ]
        if changed:
            self.refresh(*changed)

    def on_resize(self) -> None:
        """A new size is a new picture."""
        self._rows = []
        self.redraw()

    def render_line(self, y: int) -> Strip:
        """Return one row."""
        width = self.size.width
        if y >= len(self._rows):
            return Strip([Segment(" " * width, self._base)], width)
        base, kind = self._base, self._kind
        segments = [Segment(text, base + palette.inked(style, kind)) for text, style in self._rows[y] if text]
        return Strip(segments).adjust_cell_length(width, base)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Fill what there is."""
        return container.height
