"""From numbers to dots: scales, ticks, decimation and the braille raster. Pure numpy, no screen.

A braille cell holds 2 x 4 dots, so a plot of `columns` x `rows` cells has 2 columns x 4 rows pixels. A line is drawn by
filling, in every pixel column, the run of pixels between where the line enters and where it leaves.

Long histories are thinned first by M4 (Jugel et al. 2014): of all points in one pixel column only the first, the last,
the least and the greatest can light a pixel that the others do not, so that the picture is the same and no spike is
lost.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ncmon.model import FloatArray, IntArray

DOTS_X, DOTS_Y = 2, 4
SMALLEST = 1e-290
"""Below this a logarithmic axis counts a value as zero: powers of ten end there."""
MOST_STROKES = 8
"""Points that came, up to which they are drawn one by one."""
BLANK = "⠀"
# Bit of each dot of a braille pattern, by row and column within the cell (Unicode block 2800).
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)

SOLID, DASHED, DOTTED = "solid", "dashed", "dotted"
_PATTERNS = {SOLID: (1,), DASHED: (1, 1, 1, 0, 0), DOTTED: (1, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values to [0, 1]; values that it cannot show (NaN, or not positive on a log axis) become NaN."""

    low: float
    high: float
    log: bool = False

    def place(self, values: FloatArray) -> FloatArray:
        """Return where the values are, 0 at `low` and 1 at `high`."""
        if self.log:
            good = np.isfinite(values) & (values > SMALLEST)
            shown = np.where(good, np.log10(np.where(good, values, 1.0)), np.nan)
            low, high = math.log10(self.low), math.log10(self.high)
        else:
            shown, low, high = np.where(np.isfinite(values), values, np.nan), self.low, self.high
        return (shown - low) / (high - low)

    def value(self, place: float) -> float:
        """Return the value at a place between 0 and 1."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return float(10.0 ** (low + place * (high - low)))
        return self.low + place * (self.high - self.low)


def scale_of(arrays: list[FloatArray], *, log: bool = False, include: tuple[float, ...] = ()) -> Scale:
    """Return a scale on which all finite values have room; a single value or none gets a span around it."""
    every = np.concatenate([*(np.ravel(array) for array in arrays), np.array(include, dtype=np.float64)])
    every = every[np.isfinite(every)]
    if log:
        every = every[every > SMALLEST]
        if not every.size:
            return Scale(low=0.1, high=1.0, log=True)
        low, high = float(every.min()), float(every.max())
        if high / low < 10:
            middle = math.sqrt(low) * math.sqrt(high)
            low, high = middle / 4, middle * 4
        # Outwards to round values: neat labels, and a scale that stays when the next value comes.
        return Scale(low=_round_log(low, up=False), high=_round_log(high, up=True), log=True)
    if not every.size:
        return Scale(low=0.0, high=1.0)
    low, high = float(every.min()), float(every.max())
    span = max(high - low, abs(high) * 1e-9)
    span = span if span > SMALLEST else 1.0
    step = _round_step(span / 10)
    return Scale(low=math.floor((low - span * 0.02) / step) * step, high=math.ceil((high + span * 0.02) / step) * step)


def ticks(scale: Scale, most: int) -> list[float]:
    """Return at most `most` round values inside the scale, ascending."""
    if most < 1:
        return []
    if scale.log:
        first, last = math.ceil(math.log10(scale.low) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
        decades = list(range(first, last + 1))
        if len(decades) >= 2 or (decades and most == 1):
            step = max(1, math.ceil(len(decades) / most))
            return [10.0**decade for decade in decades[::-step][::-1]]
        inner = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
        inner = [value for value in inner if scale.low <= value <= scale.high]
        return inner[:: max(1, math.ceil(len(inner) / most))]
    span = scale.high - scale.low
    raw = span / most
    width = _round_step(raw)
    first_tick = math.ceil(scale.low / width - 1e-9)
    count = math.floor(scale.high / width + 1e-9) - first_tick + 1
    return [0.0 if first_tick + i == 0 else (first_tick + i) * width for i in range(max(0, count))][:most]


def m4(x: FloatArray, y: FloatArray, *, low: float, high: float, columns: int) -> IntArray:
    """Return the indices (ascending) of the points that M4 keeps for `columns` pixel columns over [low, high].

    x ascends. NaN in y stays where it is the gap between two columns' points.
    """
    if x.size <= 4 * columns or high <= low:
        return np.arange(x.size)
    # The same rounding as `draw_line`: a column here is a column there.
    column = (np.clip((x - low) / (high - low), 0.0, 1.0) * (columns - 1) + 0.5).astype(np.int64)
    # Gaps are points of their own; extremes are taken over the rest.
    gap = np.isnan(y)
    starts = np.flatnonzero(np.r_[True, (column[1:] != column[:-1]) | (gap[1:] != gap[:-1])])
    ends = np.r_[starts[1:], x.size]
    kept: set[int] = set()
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        kept.update((start, end - 1))
        if not gap[start] and end - start > 2:
            part = y[start:end]
            kept.update((start + int(part.argmin()), start + int(part.argmax())))
    return np.array(sorted(kept), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A line as it was drawn: a point that comes lights a few more of its pixels, and the rest stays."""

    x: FloatArray
    y: FloatArray
    across: Scale
    up: Scale
    style: str
    pixels: NDArray[np.bool_]
    """(height, width) those that the line passes, before its pattern leaves some out."""
    points: int
    """How many of the points are no gap."""
    bits: NDArray[np.uint8]
    """(rows, columns) of its braille cells."""

    def goes_on(self, other: Trace) -> bool:
        """Return whether another line, in the same frame, begins with this one."""
        known = self.x.size
        return (
            known <= other.x.size
            and (self.across, self.up, self.style) == (other.across, other.up, other.style)
            and self.pixels.shape == other.pixels.shape
            and np.array_equal(self.x, other.x[:known])
            and np.array_equal(self.y, other.y[:known], equal_nan=True)
        )


