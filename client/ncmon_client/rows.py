"""The classes of a batch's samples, and what every layer needs of them, worked out once a batch.

Row C is the trash row: labels outside [0, C) go there, chosen with `where`, because an index out of range is a device
assert on CUDA that ends the training process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Class means of an earlier window, on the device: what sums are shifted by and nearest-class decisions use."""

    means: Tensor
    """(C, d)"""
    known: Tensor
    """(C,) bool, False for a class that the earlier window did not hold."""
    counts: Tensor | None = None
    """(C,) samples behind the means."""


def rows_of(labels: Tensor, n_classes: int, ignore_index: int) -> Tensor:
    """Return the rows (n,) int64 in [0, C] of labels (n,) int64, in a tensor of its own: loaders reuse memory."""
    if labels.is_cpu and len(labels) and not 0 <= ignore_index < n_classes:
        host = labels.numpy()
        if host.min() >= 0 and host.max() < n_classes:
            return labels.clone()
    counted = (labels >= 0) & (labels < n_classes) & (labels != ignore_index)
    return torch.where(counted, labels, n_classes)


class Rows:
    """Rows (n,) int64 in [0, C] of a batch. What is derived from them is kept for the next layer that asks.

    On the host asking is cheap, and cheapest of numpy, which takes a microsecond where torch takes several; an
    accelerator would have to be waited for, and is told less.
    """

    def __init__(self, rows: Tensor, n_classes: int, *, all_count: bool | None = None) -> None:
        self.rows = rows
        self.n_rows = n_classes + 1
        self.on_host = rows.is_cpu
        self._sizes: NDArray[np.int64] | None = None
        self._counts: Tensor | None = None
        self._order: NDArray[np.int64] | None = None
        self._stacked: dict[int, Tensor] = {}
        self._bags: dict[int, tuple[Tensor, Tensor]] = {}
        self.all_count = self.on_host and len(rows) > 0 and not self.sizes[-1] if all_count is None else all_count
        """Whether every sample is known to have a class."""

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, which: slice) -> Rows:
        """Return some of the samples."""
        return Rows(self.rows[which], self.n_rows - 1, all_count=self.all_count or None)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples (C + 1,) of every row; only on the host."""
        if self._sizes is None:
            self._sizes = np.bincount(self.rows.numpy(), minlength=self.n_rows)
        return self._sizes

    @property
    def counts(self) -> Tensor:
        """The same as a tensor of float64."""
        if self._counts is None:
            self._counts = torch.from_numpy(self.sizes.astype(np.float64))
        return self._counts

    @property
    def order(self) -> NDArray[np.int64]:
        """Samples (n,) sorted by row; only on the host."""
        if self._order is None:
            rows = self.rows.numpy()
            # Few bits are sorted by counting.
            self._order = np.argsort(rows.astype(np.uint16) if self.n_rows <= 2**16 else rows, kind="stable")
        return self._order

    def begins(self, n_layers: int) -> Tensor:
        """Return (L, 1) where the rows of each of as many layers begin, when they are laid one below the other."""
        return _multiples(n_layers, self.n_rows, self.rows.device)

    def stacked(self, n_layers: int) -> Tensor:
        """Return rows (L * n,) of as many layers, laid one below the other."""
        if n_layers not in self._stacked:
            one = n_layers == 1
            self._stacked[n_layers] = self.rows if one else (self.rows + self.begins(n_layers)).view(-1)
        return self._stacked[n_layers]

    def bags(self, n_layers: int) -> tuple[Tensor, Tensor]:
        """Return samples (2 * L * n,) sorted by layer and row, and where each of the (2 * L * (C + 1),) rows begins.

        All samples come twice: once for each of two sums. Only on the host.
        """
        if n_layers not in self._bags:
            n = len(self.rows)
            samples = np.empty((2, n_layers, n), np.int64)
            np.add(self.order, np.arange(0, n_layers * n, n)[:, None], out=samples[0])
            samples[1] = samples[0]
            # Bags that follow one another.
            begins = (np.cumsum(self.sizes) - self.sizes) + np.arange(0, 2 * n_layers * n, n)[:, None]
            self._bags[n_layers] = torch.from_numpy(samples.ravel()), torch.from_numpy(begins.ravel())
        return self._bags[n_layers]


@functools.cache
def eps_of(dtype: torch.dtype) -> float:
    """Return the machine epsilon of a type; asked for every layer of every batch."""
    return torch.finfo(dtype).eps


@functools.lru_cache(maxsize=64)
def _multiples(count: int, step: int, device: torch.device) -> Tensor:
    """Return (count, 1) 0, step, 2 step, ...; asked for in every batch."""
    with torch.inference_mode(False):
        return torch.arange(0, count * step, step, device=device)[:, None]
