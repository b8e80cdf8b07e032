"""Windows become evaluations: all names of the registry, nothing else, and never an exception."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncmon import evaluate as room
from ncmon.bounds import BOUNDS
from ncmon.evaluate import evaluate
from ncmon.metrics import METRICS
from ncmon.store import schema
from tests.factories import make_window

QUALITY = {*schema.QUALITY}


def test_every_registered_name_appears_and_nothing_else() -> None:
    window = make_window(layers=3, exact=False)
    *others, last = evaluate(window).layers
    registry = (*METRICS, *BOUNDS)
    for layer in (*others, last):
        expected = [entry for entry in registry if layer is last or not entry.at_classifier]
        assert set(layer.readings) == {e.name for e in expected if e.scope in ("layer", "classifier", "window")}
        assert set(layer.class_arrays) == {e.name for e in expected if e.scope == "class"}
        assert set(layer.pair_arrays) == {e.name for e in expected if e.scope == "pair"}
        assert set(layer.quality) == QUALITY
        assert all(np.isfinite(value) for value in layer.quality.values())


def test_quality_says_how_far_means_moved_and_what_that_adds() -> None:
    """The factory's means move by 0.2 each; inside a streaming window that adds 0.04 / 12 to every variance."""
    window = make_window(layers=1, per_class=[20, 5, 0, 9], exact=False)
    (layer,) = window.layers
    quality = evaluate(window).layers[0].quality
    assert quality["mean_shift"] == pytest.approx(0.2)
    assert quality["movement_share"] == pytest.approx(34 * 0.04 / 12 / layer.within_sq.sum())
    new = dataclasses.replace(layer, before_counts=np.array([20, 0, 0, 9]), shift_sq=np.array([0.01, 0.0, 0.0, 0.07]))
    assert evaluate(dataclasses.replace(window, layers=(new,))).layers[0].quality["mean_shift"] == pytest.approx(0.2)
    assert "movement_share" not in evaluate(dataclasses.replace(window, exact=True)).layers[0].quality
    first = dataclasses.replace(layer, before_counts=None, shift_sq=None)
    quality = evaluate(dataclasses.replace(window, layers=(first,))).layers[0].quality
    assert "mean_shift" not in quality
    assert "movement_share" not in quality


def test_layers_keep_their_order_and_facts() -> None:
    window = make_window(layers=3, n_features=[5, 6, 7])
    found = evaluate(window)
    assert found.window is window
    assert [layer.key for layer in found.layers] == [layer.key for layer in window.layers]
    assert [layer.n_features for layer in found.layers] == [5, 6, 7]


def test_evaluation_is_pure() -> None:
    window = make_window(seed=4)
    first, second = evaluate(window), evaluate(window)
    for one, other in zip(first.layers, second.layers, strict=True):
        assert one.readings == other.readings


def test_arrays_have_the_shapes_of_the_declared_classes() -> None:
    for layer in evaluate(make_window(n_classes=6, per_class=[3, 0, 4, 5, 0, 6])).layers:
        assert all(values.shape == (6,) for values in layer.class_arrays.values())
        assert all(values.shape == (6, 6) for values in layer.pair_arrays.values())


def test_a_window_without_layers_or_without_a_classifier_input() -> None:
    window = make_window(layers=2)
    assert evaluate(dataclasses.replace(window, layers=())).layers == ()
    (only,) = evaluate(dataclasses.replace(window, layers=window.layers[:1])).layers
    assert "effective_depth" not in only.readings
    assert only.readings["nc1_pinv"].value is not None


def test_a_failing_formula_costs_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Any) -> Any:
        raise ZeroDivisionError("by zero")

    replaced = tuple(
        dataclasses.replace(entry, compute=broken) if entry.name in ("nc1_pinv", "intra_cos", "inter_cos") else entry
        for entry in room.REGISTRY
    )
    monkeypatch.setattr(room, "REGISTRY", replaced)
    layer = evaluate(make_window()).layers[-1]
    assert layer.readings["nc1_pinv"].value is None
    assert layer.readings["nc1_pinv"].reason == "internal: ZeroDivisionError: by zero"
    assert np.isnan(layer.class_arrays["intra_cos"]).all()
    assert np.isnan(layer.pair_arrays["inter_cos"]).all()
    assert layer.readings["intra_cos_min"].value is not None


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-300, -1e-300, 1e300, -1e300, 3.5, 1e-8])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), seed=st.integers(0, 50))
def test_no_finite_window_raises_or_gives_nan(data: st.DataObject, seed: int) -> None:
    """Any finite numbers may come over the wire; what they mean is a reading or a reason, never `internal`."""
    window = make_window(seed=seed, n_classes=3, n_features=4, per_class=3, layers=2, bias=True)
    fields: dict[str, Any] = {}
    for name in data.draw(
        st.lists(
            st.sampled_from(["class_means", "unit_sums", "within_sq", "norm_sums", "norm_sq_sums", "span_singular"]),
            unique=True,
        )
    ):
        old = getattr(window.layers[-1], name)
        flat = data.draw(st.lists(NUMBERS, min_size=old.size, max_size=old.size))
        values = np.array(flat).reshape(old.shape)
        fields[name] = values if name in ("class_means", "unit_sums") else np.abs(values)
    layer = dataclasses.replace(window.layers[-1], **fields)
    head = window.head
    if data.draw(st.booleans()):
        values = np.array(data.draw(st.lists(NUMBERS, min_size=12, max_size=12))).reshape(3, 4)
        head = dataclasses.replace(head, weight=values)
    found = evaluate(dataclasses.replace(window, layers=(window.layers[0], layer), head=head))
    for name, reading in found.layers[-1].readings.items():
        assert not reading.reason.startswith("internal"), (name, reading.reason)
        assert (reading.value is None) == bool(reading.reason)
        assert reading.value is None or np.isfinite(reading.value), name
    for arrays in (found.layers[-1].class_arrays, found.layers[-1].pair_arrays):
        assert not any(np.isinf(values).any() for values in arrays.values())
