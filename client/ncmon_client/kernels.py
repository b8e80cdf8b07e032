"""Kernels: sums by class, the way that is fastest for a batch's shape.

Sums by class are memory traffic: a weighted `embedding_bag` takes both sums in one pass over samples sorted by class,
without forming h / |h|; `index_add` is for more classes than samples, where an embedding bag would write more than it
reads. Products with the one-hot matrix are for accelerators, where many samples of few classes would queue up at the
same row; nothing was measured there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ncmon_client.pads import Pads
from ncmon_client.rows import Rows

MANY_SAMPLES, FEW_CLASSES = 2048, 64
"""Where the kernels' costs are taken to cross on an accelerator."""

Kernel = Literal["index_add", "gemm", "embedding_bag"]


def kernel_for(n_samples: int, n_classes: int, device: torch.device) -> Kernel:
    """Return the fastest way to sum by class for this shape."""
    if device.type == "cpu":
        return "embedding_bag" if n_samples > n_classes else "index_add"
    # Products may be rounded to ten bits there (TF32); sums must not be.
    exact = torch.get_float32_matmul_precision() == "highest"
    return "gemm" if exact and n_samples >= MANY_SAMPLES and n_classes <= FEW_CLASSES else "index_add"


class Room:
    """What is worked in for a batch of n samples of L layers, made once for batches of one size."""

    def __init__(self, n_layers: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n = n
        self.values = torch.empty(5, n_layers, n, dtype=dtype, device=device)
        """(5, L, n) whether a vector is zero, |h|, |h|^2, |x|^2, 1 / |h| of each sample."""
        self.parts = self.values.unbind(0)
        self.inverse = self.parts[4]
        self.weights = torch.ones(2, n_layers, n, dtype=dtype, device=device)
        """Of samples sorted by class in two sums; the first are ones."""
        self.sorted = self.weights[1]


def add_by_class(sums: Tensor, x: Tensor, room: Room, batch: Rows, index: Tensor, kernel: Kernel, pads: Pads) -> None:
    """Add x (L * n, d), and x times 1 / |h|, to two sums (2, L, C + 1, d); rows are `index` (L * n,).

    `embedding_bag` and `gemm` take the rows from the batch, the same for all layers.
    """
    inverse = room.inverse
    n_layers, n = inverse.shape
    d = x.shape[1]
    if kernel == "index_add":
        both = sums.view(2, -1, d)
        both[0].index_add_(0, index, x)
        pad = pads.take(len(x), d, dtype=x.dtype, device=x.device)
        both[1].index_add_(0, index, torch.mul(x, inverse.view(-1, 1), out=pad.tensor))
        pad.drop()
    elif kernel == "gemm":
        one_hot = torch.zeros(sums.shape[2], n, dtype=x.dtype, device=x.device).scatter_(0, batch.rows[None], 1)
        parts = x.view(n_layers, n, d)
        sums[0].baddbmm_(one_hot.expand(n_layers, -1, -1), parts)
        sums[1].baddbmm_(one_hot * inverse[:, None], parts)
    else:
        samples, begins = batch.bags(n_layers)
        torch.index_select(inverse, 1, torch.from_numpy(batch.order), out=room.sorted)
        # weight, indices, offsets, scale_grad_by_freq, mode (0: sum), sparse, per_sample_weights
        sums.view(-1, d).add_(torch.embedding_bag(x, samples, begins, False, 0, False, room.weights.view(-1))[0])
