"""Soft labels against plain loops in float64: every sample counts for every class, weighted."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ncmon import ingest
from ncmon.evaluate import evaluate
from ncmon_client import mixtures, window, wire
from ncmon_client.accumulate import Sums
from ncmon_client.rows import Rows
from tests.client.hooking import batch, mlp, place, recorded

CPU = torch.device("cpu")


def labels_of(kind: str, y: Tensor, n_classes: int = 3, seed: int = 5) -> Tensor:
    hard = functional.one_hot(y, n_classes).float()
    generator = torch.Generator().manual_seed(seed)
    if kind == "mixup":
        other = y[torch.randperm(len(y), generator=generator)]
        return 0.7 * hard + 0.3 * functional.one_hot(other, n_classes).float()
    if kind == "smoothed":
        return 0.9 * hard + 0.1 / n_classes
    if kind == "distilled":
        return torch.softmax(2 * torch.randn(len(y), n_classes, generator=generator), 1)
    return hard


def weighted(h: Tensor, p: Tensor) -> dict[str, Any]:
    """Return a layer's arrays by plain loops, before counts are rounded."""
    features, weights = h.detach().double().numpy(), p.double().numpy()
    n_classes, d = weights.shape[1], features.shape[1]
    out: dict[str, Any] = {name: np.zeros(n_classes) for name in ("counts", "within_sq", "norm_sums", "norm_sq_sums")}
    out |= {"class_means": np.zeros((n_classes, d)), "unit_sums": np.zeros((n_classes, d)), "scatter": np.zeros((d, d))}
    for c in range(n_classes):
        out["counts"][c] = sum(weights[i, c] for i in range(len(features)))
        mean = sum(weights[i, c] * features[i] for i in range(len(features))) / out["counts"][c]
        out["class_means"][c] = mean
        out["scatter"] += (weights[:, c, None] * (features - mean)).T @ (features - mean)
        for row, weight in zip(features, weights[:, c], strict=True):
            norm = math.sqrt(row @ row)
            out["within_sq"][c] += weight * ((row - mean) @ (row - mean))
            out["norm_sums"][c] += weight * norm
            out["norm_sq_sums"][c] += weight * norm**2
            out["unit_sums"][c] += weight * row / norm if norm > 0 else 0
    return out


