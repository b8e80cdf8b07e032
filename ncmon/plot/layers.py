"""Over layers and classes: depth profiles, layers by epochs, classes by classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ncmon.errors import NotFound, UsageError
from ncmon.metrics.spec import Metric
from ncmon.model import FloatArray
from ncmon.plot import series, style
from ncmon.store.runs import StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL = ("nc1_pinv", "intra_cos_min", "ncc_acc")
PROFILES = 5
"""Windows of one run that a depth profile shows, evenly over what there is."""
MOST_NAMES = 40
"""Rows of a heat map that are named."""
MOST_DIGITS = 12
"""Classes of a matrix whose cells have room for a number."""


def depth(
    runs: Sequence[StoredRun],
    names: Sequence[str] = (),
    *,
    splits: Sequence[str] = (),
    epoch: int | None = None,
    scale: str = "auto",
) -> Figure:
    """Draw metrics over the layers: one run at several epochs, or several runs at the last (or one) epoch."""
    asked = [series.check_metric(runs, name) for name in names] or list(USUAL)
    with style.styled():
        import matplotlib

        figure, axes = style.grid(len(asked), columns=3, width=3.6, height=3.0)
        shades = matplotlib.colormaps["viridis_r"]
        for axis, name in zip(axes, asked, strict=True):
            drawn = []
            for number, (run, name_of) in enumerate(zip(runs, series.labels(runs), strict=True)):
                split = series.one_split(run, splits)
                layers, x, values = series.over_layers(run, name, split)
                places = _places(x, epoch, several=len(runs) == 1)
                for order, place in enumerate(places):
                    column = values[:, place]
                    label = f"epoch {x[place]:.0f}" if len(runs) == 1 else name_of
                    colour = shades(0.12 + 0.88 * order / max(len(places) - 1, 1)) if len(runs) == 1 else None
                    axis.plot(
                        np.arange(len(layers)),
                        column,
                        marker=style.MARKS[(order if len(runs) == 1 else number) % len(style.MARKS)],
                        color=colour or style.COLOURS[number % len(style.COLOURS)],
                        label=label,
                    )
                    drawn.append(column)
                _name_layers(axis, layers)
            if series.is_log(name, drawn, scale):
                style.logarithmic(axis)
            axis.set_title(series.title(name))
        shown = ", ".join(dict.fromkeys(series.one_split(run, splits) for run in runs))
        figure.suptitle(
            f"{series.heading(runs)}: over the layers, from the input; split {style.text(shown)}", fontsize=10
        )
        style.legend(figure, axes)
    return figure


def heat(run: StoredRun, names: Sequence[str] = (), *, splits: Sequence[str] = (), scale: str = "auto") -> Figure:
    """Draw metrics of every layer (rows, the input below) at every epoch (columns)."""
    asked = [series.check_metric([run], name) for name in names] or list(USUAL[:2])
    split = series.one_split(run, splits)
    with style.styled():
        n_layers = len(run.layers)
        figure, axes = style.grid(len(asked), columns=2, width=4.8, height=max(2.2, min(0.16 * n_layers + 1.2, 8.0)))
        for axis, name in zip(axes, asked, strict=True):
            layers, x, values = series.over_layers(run, name, split)
            if not np.isfinite(values).any():
                raise NotFound(f"run {run.name} has no {name} in split {split!r} to draw")
            _mesh(figure, axis, _edges(x), _centred(len(layers)), values, name, scale)
            step = max(1, -(-len(layers) // MOST_NAMES))
            rows = np.arange(0, len(layers), step)
            axis.set_yticks(rows, [style.short(layers[row], 22) for row in rows])
            axis.set_xlabel("epoch")
            axis.set_title(series.title(name))
        figure.suptitle(f"{style.short(run.name)}: layers by epochs, split {style.text(split)}", fontsize=10)
    return figure


def classes(
    run: StoredRun,
    name: str = "inter_cos",
    *,
    layer: str | None = None,
    splits: Sequence[str] = (),
    epoch: int | None = None,
) -> Figure:
    """Draw a matrix of pairs of classes in the last window that keeps it, or the last of an epoch."""
    split, at = series.one_split(run, splits), series.layer_of([run], layer)
    kept = run.matrices(name, layer=at, split=split)
    places = [place for place, found in enumerate(kept.epoch.tolist()) if epoch is None or found == epoch]
    if not places:
        some = sorted(set(kept.epoch.tolist()))
        raise NotFound(
            f"run {run.name} keeps no {name} of layer {at!r}, split {split!r}"
            + (f", epoch {epoch}; it does of {', '.join(map(str, some[-8:]))}" if some else "")
        )
    matrix = kept.values[places[-1]].copy()
    np.fill_diagonal(matrix, np.nan)  # A class beside itself says nothing about pairs.
    labels = [style.short(run.run.class_name(c), 14) for c in range(len(matrix))]
    with style.styled():
        figure, (axis,) = style.grid(1, width=5.6, height=4.7)
        edge = _centred(len(matrix))
        _mesh(figure, axis, edge, edge, matrix, name, "linear", centre=-1.0 / max(len(matrix) - 1, 1))
        if len(labels) <= MOST_NAMES:
            axis.set_xticks(np.arange(len(labels)), labels, rotation=0 if max(map(len, labels)) < 3 else 60)
            axis.set_yticks(np.arange(len(labels)), labels)
        axis.invert_yaxis()
        axis.set_aspect("equal")
        spread = float(np.nanmax(np.abs(matrix + 1.0 / max(len(matrix) - 1, 1)), initial=0.0))
        if len(labels) <= MOST_DIGITS:
            for (row, column), value in np.ndenumerate(matrix):
                if np.isfinite(value):
                    dark = abs(value + 1.0 / (len(matrix) - 1)) > 0.6 * spread
                    ink = "white" if dark else "black"
                    axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=ink)
        when = f"epoch {kept.epoch[places[-1]]}" if kept.epoch[places[-1]] >= 0 else f"step {kept.step[places[-1]]}"
        axis.set_title(f"{series.title(name)}: {style.short(run.name)}, {style.short(at)}, {style.text(split)}, {when}")
    return figure


def _places(x: FloatArray, epoch: int | None, *, several: bool) -> list[int]:
    """Return the windows to draw: of one epoch, or spread evenly over all, the first and the last among them."""
    if epoch is not None:
        found = np.flatnonzero(x == epoch)
        if not found.size:
            raise NotFound(
                f"no window of epoch {epoch}; there are {x.min():.0f} to {x.max():.0f}" if len(x) else "no window"
            )
        return [int(found[-1])]
    if not len(x):
        raise UsageError("no window yet, nothing to draw")
    if not several:
        return [len(x) - 1]
    return sorted({round(place) for place in np.linspace(0, len(x) - 1, PROFILES)})


def _name_layers(axis: Axes, layers: Sequence[str]) -> None:
    step = max(1, -(-len(layers) // 24))
    rows = range(0, len(layers), step)
    axis.set_xticks(
        rows, [style.short(layers[row], 18) for row in rows], rotation=60, ha="right", rotation_mode="anchor"
    )


def _edges(x: FloatArray) -> FloatArray:
    """Return where cells begin and end, in the middle between their centres; equal centres are put apart."""
    if len(x) < 2 or (np.diff(x) <= 0).any():
        return _centred(len(x)) + (x[0] if len(x) else 0.0)
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[x[0] - (middle[0] - x[0])], middle, [x[-1] + (x[-1] - middle[-1])]])


def _centred(count: int) -> FloatArray:
    """Return the edges of cells around 0, 1, 2, ..."""
    return np.arange(count + 1, dtype=np.float64) - 0.5


def _mesh(
    figure: Figure,
    axis: Axes,
    x: FloatArray,
    y: FloatArray,
    values: FloatArray,
    name: str,
    scale: str,
    *,
    centre: float | None = None,
) -> None:
    from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm

    finite = values[np.isfinite(values)]
    norm: Any = LogNorm() if series.is_log(name, [values], scale) else Normalize()
    entry = series.ENTRIES.get(name)
    lower = isinstance(entry, Metric) and entry.better == "lower"
    # Dark is collapsed, whichever way the metric runs.
    shades = "viridis_r" if not lower else "viridis"
    if centre is not None and finite.size:
        spread = max(float(np.abs(finite - centre).max()), 1e-6)
        norm, shades = TwoSlopeNorm(centre, centre - spread, centre + spread), "RdBu_r"
    axis.grid(visible=False)
    axis.set_facecolor("#c8c8c8")
    drawn = axis.pcolormesh(x, y, np.ma.masked_invalid(values), norm=norm, cmap=shades, rasterized=values.size > 4000)
    bar = figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
