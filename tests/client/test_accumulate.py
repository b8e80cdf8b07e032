"""Class moments against a two-pass computation in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ncmon_client.accumulate import Sums, alone
from ncmon_client.decisions import HeadCounts, NearestCounts, nearest
from ncmon_client.kernels import Room, add_by_class, kernel_for
from ncmon_client.moments import ClassMoments
from ncmon_client.pads import Pads
from ncmon_client.rows import Reference, Rows
from ncmon_client.sampled import Sampled
from ncmon_client.second import Projected, basis_of
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
    made = alone(n_classes, features.shape[1], CPU, exact=exact, reference=reference)
    for h, y in zip(torch.split(features, step), torch.split(labels, step), strict=True):
        made.update(h, torch.where((y >= 0) & (y < n_classes), y, n_classes))
    return made


def assert_equal_to_two_pass(made: ClassMoments, features: Tensor, labels: Tensor, rtol: float) -> None:
    drained, truth = made.drain(), two_pass(features, labels, made.n_classes)
    np.testing.assert_array_equal(drained.class_counts, truth["class_counts"])
    assert drained.spread is not None
    for name in FIELDS:
        expected = truth[name]
        scale = np.abs(expected).max()
        found = drained.spread.matrix() if name == "within_scatter" else getattr(drained, name)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale, err_msg=name)


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


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("kernel", ["index_add", "gemm", "embedding_bag"])
def test_every_kernel_gives_the_same_sums(kernel: str, n_layers: int) -> None:
    labels = clusters(n=300)[1]
    features = torch.stack([clusters(n=300, seed=seed)[0] for seed in range(n_layers)])
    rows = torch.where(torch.arange(300) % 7 == 0, 4, labels)
    inverse = torch.rand(n_layers, 300)
    sums = torch.zeros(2, n_layers, 5, features.shape[2])
    for part in (slice(0, 200), slice(200, 300)):
        batch = Rows(rows[part], 4)
        x = features[:, part].reshape(-1, features.shape[2])
        room = Room(n_layers, len(batch), torch.float32, CPU)
        room.inverse.copy_(inverse[:, part])
        add_by_class(sums, x, room, batch, batch.stacked(n_layers), kernel, Pads())  # type: ignore[arg-type]
    for layer in range(n_layers):
        for c in range(5):
            mine = features[layer][rows == c].double()
            weighted = mine * inverse[layer][rows == c, None].double()
            torch.testing.assert_close(sums[0, layer, c].double(), mine.sum(0), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(sums[1, layer, c].double(), weighted.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((128, 10), "embedding_bag"), ((128, 1000), "index_add"), ((4096, 1000), "embedding_bag")],
)
def test_the_kernel_fits_the_shape(shape: tuple[int, int], kernel: str) -> None:
    assert kernel_for(*shape, CPU) == kernel


def test_on_an_accelerator_only_exact_products_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert kernel_for(25_088, 10, cuda) == "gemm"
    assert kernel_for(25_088, 1000, cuda) == kernel_for(128, 10, cuda) == "index_add"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert kernel_for(25_088, 10, cuda) == "index_add"


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("spoilt", [None, "nan", "zero", "ignored"])
def test_layers_added_together_are_those_added_alone(exact: bool, spoilt: str | None) -> None:
    """Shared calls, one masked sample in one layer, decisions by earlier means: each layer as if it were alone."""
    layers = [clusters(n=200, d=9, seed=seed, offset=2.0) for seed in range(3)]
    labels = layers[0][1].clone()
    features = [part[0] for part in layers]
    references = [moments(h, labels, exact=exact).reference() for h in features]
    if spoilt == "nan":
        features[1][5, 2] = float("nan")
    elif spoilt == "zero":
        features[1][5] = 0
    elif spoilt == "ignored":
        labels[::9] = 4
    predicted = (labels + (torch.arange(200) % 5 == 0).long()) % 4
    together = Sums(4, 9, CPU, exact=exact, references=references, nearest=[True, False, True])
    for part in (slice(0, 120), slice(120, 200)):
        together.update([h[part] for h in features], Rows(labels[part], 4), predicted[part])
    assert set(together.deciders) == {0, 2}
    for place, (h, reference) in enumerate(zip(features, references, strict=True)):
        good = torch.isfinite(h).all(1) & (labels < 4)
        assert_equal_to_two_pass(together.members[place], h[good], labels[good], 1e-11 if exact else 5e-6)
        assert together.members[place].drain().nonfinite_counts.sum() == (~torch.isfinite(h).all(1)).sum()
        if place not in together.deciders:
            continue
        counts = together.deciders[place][0]
        nearest_mean = torch.cdist(h.double(), reference.means.double()).argmin(1)
        for c in range(4):
            mine = good & (labels == c)
            assert counts.taken[c] == mine.sum()
            assert counts.hits[c] == (nearest_mean[mine] == c).sum()
            assert counts.agree[c] == (nearest_mean[mine] == predicted[mine]).sum()


def test_decisions_of_more_classes_than_samples_are_those_of_the_nearest_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(70, 9, generator=generator)
    labels = torch.randint(0, 70, (40,), generator=generator)
    features = means[labels] + 0.5 * torch.randn(40, 9, generator=generator)
    reference = Reference(means=means, known=torch.ones(70, dtype=torch.bool))
    sums = Sums(70, 9, CPU, exact=False, references=[reference], nearest=[True])
    sums.update([features], Rows(labels, 70), labels)
    nearest_mean = torch.cdist(features.double(), means.double()).argmin(1)
    assert sums.deciders[0][0].hits.sum() == (nearest_mean == labels).sum()
    assert sums.deciders[0][0].taken.sum() == 40


@pytest.mark.parametrize("n", [700, 4096])
def test_many_samples_at_once_are_those_of_few(n: int) -> None:
    """Non-finite samples go to the trash row in large batches too."""
    features, labels = clusters(n=n)
    features[5, 1], labels[7] = float("nan"), 4
    at_once, in_parts = moments(features, labels, step=n).drain(), moments(features, labels, step=300).drain()
    for name in FIELDS[:-1]:
        np.testing.assert_allclose(getattr(at_once, name), getattr(in_parts, name), rtol=1e-4, atol=1e-3, err_msg=name)
    assert at_once.class_counts.sum() == n - 2


def wide(*, d: int, n: int, n_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    means = 5 * torch.randn(n_classes, d, generator=generator) + 20
    return means[labels] + torch.linspace(0.5, 2.0, d) * torch.randn(n, d, generator=generator), labels


def test_a_wide_layer_keeps_all_samples_while_there_is_room() -> None:
    features, labels = wide(d=300, n=900)
    made = moments(features, labels, step=90)
    assert made.second is not None
    assert made.second.note() == ""
    assert_equal_to_two_pass(made, features, labels, 5e-6)


def test_of_many_samples_of_a_wide_layer_some_are_kept_evenly_with_the_trace_of_all() -> None:
    features, labels = wide(d=300, n=32 * 400)
    streaming = moments(features, labels, step=32)
    halves = [moments(features[part], labels[part], step=32) for part in (slice(0, 9_600), slice(9_600, 12_800))]
    halves[0].merge(halves[1])
    truth = moments(features, labels, step=32, exact=True).drain()
    assert isinstance(streaming.second, Sampled)
    kept = sum(len(x) for x, _ in streaming.second.kept)
    assert streaming.second.room // 2 <= kept <= streaming.second.room < len(features)
    assert streaming.second.note() == f"second moment of {kept} of {len(features)} samples"
    for sampled in (streaming.drain(), halves[0].drain()):
        assert sampled.spread is not None
        assert np.trace(sampled.spread.matrix()) == pytest.approx(sampled.within_sq.sum(), rel=1e-9)
        np.testing.assert_allclose(sampled.within_sq, truth.within_sq, rtol=1e-4)
        along, expected = sampled.span().within, truth.span().within  # type: ignore[union-attr]
        # A variance along one direction, known of at least 1,600 samples: off by sqrt(2 / 1600), 3.5 %; four of that.
        np.testing.assert_allclose(along, expected, rtol=0.14)
        assert not np.allclose(along, expected, rtol=1e-4)


def test_a_batch_larger_than_the_room_is_sampled_across() -> None:
    """A loader may sort its batches: their first samples would be of one class."""
    features, labels = wide(d=300, n=8_000)
    order = torch.argsort(labels)
    made = alone(4, 300, CPU, exact=False)
    made.update(features[order], labels[order])
    assert isinstance(made.second, Sampled)
    x, rows = made.second.kept[0]
    assert len(x) <= made.second.room // 2
    assert torch.bincount(rows, minlength=5)[:4].min() > 0.2 * len(rows)


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_batch_that_is_added_in_parts_is_one_pass(n_layers: int, spoilt: bool) -> None:
    """Thousands of samples, sorted by class: what is kept of them is spread over all of them, whatever the parts."""
    features, labels = wide(d=300, n=20_000)
    order = torch.argsort(labels)
    layers, labels = [features[order] * (1 + place) for place in range(n_layers)], labels[order].clone()
    good = torch.ones(len(labels), dtype=torch.bool)
    if spoilt:
        labels[::7] = 4
        layers[-1][5_003, 7] = float("nan")
        good = (labels < 4) & torch.isfinite(layers[-1]).all(1)
    taken = Sums(4, 300, CPU, exact=False, references=[None] * n_layers)
    assert taken._at_once(Rows(labels, 4)) < len(labels) / 5
    taken.update(layers, Rows(labels, 4))
    made = taken.members[-1]
    drained, truth = made.drain(), two_pass(layers[-1][good], labels[good], 4)
    for name in ("class_counts", *FIELDS[:-1]):
        scale = np.abs(truth[name]).max()
        np.testing.assert_allclose(getattr(drained, name), truth[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    assert isinstance(made.second, Sampled)
    assert made.second.samples == len(labels)
    (x, rows) = made.second.kept[0]
    assert len(made.second.kept) == 1
    assert len(x) <= made.second.room // 2
    counted = torch.bincount(rows, minlength=5)[:4]
    assert counted.min() > 0.2 * counted.sum()
    span = drained.span()
    assert span is not None
    rows = truth["class_means"] - truth["class_means"].mean(axis=0)
    right = np.linalg.svd(rows, full_matrices=False)[2][:3]
    # Variances along a direction, of some 1,500 samples: off by 3.7 %; four of that.
    np.testing.assert_allclose(span.within, np.einsum("ij,ij->i", right @ truth["within_scatter"], right), rtol=0.15)


def test_windows_that_share_memory_keep_their_own_numbers() -> None:
    """One window is read only after the next two were added up; each is what it would be alone."""
    lender = Pads()
    data = [wide(d=200, n=600, seed=seed) for seed in range(4)]
    windows = []
    for number, (features, labels) in enumerate(data):
        window = Sums(4, 200, CPU, exact=False, pads=lender)
        for h, y in zip(torch.split(features, 100), torch.split(labels, 100), strict=True):
            window.update([h], Rows(y, 4))
        windows.append(window)
        if number == 0:
            # Read, and given back: the windows that follow work in its memory.
            assert_equal_to_two_pass(window.members[0], features, labels, 5e-6)
            assert window.members[0].second is not None
            window.members[0].second.release()
    for window, (features, labels) in zip(windows[1:], data[1:], strict=True):
        assert_equal_to_two_pass(window.members[0], features, labels, 5e-6)


def test_samples_without_a_class_do_not_enter_the_second_moment() -> None:
    features, labels = wide(d=200, n=400)
    marked = labels.clone()
    marked[::3] = -100
    features[1] = float("inf")
    good = (marked >= 0) & torch.isfinite(features).all(1)
    assert_equal_to_two_pass(moments(features, marked), features[good], marked[good], 5e-6)


def test_a_layer_too_wide_for_its_second_moment_has_it_on_the_span_of_what_was_known() -> None:
    """Where the means lie in that span the numbers are exact; beside it, each direction has the mean variance."""
    features, labels = wide(d=1100, n=600)
    truth = two_pass(features, labels, 4)
    means = torch.from_numpy(truth["class_means"])
    known = basis_of(torch.cat((means - means.mean(0), torch.randn(4, 1100, dtype=torch.float64))))
    assert known is not None
    sums = Sums(4, 1100, CPU, exact=True, bases=[known])
    assert isinstance(sums.members[0].second, Projected)
    for h, y in zip(torch.split(features, 100), torch.split(labels, 100), strict=True):
        sums.update([h], Rows(y, 4))
    found = sums.members[0].drain().span()
    assert found is not None
    singular, along = found.singular, found.within
    rows = truth["class_means"] - truth["class_means"].mean(axis=0)
    right = np.linalg.svd(rows, full_matrices=False)[2][:3]
    np.testing.assert_allclose(along, np.einsum("ij,ij->i", right @ truth["within_scatter"], right), rtol=1e-9)
    np.testing.assert_allclose(singular, np.linalg.svd(rows, compute_uv=False)[:3], rtol=1e-9)
    # Of a span that knows nothing the mean variance is what remains.
    blind = basis_of(torch.randn(3, 1100, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    sums = Sums(4, 1100, CPU, exact=True, bases=[blind])
    sums.update([features], Rows(labels, 4))
    assert sums.members[0].second.note().startswith("NC1 approximate")  # type: ignore[union-attr]
    along = sums.members[0].drain().span().within  # type: ignore[union-attr]
    np.testing.assert_allclose(along, truth["within_sq"].sum() / 1100, rtol=0.05)


def test_projected_parts_merge_to_one_pass() -> None:
    features, labels = wide(d=1100, n=300)
    basis = basis_of(torch.randn(6, 1100, generator=torch.Generator().manual_seed(2)))
    parts = [Sums(4, 1100, CPU, exact=True, bases=[basis]) for _ in range(3)]
    for part, take in zip(parts, (slice(0, 300), slice(0, 130), slice(130, 300)), strict=True):
        part.update([features[take]], Rows(labels[take], 4))
    parts[1].members[0].merge(parts[2].members[0])
    whole, merged = (part.members[0].drain().span() for part in parts[:2])
    np.testing.assert_allclose(merged.within, whole.within, rtol=1e-9)  # type: ignore[union-attr]


def test_an_exact_window_of_a_wide_layer_without_anything_known_has_no_second_moment() -> None:
    features, labels = wide(d=1100, n=50)
    made = moments(features, labels, exact=True)
    assert made.second is None
    assert made.drain().span() is None
    assert basis_of(torch.zeros(3, 5)) is None
