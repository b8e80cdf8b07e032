"""The intake: what is ready becomes one transaction after another; what can be acknowledged after each.

Rules of this module
- A batch is committed as a whole. Where something in it cannot be written its neighbours are, one by one.
- When the store fails nothing is acknowledged. What was received since the last commit is forgotten, because the
  clients still hold it, and asked for again after a pause.
- It opens no socket and sends nothing: what was committed is returned, and the daemon tells clients and viewers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ncmon import disk, ingest
from ncmon.collector import Collector, Ready
from ncmon.errors import Rejected, StoreError
from ncmon.model import Evaluation, Gap, Rejection, RunEnd, StreamSeq, Window
from ncmon.process import openers
from ncmon.reception import Complaints, Reception
from ncmon.store.writer import Stored, Writer

PAUSE_MIN_S, PAUSE_MAX_S = 0.25, 2.0
"""Between attempts to commit. Below the clients' ack timeout, so that they need no new session."""
LOOK_EVERY_S = 1.0
"""How often the free space is looked at."""
JOURNAL_LIMIT_BYTES = 1024**3
"""Sixteen times what SQLite is told to keep. Somebody reads for so long that it cannot be folded back."""

log = logging.getLogger("ncmon.daemon")


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
        space: Callable[[Path], disk.Space | None],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._writer = writer
        self._collector = collector
        self._reception = reception
        self._complaints = complaints
        self._database = database
        self._compute = compute
        self._space = space
        self._next_look = monotonic()
        self._monotonic = monotonic
        self._wall = wall
        self._batch: list[Stored] = []
        self._pause_s = PAUSE_MIN_S
        self.paused_until: float | None = None
        """Monotonic time until which nothing is tried; None while the store works."""
        self.trouble = ""
        """Why nothing is stored at present; empty while the store works."""
        self.stored = self.rejected = 0

    # -- what comes in ------------------------------------------------------------------------------------------------

    def gather(self, ready: Sequence[Ready]) -> None:
        """Take what is whole and in order."""
        for one in ready:
            item: Evaluation | Gap | RunEnd | Rejection
            item = self._evaluated(one.item, one.origins[0]) if isinstance(one.item, Window) else one.item
            self._batch.append(Stored(origins=one.origins, item=item))

    def _evaluated(self, window: Window, origin: StreamSeq) -> Evaluation | Rejection:
        try:
            return self._compute(window)
        except Exception as error:
            log.debug("traceback", exc_info=True)
            why = Rejected("evaluate", f"step {window.step} ({window.split}): {type(error).__name__}: {error}")
            return self._rejection(window.run_id, origin, why)

    def _rejection(self, run_id: str, origin: StreamSeq, why: Rejected) -> Rejection:
        self._reception.counters.rejected += 1
        self._complaints.say(why.code, f"run {run_id}: message {origin.seq} is rejected ({why.code}): {why}")
        return ingest.to_rejection((), stream=origin.stream, seq=origin.seq, run_id=run_id, error=why, now=self._wall())

    # -- the store ----------------------------------------------------------------------------------------------------

    def commit(self) -> Sequence[Stored]:
        """Commit what is ready; return what may be acknowledged now."""
        try:
            self.gather(self._collector.tick(now=self._monotonic()))
            batch, self._batch = self._batch, []
            if not batch:
                return ()
            self._check_space()
            self._write(batch)
        except Exception as error:
            text = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            if not self.trouble:
                log.error("nothing is acknowledged until the store works again: %s", text)
            self.trouble = text
            self.pause()
            return ()
        self._pause_s = PAUSE_MIN_S
        if self.trouble:
            self.trouble = ""
            log.info("the store works again")
        for record in batch:
            if isinstance(record.item, Rejection):
                self.rejected += len(record.origins)
            else:
                self.stored += len(record.origins)
        return batch

    def _write(self, batch: Sequence[Stored]) -> None:
        try:
            self._writer.commit(batch, now=self._wall())
            return
        except StoreError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self._complaints.say("batch", f"a batch of {len(batch)} has to be committed one by one: {why}")
        # Something in it cannot be written, by whatever mistake. Its neighbours must not suffer for it.
        for record in batch:
            try:
                self._writer.commit([record], now=self._wall())
            except StoreError:
                raise
            except Exception as error:
                origin = record.origins[0]
                refused = Rejected("store", f"{type(error).__name__}: {error}")
                item = self._rejection(self._reception.run_of(origin.stream), origin, refused)
                self._writer.commit([Stored(origins=record.origins, item=item)], now=self._wall())

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

    def _check_journal(self) -> None:
        # While somebody reads from it a write-ahead log only grows, and every read takes longer.
        if self._writer.journal_bytes <= JOURNAL_LIMIT_BYTES // 2:
            return
        self._writer.fold_journal()
        size = self._writer.journal_bytes
        if size > JOURNAL_LIMIT_BYTES // 2:
            text = (
                f"the journal of {self._database} has {size >> 20} MB, because somebody reads for too long "
                f"({openers(self._database) or 'unknown'}): close it"
            )
            if size > JOURNAL_LIMIT_BYTES:
                raise StoreError(text)
            self._complaints.say("journal", f"{text}; from {JOURNAL_LIMIT_BYTES >> 20} MB on nothing is stored")

    def pause(self) -> None:
        """Forget what is not committed; after a while every stream is asked for it again."""
        self._batch = []
        self.paused_until = self._monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def resume(self) -> bool:
        """Where a pause is over, ask every stream for what was forgotten; return whether it was."""
        if self.paused_until is None or self._monotonic() < self.paused_until:
            return False
        self.paused_until = None
        self._reception.ask_again()
        return True
