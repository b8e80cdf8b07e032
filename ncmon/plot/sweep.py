"""Over runs: last values against a key of their configuration, as intra- and inter-class cosine over weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.errors import NotFound, near
from ncmon.model import FloatArray
from ncmon.plot import series, style
from ncmon.store.runs import StoredRun
from ncmon.store.selection import as_number, config_value, flat_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL = ("intra_cos_min", "inter_cos_max", "nc1_pinv")
MOST_TICKS = 12
"""Values that are all named below the axis."""


def sweep(
    runs: Sequence[StoredRun],
    key: str,
    names: Sequence[str] = (),
    *,
    layer: str | None = None,
    splits: Sequence[str] = (),
    scale: str = "auto",
) -> Figure:
    """Draw the last value of each metric over a numeric key of the configuration: a point a run, a line a split.

    Runs of one value (several seeds) are joined by their mean.
    """
    asked = [series.check_metric(runs, name) for name in names] or list(USUAL)
    shown, at = series.splits_of(runs, splits), series.layer_of(runs, layer)
    numbers = [(as_number(config_value(run.config, key)), run) for run in runs]
    placed = sorted(((x, run) for x, run in numbers if x is not None), key=lambda pair: pair[0])
    if not placed:
        known = dict.fromkeys(
            name for run in runs for name, value in flat_config(run.config).items() if as_number(value) is not None
        )
        raise NotFound(f"no run has a number for {key!r} in its configuration{near(key, known)}")
    x = np.array([number for number, _ in placed])
    with style.styled():
        figure, axes = style.grid(len(asked), columns=3, width=3.5, height=2.8)
        for axis, name in zip(axes, asked, strict=True):
            drawn, guarded = [], False
            for place, split in enumerate(shown):
                y = np.array([_last(run, name, at, split) for _, run in placed])
                colour = style.COLOURS[place % len(style.COLOURS)]
                mark = style.MARKS[place % len(style.MARKS)]
                axis.plot(x, y, mark, color=colour, markersize=4.5, label=style.text(split))
                centres = np.unique(x)
                means = np.array([_mean(y[x == centre]) for centre in centres])
                axis.plot(centres, means, color=colour, linewidth=1.0, alpha=0.7)
                drawn.append(y)
                if len(shown) == 1:
                    _bounds(axis, placed, name, at, split)
                    continue
                limits = np.array([_last_bound(run, name, at, split) for _, run in placed])
                if np.isfinite(limits).any():
                    axis.plot(x, limits, "_", color=colour, markersize=10, markeredgewidth=1.6)
                    guarded = True
            if guarded:
                axis.plot([], [], "_", color=style.GUARANTEED, markersize=10, label="its tightest bound")
            if series.is_log(name, drawn, scale):
                style.logarithmic(axis)
            ideal = series.target(name, runs[0].run.n_classes)
            if ideal is not None and np.isfinite(ideal) and axis.get_yscale() != "log":
                axis.axhline(ideal, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), label="perfect collapse")
            _scale_x(axis, x)
            axis.set_xlabel(style.text(key))
            axis.set_title(series.title(name))
        figure.suptitle(f"{len(placed)} runs: last window of {style.text(at)}", fontsize=10)
        style.legend(figure, axes)
    return figure


def _bounds(axis: Axes, placed: Sequence[tuple[float, StoredRun]], name: str, layer: str, split: str) -> None:
    """Draw what the bounds of a metric say, each in a mark and a colour of its own: there is one split."""
    x = np.array([number for number, _ in placed])
    for place, bound in enumerate((bound for bound in BOUNDS if bound.of == name), 1):
        limits = np.array([_last(run, bound.name, layer, split) for _, run in placed])
        if not np.isfinite(limits).any():
            continue
        centres = np.unique(x)
        axis.plot(
            centres,
            [_mean(limits[x == centre]) for centre in centres],
            color=style.COLOURS[place % len(style.COLOURS)],
            marker=style.MARKS[place % len(style.MARKS)],
            markersize=3.0,
            linestyle=style.DASHES[1 + place % (len(style.DASHES) - 1)],
            linewidth=0.9,
            label=bound.name,
        )


def _last(run: StoredRun, name: str, layer: str, split: str) -> float:
    """Return the last value of a metric, NaN where the last window has none."""
    if split not in run.splits or layer not in {key.name for key in run.layers}:
        return float("nan")
    found = run.history(name, layer=layer, split=split)
    return float(found.value[-1]) if len(found) else float("nan")


def _last_bound(run: StoredRun, name: str, layer: str, split: str) -> float:
    """Return the tightest bound in the last window, NaN where there is none."""
    if split not in run.splits or layer not in {key.name for key in run.layers}:
        return float("nan")
    found = series.tightest(run, name, layer=layer, split=split, by_step=True)
    return float(found.y[-1]) if len(found) else float("nan")


def _mean(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _scale_x(axis: Axes, x: FloatArray) -> None:
    """Space decades evenly; 0, as of a weight decay that is off, gets a place of its own beside them."""
    positive, values = x[x > 0], np.unique(x)
    if x.min() >= 0 and positive.size and positive.max() >= 10 * positive.min():
        least = float(positive.min())
        if (x == 0).any():
            axis.set_xscale("symlog", linthresh=least, linscale=0.5)
            axis.set_xlim(-0.2 * least, 1.4 * float(positive.max()))
        else:
            axis.set_xscale("log")
    if len(values) <= MOST_TICKS:
        axis.set_xticks(values, [f"{value:g}" for value in values], rotation=45 if len(values) > 4 else 0)
        axis.set_xticks([], minor=True)
