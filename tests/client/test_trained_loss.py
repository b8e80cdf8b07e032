"""The loss that was trained, as it was heard, beside the cross-entropy that is recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.client.hooking import batch, mlp, recorded


class Focal(nn.CrossEntropyLoss):
    """Its attributes say that it is plain; its numbers do not."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        own = functional.log_softmax(input, 1).gather(1, target[:, None]).squeeze(1)
        return -((1 - own.exp()) ** 2 * own).mean()


class Own(nn.CrossEntropyLoss):
    """Cross-entropy by another formula."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return -functional.log_softmax(input, 1).gather(1, target[:, None]).mean()


def trained(criterion: nn.Module | None, loop: Callable[[Any, nn.Module, list[tuple[Tensor, Tensor]]], None]) -> Any:
    model = mlp()
    monitor, recorder = recorded(model, criterion)
    loop(monitor, model, [batch(n=n, seed=n) for n in (24, 12, 7)])
    monitor.epoch(0)
    ((meta, arrays),) = recorder.windows()
    plain = float(arrays[-1, "loss_sums"].sum() / arrays[-1, "label_counts"].sum())
    return meta.head.trained_loss, plain


def by_criterion(criterion: nn.Module) -> Any:
    def loop(monitor: Any, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in batches:
            criterion(model(x), y)

    return trained(criterion, loop)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), Own()])
def test_plain_cross_entropy_is_the_same_number(criterion: nn.Module) -> None:
    found, plain = by_criterion(criterion)
    assert found == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(label_smoothing=0.1), Focal()])
def test_another_loss_is_another_number(criterion: nn.Module) -> None:
    found, plain = by_criterion(criterion)
    assert abs(found / plain - 1) > 0.005


def test_what_is_no_mean_or_was_not_heard_is_not_sent() -> None:
    assert by_criterion(nn.CrossEntropyLoss(reduction="sum"))[0] is None

    def told(monitor: Any, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in batches:
            monitor.observe(model(x), y)

    assert trained(nn.CrossEntropyLoss(), told)[0] is None


def test_a_mean_of_which_some_samples_do_not_count_is_not_compared() -> None:
    def loop(monitor: Any, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in batches:
            criterion(model(x), torch.where(torch.arange(len(y)) == 0, -100, y))

    criterion = nn.CrossEntropyLoss()
    assert trained(criterion, loop)[0] is None


def test_a_functional_loss_is_heard_too() -> None:
    def loop(monitor: Any, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
        with monitor.capture_loss():
            for x, y in batches:
                functional.cross_entropy(model(x), y, label_smoothing=0.2)

    found, plain = trained(None, loop)
    assert found > plain + 0.01
