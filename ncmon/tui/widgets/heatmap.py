"""A heat map: one row a layer or a class, one column a moment or a class.

Colour where the terminal has it, with two rows a line (half blocks) when there are many; shaded blocks where it has
not, digits where it knows ASCII only. The legend is drawn with the same cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import numpy as np
from textual import events
from textual.message import Message

from ncmon.cells import lanes
from ncmon.cells import width as cell_width
from ncmon.model import FloatArray, IntArray
from ncmon.tui import heat, palette
from ncmon.tui.format import cut, fit, printable, tick
from ncmon.tui.raster import Scale
from ncmon.tui.widgets.lines import Lines, Row, Span

Ink = Literal["colour", "blocks", "digits"]

MISSING = "·"
LEGEND = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatPicture:
    """All that a heat map shows."""

    title: str
    values: FloatArray
    """(rows, columns)"""
    scale: Scale
    flip: bool = False
    """Whether small values are the bright ones."""
    row_names: Sequence[str]
    column_names: Sequence[str] = ()
    """Above the columns, where each has its own."""
    ticks: Sequence[tuple[int, str]] = ()
    """Below the columns: which column, and what is said there."""
    row: int = -1
    """The row under the cursor."""
    column: int = -1
    row_pool: heat.Pool = "max"
    column_pool: heat.Pool = "mean"
    cell: int = 0
    """Cells a column; 0 shares all the width there is among `capacity` columns."""
    capacity: int = 0
    """How many columns have room: more than there are, so that a new one does not move the others."""
    tall: int = 3
    """The most lines a row may have."""
    empty: str = "no window yet"
    ends: tuple[str, str] = ("", "")
    """What the two ends of the scale mean."""


class HeatMap(Lines):
    """Draws a heat map; a click says which row and column."""

    class Picked(Message):
        """A cell was clicked."""

        def __init__(self, row: int, column: int) -> None:
            super().__init__()
            self.row = row
            self.column = column

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.picture: HeatPicture | None = None
        self._drawn: Drawn | None = None

    def show(self, picture: HeatPicture) -> None:
        """Show a picture; rows that are the same are not sent again, and the same picture is not drawn again."""
        before, self.picture = self.picture, picture
        if before is None or not self._rows or not same(before, picture):
            self.redraw()

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return the rows of the map."""
        if self.picture is None:
            return []
        rows, self._drawn = drawn(self.picture, width, height, ink=self.ink, before=self._drawn)
        return rows

    def on_click(self, event: events.Click) -> None:
        """Say what was clicked."""
        if self.picture is None or not self.picture.values.size:
            return
        grid = layout(self.picture, *self.size, half=self.ink == "colour")
        y, x = event.y - grid.top, event.x - grid.left
        if 0 <= y < grid.lines and 0 <= x < grid.width:
            rows, columns = self.picture.values.shape
            row = int(grid.row_of[min(y * len(grid.row_of) // grid.lines, len(grid.row_of) - 1)])
            column = int(grid.column_of[min(x, len(grid.column_of) - 1)])
            self.post_message(self.Picked(min(row, rows - 1), min(column, columns - 1)))


def same(one: HeatPicture, other: HeatPicture) -> bool:
    """Return whether two pictures show the very same matrix in the same way; a copy of it counts as another."""
    return all(
        a is b if field.name == "values" else a == b
        for field in fields(HeatPicture)
        for a, b in ((getattr(one, field.name), getattr(other, field.name)),)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Where the cells of a map are."""

    left: int
    top: int
    lines: int
    """Lines of the screen that hold cells."""
    half: bool
    """Whether a line holds two rows."""
    row_of: np.ndarray
    """First row of the matrix of each row of cells."""
    column_of: np.ndarray
    """First column of the matrix of each character."""
    axis: bool
    """Whether there is a line for the ticks."""

    @property
    def width(self) -> int:
        """Characters that hold cells."""
        return len(self.column_of)


def layout(picture: HeatPicture, width: int, height: int, *, half: bool) -> Layout:
    """Return where the cells are in a map of this size."""
    n_rows, n_columns = picture.values.shape
    top = 1 + (bool(picture.column_names) and height > 3)
    axis = bool(picture.ticks) and height > 3
    room = max(height - top - axis, 1)
    names = _widest(tuple(picture.row_names))
    left = min(names, max(width // 5, 3)) + 2
    space = max(width - left - 1, 1)
    halved = half and n_rows > room
    cells = min(n_rows, room * 2 if halved else room)
    if n_rows > cells:
        row_of = heat.edges(n_rows, cells)[:-1]
    else:
        row_of = heat.stretched(n_rows, cells if halved else room, 1 if halved else picture.tall)
    if picture.cell and n_columns <= space:
        column_of = heat.stretched(n_columns, space, picture.cell)
    else:
        # Time fills the width: its columns need not be equally wide.
        column_of = np.arange(space) * max(picture.capacity, n_columns) // space
        column_of = column_of[column_of < n_columns]
    lines = -(-len(row_of) // 2) if halved else len(row_of)
    return Layout(left=left, top=top, lines=lines, half=halved, row_of=row_of, column_of=column_of, axis=axis)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A map as it was drawn: of the next one only what differs is pooled and composed."""

    picture: HeatPicture
    grid: Layout
    ink: Ink
    starts: IntArray
    """First column of the matrix of each pooled one."""
    columns: FloatArray
    """(rows of the matrix, pooled columns)"""
    cells: IntArray
    """(rows of cells, characters) levels."""
    rows: Sequence[Row]
    """The lines that hold cells."""

    def leads_to(self, picture: HeatPicture, grid: Layout, ink: Ink) -> bool:
        """Return whether a map is cut into cells in the same way, but for columns that came."""
        old = self.picture
        return (
            (old.scale, old.flip, old.row_pool, old.column_pool)
            == (picture.scale, picture.flip, picture.row_pool, picture.column_pool)
            and (self.ink, self.grid.left, self.grid.half) == (ink, grid.left, grid.half)
            and len(old.values) == len(picture.values)
            and np.array_equal(self.grid.row_of, grid.row_of)
        )


@lru_cache(maxsize=8)
def _widest(names: tuple[str, ...]) -> int:
    """Return the width of the widest name. Names stay while values come."""
    return max(map(cell_width, names), default=0)


def heat_rows(picture: HeatPicture, width: int, height: int, *, ink: Ink = "colour") -> list[Row]:
    """Return the rows of a map of this size."""
    return drawn(picture, width, height, ink=ink)[0]


def drawn(
    picture: HeatPicture, width: int, height: int, *, ink: Ink = "colour", before: Drawn | None = None
) -> tuple[list[Row], Drawn | None]:
    """Return a map's rows, and how it was drawn; rows that are the same as `before` are those very rows."""
    rows: list[Row] = [_heading(picture, width, ink)]
    if height < 2 or width < 8:
        return rows[:height], None
    same_values = before is not None and before.picture.values is picture.values
    if not same_values and (not picture.values.size or np.isnan(picture.values).all()):
        return [*rows, ((f"  {picture.empty}"[:width], palette.DIM),)], None
    grid = layout(picture, width, height, half=ink == "colour")
    if before is not None and not before.leads_to(picture, grid, ink):
        before = None
    starts, which = np.unique(grid.column_of, return_inverse=True)
    columns = _pooled_columns(picture, starts, before)
    if before is not None and columns is before.columns and np.array_equal(before.grid.column_of, grid.column_of):
        cells = before.cells
    else:
        count = {"colour": palette.HEAT_LEVELS, "blocks": len(heat.BLOCKS), "digits": len(heat.DIGITS)}[ink]
        n_rows = len(np.unique(grid.row_of))
        pooled = columns[grid.row_of]
        if n_rows < len(columns):
            pooled = heat.pooled(columns, n_rows, picture.row_pool, 0)
        cells = heat.levels(pooled, picture.scale, count, flip=picture.flip)[:, which]
    if grid.top > 1:
        rows.append(_column_heading(picture, grid))
    stays = _alike(before.cells, cells) if before is not None else np.zeros(len(cells), dtype=np.int64)
    marked = _place(grid.row_of, picture.row)
    lines: list[Row] = []
    for y in range(grid.lines):
        first = 2 * y if grid.half else y
        here = marked in ((first, first + 1) if grid.half else (first,))
        name = ""
        if here:
            name = picture.row_names[picture.row]
        elif not grid.half and (y == 0 or grid.row_of[y] != grid.row_of[y - 1]):
            name = picture.row_names[int(grid.row_of[y])]
        begins = here and (y == 0 or grid.half or grid.row_of[y] != grid.row_of[y - 1])
        if here and not begins:
            name = ""
        label = (
            f"{'▸' if begins else ' '}{fit(name, grid.left - 2)} ",
            palette.BOLD if here else palette.DIM,
        )
        same = int(stays[first : first + 1 + grid.half].min())
        old = before.rows[y] if before is not None else ()
        if same == cells.shape[1] == (before.cells.shape[1] if before is not None else -1):
            lines.append(old if old[0] == label else (label, *old[1:]))
            continue
        kept: list[Span] = [label]
        at = 0
        # The last piece that stays may have grown.
        for span in old[1:]:
            if at + len(span[0]) >= same:
                break
            kept.append(span)
            at += len(span[0])
        below = cells[first + 1, at:] if grid.half and first + 1 < len(cells) else None
        lines.append((*kept, *_line(cells[first, at:], below, grid.half, ink)))
    rows += lines
    if grid.axis:
        rows.append(_axis(picture, grid))
    return rows, Drawn(
        picture=picture, grid=grid, ink=ink, starts=starts, columns=columns, cells=cells, rows=tuple(lines)
    )


def _alike(old: IntArray, new: IntArray) -> IntArray:
    """Return up to which character the rows of cells are the same."""
    common = min(old.shape[1], new.shape[1])
    differs = old[:, :common] != new[:, :common]
    return np.where(differs.any(axis=1), differs.argmax(axis=1), common)


def _pooled_columns(picture: HeatPicture, starts: IntArray, before: Drawn | None) -> FloatArray:
    """Return the matrix with one column a cell; those that are as before are not pooled again."""
    values, kept = picture.values, 0
    if before is not None:
        known = before.picture.values
        if known is values and np.array_equal(before.starts, starts):
            return before.columns
        common = min(known.shape[1], values.shape[1])
        # NaN is like NaN here: bits are compared.
        differs = (_bits(known[:, :common]) != _bits(values[:, :common])).any(axis=0)
        first = int(differs.argmax()) if differs.any() else common
        # A pooled column ends where the next begins; the last one may have grown.
        ends = min(int(np.searchsorted(before.starts[1:], first, side="right")), len(starts) - 1)
        if ends > 0 and np.array_equal(before.starts[: ends + 1], starts[: ends + 1]):
            kept = ends
    came = values[:, starts[kept] :]
    if len(starts) < values.shape[1]:
        places = starts[kept:] - starts[kept]
        if picture.scale.log and picture.column_pool == "mean":
            # The mean of a logarithmic scale is that of the logarithms.
            came = np.exp(heat.reduced(np.log(np.where(came > 0, came, np.nan)), places, "mean", 1))
        else:
            came = heat.reduced(came, places, picture.column_pool, 1)
    return np.concatenate([before.columns[:, :kept], came], axis=1) if before is not None and kept else came


def _bits(values: FloatArray) -> IntArray:
    return np.ascontiguousarray(values, dtype=np.float64).view(np.int64)


def _line(cells: np.ndarray, below: np.ndarray | None, half: bool, ink: Ink) -> list[Span]:
    spans: list[Span] = []
    glyphs = heat.BLOCKS if ink == "blocks" else heat.DIGITS
    # Cell by cell would be most of what a map costs; neighbours are often the same.
    changes = cells[1:] != cells[:-1] if below is None else (cells[1:] != cells[:-1]) | (below[1:] != below[:-1])
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(cells)] if len(cells) else [0]
    for x, end in itertools.pairwise(starts):
        level = int(cells[x])
        under = int(below[x]) if below is not None else None
        if level < 0 and (under is None or under < 0):
            text, style = MISSING, palette.DIM
        elif ink != "colour":
            text, style = glyphs[level], palette.NULL
        elif not half:
            text, style = " ", palette.heat(level)
        elif under is None or under < 0:
            text, style = "▀", palette.ink(level)
        elif level < 0:
            text, style = "▄", palette.ink(under)
        else:
            text, style = "▀", palette.heat(level, under)
        spans.append((text * (end - x), style))
    return spans


def _place(starts: np.ndarray, index: int) -> int:
    """Return the first cell that shows what has this index, -1 for none."""
    if index < 0 or not len(starts):
        return -1
    at = int(np.searchsorted(starts, index, side="right")) - 1
    return int(np.searchsorted(starts, starts[at], side="left"))


def _heading(picture: HeatPicture, width: int, ink: Ink) -> Row:
    spans: list[Span] = [(f" {picture.title}", palette.BOLD)]
    if picture.scale.log:
        spans.append((" log", palette.DIM))
    low, high = (tick(end, log=False) for end in (picture.scale.low, picture.scale.high))
    if picture.flip:
        low, high = high, low
    low, high = f"{picture.ends[0]} {low}".strip(), f"{high} {picture.ends[1]}".strip()
    count = {"colour": palette.HEAT_LEVELS, "blocks": len(heat.BLOCKS), "digits": len(heat.DIGITS)}[ink]
    ramp = np.linspace(0, count - 1, LEGEND).round().astype(np.int64)
    used = sum(len(text) for text, _ in spans)
    if used + len(low) + len(high) + LEGEND + 4 <= width:
        spans += [(f"  {low} ", palette.DIM), *_line(ramp, None, False, ink), (f" {high}", palette.DIM)]
    return tuple(spans)


def _column_heading(picture: HeatPicture, grid: Layout) -> Row:
    text = [" "] * (grid.left + grid.width)
    bold = -1
    unique, starts = np.unique(grid.column_of, return_index=True)
    spread = len(unique) == picture.values.shape[1]
    room = len(grid.column_of) // max(len(unique), 1)
    for column, at in zip(unique.tolist(), starts.tolist(), strict=True):
        here = spread and column == picture.column
        if spread:
            label = lanes(cut(printable(picture.column_names[column]), max(room - (room > 1), 1)))
            text[grid.left + at : grid.left + at + len(label)] = label
        if here:
            bold = grid.left + at
    if bold < 0:
        return (("".join(text), palette.DIM),)
    parts = (text[:bold], text[bold : bold + room], text[bold + room :])
    before, here_text, after = ("".join(part) for part in parts)
    return ((before, palette.DIM), (here_text, palette.REVERSE), (after, palette.DIM))


def _axis(picture: HeatPicture, grid: Layout) -> Row:
    text = [" "] * (grid.left + grid.width)
    free = grid.left
    for column, label in picture.ticks:
        at = grid.left + int(np.searchsorted(grid.column_of, column, side="left"))
        at = max(min(at, grid.left + grid.width - len(label)), grid.left)
        if at >= free:
            text[at : at + len(label)] = list(label)
            free = at + len(label) + 1
    line = "".join(text)
    if picture.column < 0:
        return ((line, palette.DIM),)
    at = grid.left + int(np.searchsorted(grid.column_of, picture.column, side="left"))
    at = min(at, len(line) - 1)
    return ((line[:at], palette.DIM), ("▲", palette.BOLD), (line[at + 1 :], palette.DIM))
