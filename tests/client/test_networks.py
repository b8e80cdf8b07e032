"""The networks that people train: what is watched in each, compared with features taken by hand."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ncmon_client.layers import CLASSIFIER_INPUT
from tests.client.hooking import batch, mlp, place, recorded, two_pass


def only(recorder: Any) -> tuple[Any, dict[tuple[int, str], Any]]:
    windows = recorder.windows()
    assert len(windows) == 1
    return windows[0]


def agrees(found: tuple[Any, dict[tuple[int, str], Any]], layer: str, features: Tensor, labels: Tensor, C: int) -> None:
    """The layer's arrays are those of `features` (n, d) in plain float64."""
    meta, arrays = found
    truth = two_pass(features, labels, C)
    for name in ("class_counts", "class_means", "within_sq", "unit_sums", "norm_sums"):
        np.testing.assert_allclose(
            arrays[place(meta, layer), name], truth[name], rtol=2e-5, atol=2e-5, err_msg=f"{layer} {name}"
        )


class Encoder(nn.Module):
    """A small vision transformer without its patches: tokens in, logits out."""

    def __init__(self, pooling: str, *, width: int = 8, n_classes: int = 3, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooling = pooling
        self.embed = nn.Linear(4, width)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        h = torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x)], 1)
        out = []
        for block in self.blocks:
            h = block(h)
            out.append(h)
        return [*out, self.norm(h)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)[-1]
        if self.pooling == "cls":
            h = h[:, 0]
        elif self.pooling == "mean":
            h = h.mean(1)
        return self.head(h)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_vision_transformer_pooled_by_token_or_mean(pooling: str) -> None:
    model, criterion = Encoder(pooling), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, pool=pooling)
    x, y = torch.randn(12, 5, 4), torch.arange(12) % 3
    criterion(model(x), y).backward()
    monitor.epoch(0)
    found = only(recorder)
    assert [layer.name for layer in found[0].layers] == ["blocks.0", "blocks.1", CLASSIFIER_INPUT]
    assert [layer.reduction for layer in found[0].layers[:2]] == [pooling, pooling]
    reduce = {"cls": lambda h: h[:, 0], "mean": lambda h: h.mean(1)}[pooling]
    for name, features in zip(("blocks.0", "blocks.1", CLASSIFIER_INPUT), model.features(x), strict=True):
        agrees(found, name, reduce(features), y, 3)
    np.testing.assert_array_equal(found[1][-1, "weight"], model.head.weight.detach().numpy())


@pytest.mark.parametrize("order", ["flattened", "classes second", "observed as they are"])
def test_token_classification_however_the_loss_is_called(order: str) -> None:
    model, criterion = Encoder("tokens"), nn.CrossEntropyLoss(ignore_index=1)
    observed = order == "observed as they are"
    monitor, recorder = recorded(model, None if observed else criterion, pool="tokens")
    x, y = torch.randn(4, 5, 4), torch.randint(0, 3, (4, 6))
    y[:, 0] = -100
    logits = model(x)
    if observed:
        monitor.observe(logits, y)
    elif order == "flattened":
        criterion(logits.flatten(0, 1), y.clamp(min=1).flatten())
        y = y.clamp(min=1)
    else:
        y = y.clamp(min=1)
        criterion(logits.transpose(1, 2), y)
    monitor.epoch(0)
    found = only(recorder)
    # A criterion's ignore_index is a class that it does not see, also where it is a class of the model.
    kept = (y.flatten() >= 0) & ((y.flatten() != 1) | observed)
    assert found[0].ignored_labels == int((~kept).sum())
    for name, features in zip(("blocks.0", "blocks.1", CLASSIFIER_INPUT), model.features(x), strict=True):
        agrees(found, name, features.flatten(0, 1)[kept], y.flatten()[kept], 3)
    assert (-1, "weight") in found[1]


def test_as_many_tokens_as_classes_are_told_apart_by_the_classifiers_own_output() -> None:
    model, criterion = Encoder("tokens", n_classes=6), nn.CrossEntropyLoss()
    x, y = torch.randn(4, 5, 4), torch.randint(0, 6, (4, 6))
    for observed in (True, False):
        monitor, recorder = recorded(model, None if observed else criterion, pool="tokens")
        logits = model(x)
        if observed:
            monitor.observe(logits, y)
        else:
            criterion(logits.transpose(1, 2), y)
        monitor.close()
        found = only(recorder)
        agrees(found, CLASSIFIER_INPUT, model.features(x)[-1].flatten(0, 1), y.flatten(), 6)
        assert (-1, "weight") in found[1]


