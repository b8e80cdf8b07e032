"""The quota: `--max-bytes`, kept before a transaction instead of after it.

A transaction cannot be made smaller once it is being written, so that there is always room for the next: the share
`RESERVE` of the limit is kept free, and a transaction is kept below it by what the daemon receives and evaluates at a
time. Where windows are larger than that foresees (pairs of a thousand classes), room is kept for what was seen: one
such transaction may pass a small limit, the next does not. What must go, and in which order, is `store.trim`'s to say;
it goes in slices, so that trainings do not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ncmon.reception import Complaints
from ncmon.store.writer import Writer

RESERVE, RESERVE_BYTES = 1 / 6, 96 * 1024 * 1024
"""Of the limit, kept free for the next transaction; the second is enough for the windows of small networks."""
SEEN, FADES, MOST = 1.5, 0.99, 1 / 2
"""Kept free as well: so many times what the file grew by in one transaction, which is forgotten slowly; of the limit at
most the last."""
RECEIVE, RECEIVE_BYTES = 1 / 16, 32 * 1024 * 1024
"""Of the limit, received for one transaction at most."""
INBOX = 1 / 4
"""Of the limit, for what waits to be evaluated."""
RESULT_BYTES = 128 * 1024
"""Of a limit, for every result that one transaction may hold."""
SLACK = 0.02
"""How far below what is wanted a trim goes, so that not every commit needs one."""
TRIM_S, PATIENCE_S = 0.25, 5.0
"""How long it may take at a time; and where the limit itself is passed."""


class Quota:
    """Keeps the file of one writer below `max_bytes`. `monotonic` is its clock, in seconds."""

    def __init__(
        self,
        max_bytes: int,
        *,
        writer: Writer,
        complaints: Complaints,
        database: Path,
        monotonic: Callable[[], float],
    ) -> None:
        self._max_bytes = max_bytes
        self._writer = writer
        self._complaints = complaints
        self._database = database
        self._monotonic = monotonic
        self._reserve = min(int(RESERVE * max_bytes), RESERVE_BYTES)
        self._size: int | None = None
        """Of the file, when it was last looked at."""
        self._growth = 0.0
        """What one transaction added to it, at most, of late."""
        self.receive_bytes = max(1, min(int(RECEIVE * max_bytes), RECEIVE_BYTES))
        """What may be received for one transaction, in bytes; a message that is larger is one by itself."""
        self.inbox_bytes = int(INBOX * max_bytes)
        """What may wait to be evaluated, in bytes."""
        self.results = max(1, max_bytes // RESULT_BYTES)
        """How many windows out of the inbox may be written in one transaction."""

    def keep(self) -> None:
        """Drop what must go so that the next transaction fits. Raises `StoreError`."""
        size = self._writer.nbytes
        self._growth = max(FADES * self._growth, size - (size if self._size is None else self._size))
        above = self._max_bytes - min(max(self._reserve, int(SEEN * self._growth)), int(MOST * self._max_bytes))
        if size > above:
            self._drop(int(above - SLACK * self._max_bytes))
        self._size = self._writer.nbytes

    def _drop(self, goal: int) -> None:
        begin, arrays, windows = self._monotonic(), 0, 0
        while dropped := self._writer.trim(goal):
            arrays, windows = arrays + dropped.arrays, windows + dropped.windows
            patience = PATIENCE_S if self._writer.nbytes > self._max_bytes else TRIM_S
            if self._monotonic() >= begin + patience:
                break
        limit = f"{self._max_bytes / 2**20:.6g} MB"
        if arrays or windows:
            what = f"arrays of {arrays} old windows" if arrays else f"{windows} windows of the longest histories"
            self._complaints.say("trim", f"{what} were dropped, to stay below {limit}")
        elif self._writer.nbytes > self._max_bytes:
            self._complaints.say("trim", f"{self._database} cannot be kept below {limit}: ncmon prune")
