"""Statistics in single precision: products of rows and means are then taken in it, as right as is said."""

from __future__ import annotations

import numpy as np
import pytest

from ncmon import geometry
from ncmon.metrics import METRICS, View
from tests.factories import simplex, window_from_features

DUAL = next(metric for metric in METRICS if metric.name == "nc3_dual_err")


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("n_classes", [3, 30, 150])
def test_the_distance_of_rows_times_means_in_single_precision(n_classes: int, noise: float) -> None:
    rng = np.random.default_rng(n_classes)
    frame = simplex(n_classes, n_classes + 8)
    turned = frame @ np.linalg.qr(rng.normal(size=(n_classes + 8, n_classes + 8)))[0]
    weight = (turned + noise * rng.normal(size=turned.shape)).astype(np.float32).astype(np.float64)
    features = np.repeat(3 * turned, 2, axis=0) + 0.01 * rng.normal(size=(2 * n_classes, n_classes + 8))
    labels = np.repeat(np.arange(n_classes), 2)
    window = window_from_features({"classifier-input": features}, labels, weight, None, single=True, ncc=False)
    layer = window.layers[-1]
    assert layer.means_f4
    found = DUAL.compute(View(window, layer)).value
    # The same by one division and one difference, all of it in double precision.
    gram = weight @ (layer.class_means - layer.class_means.mean(axis=0)).T
    ideal = (np.eye(n_classes) - 1 / n_classes) / np.sqrt(n_classes - 1)
    expected = np.linalg.norm(gram / np.linalg.norm(gram) - ideal)
    assert found == pytest.approx(expected, abs=1e-7 * np.sqrt(n_classes))
    assert geometry.etf_distance(gram) == pytest.approx(expected, abs=1e-12)
