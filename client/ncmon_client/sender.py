"""The sender: one background thread and one socket a session, between the outbox, the spool and the daemon.

Rules of this module
- It does what `session` and `keeper` decide, and decides nothing but when to end.
- What an earlier process of this run left in its spool file goes first, so that the run's history stays in order.
- Nothing here raises into training, holds it up or handles a signal. zmq is imported by the thread, never by training.
- In a forked child everything is inert: the process is compared before any lock is taken, and a child that inherits
  this object neither sends with it nor closes what belongs to its parent.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ncmon_client import courier, session, spool, wire
from ncmon_client.keeper import Keeper
from ncmon_client.line import Line, step
from ncmon_client.outbox import Outbox

FIRST_CONTACT_S = 0.5
"""How long `close` waits for a daemon that was never reached: a connection on one node takes milliseconds."""
QUIET_S = 0.6
"""How long `close` waits without an acknowledgement where the spool keeps what is left."""
CRASH_WAIT_S = 1.0
SETTLE_S = 2.0
"""How long a window of level `always` holds up training where the disk does not answer."""
LEFT_S = 10.0
"""For what processes before this one left behind; what is not delivered by then has its turn after the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderStatus:
    """How delivery stands."""

    connected: bool
    """A daemon said WELCOME and the connection stands."""
    reached: bool
    """A daemon said WELCOME at least once."""
    acknowledged: int
    """Messages that are in the store."""
    held: int
    """Messages that are accepted and not acknowledged."""
    spooled: int
    """Of those, the ones that are on disk."""
    refused: int
    """Messages that were not accepted because the outbox was full."""
    last_error: str
    """Why there is no connection, empty while there is one."""


