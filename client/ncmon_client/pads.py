"""Pads: memory for features that is used again, batch after batch and window after window.

A page that is new to a process costs more than what is computed in it: of 128 samples of 512 features, fresh memory
takes ten times as long as a copy into memory that is there already. So what the sums work in comes from a pad, and so
do the samples that a window keeps; the sending thread gives those back once it has read them.

Rules of this module
- A pad belongs to whoever holds it. It goes back with its last holder; one that is never dropped is merely garbage.
- Two threads meet here, in operations of a deque, which need no lock. The holders of one pad are in one thread at a
  time: a window is handed over whole.
- Accelerators have an allocator that does all this; there a pad is fresh, and does not come back.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

MAX_BYTES = 128 * 2**20
"""Of one size, pads beyond this much are let go."""
STEPS = 8
"""Sizes between one power of two and the next: batches of nearly one size share pads."""


class Pad:
    """A tensor (rows, features) on loan, with room for exactly that many numbers."""

    __slots__ = ("_free", "_holders", "_whole", "tensor")

    def __init__(self, whole: Tensor, free: deque[Tensor] | None, rows: int, features: int) -> None:
        self.tensor = whole[: rows * features].view(rows, features)
        self._whole, self._free, self._holders = whole, free, 1

    def hold(self) -> Pad:
        """Say that somebody else holds it too."""
        self._holders += 1
        return self

    def drop(self) -> None:
        """Say that one of its holders is done with it."""
        self._holders -= 1
        if self._holders == 0 and self._free is not None:
            if (len(self._free) + 1) * self._whole.nbytes <= MAX_BYTES:
                self._free.append(self._whole)
            self._free = None


class Pads:
    """Lends pads, and takes them back."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], deque[Tensor]] = {}

    def take(self, rows: int, features: int, *, dtype: torch.dtype, device: torch.device) -> Pad:
        """Return a pad whose contents are whatever was there."""
        wanted = rows * features
        if device.type != "cpu":
            return Pad(torch.empty(wanted, dtype=dtype, device=device), None, rows, features)
        step = 1 << max(wanted.bit_length() - STEPS.bit_length(), 0)
        size = -(-wanted // step) * step
        free = self._free.setdefault((size, dtype), deque())
        try:
            whole = free.pop()
        except IndexError:
            whole = torch.empty(size, dtype=dtype)
        return Pad(whole, free, rows, features)
