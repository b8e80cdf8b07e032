"""Small networks, batches and a monitor without a daemon, for the tests of the hook."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ncmon_client
from ncmon_client import wire
from ncmon_client.closed import ClosedWindow
from ncmon_client.outbox import Outbox

NOBODY = "ipc:///nonexistent/ncmon.sock"


class Recorder(Outbox):
    """An outbox that keeps what it is offered and delivers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.offered: list[Any] = []

    def offer(self, item: Any, nbytes: int, *, always: bool = False) -> bool:
        self.offered.append(item)
        return False  # nothing for a sender to do, so that none starts

    def windows(self) -> list[tuple[wire.WindowMeta, dict[tuple[int, str], Any]]]:
        """Return every closed window as the other side would read it."""
        sealed = [item.seal() for item in self.offered if isinstance(item, ClosedWindow)]
        return [(meta, wire.unpack_arrays(meta, blob)) for meta, blob in sealed]


def recorded(model: nn.Module, criterion: nn.Module | None = None, **options: Any) -> tuple[Any, Recorder]:
    """Return a monitor of `model` whose windows are kept in the recorder beside it."""
    options.setdefault("every", 1)
    monitor = ncmon_client.watch(model, criterion, endpoint=NOBODY, **options)
    recorder = Recorder()
    monitor._outbox = recorder
    return monitor, recorder


def place(meta: wire.WindowMeta, name: str) -> int:
    """Return where a layer is in a window."""
    return [layer.name for layer in meta.layers].index(name)


def mlp(*, n_features: int = 10, n_classes: int = 3, bias: bool = True, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(n_features, 16), nn.ReLU(inplace=inplace), nn.BatchNorm1d(16)),
        nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace=inplace), nn.BatchNorm1d(8)),
        nn.Linear(8, n_classes, bias=bias),
    )


def cnn(n_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, n_classes),
    )


def batch(n: int = 24, n_features: int = 10, n_classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, n_features, generator=generator), torch.randint(0, n_classes, (n,), generator=generator)


def images(n: int = 12, n_classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 6, 6, generator=generator), torch.randint(0, n_classes, (n,), generator=generator)


def two_pass(features: Tensor, labels: Tensor, n_classes: int) -> dict[str, Any]:
    """Return the arrays of a layer in float64, in the plainest way."""
    h, y = features.detach().double().numpy(), labels.numpy()
    d = h.shape[1]
    out: dict[str, Any] = {
        "class_counts": np.zeros(n_classes, np.int64),
        "class_means": np.zeros((n_classes, d)),
        "within_sq": np.zeros(n_classes),
        "unit_sums": np.zeros((n_classes, d)),
        "norm_sums": np.zeros(n_classes),
        "norm_sq_sums": np.zeros(n_classes),
    }
    scatter = np.zeros((d, d))
    for c in range(n_classes):
        mine = h[y == c]
        if not len(mine):
            continue
        mean = mine.mean(axis=0)
        out["class_counts"][c] = len(mine)
        out["class_means"][c] = mean
        norms = np.sqrt((mine**2).sum(axis=1))
        out["within_sq"][c] = ((mine - mean) ** 2).sum()
        out["norm_sums"][c] = norms.sum()
        out["norm_sq_sums"][c] = (norms**2).sum()
        out["unit_sums"][c] = (mine[norms > 0] / norms[norms > 0, None]).sum(axis=0)
        scatter += (mine - mean).T @ (mine - mean)
    out["within_scatter"] = scatter
    return out