def trained(kind: str, *, windows: int = 2, **options: Any) -> tuple[Any, Any, Any]:
    """Return the windows of a run with such labels, what each layer saw in the last one, and its logits and labels."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, soft=True, **options)
    seen: dict[str, Tensor] = {}
    for name in ("0", "1"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, output.detach().clone())
        )
    for number in range(windows):
        x, y = batch(seed=number)
        soft = labels_of(kind, y)
        logits = model(x)
        criterion(logits, soft).backward()
        monitor.epoch(number)
    return recorder.windows(), {"0": seen["0"], "classifier-input": seen["1"]}, (logits.detach(), soft)


@pytest.mark.parametrize("kind", ["mixup", "smoothed", "distilled"])
def test_every_sum_is_weighted_by_the_probabilities(kind: str) -> None:
    windows, seen, (logits, soft) = trained(kind)
    meta, arrays = windows[-1]
    assert (meta.steps, meta.sampled_steps, meta.skipped_batches) == (1, 1, {})
    assert meta.head.plain_loss is False
    for name, h in seen.items():
        at, truth = place(meta, name), weighted(h, soft)
        assert mixtures.NOTE in meta.layers[at].note
        rounded = np.rint(truth["counts"])
        scale = rounded / truth["counts"]
        np.testing.assert_array_equal(arrays[at, "class_counts"], rounded)
        np.testing.assert_allclose(arrays[at, "class_means"], truth["class_means"], rtol=1e-5, atol=1e-5)
        for array in ("within_sq", "norm_sums", "norm_sq_sums"):
            np.testing.assert_allclose(arrays[at, array], scale * truth[array], rtol=2e-5, err_msg=array)
        np.testing.assert_allclose(arrays[at, "unit_sums"], scale[:, None] * truth["unit_sums"], rtol=1e-4, atol=1e-4)
        rows = truth["class_means"] - truth["class_means"].mean(axis=0)
        right = np.linalg.svd(rows, full_matrices=False)[2][:2]
        along = np.einsum("ij,ij->i", right @ truth["scatter"], right)
        np.testing.assert_allclose(arrays[at, "span_within"], along, rtol=1e-4)
    z, p = logits.double().numpy(), soft.double().numpy()
    for c in range(3):
        losses = [math.log(sum(math.exp(v - row[c]) for v in row)) for row in z]
        count = sum(p[:, c])
        loss = sum(weight * value for weight, value in zip(p[:, c], losses, strict=True))
        right_ones = sum(weight for weight, row in zip(p[:, c], z, strict=True) if row.argmax() == c)
        assert arrays[-1, "label_counts"][c] == round(count)
        assert arrays[-1, "correct"][c] == round(right_ones)
        assert arrays[-1, "loss_sums"][c] == pytest.approx(loss * round(count) / count, rel=1e-5)


@pytest.mark.parametrize("kind", ["mixup", "distilled"])
def test_nearest_means_decide_for_the_probability_of_the_class(kind: str) -> None:
    windows, seen, (logits, soft) = trained(kind)
    meta, arrays = windows[-1]
    for name, h in seen.items():
        at = place(meta, name)
        means = torch.tensor(windows[0][1][at, "class_means"])
        nearest, predicted = torch.cdist(h.double(), means).argmin(1), logits.argmax(1)
        for c in range(3):
            assert arrays[at, "ncc_counts"][c] == round(float(soft[:, c].double().sum()))
            assert arrays[at, "ncc_hits"][c] == round(float(soft[nearest == c, c].double().sum()))
            assert arrays[at, "ncc_agree"][c] == round(float(soft[nearest == predicted, c].double().sum()))


def test_probabilities_of_one_are_hard_labels() -> None:
    soft_windows = trained("hard", windows=3)[0]
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    for number in range(3):
        x, y = batch(seed=number)
        criterion(model(x), y).backward()
        monitor.epoch(number)
    for (meta, arrays), (hard_meta, hard) in zip(soft_windows, recorder.windows(), strict=True):
        assert [layer.name for layer in meta.layers] == [layer.name for layer in hard_meta.layers]
        assert set(arrays) == set(hard)
        for key, array in hard.items():
            np.testing.assert_allclose(arrays[key], array, rtol=1e-4, atol=2e-5, err_msg=str(key))


@pytest.mark.parametrize("kind", ["mixup", "smoothed", "distilled"])
def test_the_daemon_evaluates_windows_of_soft_labels(kind: str) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, soft=True)
    for number in range(3):
        x, y = batch(seed=number)
        criterion(model(x), labels_of(kind, y)).backward()
        monitor.epoch(number)
    for meta, blob in (item.seal() for item in recorder.offered):
        message = wire.Message(kind=wire.Kind.WINDOW, stream=wire.new_stream(), seq=0, meta=meta, blob=blob)
        found = evaluate(ingest.to_part(message, received=0.0).window)
        readings = found.layers[-1].readings
        assert 0 < readings["nc1_pinv"].value < math.inf
        assert -1 <= readings["intra_cos_mean"].value <= 1


@pytest.mark.parametrize("offset", [0.0, 1_000.0])
def test_a_common_offset_does_not_swallow_the_variance(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    h = offset + 0.01 * torch.randn(400, 7, generator=generator)
    p = labels_of("distilled", torch.arange(400) % 4, 4)
    sums = Sums(4, 7, CPU, exact=False)
    adding = mixtures.Mixtures(CPU)
    for part in torch.split(torch.arange(400), 100):
        adding.add(sums, [h[part]], p[part].double(), torch.zeros(100, dtype=torch.int64))
    drained, truth = sums.members[0].drain(), weighted(h, p)
    scale = np.rint(truth["counts"]) / truth["counts"]
    np.testing.assert_allclose(drained.within_sq, scale * truth["within_sq"], rtol=1e-4)


def test_of_a_wide_layer_samples_are_kept_under_classes_drawn_by_their_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = 5 * torch.randn(4, 200, generator=generator)
    y = torch.randint(0, 4, (8_000,), generator=generator)
    h, p = centres[y] + torch.randn(8_000, 200, generator=generator), labels_of("mixup", y, 4)
    sums, adding = Sums(4, 200, CPU, exact=False), mixtures.Mixtures(CPU)
    for part in torch.split(torch.arange(8_000), 200):
        adding.add(sums, [h[part]], p[part].double(), y[part])
    span, truth = sums.members[0].drain().span(), weighted(h, p)
    assert span is not None
    rows = truth["class_means"] - truth["class_means"].mean(axis=0)
    right = np.linalg.svd(rows, full_matrices=False)[2][:3]
    # Some 2,000 draws tell a second moment to 4 %.
    np.testing.assert_allclose(span.within, np.einsum("ij,ij->i", right @ truth["scatter"], right), rtol=0.16)


def test_hard_and_soft_batches_add_up() -> None:
    h, y = torch.randn(60, 5, generator=torch.Generator().manual_seed(2)), torch.arange(60) % 3
    p = labels_of("smoothed", y)
    sums, adding = Sums(3, 5, CPU, exact=False), mixtures.Mixtures(CPU)
    sums.update([h[:30]], Rows(y[:30], 3))
    adding.add(sums, [h[30:]], p[30:].double(), y[30:])
    drained = sums.members[0].drain()
    truth = weighted(h, torch.cat((labels_of("hard", y[:30]), p[30:])))
    np.testing.assert_allclose(drained.class_means, truth["class_means"], rtol=1e-5, atol=1e-6)


def test_samples_without_finite_features_count_apart_and_spoil_nothing() -> None:
    h, y = torch.randn(40, 5, generator=torch.Generator().manual_seed(3)), torch.arange(40) % 3
    p = labels_of("mixup", y)
    bad = torch.zeros(40, dtype=torch.bool)
    bad[::8] = True
    h[bad, 2] = float("nan")
    sums = Sums(3, 5, CPU, exact=False)
    mixtures.Mixtures(CPU).add(sums, [h], p.double(), y)
    drained, truth = sums.members[0].drain(), weighted(h[~bad], p[~bad])
    np.testing.assert_allclose(drained.class_means, truth["class_means"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(drained.nonfinite_counts, np.rint(p[bad].double().sum(0).numpy()))


def test_training_draws_the_same_numbers_with_soft_labels_watched() -> None:
    def weights(watched: bool) -> Tensor:
        model, criterion = mlp(), nn.CrossEntropyLoss()
        torch.manual_seed(7)
        if watched:
            recorded(model, criterion, soft=True)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for number in range(5):
            x, y = batch(seed=number)
            optimizer.zero_grad()
            criterion(model(x) + torch.rand(24, 3), labels_of("mixup", y)).backward()
            optimizer.step()
        return torch.cat([parameter.detach().view(-1) for parameter in model.parameters()])

    assert torch.equal(weights(watched=False), weights(watched=True))


def test_without_asking_soft_labels_are_skipped_and_labels_of_another_shape_always() -> None:
    for soft, target in ((False, torch.rand(24, 3)), (True, torch.rand(24))):
        model = mlp()
        monitor, recorder = recorded(model, soft=soft)
        x, y = batch()
        monitor.observe(model(x), target)
        monitor.observe(model(x), y)
        monitor.epoch(0)
        assert recorder.windows()[0][0].skipped_batches == {"soft labels": 1}


class Tagger(nn.Module):
    """Tokens in, logits of every token out."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


