"""The certificate of a class: never above the truth, and reached by an adversary."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from ncmon.bounds.certificate import certify
from ncmon.evaluate import evaluate
from ncmon.metrics import View
from ncmon.model import CLASSIFIER_INPUT, FloatArray, IntArray, LayerReadings, Window
from tests.factories import make_features, simplex, window_from_features


def one_layer(rows: FloatArray, labels: IntArray, weight: FloatArray, bias: FloatArray | None = None) -> Window:
    return window_from_features({CLASSIFIER_INPUT: rows}, labels, weight, bias, ncc=False, span=False)


def view_of(window: Window) -> View:
    return View(window, window.layers[-1])


def last(window: Window) -> LayerReadings:
    return evaluate(window).layers[-1]


def truth(rows: FloatArray, labels: IntArray, c: int) -> float:
    mine = rows[labels == c]
    norms = np.linalg.norm(mine, axis=1)
    units = mine[norms > 0] / norms[norms > 0, None]
    return float(np.sum(units.mean(axis=0) ** 2))


def random_state(seed: int) -> tuple[FloatArray, IntArray, FloatArray, FloatArray | None]:
    """Return features, labels, weight and bias of a wide range of states: from noise to nearly collapsed."""
    rng = np.random.default_rng(seed)
    n_classes = int(rng.choice([2, 3, 4, 7, 12]))
    width = int(rng.integers(1, 14))
    counts = rng.integers(1, 12, n_classes) if rng.random() < 0.6 else np.full(n_classes, 6)
    if rng.random() < 0.2:
        counts[rng.integers(n_classes)] = 0
    labels = np.repeat(np.arange(n_classes), counts)
    weight = simplex(n_classes, max(width, 1)) if rng.random() < 0.7 else rng.normal(size=(n_classes, width))
    weight = weight + rng.choice([0.0, 0.05, 0.5]) * rng.normal(size=weight.shape)
    noise = float(rng.choice([0.0, 0.02, 0.2, 0.7, 2.0]))
    rows = weight[labels] + noise * rng.normal(size=(labels.size, width))
    # Uneven norms, and now and then a vector of zeros or one on the wrong side.
    rows *= np.exp(rng.choice([0.0, 0.1, 1.0]) * rng.normal(size=(labels.size, 1)))
    if rng.random() < 0.3:
        rows[rng.integers(labels.size)] *= rng.choice([0.0, -1.0, 1e-3])
    rows *= np.exp(rng.uniform(np.log(0.3), np.log(20.0)))
    bias = rng.normal(size=n_classes) * rng.choice([0.1, 1.0, 5.0]) if rng.random() < 0.5 else None
    return rows, labels, weight, bias


@pytest.mark.parametrize("block", range(5))
def test_certificate_is_never_above_the_truth(block: int) -> None:
    certified = 0
    for seed in range(250 * block, 250 * (block + 1)):
        rows, labels, weight, bias = random_state(seed)
        view = view_of(one_layer(rows, labels, weight, bias))
        found = certify(view)
        for place, c in enumerate(view.present):
            if found.reasons[place]:
                # Exact statistics never contradict each other.
                assert found.reasons[place].startswith("vacuous"), (seed, found.reasons[place])
                assert np.isnan(found.intra[place])
            else:
                certified += 1
                assert 0 < found.intra[place] <= truth(rows, labels, int(c)), (seed, c)
    assert certified > 150


def adversary(
    *, n_classes: int, reach: float, cosine: float, mass: float = 0.0, n: int = 1000
) -> tuple[FloatArray, IntArray, FloatArray]:
    """Return the state in which class 0 has as little intra as its loss and norms allow.

    Rows are a simplex frame, so that the wrong logits of a vector along w_0 are equal (Jensen is sharp). The class has
    the same cosine to its row everywhere, on two sides of it in a spare dimension; a share `mass` has next to no length
    and points away.
    """
    frame = simplex(n_classes, n_classes + 1)
    spare = np.eye(n_classes + 1)[-1]
    labels = np.repeat(np.arange(n_classes), [n, *[2] * (n_classes - 1)])
    rows = reach * frame[labels]
    short = round(mass * n)
    norm = reach * (1 - mass) ** -0.5
    side = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)[:, None]
    rows[:n] = norm * (cosine * frame[0] + np.sqrt(1 - cosine**2) * side * spare)
    rows[:short] = -1e-9 * frame[0]
    return rows, labels, frame


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("cosine", [0.6, 0.8, 0.99])
def test_certificate_is_reached_by_two_directions(n_classes: int, cosine: float) -> None:
    reach = (6 + np.log(n_classes - 1)) * (n_classes - 1) / n_classes
    rows, labels, weight = adversary(n_classes=n_classes, reach=reach, cosine=cosine)
    found = certify(view_of(one_layer(rows, labels, weight))).intra[0]
    measured = truth(rows, labels, 0)
    assert measured == pytest.approx(cosine**2, abs=1e-9)
    # What is missing is the allowance for single precision: 1e-5 of each statistic.
    assert measured - 2e-4 < found <= measured


@pytest.mark.parametrize(
    ("n_classes", "reach", "share"), [(3, 3.0, 0.2), (4, 4.0, 0.3), (10, 2.0, 0.4), (10, 4.0, 0.2)]
)
def test_certificate_is_reached_in_the_mixture_regime(n_classes: int, reach: float, share: float) -> None:
    """A loss so large that a part of the class may carry it without a direction: the best part by search."""
    loss = share * np.log(n_classes)
    best = (1.0, 0.0, 0.0)
    for mass in np.arange(0.0, share, 0.001):
        rest = (loss - mass * np.log(n_classes)) / (1 - mass)
        logit = (n_classes - 1) / n_classes * np.log((n_classes - 1) / np.expm1(rest))
        cosine = logit / (reach * (1 - mass) ** -0.5)
        if cosine <= 1:
            best = min(best, (-mass + (1 - mass) * cosine, mass, cosine))
    mean_cosine, mass, cosine = best
    assert mass > 0.02
    assert mean_cosine > 0.05
    rows, labels, weight = adversary(n_classes=n_classes, reach=reach, cosine=cosine, mass=mass)
    found = certify(view_of(one_layer(rows, labels, weight))).intra[0]
    measured = truth(rows, labels, 0)
    assert measured == pytest.approx(mean_cosine**2, abs=1e-6)
    assert measured - 1e-3 < found <= measured


def closed_forms(window: Window) -> tuple[FloatArray, FloatArray]:
    """Return ((g^-1(l) - dv) / (a b))^2 of every class, written from the statement, with rms and with mean norms."""
    head, layer = window.head, window.layers[-1]
    assert head.weight is not None
    assert head.loss_sums is not None
    n = window.n_classes
    loss = head.loss_sums / layer.class_counts
    bias = np.zeros(n) if head.bias is None else head.bias
    logit = (n - 1) / n * np.log((n - 1) / np.expm1(loss)) - (bias - bias.mean())
    slope = np.linalg.norm(head.weight - head.weight.mean(axis=0), axis=1)
    rms = np.sqrt(layer.norm_sq_sums / layer.class_counts)
    return (logit / (rms * slope)) ** 2, (logit / (layer.norm_sums / layer.class_counts * slope)) ** 2


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("collapse", [0.8, 0.95, 1.0])
def test_closed_form_in_the_usual_regime(collapse: float, bias: bool) -> None:
    raw = make_features(n_classes=6, n_features=9, per_class=[5, 9, 7, 4, 8, 6], layers=1, collapse=collapse, bias=bias)
    window = one_layer(0.6 * raw.last, raw.labels, raw.weight, raw.bias)
    found = last(window).class_arrays["cert_intra"]
    by_rms, by_mean = closed_forms(window)
    assert (by_mean >= by_rms).all()
    np.testing.assert_allclose(found, by_mean, rtol=3e-4)
    assert (found < by_mean).all()


def test_mean_norms_certify_more_where_norms_differ() -> None:
    raw = make_features(n_classes=4, n_features=6, per_class=30, layers=1, collapse=0.97, bias=False)
    stretched = raw.last * np.where(np.arange(raw.labels.size) % 2, 1.5, 0.7)[:, None]
    window = one_layer(stretched, raw.labels, raw.weight)
    found = last(window)
    assert (found.class_arrays["cert_intra"] > closed_forms(window)[0] * 1.05).all()
    assert (found.class_arrays["cert_intra"] <= found.class_arrays["intra_cos"]).all()


def test_certificate_tends_to_one_at_an_exact_frame() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=5, layers=1, collapse=1.0, bias=False, weight_scale=1.5)
    layer = last(one_layer(raw.last, raw.labels, raw.weight))
    assert layer.readings["cert_intra_min"].value == pytest.approx(1.0, abs=1e-3)
    assert (layer.class_arrays["cert_intra"] <= layer.class_arrays["intra_cos"]).all()


def test_least_certificate_names_its_class() -> None:
    raw = make_features(n_classes=5, n_features=8, per_class=9, layers=1, collapse=0.8)
    layer = last(one_layer(raw.last, raw.labels, raw.weight, raw.bias))
    reading = layer.readings["cert_intra_min"]
    assert reading.value == layer.class_arrays["cert_intra"].min()
    assert reading.attained_at == (int(layer.class_arrays["cert_intra"].argmin()),)


def test_one_vacuous_class_leaves_no_certificate_for_all() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.9)
    rows = np.where((raw.labels == 2)[:, None], -raw.last, raw.last)
    layer = last(one_layer(rows, raw.labels, raw.weight, raw.bias))
    reading = layer.readings["cert_intra_min"]
    assert reading.value is None
    assert reading.reason.startswith("vacuous: class 2: needs a loss below ")
    assert np.isnan(layer.class_arrays["cert_intra"]).tolist() == [False, False, True, False]


def test_absent_classes_have_no_certificate_and_do_not_void_it() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=[6, 0, 5, 7], layers=1, collapse=0.9)
    layer = last(one_layer(raw.last, raw.labels, raw.weight, raw.bias))
    assert layer.readings["cert_intra_min"].value is not None
    assert np.isnan(layer.class_arrays["cert_intra"]).tolist() == [False, True, False, False]


def with_head(window: Window, **fields: Any) -> Window:
    return dataclasses.replace(window, head=dataclasses.replace(window.head, **fields))


def test_statistics_that_contradict_each_other_are_withheld() -> None:
    """A loss below what these weights and norms allow belongs to other weights: no number, however large."""
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.9, scale=1.0)
    window = one_layer(raw.last, raw.labels, raw.weight, raw.bias)
    sums = window.head.loss_sums.copy()  # type: ignore[union-attr]
    sums[1] = 1e-5
    layer = last(with_head(window, loss_sums=sums))
    assert np.isnan(layer.class_arrays["cert_intra"][1])
    assert layer.readings["cert_intra_min"].reason == (
        "inconsistent: class 1: the loss is smaller than these weights and norms allow"
    )


def test_losses_of_other_samples_are_withheld_on_exact_windows_only() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.9)
    window = one_layer(raw.last, raw.labels, raw.weight, raw.bias)
    counts, sums = window.head.label_counts.copy(), window.head.loss_sums.copy()  # type: ignore[union-attr]
    counts[3] *= 2
    sums[3] *= 2
    changed = with_head(window, label_counts=counts, loss_sums=sums)
    assert "losses of 12 samples, features of 6" in last(changed).readings["cert_intra_min"].reason
    streaming = dataclasses.replace(changed, exact=False)
    assert last(streaming).readings["cert_intra_min"].value is not None


def test_an_infinite_loss_certifies_nothing() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.9)
    window = one_layer(raw.last, raw.labels, raw.weight, raw.bias)
    counts, lost = window.head.label_counts.copy(), window.head.loss_nonfinite.copy()  # type: ignore[union-attr]
    counts[0] -= 1
    lost[0] += 1
    reading = last(with_head(window, label_counts=counts, loss_nonfinite=lost)).readings["cert_intra_min"]
    assert reading.reason == "vacuous: class 0: 1 samples have a loss that is not finite"


def test_mean_norm_above_root_mean_square_is_withheld() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.9)
    window = one_layer(raw.last, raw.labels, raw.weight, raw.bias)
    layer = dataclasses.replace(window.layers[-1], norm_sums=2 * window.layers[-1].norm_sums)
    reading = last(dataclasses.replace(window, layers=(layer,))).readings["cert_intra_min"]
    assert reading.reason.startswith("inconsistent: class 0 (and 3 more classes): the mean norm exceeds")


def test_single_precision_statistics_do_not_pass_the_truth() -> None:
    """Loss, norms and weights rounded to float32 as a trainer has them, at states where the bound is attained."""
    for cosine in (0.9, 0.999, 1.0):
        for reach in (2.0, 6.0, 14.0, 40.0):
            rows, labels, weight = adversary(n_classes=4, reach=reach, cosine=cosine, n=64)
            window = one_layer(rows, labels, weight)
            logits = rows.astype(np.float32) @ weight.astype(np.float32).T
            wrong = logits - logits[np.arange(labels.size), labels][:, None]
            wrong[np.arange(labels.size), labels] = -np.inf
            losses = np.log1p(np.exp(wrong).sum(axis=1, dtype=np.float32))
            sums = np.bincount(labels, weights=losses.astype(np.float64), minlength=4)
            found = certify(view_of(with_head(window, loss_sums=sums)))
            assert not found.reasons[0] or found.reasons[0].startswith("vacuous"), (cosine, reach, found.reasons)
            assert np.isnan(found.intra[0]) or found.intra[0] <= truth(rows, labels, 0)


def test_permutation_and_rotation_change_nothing() -> None:
    raw = make_features(n_classes=4, n_features=6, per_class=[5, 6, 7, 8], layers=1, collapse=0.7)
    order = np.array([2, 0, 3, 1])
    back = np.argsort(order)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    assert raw.bias is not None
    plain = last(one_layer(raw.last, raw.labels, raw.weight, raw.bias)).class_arrays["cert_intra"]
    other = last(one_layer(raw.last @ turn, order[raw.labels], raw.weight[back] @ turn, raw.bias[back]))
    np.testing.assert_allclose(other.class_arrays["cert_intra"][order], plain, rtol=1e-9)
    # Longer features before a classifier that is shorter by the same factor are the same logits.
    scaled = last(one_layer(5 * raw.last, raw.labels, raw.weight / 5, raw.bias))
    np.testing.assert_allclose(scaled.class_arrays["cert_intra"], plain, rtol=1e-9)
