"""The backlog: what waits in the store's inbox to be evaluated; counted by run, read back a little at a time.

Rules of this module
- Within a run entries leave in the order in which they came. Runs take turns, so that a run that floods the daemon
  does not keep the windows of another one from being seen.
- What it holds in memory is a few entries of each turn, and two numbers a run. What an entry was read for is stored or
  forgotten, and then read again.
- Another process may delete a run with all that waits of it: counts are compared with the inbox whenever somebody else
  has written.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from ncmon.store.inbox import Entry
from ncmon.store.writer import Waiting, Writer


@dataclass(slots=True, kw_only=True)
class _Queue:
    messages: int = 0
    nbytes: int = 0
    read: int = 0
    """Key of the last entry that was read."""
    unread: int = 0
    """Messages behind it."""


class Backlog:
    """Counts and hands out what waits, in front of one writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._queues: OrderedDict[str, _Queue] = OrderedDict()
        """By run; the one whose turn it is comes first."""
        self._read: deque[Entry] = deque()
        self.messages = 0
        """How many wait, those that are being evaluated among them."""
        self.nbytes = 0
        self.deleted = 0
        """Messages that were deleted with their run before they were evaluated."""

    def has(self, run_id: str) -> bool:
        """Whether anything of a run waits: then what comes later of it waits behind it."""
        return run_id in self._queues

    @property
    def unread(self) -> bool:
        """Whether there is anything that was not handed out yet."""
        return bool(self._read) or any(queue.unread > 0 for queue in self._queues.values())

    def count(self) -> None:
        """Count again where another process has written, and at the start."""
        if not self._writer.edited:
            return
        found = self._writer.queues()
        self._writer.edited = False
        for run_id in [run_id for run_id in self._queues if run_id not in found]:
            gone = self._queues.pop(run_id)
            self.deleted += gone.messages
        for run_id, there in found.items():
            queue = self._queues.setdefault(run_id, _Queue(unread=there.messages))
            self.deleted += max(0, queue.messages - there.messages)
            queue.messages, queue.nbytes = there.messages, there.nbytes
        self.messages = sum(queue.messages for queue in self._queues.values())
        self.nbytes = sum(queue.nbytes for queue in self._queues.values())

    def put(self, record: Waiting) -> None:
        """This was put into the inbox."""
        queue = self._queues.setdefault(record.run_id, _Queue())
        messages = len(record.origins)
        queue.messages += messages
        queue.unread += messages
        queue.nbytes += record.nbytes
        self.messages += messages
        self.nbytes += record.nbytes

    def take(self, entry: Entry) -> None:
        """This was taken out of the inbox, stored."""
        queue = self._queues.get(entry.run_id)
        if queue is None:
            return
        queue.messages -= len(entry.origins)
        queue.nbytes -= entry.nbytes
        if queue.messages <= 0:
            del self._queues[entry.run_id]
        self.messages -= len(entry.origins)
        self.nbytes -= entry.nbytes

    def next(self) -> Entry | None:
        """Return the entry to be evaluated next, None when all were handed out. Raises `StoreError`."""
        while not self._read:
            run_id = next((run_id for run_id, queue in self._queues.items() if queue.unread > 0), None)
            if run_id is None:
                return None
            queue = self._queues[run_id]
            self._queues.move_to_end(run_id)
            self._read.extend(self._writer.entries(run_id, queue.read))
            if not self._read:
                queue.unread = 0  # deleted; the next count says so
                continue
            queue.read = self._read[-1].key
            queue.unread -= sum(len(entry.origins) for entry in self._read)
        return self._read.popleft()

    def forget(self) -> None:
        """What was handed out could not be stored: begin again with what the inbox holds."""
        self._read.clear()
        for queue in self._queues.values():
            queue.read, queue.unread = 0, queue.messages