@pytest.mark.parametrize("n_classes", [3, 5])
@pytest.mark.parametrize("order", ["classes second", "observed as they are", "observed, turned"])
def test_tokens_with_soft_labels_are_samples_of_their_own(order: str, n_classes: int) -> None:
    """Five tokens: with five classes shapes do not tell them apart. Some tokens are padding, without any weight."""
    model, criterion = Tagger(n_classes), nn.CrossEntropyLoss()
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1))
    soft = labels_of("distilled", torch.zeros(30, dtype=torch.int64), n_classes).view(6, 5, n_classes)
    soft[2:, 3:] = 0
    told = order != "classes second"
    monitor, recorder = recorded(model, None if told else criterion, soft=True, pool="tokens")
    seen: list[Tensor] = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().flatten(0, 1)))
    for _ in range(2):
        logits = model(x)
        if order == "observed as they are":
            monitor.observe(logits, soft)
        elif told:
            monitor.observe(logits.transpose(1, 2).contiguous(), soft.transpose(1, 2))
        else:
            criterion(logits.transpose(1, 2), soft.transpose(1, 2)).backward()
    monitor.epoch(0)
    meta, arrays = recorder.windows()[0]
    assert meta.skipped_batches == {}
    at, truth = place(meta, "classifier-input"), weighted(torch.cat(seen), soft.flatten(0, 1).repeat(2, 1))
    scale = np.rint(truth["counts"]) / truth["counts"]
    np.testing.assert_array_equal(arrays[at, "class_counts"], np.rint(truth["counts"]))
    np.testing.assert_allclose(arrays[at, "class_means"], truth["class_means"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(arrays[at, "within_sq"], scale * truth["within_sq"], rtol=2e-5)
    assert arrays[-1, "label_counts"].tolist() == np.rint(truth["counts"]).tolist()


def test_many_soft_labels_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (window.MIXED_AT_ONCE, 21):
        monkeypatch.setattr(window, "MIXED_AT_ONCE", size)
        found.append(trained("mixup")[0])
    for (_, one), (_, other) in zip(*found, strict=True):
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-5, atol=1e-5, err_msg=str(key))


def test_samples_of_several_classes_are_skipped_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    monitor, recorder = recorded(model, soft=True)
    x, y = batch()
    several = functional.one_hot(y, 3).float()
    several[::2, 0] = 1
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        for _ in range(3):
            monitor.observe(model(x), several)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "expected probabilities that add up to 1 for each sample, got more" in said[0]
    assert "are skipped (training goes on)" in said[0]
    assert monitor.status().mishaps == 3
    monitor.observe(model(x), labels_of("mixup", y))
    monitor.epoch(0)
    assert recorder.windows()[0][0].skipped_batches == {"samples of several classes": 3}