class Sender:
    """Carries what the outbox accepts to the daemon at `endpoint`, in a thread of its own."""

    def __init__(
        self,
        *,
        endpoint: str,
        run: wire.RunInfo,
        outbox: Outbox,
        log: logging.Logger,
        level: spool.Level = "memory",
        place: Path | None = None,
    ) -> None:
        """`level` says what is written to the spool directory `place` (by default the user's own), and when."""
        self._level = level
        self._place = place
        self._safe = threading.Condition()
        self._endpoint = endpoint
        self._run = run
        self._outbox = outbox
        self._log = log
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._session: session.Session | None = None
        self._wake_read = self._wake_write = -1
        self._troubled = False
        """Whether the spool cannot be written."""
        self._close_by: float | None = None
        """Monotonic deadline once `close` was called."""
        self.busy_s = 0.0
        """CPU time of the thread so far."""

    # -- called by training -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, once; in a forked child and after `close`, do nothing."""
        if self._thread is not None or os.getpid() != self._pid:
            return
        with self._lock:
            if self._thread is not None or self._close_by is not None:
                return
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_read, False)
            os.set_blocking(self._wake_write, False)
            self._thread = threading.Thread(target=self._run_thread, name="ncmon-sender", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Say that the outbox has something new."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            # Under the lock, because the thread closes the pipe when it ends and the number may be reused.
            if self._wake_write >= 0:
                # No `suppress`: its two calls are a tenth of what this costs the training.
                try:
                    os.write(self._wake_write, b"\0")
                except BlockingIOError:  # a full pipe wakes as well
                    pass

    def settle(self, timeout_s: float = SETTLE_S) -> bool:
        """At levels `always` and `fsync`: wait until what was accepted so far is on disk; return whether it is.

        A disk that fails is not waited for: what it cannot take stays in memory.
        """
        if self._level not in ("always", "fsync") or os.getpid() != self._pid:
            return False
        end = self._outbox.end
        with self._safe:
            self._safe.wait_for(lambda: self._outbox.safe >= end or self._troubled, timeout_s)
        return self._outbox.safe >= end

    def close(self, timeout_s: float) -> bool:
        """End the thread after what is held was delivered, or after `timeout_s`; return whether all was delivered.

        Returns at once when no daemon was ever reached and none answers now, and soon when nothing is acknowledged any
        more. What could not be delivered is on disk then, unless the level is `memory`: at that level a daemon that was
        there once is waited for to the end. Calling it again does nothing.
        """
        if os.getpid() != self._pid:
            return False
        with self._lock:
            thread = self._thread
            if self._close_by is None:
                self._close_by = time.monotonic() + max(0.0, timeout_s)
        if thread is not None:
            self.wake()
            # A thread that is just packing a large window ends a little later; it is a daemon thread and may be left.
            thread.join(max(0.0, timeout_s) + 0.1)
        return self._outbox.counts().held == 0

    def status(self) -> SenderStatus:
        """Return how delivery stands."""
        counts = self._outbox.counts()
        talk = self._session if os.getpid() == self._pid else None
        return SenderStatus(
            connected=talk is not None and talk.phase is session.Phase.OPEN,
            reached=talk is not None and talk.reached,
            acknowledged=counts.acknowledged,
            held=counts.held,
            spooled=counts.spooled,
            refused=counts.refused,
            last_error=talk.last_error if talk is not None else "",
        )

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        now = time.monotonic()
        stream = wire.new_stream()
        keeper = Keeper(
            level=self._level,
            outbox=self._outbox,
            run=self._run,
            endpoint=self._endpoint,
            stream=stream,
            log=self._log,
            place=self._place,
            now=now,
        )
        talk = session.Session(
            endpoint=self._endpoint,
            run=self._run,
            outbox=self._outbox,
            rng=random.Random(os.urandom(8)),  # the global generator belongs to the training
            now=now,
            stream=stream,
            fetch=keeper.fetch,
        )
        if self._level != "memory":
            talk.kept = f"in {spool.directory() if self._place is None else self._place}"
        self._session = talk
        line: Line | None = None
        try:
            line = Line(self._endpoint, self._wake_read)
            self._talk(talk, line, keeper)
        except Exception as error:
            talk.last_error = f"{type(error).__name__}: {error}"
            self._log.warning("ncmon cannot send anything: %s", talk.last_error, exc_info=line is not None)
        finally:
            self._finish(talk, line, keeper)

    def _finish(self, talk: session.Session, line: Line | None, keeper: Keeper) -> None:
        try:
            keeper.finish(time.monotonic(), talk.stream)
            talk.gave_up()
            self._report(talk)
        except Exception:
            self._log.warning("ncmon's sender ended", exc_info=True)
        finally:
            talk.lost(time.monotonic(), talk.last_error)
            self._tell_safe(troubled=True)
            if line is not None:
                line.close()
            self._close_pipe()

    def _talk(self, talk: session.Session, line: Line, keeper: Keeper) -> None:
        closing_since: float | None = None
        progress, progress_at = -1, 0.0
        attempts_before = 0
        crashed = False
        tried = -1
        while True:
            now = time.monotonic()
            if self._close_by is not None:
                if closing_since is None:
                    closing_since, attempts_before = now, talk.attempts
                    talk.hurry(now)
                counts = self._outbox.counts()
                if counts.acknowledged != progress:
                    progress, progress_at = counts.acknowledged, now
                never = not talk.reached or talk.refused
                hopeless = never and (talk.attempts > attempts_before or now >= closing_since + FIRST_CONTACT_S)
                quiet = self._level != "memory" and now >= progress_at + QUIET_S
                if counts.held == 0 or now >= self._close_by or hopeless or quiet:
                    return
            try:
                more = keeper.turn(now, talk.stream, online=talk.phase is session.Phase.OPEN)
                self._tell_safe(troubled=bool(keeper.trouble))
                if not talk.reached and tried != talk.attempts and talk.phase is session.Phase.IDLE:
                    # Before every attempt at a first contact: what an earlier process left has to go first.
                    tried = talk.attempts
                    self._deliver_left()
                longest_s = 60.0 if self._close_by is None else 0.05
                due = keeper.next_due(now)
                if more or due is not None:
                    longest_s = 0.0 if more or due is None else min(longest_s, max(0.0, due - now))
                self.busy_s = time.thread_time()
                step(talk, line, now, longest_s=longest_s)
            except Exception as error:
                # Whatever it was, a new socket and a new session come next; said once, not once a second.
                why = f"{type(error).__name__}: {error}"
                if not crashed:
                    self._log.warning("ncmon's sender starts again after an error: %s", why, exc_info=True)
                crashed = True
                talk.lost(now, why, wait_s=CRASH_WAIT_S)
                line.hang_up()
                time.sleep(0.05)  # `lost` says nothing to a session that has not begun
            self._report(talk)

    def _deliver_left(self) -> None:
        """Deliver what earlier processes of this run and rank left in the spool directory."""
        if self._level == "memory":
            return
        for path in courier.left_behind(self._run.run_id, self._run.rank, place=self._place):
            budget_s = LEFT_S if self._close_by is None else FIRST_CONTACT_S
            try:
                done = courier.deliver(path, endpoint=self._endpoint, timeout_s=budget_s, log=self._log)
            except spool.InUse:
                continue  # our own, or that of another process with the same run id
            except spool.SpoolError as error:
                self._log.warning("ncmon's spool: %s", error)
                continue
            if done.left:
                return  # no daemon, or a slow one; the order matters more than the rest
            self._log.info("ncmon delivered %d messages that an earlier process left in %s", done.messages, path)

    def _tell_safe(self, *, troubled: bool) -> None:
        if self._level in ("always", "fsync"):
            with self._safe:
                self._troubled = troubled
                self._safe.notify_all()

    def _report(self, talk: session.Session) -> None:
        while talk.notices:
            level, text = talk.notices.popleft()
            self._log.log(level, "%s", text)

    def _close_pipe(self) -> None:
        with self._lock:
            for end in (self._wake_read, self._wake_write):
                if end >= 0:
                    os.close(end)
            self._wake_read = self._wake_write = -1
