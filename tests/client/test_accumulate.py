"""Class moments against a two-pass computation in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ncmon_client.accumulate import (
    ClassMoments,
    HeadCounts,
    NearestCounts,
    Reference,
    add_by_class,
    kernel_for,
    nearest,
)
from tests.client.hooking import two_pass

CPU = torch.device("cpu")
FIELDS = ("class_means", "within_sq", "unit_sums", "norm_sums", "norm_sq_sums", "within_scatter")


def clusters(
    *, n: int = 300, d: int = 7, n_classes: int = 4, offset: float = 0.0, sigma: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    centres = sigma * 3 * torch.randn(n_classes, d, generator=generator) + offset
    return centres[labels] + sigma * torch.randn(n, d, generator=generator), labels


def moments(
    features: Tensor,
    labels: Tensor,
    *,
    n_classes: int = 4,
    exact: bool = False,
    step: int = 64,
    reference: Reference | None = None,
) -> ClassMoments:
    made = ClassMoments(n_classes, features.shape[1], CPU, exact=exact, reference=reference)
    for h, y in zip(features.split(step), labels.split(step), strict=True):
        made.update(h, torch.where((y >= 0) & (y < n_classes), y, n_classes))
    return made


def assert_equal_to_two_pass(made: ClassMoments, features: Tensor, labels: Tensor, rtol: float) -> None:
    drained, truth = made.drain(), two_pass(features, labels, made.n_classes)
    np.testing.assert_array_equal(drained.class_counts, truth["class_counts"])
    for name in FIELDS:
        expected = truth[name]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(getattr(drained, name), expected, rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.mark.parametrize(("exact", "rtol"), [(True, 1e-12), (False, 2e-6)])
def test_moments_are_those_of_two_passes(exact: bool, rtol: float) -> None:
    features, labels = clusters()
    assert_equal_to_two_pass(moments(features, labels, exact=exact), features, labels, rtol)


@pytest.mark.parametrize("offset", [0.0, 5.0, 50.0])
def test_a_common_offset_does_not_swallow_the_variance(offset: float) -> None:
    """Raw single-precision sums are off by up to 2,400 times here."""
    features, labels = clusters(offset=offset, sigma=1e-3, n=2_000)
    first = moments(features, labels)
    truth = two_pass(features, labels, 4)["within_sq"].sum()
    assert abs(first.drain().within_sq.sum() / truth - 1) < 1e-4
    second = moments(features, labels, reference=first.reference())
    assert abs(second.drain().within_sq.sum() / truth - 1) < 1e-4


def test_a_class_that_the_reference_lacks_is_measured_too() -> None:
    features, labels = clusters()
    some = labels != 2
    reference = moments(features[some], labels[some]).reference()
    assert reference.known.tolist() == [True, True, False, True]
    assert_equal_to_two_pass(moments(features, labels, reference=reference), features, labels, 2e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_merging_two_parts_equals_one_pass(exact: bool) -> None:
    features, labels = clusters(offset=3.0)
    one, other = moments(features[:100], labels[:100], exact=exact), moments(features[100:], labels[100:], exact=exact)
    one.merge(other)
    assert_equal_to_two_pass(one, features, labels, 1e-12 if exact else 5e-6)


def test_merging_takes_over_classes_that_only_the_other_part_has() -> None:
    features, labels = clusters()
    left = labels < 2
    one, other = moments(features[left], labels[left], exact=True), moments(features[~left], labels[~left], exact=True)
    one.merge(other)
    assert_equal_to_two_pass(one, features, labels, 1e-12)


def test_ignored_and_foreign_labels_count_nowhere() -> None:
    features, labels = clusters(n=60)
    marked = labels.clone()
    marked[::5], marked[1::5] = -100, 17
    kept = (marked >= 0) & (marked < 4)
    made = moments(features, marked, exact=True)
    assert_equal_to_two_pass(made, features[kept], marked[kept], 1e-12)


def test_absent_single_and_zero_samples() -> None:
    features = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 1])
    drained = moments(features, labels, exact=True).drain()
    assert drained.class_counts.tolist() == [1, 3, 0, 0]
    assert drained.within_sq[0] == 0
    assert drained.zero_counts.tolist() == [0, 2, 0, 0]
    assert drained.class_means[2:].tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(drained.unit_sums[1], [1, 0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_sample_that_is_not_finite_is_counted_apart(bad: float) -> None:
    """1e30 is finite, but the square of its norm is not in single precision."""
    features, labels = clusters(n=50)
    features[7, 3] = bad
    good = torch.arange(50) != 7
    made = moments(features, labels)
    assert made.drain().nonfinite_counts.sum() == 1
    assert made.drain().nonfinite_counts[labels[7]] == 1
    assert_equal_to_two_pass(made, features[good], labels[good], 2e-6)


def test_half_precision_features_are_summed_as_they_are() -> None:
    features, labels = clusters()
    rounded = features.bfloat16()
    assert_equal_to_two_pass(moments(rounded, labels), rounded.float(), labels, 2e-6)


def test_the_span_of_the_means_carries_the_whole_of_nc1() -> None:
    features, labels = clusters(d=9)
    drained = moments(features, labels, exact=True).drain()
    found = drained.span()
    assert found is not None
    singular, within = found.singular, found.within
    truth = two_pass(features, labels, 4)
    rows = truth["class_means"] - truth["class_means"].mean(axis=0)
    between = rows.T @ rows / 4
    expected = np.trace(truth["within_scatter"] / 300 @ np.linalg.pinv(between, rcond=1e-10)) / 4
    assert np.sum(within / singular**2) / 300 == pytest.approx(expected, rel=1e-10)


def test_a_wide_layer_has_no_scatter_and_no_span() -> None:
    features, labels = clusters(d=1025, n=20)
    drained = moments(features, labels).drain()
    assert drained.within_scatter is None
    assert drained.span() is None


def test_nearest_is_the_nearest_known_mean_also_far_from_the_origin() -> None:
    features, labels = clusters(offset=1_000.0, sigma=0.1, n=500)
    reference = moments(features, labels, exact=True).reference()
    means = reference.means.double()
    truth = ((features.double()[:, None] - means) ** 2).sum(-1).argmin(1)
    agree = (nearest(features, Reference(means=means.float(), known=reference.known)) == truth).float().mean()
    assert agree > 0.995
    without = Reference(means=means, known=torch.tensor([True, False, True, True]))
    assert not (nearest(features.double(), without) == 1).any()


def test_nearest_counts_are_per_class_and_compared_with_the_classifier() -> None:
    reference = Reference(means=torch.tensor([[0.0, 0.0], [10.0, 0.0]]), known=torch.tensor([True, True]))
    counts = NearestCounts(2, CPU)
    features = torch.tensor([[1.0, 0.0], [9.0, 0.0], [9.0, 1.0], [float("nan"), 0.0]])
    counts.update(features, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), reference)
    assert counts.taken[:2].tolist() == [2, 1]
    assert counts.hits[:2].tolist() == [1, 1]
    assert counts.agree[:2].tolist() == [1, 1]


@pytest.mark.parametrize("exact", [True, False])
def test_losses_are_plain_cross_entropy_per_class(exact: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 4 * torch.randn(40, 3, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    counts = HeadCounts(3, CPU)
    rows = labels.clone()
    rows[:4] = 3
    predicted = counts.update(logits, rows, exact=exact)
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    for c in range(3):
        mine = (labels == c) & (rows < 3)
        assert counts.labels[c] == mine.sum()
        assert counts.loss[c].item() == pytest.approx(losses[mine].sum().item(), rel=1e-12 if exact else 1e-5)
        assert counts.correct[c] == (predicted[mine] == c).sum()
    assert counts.ignored == 4


def test_a_loss_that_is_not_finite_is_counted_apart() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [float("-inf"), 0.0]])
    counts = HeadCounts(2, CPU)
    counts.update(logits, torch.tensor([0, 0, 0]), exact=False)
    assert counts.labels[0] == 1
    assert counts.nonfinite[0] == 2
    assert torch.isfinite(counts.loss[:2]).all()


@pytest.mark.parametrize("exact", [True, False])
def test_own_logits_and_their_least_losses_are_summed_per_class(exact: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, labels = 4 * torch.randn(40, 5, generator=generator), torch.arange(40) % 5
    counts = HeadCounts(5, CPU)
    counts.update(logits[:25], labels[:25], exact=exact)
    counts.update(logits[25:], labels[25:], exact=exact)
    for c in range(5):
        z = [float(row[c] - sum(row) / 5) for row, label in zip(logits.double(), labels, strict=True) if label == c]
        least = [math.log(1 + 4 * math.exp(-1.25 * value)) for value in z]
        assert counts.own_logit[c].item() == pytest.approx(sum(z), rel=1e-5)
        assert counts.own_loss[c].item() == pytest.approx(sum(least), rel=1e-12 if exact else 1e-5)
        # Jensen: equal wrong logits are the best case.
        assert counts.own_loss[c] <= counts.loss[c] * (1 + 1e-6)


def test_a_tiny_loss_keeps_its_digits_in_single_precision() -> None:
    logits = torch.tensor([[12.0, -11.0, -10.0]])
    counts = HeadCounts(3, CPU)
    counts.update(logits, torch.tensor([0]), exact=False)
    assert counts.loss[0].item() == pytest.approx(math.exp(-23) + math.exp(-22), rel=1e-5)


def test_every_kernel_gives_the_same_sums() -> None:
    features, labels = clusters(n=300)
    rows = torch.where(torch.arange(300) % 7 == 0, 4, labels)
    results = []
    for kernel in ("index_add", "gemm", "embedding_bag"):
        sums, units = torch.zeros(5, features.shape[1]), torch.zeros(5, features.shape[1])
        for part in (slice(0, 200), slice(200, 300)):
            add_by_class(sums, units, features[part], 2 * features[part], rows[part], kernel)
        results.append((sums, units))
    for c in range(5):
        truth = features[rows == c].double().sum(0).float()
        for sums, units in results:
            torch.testing.assert_close(sums[c], truth, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(units[c], 2 * truth, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((128, 10), "index_add"), ((128, 1000), "index_add"), ((4096, 1000), "embedding_bag"), ((25_088, 10), "gemm")],
)
def test_the_kernel_fits_the_shape(shape: tuple[int, int], kernel: str) -> None:
    assert kernel_for(*shape, CPU) == kernel
    assert kernel_for(*shape, torch.device("cuda")) == "index_add"


@pytest.mark.parametrize("n", [700, 4096])
def test_many_samples_at_once_are_those_of_few(n: int) -> None:
    """Above 2,048 samples another kernel adds, and non-finite samples go to the trash row there too."""
    features, labels = clusters(n=n)
    features[5, 1], labels[7] = float("nan"), 4
    at_once, in_parts = moments(features, labels, step=n).drain(), moments(features, labels, step=300).drain()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(at_once, name), getattr(in_parts, name), rtol=1e-4, atol=1e-3, err_msg=name)
    assert at_once.class_counts.sum() == n - 2


def test_a_wide_layers_second_moment_is_a_sample_of_its_batches_with_the_trace_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    d, batches = 300, 90
    spread = torch.linspace(0.5, 2.0, d)
    labels = torch.randint(0, 4, (batches * 32,), generator=generator)
    means = 5 * torch.randn(4, d, generator=generator) + 20
    features = means[labels] + spread * torch.randn(len(labels), d, generator=generator)
    streaming = ClassMoments(4, d, CPU, exact=False)
    exact = ClassMoments(4, d, CPU, exact=True)
    halves = [ClassMoments(4, d, CPU, exact=False) for _ in range(2)]
    for number, (x, y) in enumerate(zip(features.split(32), labels.split(32), strict=True)):
        for part in (streaming, exact, halves[number >= batches // 2]):
            part.update(x, y)
    assert (streaming.thinning, exact.thinning) == (3, 1)
    halves[0].merge(halves[1])
    truth = exact.drain()
    for sampled in (streaming.drain(), halves[0].drain()):
        assert np.trace(sampled.within_scatter) == pytest.approx(sampled.within_sq.sum(), rel=1e-9)
        np.testing.assert_allclose(sampled.within_sq, truth.within_sq, rtol=1e-4)
        along, expected = sampled.span().within, truth.span().within
        # 960 of 2,880 samples: a variance along one direction is off by sqrt(2 / 960 - 2 / 2880), 4 %.
        np.testing.assert_allclose(along, expected, rtol=0.16)
        assert not np.allclose(along, expected, rtol=1e-3)


def unequal(*, n: int = 900, d: int = 7, offset: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes of 4 : 3 : 2 : 1 with spreads of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])[torch.randperm(n, generator=generator) % 10]
    spreads = torch.rand(4, d, generator=generator) + 0.1
    means = 3 * torch.randn(4, d, generator=generator) + offset
    return means[labels] + spreads[labels] * torch.randn(n, d, generator=generator), labels


def class_covariances(features: Tensor, labels: Tensor) -> np.ndarray:
    h, y = features.double().numpy(), labels.numpy()
    return sum(np.cov(h[y == c].T, ddof=0) for c in range(4))


@pytest.mark.parametrize("d", [7, 200])
@pytest.mark.parametrize(("exact", "rtol"), [(True, 1e-10), (False, 2e-5)])
def test_with_the_sizes_of_the_window_before_every_class_counts_once(exact: bool, rtol: float, d: int) -> None:
    features, labels = unequal(d=d, offset=3.0)
    before = moments(features, labels, exact=exact).reference()
    made = ClassMoments(4, d, CPU, exact=exact, reference=None if exact else before, before=before)
    # One batch: of a wide streaming layer a second moment is a sample of batches.
    made.update(features, labels)
    drained, truth = made.drain(), class_covariances(features, labels)
    np.testing.assert_allclose(drained.weighted_scatter, truth, rtol=rtol, atol=rtol * np.abs(truth).max())
    span = drained.span()
    assert span.weighted is not None
    rows = drained.class_means - drained.class_means.mean(axis=0)
    right = np.linalg.svd(rows, full_matrices=False)[2][:3]
    np.testing.assert_allclose(span.weighted, [v @ truth @ v for v in right], rtol=1e-4)
    assert drained.before_counts.tolist() == torch.bincount(labels).tolist()
    assert drained.shift_sq.max() < 1e-9


def test_a_second_product_is_only_made_where_sizes_differ_for_a_reason() -> None:
    features, labels = clusters(n=400)
    counted = torch.bincount(labels).tolist()
    assert max(counted) > min(counted)
    chance = moments(features, labels).reference()
    assert ClassMoments(4, 7, CPU, exact=False, before=chance).weighted is None
    assert ClassMoments(4, 7, CPU, exact=True, before=chance).weighted is not None
    meant = moments(*unequal()).reference()
    assert ClassMoments(4, 7, CPU, exact=False, before=meant).weighted is not None
    equal = Reference(means=chance.means, known=chance.known, counts=torch.full((4,), 100.0).double())
    assert ClassMoments(4, 7, CPU, exact=True, before=equal).weighted is None
    assert ClassMoments(4, 1025, CPU, exact=True, before=meant).weighted is None
    assert ClassMoments(4, 7, CPU, exact=True).weighted is None


def test_merged_parts_keep_their_weights_or_have_none() -> None:
    features, labels = unequal(offset=2.0)
    before = moments(features, labels, exact=True).reference()
    parts = [ClassMoments(4, 7, CPU, exact=True, before=before) for _ in range(2)]
    parts[0].update(features[:300], labels[:300])
    parts[1].update(features[300:], labels[300:])
    parts[0].merge(parts[1])
    np.testing.assert_allclose(parts[0].drain().weighted_scatter, class_covariances(features, labels), rtol=1e-10)
    other = ClassMoments(4, 7, CPU, exact=True, before=moments(features[:200], labels[:200], exact=True).reference())
    other.update(features, labels)
    parts[0].merge(other)
    assert parts[0].drain().weighted_scatter is None


def test_a_window_says_how_far_each_mean_moved_since_the_one_before() -> None:
    features, labels = clusters(n=200)
    before = moments(features, labels, exact=True).reference()
    step = torch.tensor([[3.0, 4, 0, 0, 0, 0, 0], [0] * 7, [1.0] + [0] * 6, [0] * 7])
    later = ClassMoments(4, 7, CPU, exact=True, before=before)
    present = labels != 3
    later.update((features + step[labels])[present], labels[present])
    np.testing.assert_allclose(later.drain().shift_sq, [25, 0, 1, 0], atol=1e-10)
