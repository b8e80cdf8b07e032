"""What a formula may answer: a number, or in words why there is none. Never a NaN that says nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ncmon.model import FloatArray, Reading

if TYPE_CHECKING:
    from ncmon.metrics.view import View


class Unavailable(Exception):
    """A number that this window cannot give; the text is the reason that a reader sees."""


ScalarFunction = Callable[[Any], "float | tuple[float, tuple[int, ...]]"]


def reading(compute: ScalarFunction) -> Callable[[Any], Reading]:
    """Make a function that returns a number, or a number and where it is attained, return a `Reading`."""

    @functools.wraps(compute)
    def read(view: Any) -> Reading:
        try:
            with np.errstate(all="ignore"):
                result = compute(view)
        except Unavailable as missing:
            return Reading(value=None, reason=str(missing))
        value, attained_at = result if isinstance(result, tuple) else (result, ())
        if not np.isfinite(value):
            return Reading(value=None, reason=f"not finite: the formula gave {value}")
        return Reading(value=float(value), attained_at=attained_at)

    return read


def class_array(compute: Callable[[View], FloatArray]) -> Callable[[View], FloatArray]:
    """Turn a function of present classes (K,) into one of declared classes (C,), NaN where there is no value."""

    @functools.wraps(compute)
    def read(view: View) -> FloatArray:
        try:
            with np.errstate(all="ignore"):
                values = view.spread(compute(view))
        except Unavailable:
            return np.full(view.n_classes, np.nan)
        return np.where(np.isfinite(values), values, np.nan)

    return read


def share(hits: FloatArray, total: FloatArray) -> FloatArray:
    """Return hits / total elementwise, NaN where the total is zero."""
    return np.divide(hits, total, out=np.full(total.shape, np.nan), where=total > 0)