def traced(
    x: FloatArray,
    y: FloatArray,
    *,
    across: Scale,
    up: Scale,
    columns: int,
    rows: int,
    style: str = SOLID,
    before: Trace | None = None,
) -> Trace:
    """Return a line drawn on two scales; of one that goes on from `before` only what came since is drawn.

    x ascends, NaN in y is a gap. Long histories are thinned first.
    """
    pixels = np.zeros((DOTS_Y * rows, DOTS_X * columns), dtype=bool)
    bits = np.zeros((rows, columns), dtype=np.uint8)
    found = Trace(x=x, y=y, across=across, up=up, style=style, pixels=pixels, points=0, bits=bits)
    if not (columns and rows):
        return found
    if before is not None and before.goes_on(found):
        if before.x.size == x.size:
            return before
        if before.points > 1 and x.size - before.x.size <= MOST_STROKES:
            return _continued(before, found)
    px = across.place(x.astype(np.float64))
    kept = m4(px, y, low=0.0, high=1.0, columns=DOTS_X * columns)
    points = _light(pixels, px[kept], up.place(y[kept]))
    return replace(found, points=points, bits=_patterned(pixels, style, lone=points == 1))


def _continued(before: Trace, found: Trace) -> Trace:
    """Return a line that goes on from another one, drawn from its last point on."""
    pixels, bits = found.pixels, found.bits
    pixels[:], bits[:] = before.pixels, before.bits
    known = before.x.size
    xs, ys, good = _dots(
        pixels, found.across.place(found.x[known - 1 :].astype(np.float64)), found.up.place(found.y[known - 1 :])
    )
    ends = list(zip(xs.tolist(), ys.tolist(), good.tolist(), strict=True))
    for (x0, y0, there), (x1, y1, here) in itertools.pairwise(ends):
        if there and here:
            _stroke(pixels, x0, y0, x1, y1)
        elif here:
            pixels[int(y1 + 0.5), int(x1 + 0.5)] = True
    drawn = [int(x + 0.5) for x, _, there in ends if there]
    if drawn:
        # Cells that hold a new dot; what stands before them is as it was.
        first, last = min(drawn) // DOTS_X, max(drawn) // DOTS_X + 1
        bits[:, first:last] = _patterned(
            pixels[:, DOTS_X * first : DOTS_X * last], found.style, lone=False, first=DOTS_X * first
        )
    return replace(found, points=before.points + int(good[1:].sum()))


