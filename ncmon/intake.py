"""The intake: what is ready becomes one transaction after another; what can be acknowledged after each.

Rules of this module
- Acknowledged means on disk, evaluated or not. A window is evaluated at once where that takes no longer than a commit;
  otherwise its message goes to the store's inbox, is acknowledged, and evaluated in the workshop.
- Of one run nothing overtakes what waits in the inbox. Runs do not wait for each other.
- A message that turns out never to become a window is a rejection in the transaction that takes it out of the inbox.
- A batch is committed as a whole. Where something in it cannot be written its neighbours are, one by one.
- When the store fails nothing is acknowledged. What was received since the last commit is forgotten, because the
  clients still hold it, and asked for again after a pause; what waits in the inbox is read again.
- It opens no socket and sends nothing: what was committed is returned, and the daemon tells clients and viewers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ncmon import disk, ingest
from ncmon.backlog import Backlog
from ncmon.collector import Collector, Ready
from ncmon.errors import Rejected, StoreError
from ncmon.ingest import Arrival
from ncmon.model import Evaluation, Rejection, RunEnd, StreamSeq, Window
from ncmon.process import openers
from ncmon.quota import Quota
from ncmon.reception import Complaints, Reception
from ncmon.store.writer import Stored, Waiting, Writer
from ncmon.workshop import Done, Item, Workplace, failed, reason
from ncmon_client import wire
from ncmon_client.wire import WireError

PAUSE_MIN_S, PAUSE_MAX_S = 0.25, 2.0
"""Between attempts to commit. Below the clients' ack timeout, so that they need no new session."""
LOOK_EVERY_S = 1.0
"""How often the free space is looked at."""
JOURNAL_LIMIT_BYTES = 1024**3
"""Sixteen times what SQLite is told to keep. Somebody reads for so long that it cannot be folded back."""
AT_ONCE_S = 0.020
"""What may be spent on evaluating before a commit: about what the commit itself takes on a disk that is busy."""
UNKNOWN_BYTES = 64 * 1024
"""A window of a run that was never evaluated is taken for cheap up to this size."""
SHARE = 0.1
"""Of the daemon's time, for the inbox, however much comes in, where it is evaluated in the daemon itself."""
RESULTS, RESULTS_S = 64, 0.1
"""Results of the inbox are committed when there are so many or when they are so old, or with what has to be anyway."""
MAX_INBOX_BYTES = 2 * 1024**3
"""Beyond it nothing is received until something was evaluated: the clients keep the rest."""
REMEMBERED_COSTS = 4096

