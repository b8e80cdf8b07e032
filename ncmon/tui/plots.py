"""From stored columns to the lines of a chart, as the viewer likes to look at them. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ncmon.detail import Detail, main_split
from ncmon.feed import Selection
from ncmon.model import FloatArray, Run
from ncmon.store.results import Columns
from ncmon.tui.look import AXES, SMOOTHING, Look
from ncmon.tui.widgets.chart import Picture

MOST_ZOOM = 10


def x_of(columns: Columns, run: Run, look: Look) -> FloatArray:
    """Return where the windows of a history stand on the axis that was chosen."""
    axis = AXES[look.axis]
    if axis == "epoch" and (columns.epoch >= 0).all():
        return columns.epoch.astype(np.float64) + 1  # as people count them, and as the status line does
    if axis == "minutes":
        return (columns.time - run.started) / 60.0
    return columns.step.astype(np.float64)


def smoothed(values: FloatArray, width: int, *, log: bool = False) -> FloatArray:
    """Return the mean of the last `width` values at each place, of the logarithms on a log axis; gaps stay gaps."""
    if width <= 1 or not values.size:
        return values
    shown = np.log(np.where(values > 0, values, np.nan)) if log else values
    known = np.isfinite(shown)
    total = np.cumsum(np.where(known, shown, 0.0))
    count = np.cumsum(known)
    total[width:] -= total[:-width].copy()
    count[width:] -= count[:-width].copy()
    mean = np.divide(total, count, out=np.full(values.shape, np.nan), where=(count > 0) & known)
    return np.exp(mean) if log else mean


def moment(detail: Detail, selection: Selection, look: Look) -> float | None:
    """Return where the crosshair stands on the x axis, None while the picture follows the run."""
    if selection.step is None:
        return None
    columns = timeline(detail)
    if columns is None:
        return None
    place = int(np.searchsorted(columns.step, selection.step, side="right")) - 1
    return float(x_of(columns, detail.run, look)[max(place, 0)])


def timeline(detail: Detail) -> Columns | None:
    """Return the history that time is told by: the longest of the split that the run trains on."""
    series = detail.series.get(main_split(detail.splits), {})
    longest = max(series.values(), key=len, default=None)
    return longest if longest is not None and len(longest) else None


def framed(picture: Picture, look: Look, *, cursor: float | None, zoom: int) -> Picture:
    """Return a picture with the axis, the crosshair and the part of time that are wanted."""
    axis = AXES[look.axis]
    lines = tuple(replace(line, y=smoothed(line.y, SMOOTHING[look.smooth], log=picture.log)) for line in picture.lines)
    title = f"{picture.title} w{SMOOTHING[look.smooth]}" if look.smooth else picture.title
    found = replace(picture, title=title, lines=lines, x_title=axis, x_log=axis == "log step", cursor=cursor)
    if not zoom or not any(line.x.size for line in lines):
        return found
    low = min(float(line.x[0]) for line in lines if line.x.size)
    high = max(float(line.x[-1]) for line in lines if line.x.size)
    span = (high - low) / 2.0**zoom
    # The end while it follows the run, else around the crosshair.
    end = high if cursor is None else min(max(cursor + span / 2, low + span), high)
    return replace(found, x_range=(end - span, end))