def draw_line(px: FloatArray, py: FloatArray, *, columns: int, rows: int, style: str = SOLID) -> NDArray[np.uint8]:
    """Return the braille bits (rows, columns) of one line.

    px, py in [0, 1], y upwards; NaN in py is a gap; a point between two gaps is one dot. What lies outside is clipped
    to the border, so that a line that leaves the picture stays visible there.
    """
    if not (columns and rows):
        return np.zeros((rows, columns), dtype=np.uint8)
    pixels = np.zeros((DOTS_Y * rows, DOTS_X * columns), dtype=bool)
    points = _light(pixels, px, py)
    return _patterned(pixels, style, lone=points == 1)


def _dots(
    pixels: NDArray[np.bool_], px: FloatArray, py: FloatArray
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Return where points of a line are among the pixels, and which of them are no gap."""
    height, width = pixels.shape
    # np.clip takes three times as long for a handful of points.
    xs = np.minimum(np.maximum(px, 0.0), 1.0) * (width - 1)
    ys = (1.0 - np.minimum(np.maximum(py, 0.0), 1.0)) * (height - 1)
    return xs, ys, np.isfinite(xs) & np.isfinite(ys)


def _light(pixels: NDArray[np.bool_], px: FloatArray, py: FloatArray) -> int:
    """Light the pixels of a line, and return how many points it has."""
    xs, ys, good = _dots(pixels, px, py)
    pixels[(ys[good] + 0.5).astype(np.int64), (xs[good] + 0.5).astype(np.int64)] = True
    both = np.flatnonzero(good[:-1] & good[1:])
    if both.size:
        _segments(pixels, xs[both], ys[both], xs[both + 1], ys[both + 1])
    return int(np.count_nonzero(good))


def _patterned(pixels: NDArray[np.bool_], style: str, *, lone: bool, first: int = 0) -> NDArray[np.uint8]:
    """Return the braille bits of a line from a pixel column on; a lone point falls into no hole of the pattern."""
    if len(_PATTERNS[style]) > 1 and not lone:
        pixels = pixels & _holes(style, first + pixels.shape[1])[first:]
    return _cells(pixels)


@lru_cache(maxsize=64)
def _holes(style: str, width: int) -> NDArray[np.bool_]:
    """Return which pixel columns of a pattern are on."""
    return np.resize(np.array(_PATTERNS[style], dtype=bool), width)


@lru_cache(maxsize=64)
def draw_level(py: float, *, columns: int, rows: int, style: str = DOTTED) -> NDArray[np.uint8]:
    """Return the braille bits of a horizontal line, none when it lies outside."""
    if not 0.0 <= py <= 1.0:
        return np.zeros((rows, columns), dtype=np.uint8)
    return draw_line(np.array([0.0, 1.0]), np.array([py, py]), columns=columns, rows=rows, style=style)


def braille(bits: int) -> str:
    """Return the character of a cell's dots; a blank where there are none."""
    return chr(0x2800 + bits) if bits else " "


FLAT = 2.0


def sparkline(values: FloatArray, width: int, *, log: bool = True, ascii: bool = False) -> str:
    """Return `width` values of all, evenly chosen, as blocks scaled to their range; a gap is a blank.

    A range of less than `FLAT` times its least value is widened: what hardly moves shall look so.
    """
    # Of twenty runs one has a new value: the others' is known.
    return _sparkline(values.astype(np.float64).tobytes(), width, log, ascii)


@lru_cache(maxsize=1024)
def _sparkline(data: bytes, width: int, log: bool, ascii: bool) -> str:
    values = np.frombuffer(data, dtype=np.float64)
    levels = "_.-~=*#@" if ascii else "▁▂▃▄▅▆▇█"
    shown = values[np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int)]
    known = shown[np.isfinite(shown) & (shown > 0 if log else True)]
    if log and known.size:
        low, high = float(known.min()), float(known.max())
        if high / low < FLAT:
            # Around the middle of one block, so that what trembles does not change blocks.
            low = math.sqrt(low * high) * FLAT ** -(0.5 - 0.5 / len(levels))
            high = FLAT * low
        scale = Scale(low=low, high=high, log=True)
    else:
        scale = scale_of([shown], log=log)
    place = scale.place(shown)
    return "".join(
        " " if np.isnan(p) else levels[min(int(np.clip(p, 0, 1) * len(levels)), len(levels) - 1)] for p in place
    )