def test_a_language_model_predicts_the_next_token() -> None:
    """The loss takes logits[:, :-1]: the features are those of the same positions."""
    torch.manual_seed(0)
    vocabulary = 11
    body, lm_head = nn.Sequential(nn.Embedding(vocabulary, 6), nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, vocabulary)
    model, criterion = nn.Sequential(body, lm_head), nn.CrossEntropyLoss()
    lm_head.weight = body[0].weight  # tied
    monitor, recorder = recorded(model, criterion, layers=["0.1"])
    ids = torch.randint(0, vocabulary, (4, 7))
    targets = ids.clone()
    targets[0, 3] = -100
    logits = model(ids)
    criterion(logits[:, :-1].reshape(-1, vocabulary), targets[:, 1:].reshape(-1)).backward()
    monitor.epoch(0)
    found = only(recorder)
    y = targets[:, 1:].reshape(-1)
    kept = y >= 0
    agrees(found, CLASSIFIER_INPUT, body(ids)[:, :-1].flatten(0, 1)[kept], y[kept], vocabulary)
    agrees(found, "0.1", body[1](body[0](ids))[:, :-1].flatten(0, 1)[kept], y[kept], vocabulary)
    assert found[0].ignored_labels == 1
    np.testing.assert_array_equal(found[1][-1, "weight"], lm_head.weight.detach().numpy())


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_that_is_no_module_is_found_among_the_parameters(bias: bool) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh())
            self.w = nn.Parameter(torch.randn(3, 6))
            self.b = nn.Parameter(torch.randn(3)) if bias else None

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.body(x), self.w, self.b)

    model, criterion = Functional(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.25)
    monitor, recorder = recorded(model, criterion, layers=["body.0", "body.3"], optimizer=optimizer)
    x, y = batch()
    for _ in range(2):
        criterion(model(x), y).backward()
    monitor.epoch(0)
    found = only(recorder)
    assert [layer.name for layer in found[0].layers] == ["body.0", CLASSIFIER_INPUT]
    agrees(found, CLASSIFIER_INPUT, model.body(torch.cat([x, x])), torch.cat([y, y]), 3)
    assert (found[0].head.name, found[0].head.has_bias, found[0].head.weight_decay) == ("w", bias, 0.25)
    np.testing.assert_array_equal(found[1][-1, "weight"], model.w.detach().numpy())
    assert ((-1, "bias") in found[1]) is bias


def test_a_cosine_head_has_features_and_no_weight() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.w = nn.Linear(10, 6), nn.Parameter(torch.randn(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(functional.normalize(self.body(x)), functional.normalize(self.w))

    model, criterion = Cosine(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, layers="body")
    x, y = batch()
    criterion(model(x), y).backward()
    monitor.epoch(0)
    found = only(recorder)
    assert [layer.name for layer in found[0].layers] == ["body"]
    agrees(found, "body", model.body(x), y, 3)
    assert (-1, "weight") not in found[1]


def test_sequences_of_a_convolution_are_averaged_over_their_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 3))
    criterion = nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = torch.randn(12, 2, 9), torch.arange(12) % 3
    criterion(model(x), y).backward()
    monitor.epoch(0)
    agrees(only(recorder), "0", model[0](x).mean(2), y, 3)


def test_a_flattened_convolution_is_watched_as_it_enters_the_classifier() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    criterion = nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = torch.randn(12, 1, 6, 6), torch.arange(12) % 3
    criterion(model(x), y).backward()
    monitor.epoch(0)
    agrees(only(recorder), CLASSIFIER_INPUT, model[1](model[0](x)).flatten(1), y, 3)


def test_automatic_layers_of_a_residual_network_are_its_stages() -> None:
    def stage() -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2)))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Linear(10, 6), nn.Linear(6, 3)
            self.layer1, self.layer2, self.layer3 = stage(), stage(), stage()

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            for part in (self.layer1, self.layer2, self.layer3):
                h = h + part(h)
            return self.fc(h)

    model, criterion = Residual(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(model(x), y).backward()
    monitor.epoch(0)
    assert [layer.name for layer in only(recorder)[0].layers] == ["layer1", "layer2", "layer3", CLASSIFIER_INPUT]


def test_a_frozen_batch_norm_is_no_batch_norm_before_the_classifier() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(model(x), y).backward()
    monitor.epoch(0)
    model[1][2].eval()
    criterion(model(x), y).backward()
    monitor.epoch(1)
    live, frozen = (meta.head for meta, _ in recorder.windows())
    assert (live.batch_norm, frozen.batch_norm) == ("1.2", "")
    assert (-1, "bn_gamma") not in recorder.windows()[1][1]


@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_a_reparametrised_classifier_is_read_as_it_is_used_and_not_moved(kind: str) -> None:
    make = {"weight": nn.utils.parametrizations.weight_norm, "spectral": nn.utils.parametrizations.spectral_norm}[kind]

    def trained(watched: bool) -> tuple[nn.Module, Any]:
        model, criterion = mlp(), nn.CrossEntropyLoss()
        make(model[2])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        monitor, recorder = recorded(model, criterion, optimizer=optimizer, enabled=watched)
        for number in range(6):
            optimizer.zero_grad()
            criterion(model(batch(seed=number)[0]), batch(seed=number)[1]).backward()
            optimizer.step()
            monitor.epoch(number)
        return model, recorder

    with_ncmon, recorder = trained(True)
    without, _ = trained(False)
    # A look at a spectral norm in training mode takes another power iteration.
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_ncmon.state_dict()[name]), name
    meta, arrays = recorder.windows()[-1]
    with_ncmon.eval()
    np.testing.assert_allclose(arrays[-1, "weight"], with_ncmon[2].weight.detach().numpy(), rtol=1e-6)
    assert meta.head.weight_decay is None