log = logging.getLogger("ncmon.daemon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What the last transaction holds."""

    acknowledge: tuple[StreamSeq, ...] = ()
    """Messages that may be acknowledged."""
    stored: tuple[Stored, ...] = ()
    """What can be read from now on, evaluated at once or after a time in the inbox."""

    def __bool__(self) -> bool:
        return bool(self.acknowledge or self.stored)


class Intake:
    """Evaluates and commits, in front of one writer."""

    def __init__(
        self,
        *,
        writer: Writer,
        collector: Collector,
        reception: Reception,
        complaints: Complaints,
        database: Path,
        compute: Callable[[Window], Evaluation],
        workplace: Workplace,
        space: Callable[[Path], disk.Space | None],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        quota: Quota | None = None,
    ) -> None:
        self._writer = writer
        self._max_inbox_bytes = MAX_INBOX_BYTES if quota is None else min(MAX_INBOX_BYTES, quota.inbox_bytes)
        self._max_results = RESULTS if quota is None else min(RESULTS, quota.results)
        self._collector = collector
        self._reception = reception
        self._complaints = complaints
        self._database = database
        self._compute = compute
        self._workplace = workplace
        self._space = space
        self._next_look = monotonic()
        self._journal_is_long = False
        """And said so."""
        self._monotonic = monotonic
        self._wall = wall
        self.backlog = Backlog(writer)
        self._batch: list[Stored | Waiting] = []
        """Received, not committed."""
        self._waits: set[str] = set()
        """Runs of which something in the batch goes to the inbox."""
        self._spent_s = 0.0
        """On evaluating what is in the batch."""
        self._results: list[Stored] = []
        """Of the inbox, not committed."""
        self._results_since = 0.0
        self._rested_until = 0.0
        """When the inbox has its share of the time again, whatever comes in."""
        self._costs: OrderedDict[str, float] = OrderedDict()
        """Seconds that evaluating a window of a run takes."""
        self._pause_s = PAUSE_MIN_S
        self.paused_until: float | None = None
        """Monotonic time until which nothing is tried; None while the store works."""
        self.trouble = ""
        """Why nothing is stored at present; empty while the store works."""
        self.stored = self.rejected = 0
        self.commit_s = 0.0
        """What the last commit took."""
        self.backlog.count()
        # Accepted by the daemon before this one: they are in this one's books from the beginning.
        self._reception.counters.accepted += self.backlog.messages
        if self.backlog.messages:
            log.info("%d messages wait in the inbox to be evaluated", self.backlog.messages)

    # -- what comes in ------------------------------------------------------------------------------------------------

    def gather(self, ready: Sequence[Ready]) -> None:
        """Take what is whole and in order: evaluate it at once, or let it wait in the inbox."""
        for one in ready:
            self._batch.append(self._record(one))

    def _record(self, one: Ready) -> Stored | Waiting:
        item = one.item
        match item:
            case Arrival():
                if self._must_wait(item.run_id, item.nbytes):
                    return self._put_off(one.origins, item.run_id, (ingest.pack(item.frames),), item.received)
                return Stored(origins=one.origins, item=self._timed(item.run_id, lambda: self._arrived(item)))
            case Window():
                if one.packed and self._must_wait(item.run_id, sum(map(len, one.packed))):
                    return self._put_off(one.origins, item.run_id, one.packed, self._wall())
                evaluated = self._timed(item.run_id, lambda: self._evaluated(item, one.origins[0]))
                return Stored(origins=one.origins, item=evaluated)
            case RunEnd() if self._is_behind(item.run_id):
                # A run has not ended before its last window can be read.
                end = wire.End(run_id=item.run_id, status=item.status, text=item.text, time=item.time)
                origin = one.origins[0]
                frames = wire.encode(end, stream=origin.stream, seq=origin.seq)
                return self._put_off(one.origins, item.run_id, (ingest.pack(frames),), self._wall())
        return Stored(origins=one.origins, item=item)

    def _is_behind(self, run_id: str) -> bool:
        return run_id in self._waits or self.backlog.has(run_id)

    def _must_wait(self, run_id: str, nbytes: int) -> bool:
        if self._is_behind(run_id):
            return True
        cost = self._costs.get(run_id)
        if cost is None:
            return self._spent_s > 0 or nbytes > UNKNOWN_BYTES
        return self._spent_s + cost > AT_ONCE_S

    def _put_off(
        self, origins: tuple[StreamSeq, ...], run_id: str, messages: tuple[bytes, ...], received: float
    ) -> Waiting:
        self._waits.add(run_id)
        return Waiting(origins=origins, run_id=run_id, messages=messages, received=received)

    # -- evaluating ---------------------------------------------------------------------------------------------------

    def _timed(self, run_id: str, act: Callable[[], Evaluation | Rejection]) -> Evaluation | Rejection:
        begin = self._monotonic()
        result = act()
        took = self._monotonic() - begin
        self._spent_s += took
        self._costs[run_id] = (self._costs.get(run_id, took) + took) / 2
        self._costs.move_to_end(run_id)
        while len(self._costs) > REMEMBERED_COSTS:
            self._costs.popitem(last=False)
        return result

    def _arrived(self, arrival: Arrival) -> Evaluation | Rejection:
        try:
            part = ingest.to_part(arrival.message, received=arrival.received)
        except Exception as error:
            return self._rejection(arrival.run_id, arrival.origin, reason(error), arrival.frames)
        return self._evaluated(part.window, arrival.origin)

    def _evaluated(self, window: Window, origin: StreamSeq) -> Evaluation | Rejection:
        try:
            return self._compute(window)
        except Exception as error:
            log.debug("traceback", exc_info=True)
            why = Rejected("evaluate", f"step {window.step} ({window.split}): {type(error).__name__}: {error}")
            return self._rejection(window.run_id, origin, why)

    def _rejection(
        self, run_id: str, origin: StreamSeq, why: Rejected | WireError, frames: Sequence[bytes] = ()
    ) -> Rejection:
        return self._complained(
            ingest.to_rejection(
                frames, stream=origin.stream, seq=origin.seq, run_id=run_id, error=why, now=self._wall()
            )
        )

    def _complained(self, one: Rejection) -> Rejection:
        self._reception.counters.rejected += 1
        self._complaints.say(one.code, f"run {one.run_id}: message {one.seq} is rejected ({one.code}): {one.reason}")
        return one

    # -- the inbox ----------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether so much waits to be evaluated that nothing more should be received."""
        return self.backlog.nbytes >= self._max_inbox_bytes

    def next_work(self, *, busy: bool) -> float | None:
        """Return from when on the inbox may be worked on, None for never; `busy`: more waits to be received."""
        if self.paused_until is not None:
            return None
        if self._results and not self.backlog.unread:
            return 0.0
        if self.backlog.unread and self._workplace.room():
            return self._rested_until if busy and not self._workplace.aside and not self.full else 0.0
        return self._results_since + RESULTS_S if self._results else None

    def work(self) -> None:
        """Hand in a little of what waits in the inbox, and take what has become of it."""
        if self.paused_until is not None:
            self._workplace.done()  # of no use any more: it was forgotten
            return
        begin = self._monotonic()
        try:
            self._take(self._workplace.done())
            while self._workplace.room() and len(self._results) < self._max_results:
                entry = self.backlog.next()
                if entry is None:
                    break
                self._workplace.give(entry)
            if not self._workplace.aside:
                self._take(self._workplace.done())
        except Exception as error:
            self._failed(error)
        now = self._monotonic()
        self._rested_until = now + (now - begin) * (1.0 / SHARE - 1.0)

    def _take(self, done: Sequence[Done]) -> None:
        for one in done:
            item: Item | None = one.item
            if item is None:
                # Not in the inbox as it was seen, and so it is passed over when it is to be taken out.
                item = failed(one.entry, "its messages are no longer in the inbox", now=self._wall())
            elif isinstance(item, Rejection):
                self._complained(item)
            if not self._results:
                self._results_since = self._monotonic()
            self._results.append(Stored(origins=one.entry.origins, item=item, entry=one.entry))

    # -- the store ----------------------------------------------------------------------------------------------------

    def commit(self) -> Committed:
        """Commit what is ready; return what may be acknowledged and read now."""
        now = self._monotonic()
        try:
            self.gather(self._collector.tick(now=now))
            due = self._results and (
                self._batch
                or len(self._results) >= self._max_results
                or now >= self._results_since + RESULTS_S
                or not self.backlog.unread
            )
            results = self._results[: self._max_results] if due else []
            batch, self._batch = self._batch, []
            self._waits.clear()
            self._spent_s = 0.0
            if not batch and not results:
                return Committed()
            if due:
                del self._results[: self._max_results]
            self._check_space()
            stored = self._write([*results, *batch])
        except Exception as error:
            self._failed(error)
            return Committed()
        self._pause_s = PAUSE_MIN_S
        if self.trouble:
            self.trouble = ""
            log.info("the store works again")
        self._count()
        return Committed(acknowledge=tuple(origin for record in batch for origin in record.origins), stored=stored)

    def _count(self) -> None:
        try:
            self.backlog.count()
        except StoreError as error:
            self._failed(error)

    def lag_s(self) -> float:
        """Return for how long the oldest message that waits to be evaluated has done so."""
        if not self.backlog.messages:
            return 0.0
        try:
            oldest = self._writer.oldest_waiting()
        except StoreError:  # the reason is told as the store's trouble
            return 0.0
        return 0.0 if oldest is None else max(0.0, self._wall() - oldest)

    def look(self) -> None:
        """Once a second: has another process taken something out of the inbox?"""
        if self.backlog.messages and self.paused_until is None:
            try:
                self._writer.look_for_edits()
                self.backlog.count()
            except StoreError as error:
                self._failed(error)

    def _write(self, batch: Sequence[Stored | Waiting]) -> tuple[Stored, ...]:
        """Write everything; return what can be read now."""
        try:
            return self._written(batch)
        except StoreError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self._complaints.say("batch", f"a batch of {len(batch)} has to be committed one by one: {why}")
        # Something in it cannot be written, by whatever mistake. Its neighbours must not suffer for it.
        stored: list[Stored] = []
        for record in batch:
            try:
                stored += self._written([record])
            except StoreError:
                raise
            except Exception as error:
                origin = record.origins[0]
                refused = Rejected("store", f"{type(error).__name__}: {error}")
                entry = record.entry if isinstance(record, Stored) else None
                run_id = self._reception.run_of(origin.stream) if entry is None else entry.run_id
                item = self._rejection(run_id, origin, refused)
                stored += self._written([Stored(origins=record.origins, item=item, entry=entry)])
        return tuple(stored)

    def _written(self, batch: Sequence[Stored | Waiting]) -> tuple[Stored, ...]:
        """Write a transaction and enter it in the books; return what can be read now."""
        begin = self._monotonic()
        passed = set(map(id, self._writer.commit(batch, now=self._wall())))
        self.commit_s = self._monotonic() - begin
        stored: list[Stored] = []
        for record in batch:
            messages = len(record.origins)
            if isinstance(record, Waiting):
                if id(record) in passed:
                    self.stored += messages
                else:
                    self.backlog.put(record)
                continue
            if record.entry is not None:
                if id(record) in passed:
                    continue  # deleted with its run, and counted as that when the inbox is counted
                self.backlog.take(record.entry)
            stored.append(record)
            if isinstance(record.item, Rejection):
                self.rejected += messages
            else:
                self.stored += messages
        return tuple(stored)

    def _check_space(self) -> None:
        # Before the disk is full to the last byte: SQLite needs room to fold its journal back, and so do others.
        now = self._monotonic()
        if now >= self._next_look or self.trouble:
            self._next_look = now + LOOK_EVERY_S
            found = self._space(self._database.parent)
            if found is not None and found.tight:
                raise StoreError(
                    f"{self._database.parent} has {found.free >> 20} MB left of {found.total >> 20}: free some, "
                    f"{found.floor >> 20} MB are left to others"
                )
            self._check_journal()
        elif self._writer.journal_bytes > JOURNAL_LIMIT_BYTES // (1 if self._journal_is_long else 2):
            # A flood writes more in a second than is left.
            self._check_journal()

    def _check_journal(self) -> None:
        # While somebody reads from it a write-ahead log only grows, and every read takes longer.
        if self._writer.journal_bytes <= JOURNAL_LIMIT_BYTES // 2:
            self._journal_is_long = False
            return
        self._writer.fold_journal()
        size = self._writer.journal_bytes
        self._journal_is_long = size > JOURNAL_LIMIT_BYTES // 2
        if self._journal_is_long:
            text = (
                f"the journal of {self._database} has {size >> 20} MB, because somebody reads for too long "
                f"({openers(self._database) or 'unknown'}): close it"
            )
            if size > JOURNAL_LIMIT_BYTES:
                raise StoreError(text)
            self._complaints.say("journal", f"{text}; from {JOURNAL_LIMIT_BYTES >> 20} MB on nothing is stored")

    def _failed(self, error: Exception) -> None:
        text = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        if not self.trouble:
            log.error("nothing is acknowledged until the store works again: %s", text)
        self.trouble = text
        self.pause()

    def pause(self) -> None:
        """Forget what is not committed; after a while every stream is asked for it again."""
        self._batch, self._results = [], []
        self._waits.clear()
        self._spent_s = 0.0
        self._workplace.forget()
        self.backlog.forget()
        self.paused_until = self._monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def resume(self) -> bool:
        """Where a pause is over, ask every stream for what was forgotten; return whether it was."""
        if self.paused_until is None or self._monotonic() < self.paused_until:
            return False
        self.paused_until = None
        self._reception.ask_again()
        return True
