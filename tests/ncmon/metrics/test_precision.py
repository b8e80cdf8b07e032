"""From features in a trainer's precision to readings: the client's sums, the daemon's formulas, against float64 loops.

The reference sees the features as the network computed them, after rounding to single precision or bfloat16: what is
held here is what summing, shifting and reducing add to that, with offsets up to 1,000 and spreads down to 1e-5.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncmon.evaluate import evaluate
from ncmon.metrics import METRICS
from ncmon.model import CLASSIFIER_INPUT, LayerKey, LayerReadings, LayerStats
from ncmon_client.accumulate import alone
from tests import reference
from tests.factories import Features, make_window

CPU = torch.device("cpu")
N_CLASSES, WIDTH = 4, 6
SIZES = (40, 25, 60, 12)
LAYER_SCALARS = [metric.name for metric in METRICS if metric.scope == "layer" and metric.name != "ncc_acc"]
VARIANCES = frozenset({"nc1_pinv", "nc1_balanced", "nc1_trace_ratio", "nc1_cdnv", "snr"})
COSINES = frozenset({"intra_cos_min", "intra_cos_mean", "inter_cos_max", "inter_cos_mean", "cos_margin"})


def summed(features: torch.Tensor, labels: torch.Tensor, *, exact: bool, windows: int = 2) -> LayerReadings:
    """Return the readings of the last of some windows that hold the same samples, as a training run has them."""
    before = None
    for _ in range(windows):
        moments = alone(N_CLASSES, WIDTH, CPU, exact=exact, reference=before, before=before)
        for h, y in zip(features.split(32), labels.split(32), strict=True):
            moments.update(h, y)
        before = moments.reference()
    drained = moments.drain()
    span = drained.span()
    assert span is not None
    fields = {
        field.name: getattr(drained, field.name)
        for field in dataclasses.fields(drained)
        if field.name not in ("spread", "weighted")
    }
    layer = LayerStats(
        key=LayerKey(name=CLASSIFIER_INPUT, index=0),
        module="Linear",
        reduction="none",
        note="",
        n_features=WIDTH,
        span_singular=span.singular,
        span_within=span.within,
        span_weighted=span.weighted,
        moment_weights=None if drained.weighted is None else drained.weighted.weights,
        eps=moments.eps,
        **fields,
    )
    window = dataclasses.replace(make_window(n_classes=N_CLASSES, n_features=WIDTH, layers=1), layers=(layer,))
    return evaluate(dataclasses.replace(window, exact=exact)).layers[0]


def data(seed: int, sigma: float, offset: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(N_CLASSES), SIZES)
    rng.shuffle(labels)
    means = rng.normal(size=(N_CLASSES, WIDTH)) + offset
    rows = means[labels] + sigma * rng.normal(size=(labels.size, WIDTH))
    return torch.tensor(rows).to(dtype), torch.tensor(labels)


def truth(features: torch.Tensor, labels: torch.Tensor) -> reference.Pass:
    rows = features.double().numpy()
    raw = Features(layers={CLASSIFIER_INPUT: rows}, labels=labels.numpy(), weight=np.eye(N_CLASSES, WIDTH), bias=None)
    return reference.Pass(raw, CLASSIFIER_INPUT)


SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STATES = {
    "seed": st.integers(0, 999),
    "sigma": st.sampled_from([1.0, 1e-2, 1e-5]),
    "offset": st.sampled_from([0, 5, 1000]),
}


@SETTINGS
@given(**STATES)
def test_exact_windows_agree_to_nine_digits(seed: int, sigma: float, offset: float) -> None:
    features, labels = data(seed, sigma, offset, torch.float64)
    found, slow = summed(features, labels, exact=True), truth(features, labels)
    # Float64 has 16 digits: a mean 1,000 from the origin leaves 1e-13 of it, and of its square beside a variance less.
    lost = 2e-16 * (1 + offset) / sigma
    for name in LAYER_SCALARS:
        value, expected = found.readings[name].value, reference.SCALARS[name](slow)
        assert value is not None, (name, found.readings[name].reason)
        loss = 1e-9 + (20 * lost if name in VARIANCES else 20 * 2e-16 * (1 + offset))
        assert value == pytest.approx(expected, rel=loss, abs=1e-12), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@SETTINGS
@given(**STATES)
def test_streaming_windows_agree_to_the_stated_resolution(
    dtype: torch.dtype, seed: int, sigma: float, offset: float
) -> None:
    features, labels = data(seed, sigma, offset, dtype)
    slow = truth(features, labels)
    if min(math.sqrt(sum(float((a - b) @ (a - b)) for b in slow.means.values())) for a in slow.means.values()) == 0:
        return  # bfloat16 has no digit left of the differences between means
    found = summed(features, labels, exact=False)
    floor = found.quality["resolution_floor"]
    assert floor == pytest.approx(1e-7 if dtype == torch.float32 else 3e-6, rel=0.05)
    for name in sorted(COSINES):
        value, expected = found.readings[name].value, reference.SCALARS[name](slow)
        assert value is not None, (name, found.readings[name].reason)
        # The margin is a difference of two.
        assert abs(value - expected) <= (4 if name == "cos_margin" else 2) * floor, name
    for name in sorted(VARIANCES):
        reading = found.readings[name]
        variance = sum(reference.variance(slow, c) for c in slow.present)
        if variance == 0:
            assert reading.value == 0 or reading.reason, name
        else:
            assert reading.value is not None, (name, reading.reason)
            assert reading.value == pytest.approx(reference.SCALARS[name](slow), rel=1e-4), name