def test_class_weights_are_said() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    logits = model(x)
    criterion(logits, y).backward()
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert meta.head.plain_loss is False
    plain = functional.cross_entropy(logits, y, reduction="sum").item()
    assert arrays[-1, "loss_sums"].sum() == pytest.approx(plain, rel=1e-5)


def test_absent_classes_stay_absent() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    for epoch in range(2):
        criterion(model(x), torch.where(y == 1, 2, y)).backward()
        monitor.epoch(epoch)
    for meta, arrays in recorder.windows():
        at = place(meta, CLASSIFIER_INPUT)
        assert arrays[at, "class_counts"][1] == 0
        assert not arrays[at, "class_means"][1].any()
        assert not arrays[at, "unit_sums"][1].any()


def test_mixed_samples_are_skipped_from_the_first_step_on_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        for _ in range(4):
            logits = model(0.7 * x + 0.3 * x.flip(0))
            (0.7 * criterion(logits, y) + 0.3 * criterion(logits, y.flip(0))).backward()
        assert len([record for record in caplog.records if "mixtures" in record.message]) == 1
        assert monitor.status().sampled_steps == 0
        # What the loop says itself is taken.
        logits = model(x)
        monitor.observe(logits, y)
        criterion(logits, y).backward()
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert meta.skipped_batches == {"mixed labels": 4}
    assert (meta.steps, meta.sampled_steps) == (5, 1)


def test_the_same_loss_twice_is_no_mixture() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    for _ in range(3):
        logits = model(x)
        (criterion(logits, y) + criterion(logits, y.clone())).backward()
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert (meta.steps, meta.sampled_steps, meta.skipped_batches) == (3, 3, {})


def test_hard_labels_said_beside_soft_ones_are_used() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    soft = functional.one_hot(y, 3).float() * 0.9 + 0.1 / 3
    for _ in range(3):
        logits = model(x)
        criterion(logits, soft).backward()
        monitor.observe(logits, y)
    monitor.epoch(0)
    found = only(recorder)
    assert (found[0].steps, found[0].sampled_steps, found[0].skipped_batches) == (3, 3, {})
    assert found[1][-1, "label_counts"].sum() == 3 * 24


def test_hard_labels_said_after_their_window_has_closed_count_in_the_next_one() -> None:
    """The second step's soft labels close the window of two steps; its hard labels come a moment later."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, window_steps=2)
    x, y = batch()
    criterion(model(x), y)
    logits = model(x)
    criterion(logits, functional.one_hot(y, 3).float())
    monitor.observe(logits, y)
    monitor.epoch(0)
    assert [meta.skipped_batches for meta, _ in recorder.windows()] == [{"soft labels": 1}, {}]
    assert monitor.status().mishaps == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_a_functional_loss_is_heard_inside_capture_loss_and_nowhere_else(weighted: bool) -> None:
    model = mlp()
    monitor, recorder = recorded(model)
    x, y = batch()
    before = functional.cross_entropy
    functional.cross_entropy(model(x), y).backward()
    with monitor.capture_loss():
        for _ in range(2):
            loss = functional.cross_entropy(model(x), y, torch.ones(3) if weighted else None, ignore_index=2)
            loss.backward()
    assert functional.cross_entropy is before
    functional.cross_entropy(model(x), y).backward()
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert (meta.steps, meta.sampled_steps) == (2, 2)
    assert arrays[-1, "label_counts"][2] == 0
    assert meta.head.plain_loss is (not weighted)


def test_an_error_inside_capture_loss_puts_the_function_back() -> None:
    monitor, _ = recorded(mlp())
    before = functional.cross_entropy

    def loop() -> None:
        with monitor.capture_loss():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert functional.cross_entropy is before


def test_a_model_that_is_given_its_labels_needs_no_criterion() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits} if labels is not None else {}

    model = Own()
    monitor, recorder = recorded(model)
    x, y = batch()
    for _ in range(2):
        model(x, labels=y)["loss"].backward()
    model.eval()
    model(x, labels=y)
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert (meta.steps, meta.sampled_steps, meta.head.name) == (2, 2, "net.2")


def test_a_criterion_called_by_keyword_is_heard() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(input=model(x), target=y).backward()
    criterion(model(x), target=y).backward()
    monitor.epoch(0)
    assert only(recorder)[0].sampled_steps == 2
