"""The keeper: what of the outbox is written to the spool file, and when. It runs in the sending thread alone.

    memory   nothing is ever written
    auto     what was not acknowledged within a second, and at the end what could not be delivered
    always   everything, at once; the training waits for it
    fsync    as always, and the disk has confirmed it

While the daemon is away, what is on disk leaves memory, and is read back when it is sent. A disk that fails or is full
is said once and tried again after a while; meanwhile windows stay in memory, within the bounds of the outbox.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

from ncmon_client import spool, wire
from ncmon_client.outbox import Entry, Outbox, Packed
from ncmon_client.session import pack

AGE_S = 1.0
"""At level auto: longer than a daemon needs to acknowledge, and than a blink of the disk."""
RETRY_S = 5.0
RELEASE_BYTES = 64 * 1024 * 1024
SLICE = 64
"""Messages that are written before the socket is looked after again."""


class Keeper:
    """Keeps one outbox in one spool file. `now` is a monotonic clock in seconds, given by the caller."""

    def __init__(
        self,
        *,
        level: spool.Level,
        outbox: Outbox,
        run: wire.RunInfo,
        endpoint: str,
        stream: bytes,
        log: logging.Logger,
        place: Path | None = None,
        now: float,
    ) -> None:
        self._level = level
        self._outbox = outbox
        self._run = run
        self._endpoint = endpoint
        self._stream = stream
        self._log = log
        self._place = place
        self._file: spool.SpoolFile | None = None
        self._seen: deque[tuple[float, int]] = deque([(now, 0)])
        """`(when, end)`: what stands before `end` had been accepted at that time."""
        self._retry_at = now
        self.trouble = ""
        """Why nothing can be written; empty while it can."""

    @property
    def path(self) -> Path | None:
        """The file, None while there is none."""
        return self._file.path if self._file is not None else None

    def turn(self, now: float, stream: bytes, *, online: bool) -> bool:
        """Write what is due, a slice at most; return whether more of it is."""
        if self._level == "memory":
            return False
        if stream != self._stream:
            self._follow(stream)
        if self._file is not None and not self._file.holds_nothing and self._outbox.safe == self._outbox.first:
            self._tidy(now)
        self._compact(now)
        end = self._outbox.end
        if self._level == "auto" and end > self._seen[-1][1]:
            self._seen.append((now, end))
        if now < self._retry_at:
            return False
        due = end if self._level != "auto" else self._aged(now)
        return self._write(due, release=not online, now=now)

    def next_due(self, now: float) -> float | None:
        """Return when `turn` has something to do next, None when nothing waits for the clock."""
        if self._level == "memory" or self._outbox.unspooled() is None:
            return None
        if now < self._retry_at:
            return self._retry_at
        safe = self._outbox.safe
        return next((when + AGE_S for when, end in self._seen if end > safe), None)

    def fetch(self, entry: Entry) -> Packed:
        """Return the bytes of an entry that has left memory, or those of a gap that says why there are none."""
        try:
            assert self._file is not None
            assert entry.place is not None
            return self._file.read(entry.place)
        except (AssertionError, spool.SpoolError) as error:
            self._log.warning("ncmon's spool: %s", error)
            return lost(self._run, f"the spool file could not be read: {error}")

    def finish(self, now: float, stream: bytes) -> None:
        """The process ends: write what is not acknowledged; remove the file if there is nothing in it."""
        if self._level != "memory":
            if stream != self._stream:
                self._follow(stream)
            self._retry_at = now
            while self._write(self._outbox.end, release=False, now=now):
                pass
        if self._file is not None:
            if self._outbox.first == self._outbox.end:
                self._file.remove()
            else:
                self._file.close()

    def _aged(self, now: float) -> int:
        while len(self._seen) > 1 and self._seen[1][0] <= now - AGE_S:
            self._seen.popleft()
        when, end = self._seen[0]
        return end if when <= now - AGE_S else 0

    def _write(self, due: int, *, release: bool, now: float) -> bool:
        for _ in range(SLICE):
            entry = self._outbox.unspooled()
            if entry is None or entry.seq >= due:
                break
            if entry.packed is None:
                if entry.item is None:
                    break
                self._outbox.pack(entry, pack(entry.item, self._run))
            assert entry.packed is not None
            try:
                self._append(entry, entry.packed, release=release)
            except spool.SpoolError as error:
                self._fail(error, now)
                return False
        else:
            return True
        if release or self._outbox.held_bytes > RELEASE_BYTES:
            self._outbox.release()
        return False

    def _append(self, entry: Entry, packed: Packed, *, release: bool) -> None:
        if self._file is None:
            label = spool.Label(stream=self._stream, endpoint=self._endpoint, run=self._run)
            self._file = spool.SpoolFile.create(label, place=self._place, sync=self._level == "fsync")
        elif self._outbox.safe == self._outbox.first:
            self._file.reset()  # nothing of it is held any more, and what follows must not come behind a hole
        place = self._file.append(entry.seq, packed)
        self._outbox.spool(entry, place, release=release)
        if self.trouble:
            self.trouble = ""
            self._log.info("ncmon's spool works again")

    def _tidy(self, now: float) -> None:
        assert self._file is not None
        try:
            self._file.reset()
        except spool.SpoolError as error:
            self._fail(error, now)

    def _compact(self, now: float) -> None:
        """Write a long file anew of which most is acknowledged: while something is always held it is never reset."""
        oldest = self._outbox.oldest
        if self._file is None or self._file.nbytes < spool.COMPACT_BYTES or oldest is None or now < self._retry_at:
            return
        if oldest.place is not None and oldest.place.offset > self._file.nbytes // 2:
            try:
                self._rewrite(self._file)
            except spool.SpoolError as error:
                self._fail(error, now)

    def _rewrite(self, file: spool.SpoolFile) -> None:
        entries = self._outbox.entries()
        while entries and entries[-1].place is None:
            entries.pop()
        label = spool.Label(stream=self._stream, endpoint=self._endpoint, run=self._run)
        places = file.rewrite(label, ((entry.seq, self._bytes_of(entry)) for entry in entries))
        for entry, place in zip(entries, places, strict=True):
            self._outbox.spool(entry, place, release=False)

    def _fail(self, error: spool.SpoolError, now: float) -> None:
        if not self.trouble:
            self._log.warning("ncmon's spool cannot be written, windows stay in memory: %s", error)
        self.trouble = str(error)
        self._retry_at = now + RETRY_S

    def _follow(self, stream: bytes) -> None:
        """The session began a new stream: what lies in the file is numbered anew, so that it is written anew."""
        self._stream = stream
        self._seen = deque([(self._seen[0][0], self._outbox.end)])
        if self._file is None:
            return
        try:
            self._rewrite(self._file)
        except spool.SpoolError as error:
            # The old file would be delivered for what it says, a stream whose beginning the store has lost.
            self._log.warning("ncmon's spool could not be written anew: %s", error)
            for entry in self._outbox.entries():
                if entry.packed is None and entry.item is None:
                    self._outbox.pack(entry, self.fetch(entry))
                entry.place = None
            self._file.close()
            spool.set_aside(self._file.path)
            self._file = None

    def _bytes_of(self, entry: Entry) -> Packed:
        if entry.packed is not None:
            return entry.packed
        if entry.item is not None:
            self._outbox.pack(entry, pack(entry.item, self._run))
            assert entry.packed is not None
            return entry.packed
        return self.fetch(entry)


def lost(run: wire.RunInfo, reason: str) -> Packed:
    """Return a gap of the run as a whole, for a message whose bytes are gone."""
    text = reason[:1000].encode("utf-8", "replace").decode()
    gap = wire.Gap(run_id=run.run_id, split="", epoch=-1, step=0, time=run.started, reason=text)
    return Packed(kind=wire.Kind.GAP, body=wire.pack_meta(gap))
