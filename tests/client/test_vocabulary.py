"""Fifty thousand classes: what is kept, what it costs, and what is said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ncmon_client
from ncmon_client.errors import ConfigError
from ncmon_client.frequent import KEPT, most_frequent
from ncmon_client.layers import CLASSIFIER_INPUT
from tests.client.hooking import mlp, place, recorded, two_pass
from tests.client.test_networks import Encoder

VOCABULARY = 5_000


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, VOCABULARY))


def data(n: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.where(torch.arange(n) % 3 == 0, 4_321, torch.randint(0, VOCABULARY, (n,), generator=generator))
    y[0] = -100
    return torch.randn(n, 6, generator=generator), y


def test_the_most_frequent_classes_are_a_problem_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncmon_client.window.LOGITS_AT_ONCE", 70 * VOCABULARY)  # several parts a batch
    model, criterion = network(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = data()
    logits = model(x)
    criterion(logits, y).backward()
    monitor.epoch(0)
    # A second epoch brings classes that the first batch had not.
    criterion(model(x), torch.where(y < 0, y, (y + 1).clamp(max=VOCABULARY - 1))).backward()
    monitor.epoch(1)
    (meta, arrays), (later, later_arrays) = recorder.windows()
    assert meta.n_classes == monitor._run.n_classes == KEPT
    ids = [int(name) for name in monitor._run.class_names]
    assert 4_321 in ids
    kept = torch.tensor([int(label) in ids for label in y])
    assert kept.sum() == 399  # 267 classes were seen, and all of them fit
    at = place(meta, CLASSIFIER_INPUT)
    truth = two_pass(model[0](x)[kept], torch.tensor([ids.index(int(label)) for label in y[kept]]), KEPT)
    for name in ("class_counts", "class_means", "within_sq", "unit_sums"):
        np.testing.assert_allclose(arrays[at, name], truth[name], rtol=1e-4, atol=1e-4, err_msg=name)
    # The loss is over the whole vocabulary.
    losses = functional.cross_entropy(logits[kept].double(), y[kept], reduction="none")
    assert arrays[-1, "loss_sums"].sum() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert arrays[-1, "label_counts"].shape == (KEPT,)
    assert meta.ignored_labels == 1
    assert later.ignored_labels == 400 - later_arrays[-1, "label_counts"].sum() > 100
    assert "1024 most frequent of 5000 classes" in meta.layers[at].note
    # Bounds and the classifier's metrics need all rows, and the loss of a smaller problem.
    assert (-1, "weight") not in arrays
    assert meta.head.plain_loss is False
    assert later_arrays[at, "ncc_counts"].sum() == later_arrays[at, "class_counts"].sum()


def test_an_exact_window_keeps_the_same_classes() -> None:
    model, criterion = network(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = data()
    criterion(model(x), y).backward()
    monitor.epoch(0)
    monitor.measure([(x, y)], exact_ncc=True)
    (_, streaming), (meta, exact) = recorder.windows()
    assert monitor.status().last_error == ""
    np.testing.assert_array_equal(exact[-1, "label_counts"], streaming[-1, "label_counts"])
    at = place(meta, CLASSIFIER_INPUT)
    np.testing.assert_allclose(exact[at, "class_means"], streaming[at, "class_means"], rtol=1e-4, atol=1e-5)


def test_several_ranks_agree_without_asking_one_another() -> None:
    chosen = [most_frequent(torch.randint(0, 5_000, (100,)), 5_000, alone=False).ids for _ in range(2)]
    assert torch.equal(*chosen)


def test_what_would_be_watched_is_what_is_watched(capsys: pytest.CaptureFixture[str]) -> None:
    model, criterion = Encoder("cls"), nn.CrossEntropyLoss()
    x = torch.randn(4, 5, 4)
    before = torch.get_rng_state()
    found = ncmon_client.suggest_layers(model, x, pool="cls")
    printed = capsys.readouterr().out.splitlines()
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())
    monitor, recorder = recorded(model, criterion, pool="cls")
    for number in range(2):
        criterion(model(x), torch.tensor([0, 1, 2, 0])).backward()
        monitor.epoch(number)
    meta, arrays = recorder.windows()[-1]
    assert [(s.name, s.n_features, s.reduction) for s in found] == [
        (layer.name, layer.n_features, layer.reduction) for layer in meta.layers
    ]
    for at, suggestion in enumerate(found):
        sent = sum(a.nbytes for (layer, name), a in arrays.items() if layer == at and not name.startswith("span"))
        assert suggestion.payload_bytes == sent
        assert suggestion.name in printed[at + 1]
    assert printed[-1].startswith("3 classes, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None, torch.zeros(2, 10)), "expected a torch.nn.Module"),
        ((nn.Sequential(nn.Flatten(0)), torch.zeros(2, 10)), "features can be taken"),
    ],
)
def test_suggestions_of_what_cannot_be_watched_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ncmon_client.suggest_layers(*arguments)
    assert len(ncmon_client.suggest_layers(mlp(), torch.zeros(4, 10), show=False)) == 2
