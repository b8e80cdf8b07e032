"""Pads: memory for features that is used again, batch after batch and window after window.

A page that is new to a process costs more than what is computed in it: of 128 samples of 512 features, fresh memory
takes ten times as long as a copy into memory that is there already. So what the sums work in comes from a pad, and so
do the samples that a window keeps; the sending thread gives those back once it has read them.

Rules of this module
- A pad belongs to whoever holds it. It goes back with its last holder; one that is never dropped is merely garbage.
- Two threads meet here, in operations of a deque, which need no lock: the training takes pads and looks after sizes,
  the sending thread only gives back. The holders of one pad are in one thread at a time: a window is handed over whole.
- Accelerators have an allocator that does all this; there a pad is fresh, and does not come back.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

MAX_BYTES = 128 * 2**20
"""Of all that nobody holds: batches of every other size would keep gigabytes."""
STEPS = 8
"""Sizes between one power of two and the next: batches of nearly one size share pads."""


class Pad:
    """A tensor (rows, features) on loan, with room for exactly that many numbers."""

    __slots__ = ("_free", "_holders", "_whole", "tensor")

    def __init__(self, whole: Tensor, free: deque[Tensor] | None, rows: int, features: int) -> None:
        self.tensor = whole[: rows * features].view(rows, features)
        self._whole = whole
        self._free = free
        self._holders = 1

    def hold(self) -> Pad:
        """Say that somebody else holds it too."""
        self._holders += 1
        return self

    def drop(self) -> None:
        """Say that one of its holders is done with it."""
        self._holders -= 1
        if self._holders == 0 and self._free is not None:
            self._free.append(self._whole)
            self._free = None


class Pads:
    """Lends pads, and takes them back."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], deque[Tensor]] = {}
        """By size; the one that was asked for last is the last."""

    def take(self, rows: int, features: int, *, dtype: torch.dtype, device: torch.device) -> Pad:
        """Return a pad whose contents are whatever was there."""
        wanted = rows * features
        if device.type != "cpu":
            return Pad(torch.empty(wanted, dtype=dtype, device=device), None, rows, features)
        step = 1 << max(wanted.bit_length() - STEPS.bit_length(), 0)
        size = -(-wanted // step) * step
        key = size, dtype
        free = self._free.pop(key, None)
        if free is None:
            free = deque()
        self._free[key] = free
        self._let_go()
        try:
            whole = free.pop()
        except IndexError:
            whole = torch.empty(size, dtype=dtype, device="cpu")
        return Pad(whole, free, rows, features)

    def _let_go(self) -> None:
        """Let go of what is too much, of the size first that was not asked for for longest."""
        kept = 0
        for (size, dtype), free in self._free.items():
            kept += len(free) * size * dtype.itemsize
        if kept <= MAX_BYTES:
            return
        for (size, dtype), free in self._free.items():
            while kept > MAX_BYTES and free:
                free.popleft()
                kept -= size * dtype.itemsize