def _round_step(raw: float) -> float:
    """Return the next round step: 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))


def _round_log(value: float, *, up: bool) -> float:
    """Return the next 1, 2 or 5 times a power of ten, up or down."""
    exponent = math.floor(math.log10(value))
    steps = [m * 10.0 ** (exponent + e) for e in (0, 1) for m in (1.0, 2.0, 5.0)]
    if up:
        return next(step for step in steps if step >= value * (1 - 1e-9))
    return [step for step in steps if step <= value * (1 + 1e-9)][-1]


def _segments(pixels: NDArray[np.bool_], x0: FloatArray, y0: FloatArray, x1: FloatArray, y1: FloatArray) -> None:
    """Light the pixels between pairs of points: in each pixel column, the run between where a line enters and leaves.

    All lines and all their columns at once: a chart is drawn every second, and this is most of what it costs.
    """
    turned = x1 < x0
    x0, x1, y0, y1 = (
        np.where(turned, x1, x0),
        np.where(turned, x0, x1),
        np.where(turned, y1, y0),
        np.where(turned, y0, y1),
    )
    first = (x0 + 0.5).astype(np.int64)
    counts = (x1 + 0.5).astype(np.int64) - first + 1
    line = np.repeat(np.arange(counts.size), counts)
    column = np.arange(line.size) - np.repeat(np.cumsum(counts) - counts, counts) + first[line]
    upright = x1 <= x0
    slope = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(y0), where=~upright)[line]
    x0, x1, y0, y1, upright = x0[line], x1[line], y0[line], y1[line], upright[line]
    enters = np.where(upright, y0, y0 + (np.maximum(x0, column - 0.5) - x0) * slope)
    leaves = np.where(upright, y1, y0 + (np.minimum(x1, column + 0.5) - x0) * slope)
    top, bottom = np.minimum(enters, leaves), np.maximum(enters, leaves)
    # Pixels whose middle the line passes; where it passes none, the one that it is nearest to.
    start, end = np.ceil(top).astype(np.int64), np.floor(bottom).astype(np.int64)
    nearest = ((top + bottom) / 2 + 0.5).astype(np.int64)
    start, end = np.where(start > end, nearest, start), np.where(start > end, nearest, end)
    # Pixel by pixel: fewer than there are in the picture, unless every line is a spike from edge to edge.
    lengths = end - start + 1
    offset = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pixels[np.repeat(start, lengths) + offset, np.repeat(column, lengths)] = True


def _stroke(pixels: NDArray[np.bool_], x0: float, y0: float, x1: float, y1: float) -> None:
    """Light the pixels of one line as `_segments` does those of many, for which numpy takes twenty times as long."""
    upright = x1 <= x0
    slope = 0.0 if upright else (y1 - y0) / (x1 - x0)
    for column in range(int(x0 + 0.5), int(x1 + 0.5) + 1):
        enters = y0 if upright else y0 + (max(x0, column - 0.5) - x0) * slope
        leaves = y1 if upright else y0 + (min(x1, column + 0.5) - x0) * slope
        top, bottom = min(enters, leaves), max(enters, leaves)
        start, end = math.ceil(top), math.floor(bottom)
        if start > end:
            start = end = int((top + bottom) / 2 + 0.5)
        pixels[start : end + 1, column] = True
    for x, y in ((x0, y0), (x1, y1)):
        pixels[int(y + 0.5), int(x + 0.5)] = True


def _cells(pixels: NDArray[np.bool_]) -> NDArray[np.uint8]:
    dots = pixels.view(np.uint8)
    found = np.zeros((pixels.shape[0] // DOTS_Y, pixels.shape[1] // DOTS_X), dtype=np.uint8)
    for y in range(DOTS_Y):
        for x in range(DOTS_X):
            found |= dots[y::DOTS_Y, x::DOTS_X] * _BITS[y, x]
    return found
