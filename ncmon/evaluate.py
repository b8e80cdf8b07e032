"""A window becomes its readings: every metric, then every bound, for every layer that has them.

Pure, and it never raises for a valid window: a formula that fails is a reading whose reason starts with `internal:`, so
that one mistake costs one number and not the run. It knows neither the store nor the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.bounds.assumptions import assumptions
from ncmon.metrics import METRICS, View
from ncmon.metrics.spec import Bound, Metric
from ncmon.model import Evaluation, FloatArray, LayerReadings, Reading, Window

REGISTRY: tuple[Metric | Bound, ...] = (*METRICS, *BOUNDS)


def evaluate(window: Window) -> Evaluation:
    """Return all readings of a window, its layers in the window's order."""
    views = tuple(View(window, layer) for layer in window.layers)
    last = next((view for view in views if view.is_classifier_input), None)
    # Numbers that overflow become readings with a reason; numpy's warnings would say it twice.
    with np.errstate(all="ignore"):
        return Evaluation(
            window=window,
            layers=tuple(_layer(view, views) for view in views),
            assumptions=assumptions(window, last),
        )


def _layer(view: View, views: Sequence[View]) -> LayerReadings:
    readings: dict[str, Reading] = {}
    class_arrays: dict[str, FloatArray] = {}
    pair_arrays: dict[str, FloatArray] = {}
    for entry in REGISTRY:
        if entry.at_classifier and not view.is_classifier_input:
            continue
        if entry.scope == "class":
            class_arrays[entry.name] = _array(entry.compute, view, (view.n_classes,))
        elif entry.scope == "pair":
            pair_arrays[entry.name] = _array(entry.compute, view, (view.n_classes, view.n_classes))
        else:
            readings[entry.name] = _reading(entry.compute, views if entry.scope == "window" else view)
    layer = view.layer
    return LayerReadings(
        key=layer.key,
        module=layer.module,
        reduction=layer.reduction,
        note=layer.note,
        n_features=layer.n_features,
        readings=readings,
        class_arrays=class_arrays,
        pair_arrays=pair_arrays,
        quality=_quality(view),
    )


def _reading(compute: Callable[[Any], Reading], subject: View | Sequence[View]) -> Reading:
    try:
        return compute(subject)
    except Exception as error:
        return Reading(value=None, reason=f"internal: {type(error).__name__}: {error}")


def _array(compute: Callable[[View], FloatArray], view: View, shape: tuple[int, ...]) -> FloatArray:
    try:
        values = compute(view)
    except Exception:
        return np.full(shape, np.nan)
    return np.where(np.isinf(values), np.nan, values) if np.isinf(values).any() else values


def _quality(view: View) -> dict[str, float]:
    try:
        rank = view.rank_used
    except Exception:
        rank = 0
    figures = {
        "samples": float(view.n_samples),
        "classes_present": float(view.present.size),
        "rank_used": float(rank),
        "resolution_floor": view.resolution_floor,
        "zero_norm": float(view.layer.zero_counts.sum()),
        "nonfinite": float(view.n_nonfinite),
        "mean_shift": view.mean_shift,
        "movement_share": view.movement_share,
    }
    return {name: value for name, value in figures.items() if value is not None and np.isfinite(value)}
