"""A line chart in braille, with a linear or a true log axis.

Rows of a chart of width w and height h: the heading with the legend, h - 2 rows of plot behind a labelled axis, and the
x axis. The x range is sticky: it grows by steps, so that a new point changes a column or two and not the whole picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from textual import events
from textual.message import Message

from ncmon.model import FloatArray, IntArray
from ncmon.tui import palette, raster
from ncmon.tui.format import number as number_text
from ncmon.tui.format import tick
from ncmon.tui.widgets.lines import Lines, Row, Span

MARKS = "*+ox#"
"""What a line is made of where there is no braille, by its place."""
LABEL_WIDTH = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """One series: x ascending, NaN in y is a gap."""

    name: str
    x: FloatArray
    y: FloatArray
    style: Style
    pattern: str = raster.SOLID


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line: a target, a floor."""

    name: str
    value: float
    style: Style = palette.LEVEL


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """All that a chart shows."""

    title: str
    lines: tuple[Line, ...]
    levels: tuple[Level, ...] = ()
    log: bool = False
    x_title: str = "epoch"
    empty: str = "no window yet"
    """What is said where there is no value to show."""
    span: tuple[float, float] | None = None
    """The y range, where it is fixed (cosines)."""
    x_log: bool = False
    x_whole: bool = False
    """Whether the axis ends at the last point and has whole numbers only (layers, classes)."""
    x_range: tuple[float, float] | None = None
    """The part of the x axis to show, None for all of it."""
    cursor: float | None = None
    """Where the crosshair stands; the legend then says the values there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plot:
    """The rows between heading and x axis, cell by cell: of most of them nothing changes when a window comes."""

    points: NDArray[np.uint32]
    """(rows, columns) code points."""
    owner: IntArray
    """(rows, columns) which of the styles a cell has."""
    styles: tuple[Style, ...]
    heads: tuple[str, ...]
    """What stands before each row."""
    tails: tuple[Level | None, ...]
    """The level whose name stands at each row's end."""
    traces: tuple[raster.Trace, ...]
    """The lines, in the order of the picture."""

    def kept(self, other: Plot) -> list[bool]:
        """Return which rows are the same as those of another plot."""
        if self.points.shape != other.points.shape or self.styles != other.styles:
            return [False] * len(self.points)
        cells = (self.points == other.points).all(axis=1) & (self.owner == other.owner).all(axis=1)
        ends = zip(self.heads, other.heads, self.tails, other.tails, strict=True)
        return [bool(same) and a == b and c == d for same, (a, b, c, d) in zip(cells, ends, strict=True)]

    def rows(self, wanted: Sequence[bool]) -> dict[int, Row]:
        """Return the wanted rows."""
        n_rows, columns = self.points.shape
        text = self.points.tobytes().decode("utf-32-le")
        # A blank shows no ink: it goes with what stands before it, for every change of style is another piece to send.
        inked = np.maximum.accumulate(np.where(self.points != ord(" "), np.arange(columns), 0), axis=1)
        owner = np.take_along_axis(self.owner, inked, axis=1)
        found: dict[int, Row] = {}
        for y in range(n_rows):
            if not wanted[y]:
                continue
            line, own = text[y * columns : (y + 1) * columns], owner[y]
            edges = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), columns]
            row: Row = (
                (self.heads[y], palette.DIM),
                *((line[i:j], self.styles[own[i]]) for i, j in itertools.pairwise(edges)),
            )
            if (level := self.tails[y]) is not None:
                row = (*_cut(row, columns - len(level.name) - 1 + len(self.heads[y])), (f" {level.name}", level.style))
            found[y] = row
        return found


class Chart(Lines):
    """Draws a picture; a click says where on the x axis."""

    class Picked(Message):
        """A place on the x axis was clicked."""

        def __init__(self, x: float) -> None:
            super().__init__()
            self.x = x

    def __init__(self, *, id: str | None = None, ascii: bool = False) -> None:
        super().__init__(id=id)
        self.picture: Picture | None = None
        self.ascii_only = ascii
        self._drawn: tuple[Plot, Sequence[Row]] | None = None

    def show(self, picture: Picture) -> None:
        """Show a picture; rows that are the same are not sent again."""
        self.picture = picture
        self.redraw()

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return the chart's rows."""
        if self.picture is None:
            return []
        rows, plot = drawn(self.picture, width, height, ascii=self.ascii_only, before=self._drawn)
        self._drawn = (plot, rows) if plot is not None else None
        return rows

    def on_click(self, event: events.Click) -> None:
        """Say where was clicked."""
        columns = self.size.width - LABEL_WIDTH - 2
        at = event.x - LABEL_WIDTH - 2
        if self.picture is None or columns < 2 or not 0 <= at < columns:
            return
        shown = [line for line in self.picture.lines if np.isfinite(line.y).any()]
        if shown:
            self.post_message(self.Picked(_x_scale(self.picture, shown).value(at / (columns - 1))))


