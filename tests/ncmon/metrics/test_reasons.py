"""What cannot be computed is a reading with a reason: no NaN, no zero, no clamp, no exception."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from ncmon.evaluate import evaluate
from ncmon.model import LayerReadings, Window
from tests.factories import make_features, make_window, window_from_features

MEANS = ("nc1_pinv", "nc1_trace_ratio", "nc1_cdnv", "nc2_equinorm", "nc2_maxangle")
COSINES = ("intra_cos_min", "intra_cos_mean", "inter_cos_max", "inter_cos_mean", "cos_margin")
VARIANCES = ("nc1_pinv", "nc1_trace_ratio", "nc1_cdnv")


def change_layer(window: Window, **fields: Any) -> Window:
    *others, last = window.layers
    return dataclasses.replace(window, layers=(*others, dataclasses.replace(last, **fields)))


def change_head(window: Window, **fields: Any) -> Window:
    return dataclasses.replace(window, head=dataclasses.replace(window.head, **fields))


def last(window: Window) -> LayerReadings:
    found = evaluate(window).layers[-1]
    for name, reading in found.readings.items():
        assert (reading.value is None) == bool(reading.reason), name
        assert reading.value is None or np.isfinite(reading.value), name
        assert not reading.reason.startswith("internal"), (name, reading.reason)
    return found


def reasons(layer: LayerReadings, *names: str) -> set[str]:
    assert all(layer.readings[name].value is None for name in names)
    return {layer.readings[name].reason for name in names}


def test_one_class_gives_no_feature_metric() -> None:
    raw = make_features(n_classes=4, per_class=[9, 0, 0, 0])
    layer = last(window_from_features(raw.layers, raw.labels, raw.weight, raw.bias))
    assert reasons(layer, *MEANS, *COSINES, "nc3_cos_min") == {"fewer than two present classes (1 of 4)"}
    assert layer.readings["alpha"].value is not None
    assert layer.readings["accuracy"].value is not None
    assert np.isnan(layer.class_arrays["intra_cos"]).all()
    assert np.isnan(layer.pair_arrays["inter_cos"]).all()
    assert layer.class_arrays["count"][0] == 9


def test_samples_that_are_not_finite_are_left_out_and_counted() -> None:
    raw = make_features(n_classes=3, n_features=5, per_class=8, layers=1)
    rows = raw.last.copy()
    rows[:4, 2] = [np.nan, np.inf, -np.inf, np.nan]
    spoilt = window_from_features({"classifier-input": rows}, raw.labels, raw.weight, raw.bias)
    clean = window_from_features({"classifier-input": rows[4:]}, raw.labels[4:], raw.weight, raw.bias)
    found, expected = last(spoilt), last(clean)
    assert found.quality["nonfinite"] == 4
    assert found.quality["samples"] == expected.quality["samples"] == 20
    for name in (*MEANS, *COSINES, "alpha"):
        assert found.readings[name].value == expected.readings[name].value
    assert "4 samples have a loss that is not finite" in reasons(found, "ce_loss", "ce_gap").pop()


def test_nothing_finite_says_so() -> None:
    raw = make_features(n_classes=3, n_features=5, per_class=4, layers=1)
    rows = np.full_like(raw.last, np.nan)
    layer = last(window_from_features({"classifier-input": rows}, raw.labels, raw.weight, raw.bias))
    assert "12 samples have features that are not finite" in reasons(layer, *MEANS, *COSINES).pop()
    assert reasons(layer, "alpha") == {"no finite samples"}


def test_equal_class_means_keep_no_direction() -> None:
    """The same samples in every class: rounding of the means must not be inverted."""
    rows = np.random.default_rng(0).normal(size=(6, 4)) + 10.0
    features = {"classifier-input": np.concatenate([rows, rows, rows])}
    labels = np.repeat(np.arange(3), 6)
    for scatter in (False, True):
        layer = last(window_from_features(features, labels, np.eye(3, 4), scatter=scatter))
        assert "rank 0" in reasons(layer, "nc1_pinv").pop()
        assert layer.quality["rank_used"] == 0
        assert reasons(layer, "nc1_trace_ratio", "nc2_equinorm") == {
            "all class means are equal: there is no variability between classes"
        }
        assert "have the same mean" in reasons(layer, "nc1_cdnv").pop()
        assert "global mean" in reasons(layer, "nc2_maxangle").pop()


def test_two_equal_means_among_others_are_named() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 4))
    features = {"classifier-input": np.concatenate([rows, rows + 3.0, rows])}
    layer = last(window_from_features(features, np.repeat(np.arange(3), 6), np.eye(3, 4)))
    assert reasons(layer, "nc1_cdnv") == {"classes 0 and 2 have the same mean"}
    assert layer.readings["nc1_pinv"].value is not None
    assert layer.quality["rank_used"] == 1


def test_a_class_of_zeros_has_no_direction() -> None:
    raw = make_features(n_classes=3, n_features=5, per_class=4, layers=1)
    rows = raw.last * (raw.labels != 1)[:, None]
    layer = last(window_from_features({"classifier-input": rows}, raw.labels, raw.weight, raw.bias))
    assert "class 1 has no direction" in reasons(layer, *COSINES).pop()
    assert "class 1 has a zero mean" in reasons(layer, "nc3_cos_min").pop()
    assert np.isnan(layer.class_arrays["intra_cos"]).tolist() == [False, True, False]
    assert layer.class_arrays["nearest_class"][0] == 2
    assert np.isfinite(layer.pair_arrays["inter_cos"]).sum() == 2
    assert layer.readings["nc1_pinv"].value is not None
    assert layer.quality["zero_norm"] == 4


def test_zero_vectors_count_in_means_and_not_in_cosines() -> None:
    raw = make_features(n_classes=3, n_features=5, per_class=4, layers=1)
    rows = np.concatenate([raw.last, np.zeros((1, 5))])
    labels = np.append(raw.labels, 0)
    padded = last(window_from_features({"classifier-input": rows}, labels, raw.weight, raw.bias))
    plain = last(window_from_features(raw.layers, raw.labels, raw.weight, raw.bias))
    for name in COSINES:
        assert padded.readings[name].value == pytest.approx(plain.readings[name].value, rel=1e-12)
    assert padded.class_arrays["count"][0] == plain.class_arrays["count"][0] + 1
    assert padded.readings["nc1_trace_ratio"].value != plain.readings["nc1_trace_ratio"].value


def test_single_samples_measure_no_variability() -> None:
    raw = make_features(n_classes=4, per_class=1)
    layer = last(window_from_features(raw.layers, raw.labels, raw.weight, raw.bias))
    assert reasons(layer, *VARIANCES) == {"one sample in every class: variability within classes is not measured"}
    assert "1 by definition" in reasons(layer, "intra_cos_min", "intra_cos_mean", "cos_margin").pop()
    assert layer.readings["inter_cos_max"].value is not None
    assert layer.readings["nc2_equinorm"].value is not None


def test_one_class_with_a_single_sample_is_part_of_the_others() -> None:
    raw = make_features(n_classes=3, per_class=[1, 5, 6])
    layer = last(window_from_features(raw.layers, raw.labels, raw.weight, raw.bias))
    assert layer.class_arrays["intra_cos"][0] == pytest.approx(1.0)
    assert layer.readings["nc1_pinv"].value is not None


@pytest.mark.parametrize(
    ("fields", "names", "text"),
    [
        ({"within_sq": np.array([1.0, -1e-9, 1.0, 1.0])}, ("nc1_trace_ratio", "nc1_cdnv"), "below resolution"),
        ({"span_within": np.array([1.0, 1.0, -1e-9])}, ("nc1_pinv",), "below resolution"),
        ({"span_singular": None, "span_within": None}, ("nc1_pinv",), "scatter was not sent"),
        ({"ncc_counts": None}, ("ncc_acc", "nc4_agree", "effective_depth"), "nearest class means were not measured"),
        ({"ncc_agree": None}, ("nc4_agree",), "nearest class means were not measured"),
        ({"unit_sums": np.full((4, 16), 9.0)}, ("intra_cos_min",), "above 1"),
    ],
)
def test_statistics_that_are_absent_or_impossible(fields: dict[str, Any], names: tuple[str, ...], text: str) -> None:
    layer = last(change_layer(make_window(layers=2), **fields))
    for name in names:
        assert text in reasons(layer, name).pop()


@pytest.mark.parametrize(
    ("fields", "names", "text"),
    [
        ({"weight": None}, ("beta", "nc3_cos_min", "ce_bound_m", "ce_gap", "cert_intra_min"), "was not sent"),
        ({"weight": None, "finite": False}, ("beta", "nc3_cos_mean", "cert_intra_min"), "not finite"),
        ({"bias": None}, ("alpha_aug", "ce_bound_m", "cert_intra_min"), "bias was not sent"),
        ({"bias": None, "has_bias": False}, ("alpha_aug", "beta_aug"), "not applicable"),
        ({"bias": np.zeros(4)}, ("alpha_aug", "beta_aug"), "not applicable"),
        ({"loss_sums": None, "label_counts": None}, ("ce_loss", "ce_gap", "cert_intra_min"), "loss was not measured"),
        ({"correct": None}, ("accuracy",), "not measured"),
        ({"batch_norm": ""}, ("alpha_bn", "objective"), "not applicable: no BatchNorm"),
        ({"bn_gamma": None}, ("alpha_bn",), "was not sent"),
        ({"decoupled_decay": True}, ("objective",), "not applicable: decoupled"),
        ({"plain_loss": False}, ("objective",), "not applicable: the trained loss"),
        ({"weight_decay": None}, ("objective",), "not known"),
        ({"weight": np.zeros((4, 16))}, ("w_equinorm", "w_etf_err", "w_cos_max"), "row 0 of the classifier is zero"),
        ({"weight": np.zeros((4, 16))}, ("nc3_frob",), "rows of the present classes are zero"),
        ({"weight": np.zeros((4, 16))}, ("nc3_dual_err",), "orthogonal"),
        ({"weight": np.ones((4, 3))}, ("nc3_cos_min", "cert_intra_min"), "reads 3 features, these are 16"),
        ({"weight": np.ones((4, 16))}, ("nc3_cos_min",), "mean of all rows"),
        ({"weight": np.ones((4, 16))}, ("cert_intra_min",), "vacuous"),
    ],
)
def test_classifiers_that_are_absent_or_degenerate(fields: dict[str, Any], names: tuple[str, ...], text: str) -> None:
    layer = last(change_head(make_window(layers=2), **fields))
    for name in names:
        assert text in reasons(layer, name).pop()


def test_more_classes_than_features_are_measured_on_fewer_directions() -> None:
    layer = last(make_window(n_classes=9, n_features=4))
    assert layer.quality["rank_used"] == 4
    assert layer.readings["nc1_pinv"].value is not None
    assert layer.readings["nc2_maxangle"].value is not None


def test_one_layer_has_no_depth() -> None:
    assert reasons(last(make_window(layers=1)), "effective_depth") == {"only one layer is watched"}


def test_absent_classes_are_blank_everywhere() -> None:
    raw = make_features(n_classes=4, per_class=[5, 0, 6, 7])
    layer = last(window_from_features(raw.layers, raw.labels, raw.weight, raw.bias))
    for name, values in layer.class_arrays.items():
        assert np.isnan(values[1]), name
        assert np.isfinite(values[[0, 2, 3]]).all(), name
    assert np.isnan(layer.pair_arrays["inter_cos"][1]).all()
    assert layer.quality["classes_present"] == 3


def empty_layer(n_classes: int, width: int) -> dict[str, Any]:
    zeros = np.zeros(n_classes, dtype=np.int64)
    return {
        "class_counts": zeros,
        "class_means": np.zeros((n_classes, width)),
        "within_sq": np.zeros(n_classes),
        "unit_sums": np.zeros((n_classes, width)),
        "norm_sums": np.zeros(n_classes),
        "norm_sq_sums": np.zeros(n_classes),
        "zero_counts": zeros,
        "nonfinite_counts": zeros,
        "ncc_counts": zeros,
        "ncc_hits": zeros,
        "ncc_agree": zeros,
    }


def test_a_window_without_samples_is_all_reasons() -> None:
    window = make_window(layers=1, n_classes=3, n_features=4)
    window = change_layer(window, **empty_layer(3, 4), span_singular=np.zeros(0), span_within=np.zeros(0))
    zeros = np.zeros(3, dtype=np.int64)
    window = change_head(window, label_counts=zeros, correct=zeros, loss_sums=np.zeros(3), loss_nonfinite=zeros)
    layer = last(window)
    assert {name for name, reading in layer.readings.items() if reading.value is not None} == {
        "beta",
        "beta_aug",
        "w_equinorm",
        "w_equiangularity",
        "w_maxangle",
        "w_etf_err",
        "w_cos_max",
        "alpha_bn",
        "wd_alpha_beta",
        "wd_loss",
        "wd_objective",
    }
    assert layer.quality["samples"] == 0


def balanced(window: Window) -> tuple[float | None, str]:
    found = last(window).readings["nc1_balanced"]
    return found.value, found.reason


def test_every_class_counts_once_in_nc1_balanced_or_it_says_why_not() -> None:
    sizes = [30, 10, 20, 15]
    raw = make_features(n_classes=4, n_features=6, per_class=sizes, layers=1, collapse=0.5)
    # Unequal spreads along unequal directions: pooling is another number.
    rows = raw.last.copy()
    rows[raw.labels == 0] += np.random.default_rng(0).normal(size=(30, 6)) * [4, 1, 0, 0, 0, 0]
    window = window_from_features({"classifier-input": rows}, raw.labels, raw.weight)
    value, _ = balanced(window)
    pooled = last(window).readings["nc1_pinv"].value
    assert value is not None
    assert pooled is not None
    assert abs(value / pooled - 1) > 0.1
    layer = window.layers[-1]
    # Sizes of the window before in proportion: as good as the same ones, at another scale.
    assert layer.moment_weights is not None
    assert layer.span_weighted is not None
    half = change_layer(window, moment_weights=5 * layer.moment_weights, span_weighted=5 * layer.span_weighted)
    assert balanced(half)[0] == pytest.approx(value, rel=1e-12)
    streaming = dataclasses.replace(window, exact=False)
    moved = 1.0 / (layer.class_counts + np.array([1, 0, -1, 0]))
    assert balanced(change_layer(window, moment_weights=moved))[1].startswith("class sizes differ from those of the")
    assert balanced(change_layer(streaming, moment_weights=moved))[0] == pytest.approx(value, rel=0.1)
    assert (
        "every class counts once from the second window"
        in (balanced(change_layer(window, before_counts=None, shift_sq=None, span_weighted=None))[1])
    )
    assert "differ in size by 2e+02 %" in balanced(change_layer(window, span_weighted=None))[1]
    new = change_layer(window, moment_weights=layer.moment_weights * [1, 1, 1, 0])
    assert balanced(new)[0] is None


def test_nc1_balanced_is_nc1_pinv_where_classes_are_of_equal_size() -> None:
    window = make_window(n_classes=5, n_features=7, per_class=8, layers=1, exact=True)
    plain = change_layer(window, before_counts=None, shift_sq=None, span_weighted=None)
    found = last(plain).readings
    assert found["nc1_balanced"].value == pytest.approx(found["nc1_pinv"].value, rel=1e-12)


def test_bounds_of_an_exact_window_need_its_logits_to_be_those_of_its_features() -> None:
    window = make_window(layers=2, bias=False, exact=True)
    for fields in ({"own_logit_sums": np.full(4, 9.0)}, {"weight": np.ones((4, 16))}):
        layer = last(change_head(window, **fields))
        assert "not W h + v of these" in reasons(layer, "cert_nc3_min", "cert_plus_intra_min", "sharp_intra").pop()
    moving = last(change_head(dataclasses.replace(window, exact=False), own_logit_sums=np.full(4, 9.0)))
    assert "not W h + v" not in moving.readings["sharp_intra"].reason
