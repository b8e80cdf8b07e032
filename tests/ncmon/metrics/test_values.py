"""Every metric against its slow reference from raw features, on random configurations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncmon.evaluate import evaluate
from ncmon.metrics import METRICS
from ncmon.model import LayerReadings
from tests import reference
from tests.factories import Features, make_features, window_from_features

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def features(draw: st.DrawFn) -> Features:
    """Random features: unbalanced, some classes absent, wider and narrower than the classes, with and without bias."""
    n_classes = draw(st.integers(2, 6))
    counts = draw(st.lists(st.integers(0, 7), min_size=n_classes, max_size=n_classes))
    counts[0], counts[1] = max(counts[0], 2), max(counts[1], 1)
    return make_features(
        seed=draw(st.integers(0, 10_000)),
        n_classes=n_classes,
        n_features=[draw(st.integers(2, 9)), draw(st.integers(2, 9))],
        per_class=counts,
        layers=2,
        collapse=draw(st.sampled_from([0.0, 0.5, 0.9])),
        scale=draw(st.sampled_from([0.01, 1.0, 5.0])),
        bias=draw(st.booleans()),
    )


def window_of(raw: Features, **options: Any) -> Any:
    return window_from_features(raw.layers, raw.labels, raw.weight, raw.bias, **options)


def value_of(layer: LayerReadings, name: str) -> Any:
    """Return what was computed under a name: a number, None, or an array."""
    for arrays in (layer.class_arrays, layer.pair_arrays):
        if name in arrays:
            return arrays[name]
    return layer.readings[name].value


def test_every_metric_has_a_reference_and_every_reference_a_metric() -> None:
    references = [*reference.SCALARS, *reference.ARRAYS, *reference.WINDOWS]
    assert sorted(references) == sorted(metric.name for metric in METRICS)


@SLOW
@given(raw=features(), scatter=st.booleans())
def test_all_metrics_equal_their_references(raw: Features, scatter: bool) -> None:
    evaluation = evaluate(window_of(raw, scatter=scatter))
    for layer in evaluation.layers:
        slow = reference.Pass(raw, layer.key.name)
        for metric in METRICS:
            if metric.at_classifier and layer.key.name != "classifier-input":
                assert metric.name not in {*layer.readings, *layer.class_arrays, *layer.pair_arrays}
                continue
            if metric.scope == "window":
                expected: Any = reference.WINDOWS[metric.name](raw)
            else:
                expected = {**reference.SCALARS, **reference.ARRAYS}[metric.name](slow)
            found = value_of(layer, metric.name)
            if expected is None:
                assert found is None, metric.name
                assert layer.readings[metric.name].reason
            else:
                assert found is not None, (metric.name, layer.readings[metric.name].reason)
                # Gaps are differences of losses of the order of 1: the reference has no more digits of them.
                atol = 1e-9 if "gap" in metric.name else 1e-12
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=atol, err_msg=metric.name)


@SLOW
@given(raw=features())
def test_minima_and_maxima_say_where_they_are(raw: Features) -> None:
    layer = evaluate(window_of(raw)).layers[-1]
    readings, arrays = layer.readings, layer.class_arrays
    (lowest,) = readings["intra_cos_min"].attained_at
    assert arrays["intra_cos"][lowest] == readings["intra_cos_min"].value
    first, second = readings["inter_cos_max"].attained_at
    assert first < second
    assert layer.pair_arrays["inter_cos"][first, second] == readings["inter_cos_max"].value
    (lowest,) = readings["nc3_cos_min"].attained_at
    assert arrays["nc3_cos_class"][lowest] == readings["nc3_cos_min"].value


def test_single_precision_means_agree_to_single_precision() -> None:
    raw = make_features(n_classes=7, n_features=12, per_class=9, collapse=0.4)
    exact, rounded = evaluate(window_of(raw)), evaluate(window_of(raw, single=True))
    merged = evaluate(window_of(raw, single=True, scatter=True))
    for name in ("intra_cos_min", "inter_cos_max", "nc1_pinv", "nc1_cdnv", "nc2_equinorm", "nc3_cos_mean"):
        expected = exact.layers[-1].readings[name].value
        assert rounded.layers[-1].readings[name].value == pytest.approx(expected, rel=1e-5)
        assert merged.layers[-1].readings[name].value == pytest.approx(expected, rel=1e-5)


def test_effective_depth_counts_layers_from_the_input_whatever_their_order() -> None:
    """Two layers that decide badly, then two that decide well: 3, also when the window lists them backwards."""
    raw = make_features(n_classes=3, n_features=6, per_class=30, layers=4, collapse=0.95)
    rng = np.random.default_rng(0)
    layers = dict(raw.layers)
    for name in list(layers)[:2]:
        layers[name] = rng.normal(size=layers[name].shape)
    window = window_from_features(layers, raw.labels, raw.weight, raw.bias)
    backwards = dataclasses.replace(window, layers=window.layers[::-1])
    for candidate in (window, backwards):
        depth = next(
            layer.readings["effective_depth"].value
            for layer in evaluate(candidate).layers
            if "effective_depth" in layer.readings
        )
        assert depth == 3


def test_effective_depth_is_the_number_of_layers_where_none_decides_well() -> None:
    raw = make_features(n_classes=3, n_features=4, per_class=40, layers=3, collapse=0.0)
    rng = np.random.default_rng(1)
    layers = {name: rng.normal(size=values.shape) for name, values in raw.layers.items()}
    window = window_from_features(layers, raw.labels, raw.weight, raw.bias)
    assert evaluate(window).layers[-1].readings["effective_depth"].value == 3
