"""Every metric and every bound on every degenerate window: the number that the definition gives, or a reason.

Where the slow reference has a number the metric has the same one, or the table below says why it has none; where the
reference has none (a division by zero, an empty mean) the metric has a reason. Nothing else is allowed: no NaN, no zero
in the place of what cannot be computed, no negative variance.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from ncmon.bounds import BOUNDS
from ncmon.evaluate import evaluate
from ncmon.metrics import METRICS
from ncmon.model import CLASSIFIER_INPUT, FloatArray
from tests import reference
from tests.factories import Features, make_features, window_from_features


def one_layer(
    rows: FloatArray, labels: Any, weight: FloatArray | None = None, bias: FloatArray | None = None
) -> Features:
    n_classes, width = int(np.max(labels)) + 1, rows.shape[1]
    if weight is None:
        weight = np.random.default_rng(9).normal(size=(n_classes, width))
    return Features(
        layers={CLASSIFIER_INPUT: rows}, labels=np.asarray(labels, dtype=np.int64), weight=weight, bias=bias
    )


def changed(change: Any, **options: Any) -> Features:
    fields = {"n_classes": 4, "n_features": 6, "per_class": 9, "layers": 1, "bias": False} | options
    raw = make_features(**fields)
    rows = raw.last.copy()
    change(rows, raw.labels)
    return Features(layers={CLASSIFIER_INPUT: rows}, labels=raw.labels, weight=raw.weight, bias=raw.bias)


def zero_some(rows: FloatArray, labels: Any) -> None:
    rows[:5] = 0.0


def zero_class(rows: FloatArray, labels: Any) -> None:
    rows[labels == 1] = 0.0


def spoil(rows: FloatArray, labels: Any) -> None:
    rows[0, 0], rows[1, 1], rows[2, 2] = np.nan, np.inf, -np.inf


def nothing(rows: FloatArray, labels: Any) -> None:
    pass


def collapse(rows: FloatArray, labels: Any) -> None:
    for c in range(4):
        rows[labels == c] = rows[labels == c][0]


def centre_class(rows: FloatArray, labels: Any) -> None:
    """The mean of class 3 is the mean of the means of the others."""
    others = np.mean([rows[labels == c].mean(axis=0) for c in range(3)], axis=0)
    rows[labels == 3] += others - rows[labels == 3].mean(axis=0)


SAME = np.random.default_rng(0).normal(size=(6, 5)) + 3.0
CASES: dict[str, Features] = {
    "unbalanced": changed(nothing, per_class=[40, 9, 3, 2]),
    "absent": changed(nothing, per_class=[9, 0, 7, 8]),
    "two present of four": changed(nothing, per_class=[9, 0, 7, 0]),
    "one present": changed(nothing, per_class=[9, 0, 0, 0]),
    "a single sample in one class": changed(nothing, per_class=[9, 1, 7, 8]),
    "a single sample in every class": changed(nothing, per_class=1),
    "some zero vectors": changed(zero_some),
    "a class of zeros": changed(zero_class),
    "features that are not finite": changed(spoil),
    "nothing finite": changed(lambda rows, labels: rows.fill(np.nan)),
    "more classes than features": changed(nothing, n_classes=9, n_features=4),
    "one feature": changed(nothing, n_classes=3, n_features=1),
    "two classes": changed(nothing, n_classes=2),
    "two classes, one feature": changed(nothing, n_classes=2, n_features=1),
    "equal means": one_layer(np.concatenate([SAME] * 3), np.repeat(np.arange(3), 6)),
    "two equal means": one_layer(np.concatenate([SAME, SAME + 2.0, SAME]), np.repeat(np.arange(3), 6)),
    "two means in one direction": one_layer(
        np.concatenate([SAME[:3] - SAME[:3].mean(axis=0) + m * np.eye(5)[0] for m in (-3.0, 1.0, 2.0)]),
        np.repeat(np.arange(3), 3),
    ),
    "a mean at the global mean": changed(centre_class),
    "no variability": changed(collapse),
    "all features equal": one_layer(np.full((12, 4), 0.3), np.repeat(np.arange(3), 4)),
    "all features zero": one_layer(np.zeros((12, 4)), np.repeat(np.arange(3), 4)),
    "a classifier of zeros": changed(nothing, weight_scale=0.0),
    "a constant bias": Features(
        layers=changed(nothing).layers, labels=changed(nothing).labels, weight=changed(nothing).weight, bias=np.ones(4)
    ),
    "far from the origin": changed(lambda rows, labels: np.add(1e-5 * rows, 1000.0, out=rows)),
    "very short": changed(lambda rows, labels: np.multiply(1e-100, rows, out=rows)),
    "very long": changed(lambda rows, labels: np.multiply(1e100, rows, out=rows)),
}

_EQUAL_MEANS = {
    "rank 0": {"nc1_pinv", "nc1_balanced"},
    "all class means are equal": {"snr", "nc3u_uni_dual"},
}
ONLY_A_REASON: dict[str, dict[str, set[str]]] = {
    "one present": {
        "fewer than two present classes": {
            *("intra_cos_min", "intra_cos_mean", "nc1_pinv", "nc1_balanced", "snr", "ce_bound_m", "ce_gap"),
            *("nc3_cos_min", "nc3_cos_mean", "nc3_raw_cos_min", "nc3_raw_cos_mean"),
        }
    },
    "a single sample in every class": {
        "one sample in every class: the cosine": {"intra_cos_min", "intra_cos_mean", "cos_margin"},
        "one sample in every class: variability": {"nc1_pinv", "nc1_balanced", "nc1_trace_ratio", "nc1_cdnv"},
    },
    "features that are not finite": {
        "3 samples have a loss that is not finite": {
            *("ce_loss", "ce_gap", "objective", "excess_structure"),
            *("gap_wrong", "gap_within", "gap_between", "gap_align"),
        }
    },
    "equal means": _EQUAL_MEANS,
    "a mean at the global mean": {
        "class 3 has its mean at the global mean": {
            *("nc2_maxangle", "nc2_equiangularity", "nc2g_dist", "nc2g_log", "nc3_centred_cos_mean"),
        }
    },
    "all features equal": _EQUAL_MEANS,
    "all features zero": _EQUAL_MEANS,
}
"""By case and beginning of the reason: metrics that have a reason where the plain formula has a number, which would be
of rounding, of one class alone, or of the samples that are left.
"""

NUMBERS_ALONE: dict[str, set[str]] = {
    # What does not look at features; and no prediction from them is right.
    "nothing finite": {
        *("w_equinorm", "w_equiangularity", "w_maxangle", "w_etf_err", "w_cos_max", "beta", "alpha_bn"),
        *("wd_alpha_beta", "wd_loss", "wd_objective", "accuracy"),
    },
}
"""By case: metrics that have a number where the reference, which needs samples, has none."""

# A sample whose features are not finite is predicted wrongly; cosines of 1 - 1e-16 have no order.
OTHER_NUMBERS = {
    "features that are not finite": {"accuracy", "class_accuracy"},
    "far from the origin": {"nearest_class"},
}


def expected(raw: Features, metric: Any) -> Any:
    """Return the reference's number, None where it has none."""
    finite = np.isfinite(raw.last).all(axis=1)
    if not finite.any():
        return None
    seen = Features(
        layers={CLASSIFIER_INPUT: raw.last[finite]}, labels=raw.labels[finite], weight=raw.weight, bias=raw.bias
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            if metric.scope == "window":
                return None  # one layer
            value = {**reference.SCALARS, **reference.ARRAYS}[metric.name](reference.Pass(seen, CLASSIFIER_INPUT))
        except (ValueError, ZeroDivisionError, IndexError, FloatingPointError, OverflowError, np.linalg.LinAlgError):
            return None
    if value is None or (np.ndim(value) == 0 and not np.isfinite(value)):
        return None
    return value


@pytest.mark.parametrize("case", CASES)
def test_every_metric_has_its_number_or_a_reason(case: str) -> None:
    raw = CASES[case]
    window = window_from_features(raw.layers, raw.labels, raw.weight, raw.bias, n_classes=raw.weight.shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = evaluate(window).layers[-1]
    wrong = []
    for metric in METRICS:
        truth = expected(raw, metric)
        if metric.name in OTHER_NUMBERS.get(case, ()):
            continue
        if metric.scope in ("class", "pair"):
            arrays = layer.class_arrays if metric.scope == "class" else layer.pair_arrays
            found = arrays[metric.name]
            assert not np.isinf(found).any(), metric.name
            if truth is not None:
                both = np.isfinite(found) & np.isfinite(truth)
                if not np.allclose(found[both], truth[both], rtol=1e-6, atol=1e-9):
                    wrong.append((metric.name, found, truth))
                if (np.isfinite(found) & ~np.isfinite(truth)).any():
                    wrong.append((metric.name, "a number where there is none", found, truth))
            continue
        reading = layer.readings[metric.name]
        assert (reading.value is None) == bool(reading.reason), metric.name
        if reading.value is None:
            assert not reading.reason.startswith(("internal", "not finite: the formula")), (metric.name, reading.reason)
            known = [start for start, names in ONLY_A_REASON.get(case, {}).items() if metric.name in names]
            if truth is not None and not (known and reading.reason.startswith(known[0])):
                wrong.append((metric.name, reading.reason, truth))
        elif truth is None:
            if metric.name in NUMBERS_ALONE.get(case, ()):
                continue
            wrong.append((metric.name, "a number where there is none", reading.value))
        elif not np.isclose(reading.value, truth, rtol=1e-6, atol=1e-9):
            wrong.append((metric.name, reading.value, truth))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("case", CASES)
def test_every_bound_holds_or_has_a_reason(case: str) -> None:
    raw = CASES[case]
    window = window_from_features(raw.layers, raw.labels, raw.weight, raw.bias, n_classes=raw.weight.shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = evaluate(window).layers[-1]
    for bound in BOUNDS:
        sign = 1.0 if bound.side == "lower" else -1.0
        if bound.scope in ("class", "pair"):
            arrays = layer.class_arrays if bound.scope == "class" else layer.pair_arrays
            slack = sign * (arrays[bound.of] - arrays[bound.name])
            assert (slack[~np.isnan(slack)] >= -1e-9).all(), bound.name
        else:
            reading, measured = layer.readings[bound.name], layer.readings[bound.of]
            assert (reading.value is None) == bool(reading.reason), bound.name
            assert not reading.reason.startswith("internal"), (bound.name, reading.reason)
            if reading.value is not None and measured.value is not None:
                assert sign * (measured.value - reading.value) >= -1e-9, bound.name
