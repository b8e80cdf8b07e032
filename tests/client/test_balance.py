"""Second moments in which every class counts once, and how far means moved, against covariances of each class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ncmon_client.accumulate import alone
from ncmon_client.balance import class_weights
from ncmon_client.moments import ClassMoments
from ncmon_client.rows import Reference
from ncmon_client.sampled import Sampled
from ncmon_client.second import second_moment
from tests.client.hooking import batch, mlp, place, recorded

CPU = torch.device("cpu")


def unequal(*, n: int = 900, d: int = 7, offset: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes of 4 : 3 : 2 : 1 with spreads of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])[torch.randperm(n, generator=generator) % 10]
    spreads = torch.rand(4, d, generator=generator) + 0.1
    means = 3 * torch.randn(4, d, generator=generator) + offset
    return means[labels] + spreads[labels] * torch.randn(n, d, generator=generator), labels


def once(
    features: Tensor, labels: Tensor, *, exact: bool, before: Reference | None = None, step: int = 100
) -> ClassMoments:
    made = alone(4, features.shape[1], CPU, exact=exact, reference=None if exact else before, before=before)
    for h, y in zip(torch.split(features, step), torch.split(labels, step), strict=True):
        made.update(h, y)
    return made


def covariances(features: Tensor, labels: Tensor) -> np.ndarray:
    h, y = features.double().numpy(), labels.numpy()
    return sum((np.cov(h[y == c].T, ddof=0) for c in range(4)), start=np.zeros((h.shape[1], h.shape[1])))


@pytest.mark.parametrize(("exact", "d", "rtol"), [(True, 7, 1e-10), (True, 200, 1e-10), (False, 7, 2e-5)])
def test_with_the_sizes_of_the_window_before_every_class_counts_once(exact: bool, d: int, rtol: float) -> None:
    features, labels = unequal(d=d, offset=3.0)
    before = once(features, labels, exact=exact).reference()
    drained, truth = once(features, labels, exact=exact, before=before).drain(), covariances(features, labels)
    assert drained.weighted is not None
    found = drained.weighted.spread.matrix()
    np.testing.assert_allclose(found, truth, rtol=rtol, atol=rtol * np.abs(truth).max())
    np.testing.assert_allclose(drained.weighted.weights, 1 / drained.class_counts)
    span = drained.span()
    assert span is not None
    rows = drained.class_means - drained.class_means.mean(axis=0)
    right = np.linalg.svd(rows, full_matrices=False)[2][:3]
    np.testing.assert_allclose(span.weighted, [v @ truth @ v for v in right], rtol=1e-4)
    assert drained.before_counts is not None
    assert drained.before_counts.tolist() == torch.bincount(labels).tolist()
    assert drained.shift_sq is not None
    assert drained.shift_sq.max() < 1e-9


def test_kept_samples_need_no_window_before() -> None:
    features, labels = unequal(d=200, n=900)
    drained, truth = once(features, labels, exact=False).drain(), covariances(features, labels)
    assert drained.before_counts is None
    assert drained.weighted is not None
    np.testing.assert_allclose(drained.weighted.spread.matrix(), truth, rtol=1e-3, atol=1e-4 * np.abs(truth).max())


def test_of_kept_samples_each_class_has_the_trace_of_all_of_its_own() -> None:
    features, labels = unequal(d=2048, n=1800)
    made = once(features, labels, exact=False, step=50)
    assert isinstance(made.second, Sampled)
    assert made.second.every > 1
    drained = made.drain()
    assert drained.weighted is not None
    trace = float(np.trace(drained.weighted.spread.matrix()))
    assert trace == pytest.approx(float((drained.within_sq / drained.class_counts).sum()), rel=1e-9)


def test_a_class_that_varies_and_of_which_no_sample_was_kept_leaves_no_balance() -> None:
    kept = Sampled(200)
    kept.add(torch.randn(50, 200), torch.zeros(50, dtype=torch.int64), 2)
    delta = np.zeros((2, 200))
    assert kept.read_weighted(delta, np.array([50.0, 9.0]), np.array([1e4, 1e3])) is None
    assert kept.read_weighted(delta, np.array([50.0, 1.0]), np.array([1e4, 0.0])) is not None


def test_a_second_product_is_only_made_where_sizes_differ_for_a_reason() -> None:
    chance, meant = torch.tensor([97.0, 104.0, 88.0, 111.0]), torch.tensor([400.0, 300.0, 200.0, 100.0])
    assert class_weights(chance, exact=False) is None
    assert class_weights(chance, exact=True) is not None
    assert class_weights(torch.full((4,), 100.0), exact=True) is None
    found = class_weights(torch.tensor([400.0, 0.0, 200.0, 100.0]), exact=False)
    assert found is not None
    assert found.tolist() == pytest.approx([1 / 400, 0, 1 / 200, 1 / 100, 0])
    for d, exact, weighted in ((7, False, True), (7, True, True), (1025, True, False)):
        moment = second_moment(d, CPU, exact=exact, sizes=meant)
        assert (getattr(moment, "weighted", None) is not None) == weighted


def test_on_the_span_of_what_was_known_every_class_counts_once_too() -> None:
    features, labels = unequal(d=1100, n=600)
    basis = torch.linalg.qr(torch.randn(1100, 20, dtype=torch.float64))[0]
    sizes = torch.bincount(labels).double()
    moment = second_moment(1100, CPU, exact=True, basis=basis, sizes=sizes)
    assert moment is not None
    means = torch.stack([features[labels == c].double().mean(0) for c in range(4)])
    moment.add(features.double() - means[labels], labels, 4)
    truth = covariances(features, labels)
    within = np.array([float(((features[labels == c].double() - means[c]) ** 2).sum()) for c in range(4)])
    found = moment.read_weighted(np.zeros((4, 1100)), sizes.numpy(), within)
    assert found is not None
    directions = basis.numpy().T[:3]
    np.testing.assert_allclose(found.spread.along(directions), [v @ truth @ v for v in directions], rtol=1e-9)


def test_merged_parts_keep_their_weights_or_have_none() -> None:
    features, labels = unequal(offset=2.0)
    before = once(features, labels, exact=True).reference()
    parts = [once(features[:300], labels[:300], exact=True, before=before)]
    parts.append(once(features[300:], labels[300:], exact=True, before=before))
    parts[0].merge(parts[1])
    weighted = parts[0].drain().weighted
    assert weighted is not None
    np.testing.assert_allclose(weighted.spread.matrix(), covariances(features, labels), rtol=1e-9, atol=1e-12)
    elsewhere = once(features[:200], labels[:200], exact=True).reference()
    parts[0].merge(once(features, labels, exact=True, before=elsewhere))
    assert parts[0].drain().weighted is None


def test_a_window_says_how_far_each_mean_moved_since_the_one_before() -> None:
    features, labels = unequal(n=200)
    before = once(features, labels, exact=True).reference()
    step = torch.tensor([[3.0, 4, 0, 0, 0, 0, 0], [0] * 7, [1.0] + [0] * 6, [0] * 7])
    present = labels != 3
    later = once((features + step[labels])[present], labels[present], exact=True, before=before)
    np.testing.assert_allclose(later.drain().shift_sq, [25, 0, 1, 0], atol=1e-5)  # type: ignore[arg-type]


def test_every_split_is_compared_with_its_own_window_before() -> None:
    model = mlp()
    monitor, recorder = recorded(model, torch.nn.CrossEntropyLoss())
    (x, y), loader = batch(), [batch(seed=2)]
    for epoch in range(2):
        model.train()
        torch.nn.CrossEntropyLoss()(model(x), y)
        monitor.observe(model(x), y)
        monitor.epoch(epoch)
        for exact_ncc in (False, True):
            monitor.measure(loader, split="test", exact_ncc=exact_ncc)
    moved = [
        (
            meta.split,
            None if (found := arrays.get((place(meta, "classifier-input"), "shift_sq"))) is None else found.max(),
        )
        for meta, arrays in recorder.windows()
    ]
    assert [split for split, _ in moved] == ["train", "test", "test"] * 2
    assert [shift is None for _, shift in moved] == [True, True, False, False, False, False]
    # The network stood still between two measurements of one split.
    assert moved[2][1] < 1e-25
    sizes = torch.bincount(loader[0][1]).tolist()
    for meta, arrays in recorder.windows():
        if (place(meta, "classifier-input"), "before_counts") in arrays and meta.split == "test":
            assert arrays[place(meta, "classifier-input"), "before_counts"].tolist() == sizes
            assert (place(meta, "classifier-input"), "span_weighted") in arrays
