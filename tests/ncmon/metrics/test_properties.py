"""What the registry says about a metric, held against random windows: invariances, and the value at collapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncmon.evaluate import evaluate
from ncmon.metrics import METRICS
from ncmon.metrics.spec import Metric
from ncmon.model import CLASSIFIER_INPUT, LayerReadings
from tests.factories import Features, make_features, window_from_features
from tests.ncmon.metrics.test_values import SLOW, features


def rotated(raw: Features) -> Features:
    turns = {
        name: np.linalg.qr(np.random.default_rng(3).normal(size=(rows.shape[1],) * 2))[0]
        for name, rows in raw.layers.items()
    }
    layers = {name: rows @ turns[name] for name, rows in raw.layers.items()}
    return Features(layers=layers, labels=raw.labels, weight=raw.weight @ turns[CLASSIFIER_INPUT], bias=raw.bias)


def scaled(raw: Features) -> Features:
    layers = {name: 3.7 * rows for name, rows in raw.layers.items()}
    return Features(layers=layers, labels=raw.labels, weight=raw.weight, bias=raw.bias)


def translated(raw: Features) -> Features:
    layers = {name: rows + np.random.default_rng(5).normal(size=rows.shape[1]) for name, rows in raw.layers.items()}
    return Features(layers=layers, labels=raw.labels, weight=raw.weight, bias=raw.bias)


ORDER = np.array([3, 0, 4, 1, 2])
"""Class c becomes class ORDER[c]."""


def permuted(raw: Features) -> Features:
    back = np.argsort(ORDER)
    bias = None if raw.bias is None else raw.bias[back]
    return Features(layers=raw.layers, labels=ORDER[raw.labels], weight=raw.weight[back], bias=bias)


WITHOUT_BIAS = {"excess_structure"}


def unbalanced(metric: Metric, seed: int) -> Features:
    options: dict[str, Any] = {"n_classes": 5, "n_features": 8, "per_class": [6, 9, 4, 7, 5], "layers": 2}
    return make_features(seed=seed, collapse=0.3, bias=metric.name not in WITHOUT_BIAS, **options)


CHANGES: dict[str, Callable[[Features], Features]] = {
    "rotation": rotated,
    "scaling": scaled,
    "permutation": permuted,
    "translation": translated,
}


def result(layer: LayerReadings, metric: Metric) -> Any:
    if metric.scope == "class":
        return layer.class_arrays[metric.name]
    if metric.scope == "pair":
        return layer.pair_arrays[metric.name]
    return layer.readings[metric.name].value


def last_layer(raw: Features) -> LayerReadings:
    return evaluate(window_from_features(raw.layers, raw.labels, raw.weight, raw.bias)).layers[-1]


@pytest.mark.parametrize(
    ("metric", "change"),
    [(metric, change) for metric in METRICS for change in metric.invariant_to],
    ids=lambda value: value.name if isinstance(value, Metric) else value,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_metric_is_invariant(metric: Metric, change: str, seed: int) -> None:
    raw = unbalanced(metric, seed)
    before, after = result(last_layer(raw), metric), result(last_layer(CHANGES[change](raw)), metric)
    assert before is not None
    if change == "permutation" and metric.scope == "class":
        after = after[ORDER]
    if change == "permutation" and metric.scope == "pair":
        after = after[np.ix_(ORDER, ORDER)]
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-11)


@SLOW
@given(raw=features(), seed=st.integers(0, 10_000), size=st.sampled_from([1e-3, 0.3, 40.0]))
def test_every_invariance_of_the_registry_holds_on_any_window(raw: Features, seed: int, size: float) -> None:
    """Also with absent classes, single samples, more classes than features; what has a reason keeps it."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(raw.weight.shape[0])
    back = np.argsort(order)
    turns = {name: np.linalg.qr(rng.normal(size=(rows.shape[1],) * 2))[0] for name, rows in raw.layers.items()}
    bias = raw.bias

    def with_rows(change: Callable[[str, Any], Any]) -> dict[str, Any]:
        return {name: change(name, rows) for name, rows in raw.layers.items()}

    plain = {"labels": raw.labels, "weight": raw.weight, "bias": bias}
    changes = {
        "rotation": Features(
            layers=with_rows(lambda name, rows: rows @ turns[name]),
            **{**plain, "weight": raw.weight @ turns[CLASSIFIER_INPUT]},
        ),
        "scaling": Features(layers=with_rows(lambda name, rows: size * rows), **plain),
        "translation": Features(
            layers=with_rows(lambda name, rows: rows + size * rng.normal(size=rows.shape[1])), **plain
        ),
        "permutation": Features(
            layers=raw.layers,
            labels=order[raw.labels],
            weight=raw.weight[back],
            bias=None if bias is None else bias[back],
        ),
    }
    before = last_layer(raw)
    afters = {change: last_layer(other) for change, other in changes.items()}
    for metric in METRICS:
        for change in metric.invariant_to:
            found, expected = result(afters[change], metric), result(before, metric)
            if change == "permutation" and metric.scope == "class":
                found = found[order]
            if change == "permutation" and metric.scope == "pair":
                found = found[np.ix_(order, order)]
            if expected is None:
                assert found is None, (metric.name, change)
            else:
                assert found is not None, (metric.name, change, afters[change].readings[metric.name].reason)
                # A vector of 40 before features of 0.01 leaves 12 digits of their differences, 10 of the squares.
                np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8, err_msg=f"{metric.name} {change}")


COARSE = {
    "nc4_agree",
    "accuracy",
    "ncc_acc",
    "class_accuracy",
    "class_ncc_acc",
    "nearest_class",
    "w_nearest_class",
    "effective_depth",
}
"""Shares of few samples, numbers of a class or of a layer: these may stay equal by chance."""


@pytest.mark.parametrize(
    ("metric", "change"),
    [
        (metric, change)
        for metric in METRICS
        for change in CHANGES
        if change not in metric.invariant_to and metric.name not in COARSE
    ],
    ids=lambda value: value.name if isinstance(value, Metric) else value,
)
def test_a_change_that_is_not_named_is_felt(metric: Metric, change: str) -> None:
    """An invariance left out of the registry would go untested."""
    raw = unbalanced(metric, 2)
    before, after = result(last_layer(raw), metric), result(last_layer(CHANGES[change](raw)), metric)
    assert not np.allclose(after, before, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.target], ids=lambda metric: metric.name)
@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 1), (2, 5), (4, 3), (10, 9), (10, 32)])
def test_metric_reaches_its_target_at_an_exact_simplex_frame(metric: Metric, n_classes: int, n_features: int) -> None:
    raw = make_features(n_classes=n_classes, n_features=n_features, per_class=3, layers=2, collapse=1.0, bias=False)
    found = result(last_layer(raw), metric)
    assert metric.target is not None
    assert found is not None
    shown = np.asarray(found)
    np.testing.assert_allclose(shown[~np.isnan(shown)], metric.target(n_classes), atol=1e-9)


def test_targets_and_invariances_are_not_empty() -> None:
    assert all(metric.invariant_to for metric in METRICS)
    assert sum(metric.target is not None for metric in METRICS) >= 20
