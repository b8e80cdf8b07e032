"""From a matrix to the levels of a heat map. Pure numpy, no screen.

A matrix larger than the picture is pooled: a cell shows the greatest, the least or the mean of what it stands for, so
that one bad layer among two hundred, or one confused pair among a thousand classes, still lights its cell. A smaller
one is stretched by whole cells.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ncmon.model import FloatArray, IntArray
from ncmon.tui.raster import Scale

Pool = Literal["max", "min", "mean"]

BLOCKS = " ░▒▓█"
DIGITS = "0123456789"


def edges(size: int, cells: int) -> IntArray:
    """Return where the parts of `size` things begin and end when they share `cells` cells (cells + 1,)."""
    return np.arange(cells + 1, dtype=np.int64) * size // cells


def pooled(values: FloatArray, cells: int, pool: Pool, axis: int) -> FloatArray:
    """Return the matrix with at most `cells` along an axis; NaN counts as nothing, a part of nothing is NaN."""
    size = values.shape[axis]
    return values if size <= cells else reduced(values, edges(size, cells)[:-1], pool, axis)


def reduced(values: FloatArray, starts: IntArray, pool: Pool, axis: int) -> FloatArray:
    """Return the matrix with one cell along an axis for each part, which are given by where they begin."""
    if pool != "mean":
        # fmax and fmin pass over NaN: no copies of a matrix of a thousand classes.
        return (np.fmax if pool == "max" else np.fmin).reduceat(values, starts, axis=axis)
    moved = np.moveaxis(values, axis, 0)
    known = ~np.isnan(moved)
    total = np.add.reduceat(np.where(known, moved, 0.0), starts, axis=0)
    count = np.add.reduceat(known.astype(np.float64), starts, axis=0)
    found = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return np.moveaxis(found, 0, axis)


def stretched(size: int, room: int, most: int) -> IntArray:
    """Return which of `size` things each of the cells shows, each one as many as fit, `most` at most."""
    each = max(1, min(room // max(size, 1), most))
    return np.repeat(np.arange(size), each)[:room]


def levels(values: FloatArray, scale: Scale, count: int, *, flip: bool = False) -> IntArray:
    """Return the level 0 ... count-1 of each value on the scale, -1 where there is no value."""
    place = scale.place(values)
    if flip:
        place = 1.0 - place
    known = ~np.isnan(place)
    found = np.clip(np.where(known, place, 0.0) * count, 0, count - 1).astype(np.int64)
    return np.where(known, found, -1)
