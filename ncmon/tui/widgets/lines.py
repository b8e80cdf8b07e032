"""A widget that is rows of text: it compares new rows with the old ones and redraws only those that changed.

Textual sends a whole region again when a widget refreshes; over ssh a chart that repaints every second is most of the
traffic. Here a refresh that changes nothing sends nothing, and of a row that changes only the part that does. A row
that is the very same as before (`is`) is not even looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Literal

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from ncmon.cells import width as cell_width
from ncmon.tui import palette

Span = tuple[str, Style]
"""A piece of text and its style."""
Row = tuple[Span, ...]


LONG_BLANK = 16
"""Cells from which on it is cheaper to go over blanks than to send them again."""
_BLANK = re.compile(f" {{{LONG_BLANK},}}")

ASCII = str.maketrans("●○▸◂▲▼…─│└┄┃·⠤▁▂▃▄▅▆▇█▌≥≤−", "*o><^v~-|+.|.-__..-=###><-")
"""What stands for a glyph where the terminal knows ASCII only."""


def ascii_text(text: str) -> str:
    """Return a text of the same width in ASCII."""
    text = text.translate(ASCII)
    return text if text.isascii() else "".join(c if c.isascii() else "?" * cell_width(c) for c in text)


def joined(row: Row, room: int = 0) -> Row:
    """Return the row, filled up to a width, with neighbours of one style made one: each costs forty bytes to send."""
    spans: list[Span] = []
    missing = room - cell_width("".join([text for text, _ in row]))
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


def changed_parts(old: Row | None, new: Row, room: int) -> list[tuple[int, int]]:
    """Return the parts of a row that have to be drawn again: what changed, but for long blanks that stay blank."""
    start, end = changed_part(old, new, room)
    if end <= start:
        return []
    if old is None or end - start < LONG_BLANK:
        return [(start, end)]
    before, after = "".join(text for text, _ in old), "".join(text for text, _ in new)
    parts: list[tuple[int, int]] = []
    for blank in _BLANK.finditer(after, start, end):
        low, high = blank.span()
        if before[low:high] == blank.group() and _bare(old, low, high) and _bare(new, low, high):
            parts.append((start, low))
            start = high
    return [(low, high) for low, high in (*parts, (start, end)) if low < high]


def _bare(row: Row, low: int, high: int) -> bool:
    """Whether nothing of the styles shows on blanks from one cell to another."""
    at = 0
    for text, style in row:
        if at >= high:
            break
        if at + len(text) > low and palette.seen_on_blanks(style):
            return False
        at += len(text)
    return True


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
        return found + (_alike(text[::-1], other[::-1]) if backwards else _alike(text, other))
    return found


def _alike(one: str, other: str) -> int:
    """Return with how many letters both begin; halving compares them faster than looking at every letter."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Lines(Widget):
    """Draws the rows that `compose_rows` returns for the present size.

    Every segment gets a style: one without crashes the filter that NO_COLOR puts in.
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._composed: list[Row] = []
        """What `compose_rows` returned."""
        self._rows: list[Row] = []
        """The same as it is shown: joined, filled up, and in ASCII where nothing else can be shown."""
        self._strips: dict[int, Strip] = {}
        """Rows as they are sent, by their place, in the paint of `_paint`."""
        self._inks: dict[Style, Style] = {}
        """Styles as they are sent, likewise."""
        self._paint: tuple[object, ...] = ()
        self._grounds: dict[tuple[str, bool], tuple[Style, Color, Sequence[LineFilter]]] = {}

    def notify_style_update(self) -> None:
        """Forget what the style was."""
        self._grounds = {}
        super().notify_style_update()

    @property
    def _ground(self) -> tuple[Style, Color, Sequence[LineFilter]]:
        """What is below all text: a style, its background, and what the application does to both.

        Textual asks every ancestor for it, which takes longer than to draw a row.
        """
        key = (self.app.theme, self.has_focus)
        if key not in self._grounds:
            self._grounds[key] = (self.rich_style, self.background_colors[1], tuple(self.get_line_filters()))
        return self._grounds[key]

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
        composed = list(self.compose_rows(width, height))[:height]
        composed += [()] * (height - len(composed))
        before, self._composed = self._composed, composed
        old, new = self._rows, []
        ascii_only = getattr(self.app, "ascii_only", False)
        changed: list[Region] = []
        for y, row in enumerate(composed):
            known = y < len(old)
            if known and y < len(before) and before[y] is row:
                new.append(old[y])
                continue
            shown = joined(row, width)
            if ascii_only:
                shown = tuple((ascii_text(text), style) for text, style in shown)
            new.append(shown)
            if parts := changed_parts(old[y] if known else None, shown, width):
                changed += [Region(start, y, end - start, 1) for start, end in parts]
                self._strips.pop(y, None)
        self._rows = new
        if changed:
            self.refresh(*changed)

    def on_resize(self) -> None:
        """A new size is a new picture."""
        self._rows, self._composed, self._strips = [], [], {}
        self.redraw()

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return rows as they are sent.

        Textual's own way puts borders, padding, outlines, tints and links round every line. Rows have none of these,
        and it takes as long as all the rest.
        """
        if self.outer_size != self.size:
            return super().render_lines(crop)
        width = self.size.width
        paint = (width, self._kind, *self._ground)
        if paint != self._paint:
            self._paint, self._strips, self._inks = paint, {}, {}
        known = self._strips
        for y in crop.line_range:
            if y not in known:
                known[y] = self._strip(y, width, self._ink)
        strips = [known[y] for y in crop.line_range]
        if crop.column_span != (0, width):
            strips = [strip.crop(*crop.column_span) for strip in strips]
        return strips

    def _ink(self, style: Style) -> Style:
        """Return a style as it is sent, which is what the application's filters make of a text in it."""
        if (found := self._inks.get(style)) is None:
            base, background, filters = self._ground
            segments = [Segment(" ", base + palette.inked(style, self._kind))]
            for line_filter in filters:
                segments = line_filter.apply(segments, background)
            found = self._inks[style] = segments[0].style or palette.NULL
        return found

    def _strip(self, y: int, width: int, ink: Callable[[Style], Style]) -> Strip:
        row: Row = self._rows[y] if y < len(self._rows) else ((" " * width, palette.NULL),)
        segments = [Segment(text, ink(style)) for text, style in row if text]
        missing = width - cell_width("".join([text for text, _ in row]))
        if not missing:
            return Strip(segments, width)
        return Strip(segments).adjust_cell_length(width, ink(palette.NULL))

    def render_line(self, y: int) -> Strip:
        """Return one row, before filters: what Textual asks for where it draws something round the widget."""
        base, kind = self._ground[0], self._kind
        return self._strip(y, self.size.width, lambda style: base + palette.inked(style, kind))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Fill what there is."""
        return container.height
