"""The classes of a batch's samples, and what every layer needs of them, worked out once a batch.

Row C is the trash row: labels outside [0, C) go there, chosen with `where`, because an index out of range is a device
assert on CUDA that ends the training process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
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


class Rows:
    """Rows (n,) int64 in [0, C] of a batch. What is derived from them is kept for the next layer that asks.

    On the host asking is cheap; an accelerator would have to be waited for, and is told less.
    """

    def __init__(self, rows: Tensor, n_classes: int, *, all_count: bool | None = None) -> None:
        self.rows = rows
        self.n_rows = n_classes + 1
        self.on_host = rows.device.type == "cpu"
        self.all_count = (
            self.on_host and len(rows) > 0 and int(rows.max()) < n_classes if all_count is None else all_count
        )
        """Whether every sample is known to have a class."""
        self._counts: Tensor | None = None
        self._order: Tensor | None = None
        self._stacked: dict[int, Tensor] = {}
        self._bags: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, which: slice) -> Rows:
        """Return some of the samples."""
        return Rows(self.rows[which], self.n_rows - 1, all_count=self.all_count or None)

    @property
    def counts(self) -> Tensor:
        """Samples (C + 1,) of every row; only on the host, it waits."""
        if self._counts is None:
            self._counts = torch.bincount(self.rows, minlength=self.n_rows)
        return self._counts

    @property
    def order(self) -> Tensor:
        """Samples (n,) sorted by row."""
        if self._order is None:
            self._order = torch.argsort(self.rows)
        return self._order

    def stacked(self, n_layers: int) -> Tensor:
        """Return rows (L * n,) of as many layers, laid one below the other."""
        if n_layers not in self._stacked:
            if n_layers > 1:
                begins = _multiples(n_layers, self.n_rows, self.rows.device)
            self._stacked[n_layers] = self.rows if n_layers == 1 else (self.rows + begins).view(-1)
        return self._stacked[n_layers]

    def bags(self, n_layers: int) -> tuple[Tensor, Tensor]:
        """Return samples (2 * L * n,) sorted by layer and row, and where each of the (2 * L * (C + 1),) rows begins.

        All samples come twice: once for each of two sums.
        """
        if n_layers not in self._bags:
            n, device = len(self.rows), self.rows.device
            # Twice the same samples, and bags that follow one another.
            samples = self.order + _multiples(n_layers, n, device)
            begins = self.counts.cumsum(0).sub_(self.counts) + _multiples(2 * n_layers, n, device)
            self._bags[n_layers] = torch.cat((samples, samples)).view(-1), begins.view(-1)
        return self._bags[n_layers]


@functools.lru_cache(maxsize=64)
def _multiples(count: int, step: int, device: torch.device) -> Tensor:
    """Return (count, 1) 0, step, 2 step, ...; asked for in every batch."""
    with torch.inference_mode(False):
        return torch.arange(0, count * step, step, device=device)[:, None]
