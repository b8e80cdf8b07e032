"""The outbox: what was accepted from the training loop and is not yet acknowledged by the daemon.

Rules of this module
- It is bounded, by messages and by bytes. When it is full it refuses and counts; what it accepted it never drops.
- What lies in a spool file may leave memory: such an entry has a `place` in the file, and counts against no bound but
  `MAX_HELD`.
- Sequence numbers are given at acceptance: from 0, without holes, for one stream.
- It opens no socket, reads no clock and knows nothing of the wire: a packed message is opaque here.

Two threads meet in it. The training thread only calls `offer`, which appends under a short lock. Everything else
belongs to the sending thread: a *cursor* walks over the held entries as they are sent, `acknowledge` removes them from
the front, `rewind` moves the cursor back. An entry is turned into bytes (*packed*) lazily, outside the lock, by the
sending thread; the bytes are then kept until they are acknowledged, so that sending again costs no second computation,
and what it was made from is let go.

        acknowledged | held, sent   | held, not sent |
    ----------------- first -------- cursor --------- end -> sequence numbers
                     | in the file      | not yet    |
                     ---------------- spooled

In a forked child the outbox is inert: the lock may have been copied while the sending thread held it, so that the
process is compared before the lock is taken.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ncmon_client import wire

MAX_MESSAGES = 512
MAX_BYTES = 256 * 1024 * 1024
MAX_HELD = 100_000
"""Of everything, also on disk: an entry without its bytes still takes some hundred."""


class Sealable(Protocol):
    """Something that becomes a sequenced message in the sending thread."""

    def seal(self) -> tuple[wire.Meta, bytes]:
        """Return the message and its buffer. Called once, in the sending thread; may be slow and may raise."""
        ...

    def gap(self, reason: str) -> wire.Gap:
        """Return what is recorded in its place when `seal` raised."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A message as bytes, all but its header, which names stream and sequence number."""

    kind: int
    body: bytes
    blobs: tuple[bytes, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of meta and blobs."""
        return len(self.body) + sum(map(len, self.blobs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a message lies in a spool file."""

    offset: int
    length: int


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One held message. `seq` changes only in `Outbox.restart`."""

    seq: int
    item: Sealable | None
    """What will be packed; None once it is."""
    packed: Packed | None = None
    place: Place | None = None
    """In the spool file; None while it is not there."""
    nbytes: int
    """On the wire, once it is packed; before that about what it holds in memory."""
    counted: bool = True
    """Whether it came through `offer`; a gap that the sender puts in itself is in no counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of everything that was offered: accepted = acknowledged + held, and none is missing."""

    accepted: int
    acknowledged: int
    refused: int
    held: int
    """Accepted and not acknowledged; a gap that the sender put in itself is not among them."""
    held_bytes: int
    """Of everything in the outbox that is in memory."""
    spooled: int
    """Of `held`, those that are in the spool file."""


class Outbox:
    """A bounded queue with sequence numbers between the training thread and the sending thread."""

    def __init__(self, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._held: deque[Entry] = deque()
        self._first = 0
        self._cursor = 0
        self._sent = 0
        self._held_bytes = 0
        self._in_memory = 0
        self._spooled = 0
        self._accepted = 0
        self._acknowledged = 0
        self._refused = 0

    # -- the training thread ------------------------------------------------------------------------------------------

    def offer(self, item: Sealable, nbytes: int, *, always: bool = False) -> bool:
        """Accept `item`, which holds about `nbytes` bytes, or refuse and count it. Never blocks, never raises.

        `always` lets a run's last word in even when the outbox is full: it is a few bytes, and there is one of it.
        An item larger than the whole outbox is accepted when nothing else is held; it could never be sent otherwise.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            full = (
                self._in_memory >= self._max_messages
                or len(self._held) >= MAX_HELD
                or (bool(self._in_memory) and self._held_bytes + nbytes > self._max_bytes)
            )
            if full and not always:
                self._refused += 1
                return False
            self._held.append(Entry(seq=self._first + len(self._held), item=item, nbytes=nbytes))
            self._held_bytes += nbytes
            self._in_memory += 1
            self._accepted += 1
            return True

    def counts(self) -> Counts:
        """Return the counters; of one moment, without holding up anybody."""
        if os.getpid() != self._pid:
            return Counts(accepted=0, acknowledged=0, refused=0, held=0, held_bytes=0, spooled=0)
        with self._lock:
            return Counts(
                accepted=self._accepted,
                acknowledged=self._acknowledged,
                refused=self._refused,
                held=self._accepted - self._acknowledged,
                held_bytes=self._held_bytes,
                spooled=sum(entry.counted for entry, _ in zip(self._held, range(self._on_disk()), strict=False)),
            )

    # -- the sending thread -------------------------------------------------------------------------------------------

    @property
    def first(self) -> int:
        """Sequence number of the oldest held message; everything below is acknowledged."""
        return self._first

    @property
    def cursor(self) -> int:
        """Sequence number of the next message to send."""
        return self._cursor

    @property
    def sent(self) -> int:
        """One more than the highest sequence number ever sent in this stream; a rewind does not lower it."""
        return self._sent

    @property
    def end(self) -> int:
        """Sequence number that the next accepted message will get."""
        with self._lock:
            return self._first + len(self._held)

    @property
    def held_bytes(self) -> int:
        """Bytes of what is held in memory."""
        return self._held_bytes

    @property
    def oldest(self) -> Entry | None:
        """The oldest held entry."""
        with self._lock:
            return self._held[0] if self._held else None

    def peek(self) -> Entry | None:
        """Return the entry under the cursor, None when everything held was sent."""
        with self._lock:
            place = self._cursor - self._first
            return self._held[place] if place < len(self._held) else None

    def unpacked(self) -> Entry | None:
        """Return the oldest entry that is not yet bytes, None if there is none."""
        with self._lock:
            # Entries are packed in order, so that those that are not stand at the end, and mostly there is none.
            oldest = None
            for entry in reversed(self._held):
                if entry.item is None:
                    break
                oldest = entry
            return oldest

    def in_flight(self) -> tuple[int, int]:
        """Return how many messages, and bytes of them, were sent and are not acknowledged."""
        with self._lock:
            sent = self._cursor - self._first
            return sent, sum(entry.nbytes for entry, _ in zip(self._held, range(sent), strict=False))

    def pack(self, entry: Entry, packed: Packed) -> None:
        """Keep the bytes of `entry` and let go of what they were made from, or take them back into memory."""
        with self._lock:
            if entry.item is None and entry.packed is None:
                self._in_memory += 1
                self._held_bytes += packed.nbytes
            else:
                self._held_bytes += packed.nbytes - entry.nbytes
            entry.nbytes = packed.nbytes
            entry.packed = packed
            entry.item = None

    @property
    def safe(self) -> int:
        """One more than the highest sequence number that is acknowledged, or on disk with everything before it."""
        with self._lock:
            return max(self._first, self._spooled)

    def unspooled(self) -> Entry | None:
        """Return the oldest entry that is not in the spool file, None if there is none."""
        with self._lock:
            place = self._on_disk()
            return self._held[place] if place < len(self._held) else None

    def spool(self, entry: Entry, place: Place, *, release: bool) -> None:
        """The oldest unspooled entry lies in the file now; with `release` its bytes leave memory."""
        with self._lock:
            entry.place = place
            self._spooled = entry.seq + 1
            if release:
                self._release(entry)

    def release(self) -> None:
        """Let the bytes of everything that lies in the spool file leave memory."""
        with self._lock:
            for entry, _ in zip(self._held, range(self._on_disk()), strict=False):
                self._release(entry)

    def entries(self) -> list[Entry]:
        """Return everything that is held, oldest first."""
        with self._lock:
            return list(self._held)

    def load(self, entries: Iterable[Entry], *, first: int) -> None:
        """Begin with what lies in a spool file, numbered from `first`: entries with places, and gaps between them."""
        with self._lock:
            self._first = self._cursor = first
            for seq, entry in enumerate(entries, start=first):
                entry.seq = seq
                self._held.append(entry)
                self._accepted += entry.counted
                self._in_memory += entry.item is not None
            self._spooled = first + len(self._held)
            # What the process before sent is not known here: it may have been more than its file holds.
            self._sent = 2**63

    def _on_disk(self) -> int:
        return max(0, self._spooled - self._first)

    def _release(self, entry: Entry) -> None:
        if entry.packed is not None:
            entry.packed = None
            self._held_bytes -= entry.nbytes
            self._in_memory -= 1

    def advance(self) -> None:
        """The message under the cursor was handed to the socket."""
        with self._lock:
            self._cursor = min(self._cursor + 1, self._first + len(self._held))
            self._sent = max(self._sent, self._cursor)

    def acknowledge(self, next_seq: int) -> Entry | None:
        """Forget everything below `next_seq`; return the newest message among it, None when that says nothing new.

        A number below `first` says nothing new. One above `sent` is a mistake of the other side and counts as `sent`:
        what was never sent cannot have been stored.
        """
        with self._lock:
            newest = None
            while self._held and self._first < min(next_seq, self._sent):
                newest = self._held.popleft()
                if newest.packed is not None or newest.item is not None:
                    self._held_bytes -= newest.nbytes
                    self._in_memory -= 1
                self._first += 1
                self._acknowledged += newest.counted
            self._cursor = max(self._cursor, self._first)
            return newest

    def rewind(self, next_seq: int) -> None:
        """Send again from `next_seq`, or from the oldest held message where that is later."""
        with self._lock:
            self._cursor = min(max(next_seq, self._first), self._first + len(self._held))

    def restart(self, before: Sealable | None = None) -> None:
        """Number what is held from 0 again, for a new stream, with `before` (a gap) ahead of it if there is one.

        Places in the file of the old stream stay valid until the caller has written a new one.
        """
        with self._lock:
            if before is not None:
                self._held.appendleft(Entry(seq=0, item=before, nbytes=0, counted=False))
                self._in_memory += 1
            for seq, entry in enumerate(self._held):
                entry.seq = seq
            self._first = self._cursor = self._sent = self._spooled = 0
