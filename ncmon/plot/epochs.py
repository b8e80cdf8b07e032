"""Over epochs: metrics of one run or several, and what is measured against what is guaranteed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ncmon.bounds import BOUNDS, Bound
from ncmon.errors import UsageError
from ncmon.model import CLASSIFIER_INPUT
from ncmon.plot import series, style
from ncmon.plot.series import Curve
from ncmon.store.runs import StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL = ("nc1_pinv", "intra_cos_min", "inter_cos_max", "nc2_equiangularity", "nc3_cos_min", "ce_loss")
LOSS_FLOORS = {"ce_loss": "ce_bound_m"}
"""Metrics that another metric bounds from below, whatever the weights are."""


def metrics(
    runs: Sequence[StoredRun],
    names: Sequence[str] = (),
    *,
    layer: str | None = None,
    splits: Sequence[str] = (),
    scale: str = "auto",
) -> Figure:
    """Draw one panel a metric. One run: all splits, a colour each. Several: train or `splits`, a colour a run."""
    asked = [series.check_metric(runs, name) for name in names] or list(USUAL)
    shown, at = series.splits_of(runs, splits), series.layer_of(runs, layer)
    if not names and at != CLASSIFIER_INPUT:
        asked = [name for name in asked if not series.ENTRIES[name].at_classifier]
    if len(runs) > 1 and not splits:
        shown = ["train"] if "train" in shown else shown[:1]
    by_step = not series.has_epochs(runs)
    with style.styled():
        figure, axes = style.grid(len(asked), height=2.6, columns=3 if len(asked) != 4 else 2)
        for axis, name in zip(axes, asked, strict=True):
            _panel(axis, runs, name, layer=at, splits=shown, scale=scale, by_step=by_step)
        where = f", split {style.text(shown[0])}" if len(shown) == 1 else ""
        figure.suptitle(f"{series.heading(runs)}: {style.text(at)}{where}", fontsize=10)
        style.legend(figure, axes)
    return figure


def _panel(
    axis: Axes, runs: Sequence[StoredRun], name: str, *, layer: str, splits: Sequence[str], scale: str, by_step: bool
) -> None:
    drawn: list[Curve] = []
    guarded = False
    for number, (run, name_of) in enumerate(zip(runs, series.labels(runs), strict=True)):
        for place, split in enumerate(one for one in splits if one in run.splits):
            colour = style.COLOURS[(number if len(runs) > 1 else place) % len(style.COLOURS)]
            dash = style.DASHES[(place if len(runs) > 1 else 0) % len(style.DASHES)]
            parts = [name_of] * (len(runs) > 1) + [style.text(split)] * (len(runs) == 1 or len(splits) > 1)
            label = ", ".join(parts)
            found = series.curve(run, name, layer=layer, split=split, by_step=by_step)
            _line(axis, found, colour, dash, label)
            drawn.append(found)
            if name in LOSS_FLOORS:
                floor = series.curve(run, LOSS_FLOORS[name], layer=layer, split=split, by_step=by_step)
            else:
                floor = series.tightest(run, name, layer=layer, split=split, by_step=by_step)
            if np.isfinite(floor.y).any():
                axis.plot(floor.x, floor.y, color=colour, linewidth=0.9, linestyle=(0, (1, 1)), alpha=0.8)
                drawn.append(floor)
                guarded = True
    if guarded:
        label = "its tightest bound"
        axis.plot([], [], color=style.GUARANTEED, linewidth=0.9, linestyle=(0, (1, 1)), label=label)
    log = series.is_log(name, [one.y for one in drawn], scale)
    if log:
        style.logarithmic(axis)
    ideal = series.target(name, runs[0].run.n_classes)
    if ideal is not None and np.isfinite(ideal) and not (log and ideal <= 0):
        axis.axhline(ideal, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), label="perfect collapse", zorder=1)
    _dress(axis, series.title(name), by_step, empty=not any(np.isfinite(one.y).any() for one in drawn))


def bounds(run: StoredRun, *, splits: Sequence[str] = (), scale: str = "auto") -> Figure:
    """Draw every bound that says something beside what it bounds; and every class in the last window."""
    split = series.one_split(run, splits or _exact_split(run))
    by_step = not series.has_epochs([run])
    plain: dict[str, list[Bound]] = {}
    for bound in BOUNDS:
        if bound.scope not in ("class", "pair"):
            plain.setdefault(bound.of, []).append(bound)
    classes = [bound for bound in BOUNDS if bound.scope == "class"]
    if CLASSIFIER_INPUT not in {key.name for key in run.layers}:
        raise UsageError(f"run {run.name} has no classifier-input: the bounds are about it")
    with style.styled():
        figure, axes = style.grid(len(plain) + len(classes), columns=2, width=4.4, height=3.0)
        for axis, (name, several) in zip(axes, plain.items(), strict=False):
            measured = series.curve(run, name, layer=CLASSIFIER_INPUT, split=split, by_step=by_step)
            _line(axis, measured, style.COLOURS[0], "solid", "measured")
            drawn = [measured.y]
            for place, bound in enumerate(several):
                value = series.curve(run, bound.name, layer=CLASSIFIER_INPUT, split=split, by_step=by_step)
                if not np.isfinite(value.y).any():
                    continue  # vacuous or not applicable throughout: the table of `ncmon bounds` says why
                kind = "guaranteed" if measured.exact else "estimated"
                colour = style.COLOURS[(place + 1) % len(style.COLOURS)]
                axis.plot(value.x, value.y, color=colour, linestyle=(0, (4, 2)), label=f"{kind}: {bound.name}")
                drawn.append(value.y)
            if series.is_log(name, drawn, scale):
                style.logarithmic(axis)
            _dress(axis, series.title(name), by_step, empty=not len(measured))
            axis.legend(loc="best", fontsize=6)
        for axis, bound in zip(axes[len(plain) :], classes, strict=True):
            _class_panel(axis, run, bound.of, bound.name, split)
        figure.suptitle(f"{style.short(run.name)}: measured against guaranteed, split {style.text(split)}", fontsize=10)
    return figure


def _class_panel(axis: Axes, run: StoredRun, measured: str, bound: str, split: str) -> None:
    values, limits = run.classes(measured, split=split), run.classes(bound, split=split)
    names = [style.short(run.run.class_name(c), 14) for c in range(values.values.shape[1])]
    place = np.arange(len(names))
    if len(values):
        last, limit = values.values[-1], limits.values[-1]
        axis.vlines(place, limit, last, color=style.COLOURS[1], alpha=0.25, linewidth=3)
        axis.plot(place, last, style.MARKS[0], color=style.COLOURS[0], label="measured", markersize=4.5)
        axis.plot(place, limit, "_", color=style.COLOURS[1], label=bound, markersize=9, markeredgewidth=1.8)
        none = np.isnan(limit) & ~np.isnan(last)
        if none.any():
            bottom = axis.get_ylim()[0]
            axis.plot(place[none], np.full(none.sum(), bottom), "x", color=style.GUARANTEED, label="no certificate")
        axis.legend(loc="best")
    epoch = f", epoch {int(values.epoch[-1])}" if len(values) and values.epoch[-1] >= 0 else ""
    axis.set_title(f"{series.title(measured)}{epoch}")
    if len(names) <= 30:
        axis.set_xticks(place, names, rotation=0 if max(map(len, names), default=0) < 4 else 60)
    else:
        axis.set_xlabel("class")
    axis.grid(visible=False, axis="x")


def _exact_split(run: StoredRun) -> list[str]:
    """Return the split where bounds are guarantees, by preference of the training set; none where there is no such."""
    exact = [split for split in run.splits if len(found := run.window_columns(split)) and found.exact.all()]
    exact.sort(key=lambda split: (not split.startswith("train"), split))
    return exact[:1]


def _line(axis: Axes, found: Curve, colour: str, dash: Any, label: str) -> None:
    few = np.isfinite(found.y).sum() <= 20
    axis.plot(
        found.x,
        found.y,
        color=colour,
        linestyle=dash,
        label=label,
        marker=style.MARKS[0] if few else None,
    )


def _dress(axis: Axes, heading: str, by_step: bool, *, empty: bool) -> None:
    axis.set_title(heading)
    axis.set_xlabel("step" if by_step else "epoch")
    if empty:
        axis.text(0.5, 0.5, "no value", transform=axis.transAxes, ha="center", color=style.GUARANTEED)