def chart_rows(picture: Picture, width: int, height: int, *, ascii: bool = False) -> list[Row]:
    """Return the rows of a chart of this size; at small sizes the axes go first, then the plot."""
    return drawn(picture, width, height, ascii=ascii)[0]


def drawn(
    picture: Picture, width: int, height: int, *, ascii: bool = False, before: tuple[Plot, Sequence[Row]] | None = None
) -> tuple[list[Row], Plot | None]:
    """Return a chart's rows, and its plot where it has one; rows that are the same as `before` are those very rows."""
    if picture.x_range is not None:
        picture = replace(picture, lines=tuple(_within(line, *picture.x_range) for line in picture.lines))
    rows: list[Row] = [_heading(picture, width, ascii)]
    if height < 3 or width < 12:
        return rows[:height], None
    plot_rows, columns = height - 2, width - LABEL_WIDTH - 2
    shown = [line for line in picture.lines if np.isfinite(line.y).any()]
    if picture.log:
        shown = [line for line in shown if (line.y > 0).any()]
    bar, corner, rule = ("|", "+", "-") if ascii else ("│", "└", "─")
    if not shown:
        blank: Row = ((" " * LABEL_WIDTH + f" {bar}", palette.DIM),)
        rows += [blank] * plot_rows
        rows[1 + plot_rows // 2] = ((" " * LABEL_WIDTH + f" {bar} {picture.empty}"[: columns + 2], palette.DIM),)
        return [*rows, ((" " * LABEL_WIDTH + f" {corner}{rule * columns}", palette.DIM),)], None

    x_scale = _x_scale(picture, shown)
    if picture.span is not None and not picture.log:
        y_scale = raster.Scale(low=picture.span[0], high=picture.span[1])
    else:
        include = () if picture.log else tuple(level.value for level in picture.levels)
        y_scale = raster.scale_of([line.y for line in shown], log=picture.log, include=include)

    # Later layers are drawn over earlier ones: levels, then lines from the last to the first.
    layers: list[tuple[np.ndarray, Style, str]] = []
    for level in picture.levels:
        place = float(y_scale.place(np.array([level.value]))[0])
        layers.append((raster.draw_level(place, columns=columns, rows=plot_rows), level.style, "."))
    known = before[0].traces if before is not None else ()
    traces = tuple(
        raster.traced(
            line.x,
            line.y,
            across=x_scale,
            up=y_scale,
            columns=columns,
            rows=plot_rows,
            style=line.pattern,
            before=known[number] if number < len(known) else None,
        )
        for number, line in enumerate(shown)
    )
    for number in range(len(shown) - 1, -1, -1):
        layers.append((traces[number].bits, shown[number].style, MARKS[number % len(MARKS)]))

    labels = _labels(y_scale, plot_rows)
    points, owner = _cells(layers, ascii, _cross(picture.cursor, x_scale, columns))
    plot = Plot(
        points=points,
        owner=owner,
        styles=(palette.DIM, *(style for _, style, _ in layers), palette.CURSOR),
        heads=tuple(f"{labels.get(y, ''):>{LABEL_WIDTH}} {bar}" for y in range(plot_rows)),
        tails=_named(picture.levels, layers, columns),
        traces=traces,
    )
    stays = plot.kept(before[0]) if before is not None else [False] * plot_rows
    new = plot.rows([not same for same in stays])
    rows += [before[1][1 + y] if before is not None and stays[y] else new[y] for y in range(plot_rows)]
    rows.append(_x_axis(x_scale, columns, picture.x_title, corner, rule))
    return rows, plot


def _heading(picture: Picture, width: int, ascii: bool) -> Row:
    spans: list[Span] = [(f" {picture.title}", palette.BOLD)]
    used = len(picture.title) + 1
    if picture.log:
        spans.append((" log", palette.DIM))
        used += 4
    samples = [
        MARKS[n % len(MARKS)] * 2 if ascii else palette.SAMPLES[line.pattern] for n, line in enumerate(picture.lines)
    ]
    names = [line.name for line in picture.lines]
    style = palette.DIM
    if picture.cursor is not None:
        values = [number_text(_at(line, picture.cursor)) for line in picture.lines]
        both = [f"{name} {value}" for name, value in zip(names, values, strict=True)]
        if used + sum(len(text) + 3 for text in both) <= width:
            names = both
        elif not picture.x_whole:
            # Of layers and classes a table stands beside, which says the values: there the names are what is missing.
            names = values
        style = palette.NULL
    for sample, name, line in zip(samples, names, picture.lines, strict=True):
        if used + 1 + len(sample) + len(name) > width:
            break
        spans += [(" ", palette.DIM), (sample, line.style), (name, style)]
        used += 1 + len(sample) + len(name)
    return tuple(spans)


def _within(line: Line, low: float, high: float) -> Line:
    first, last = np.searchsorted(line.x, low, side="left"), np.searchsorted(line.x, high, side="right")
    return replace(line, x=line.x[first:last], y=line.y[first:last])


def _at(line: Line, x: float) -> float | None:
    """Return the value of the last point up to x."""
    place = int(np.searchsorted(line.x, x, side="right")) - 1
    return float(line.y[place]) if place >= 0 else None


def _cross(cursor: float | None, scale: raster.Scale, columns: int) -> int:
    if cursor is None:
        return -1
    place = float(scale.place(np.array([cursor]))[0])
    return round(place * (columns - 1)) if 0 <= place <= 1 else -1


def _x_scale(picture: Picture, lines: Sequence[Line]) -> raster.Scale:
    if picture.x_range is not None and not picture.x_log:
        low, high = picture.x_range
        return raster.Scale(low=low, high=high if high > low else low + 1.0)
    low = min(float(line.x[0]) for line in lines)
    high = max(float(line.x[-1]) for line in lines)
    if picture.x_log:
        low = max(low, 1.0)
        return raster.Scale(low=low, high=max(high, 2 * low), log=True)
    if high <= low:
        return raster.Scale(low=low - 0.5, high=low + 0.5)
    if picture.x_whole:
        return raster.Scale(low=low, high=high)
    if 0 < low <= (high - low) / 10:
        low = 0.0  # Counted from one, or the first window's end: an axis that begins at nought reads better.
    # Sticky: the right end moves by an eighth of the span, rounded up to two digits.
    span = high - low
    step = 10.0 ** math.floor(math.log10(span)) / 2
    return raster.Scale(low=low, high=low + math.ceil(span / step - 1e-9) * step)


@lru_cache(maxsize=64)
def _labels(scale: raster.Scale, rows: int) -> Mapping[int, str]:
    labels: dict[int, str] = {}
    for value in raster.ticks(scale, max(2, rows // 2)):
        place = float(scale.place(np.array([value]))[0])
        if 0 <= place <= 1:
            labels.setdefault(
                min(int((1 - place) * (rows * raster.DOTS_Y - 1) + 0.5) // raster.DOTS_Y, rows - 1),
                tick(value, log=scale.log),
            )
    return labels


def _cells(
    layers: Sequence[tuple[NDArray[np.uint8], Style, str]], ascii: bool, cross: int
) -> tuple[NDArray[np.uint32], IntArray]:
    """Return of every cell what stands there, all dots of all layers, and whose style: the last that has one there."""
    bits: NDArray[np.uint32] = np.zeros(layers[0][0].shape, dtype=np.uint32)
    owner = np.zeros(bits.shape, dtype=np.int64)
    for number, (cells, _, _) in enumerate(layers):
        bits |= cells
        owner[cells > 0] = number + 1
    if ascii:
        marks = np.array([ord(mark) for mark in (" ", *(mark for _, _, mark in layers))], dtype=np.uint32)
        points: NDArray[np.uint32] = marks[owner]
    else:
        points = np.where(bits > 0, bits + 0x2800, ord(" ")).astype(np.uint32)
    if 0 <= cross < bits.shape[1]:
        free = owner[:, cross] == 0
        points[free, cross], owner[free, cross] = ord("│"), len(layers) + 1
    return points, owner


def _named(
    levels: Sequence[Level], layers: Sequence[tuple[NDArray[np.uint8], Style, str]], columns: int
) -> tuple[Level | None, ...]:
    """Return for every row the level whose name is written at its right end: where no line passes."""
    tails: list[Level | None] = [None] * len(layers[0][0])
    for place, level in enumerate(levels):
        width = len(level.name) + 1
        if not level.name or width > columns // 2:
            continue
        others = [cells for number, (cells, _, _) in enumerate(layers) if number != place]
        for y in np.flatnonzero(layers[place][0].any(axis=1)).tolist():
            if tails[y] is None and not any(cells[y, columns - width :].any() for cells in others):
                tails[y] = level
    return tuple(tails)


def _cut(row: Row, width: int) -> Row:
    kept: list[Span] = []
    for text, style in row:
        if width > 0:
            kept.append((text[:width], style))
        width -= len(text)
    return tuple(kept)


@lru_cache(maxsize=64)
def _x_axis(scale: raster.Scale, columns: int, title: str, corner: str, rule: str) -> Row:
    text = [rule] * columns
    right = f"{tick(scale.high, digits=6)} {title}"
    places = [(0, tick(scale.low, digits=6)), (columns - len(right), right)]
    for value in raster.ticks(scale, max(1, columns // 14))[1:]:
        label = tick(value, digits=6)
        at = round(float(scale.place(np.array([value]))[0]) * (columns - 1)) - len(label) // 2
        places.append((at, label))
    taken: list[tuple[int, int]] = []
    for at, label in places:
        end = at + len(label)
        if at >= 0 and end <= columns and all(end < low or at > high for low, high in taken):
            text[at:end] = list(label)
            taken.append((at, end))
    return ((" " * LABEL_WIDTH + f" {corner}" + "".join(text), palette.DIM),)
