"""The classes of a batch's samples, and what every layer needs of them, worked out once a batch.

Row C is the trash row: labels outside [0, C) go there, chosen with `where`, because an index out of range is a device
assert on CUDA that ends the training process.
"""

from __future__ import annotations

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

    def __init__(self, rows: Tensor, n_classes: int) -> None:
        self.rows = rows
        self.n_rows = n_classes + 1
        self.on_host = rows.device.type == "cpu"
        self.all_count = self.on_host and len(rows) > 0 and int(rows.max()) < n_classes
        """Whether every sample has a class."""
        self._counts: Tensor | None = None
        self._order: Tensor | None = None
        self._stacked: dict[int, Tensor] = {}
        self._bags: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.rows)

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
            begins = torch.arange(n_layers, device=self.rows.device)[:, None] * self.n_rows
            self._stacked[n_layers] = (self.rows + begins).view(-1)
        return self._stacked[n_layers]

    def bags(self, n_layers: int) -> tuple[Tensor, Tensor]:
        """Return samples (2 * L * n,) sorted by layer and row, and where each of the (2 * L * (C + 1),) rows begins.

        All samples come twice: once for each of two sums.
        """
        if n_layers not in self._bags:
            n = len(self.rows)
            # Twice the same samples, and bags that follow one another.
            first = torch.arange(n_layers).repeat(2)[:, None] * n
            begins = torch.arange(2 * n_layers)[:, None] * n + (self.counts.cumsum(0) - self.counts)
            self._bags[n_layers] = (self.order + first).view(-1), begins.view(-1)
        return self._bags[n_layers]
