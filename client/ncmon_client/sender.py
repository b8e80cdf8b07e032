"""The sender: one background thread and one socket a session, between the outbox and the daemon.

Rules of this module
- It does what `session` decides, and decides nothing but when to end.
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
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ncmon_client import session, wire
from ncmon_client.outbox import Outbox

if TYPE_CHECKING:
    import zmq

FIRST_CONTACT_S = 0.5
"""How long `close` waits for a daemon that was never reached: a connection on one node takes milliseconds."""
CRASH_WAIT_S = 1.0
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 2_000, 6_000


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
    refused: int
    """Messages that were not accepted because the outbox was full."""
    last_error: str
    """Why there is no connection, empty while there is one."""


class Sender:
    """Carries what the outbox accepts to the daemon at `endpoint`, in a thread of its own."""

    def __init__(self, *, endpoint: str, run: wire.RunInfo, outbox: Outbox, log: logging.Logger) -> None:
        self._endpoint = endpoint
        self._run = run
        self._outbox = outbox
        self._log = log
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._session: session.Session | None = None
        self._wake_read = self._wake_write = -1
        self._close_by: float | None = None
        """Monotonic deadline once `close` was called."""

    # -- called by training -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, once; in a forked child and after `close`, do nothing."""
        if os.getpid() != self._pid:
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
                with suppress(BlockingIOError):  # a full pipe wakes as well
                    os.write(self._wake_write, b"\0")

    def close(self, timeout_s: float) -> bool:
        """End the thread after what is held was delivered, or after `timeout_s`; return whether all was delivered.

        Returns at once when no daemon was ever reached and none answers now. Calling it again does nothing.
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
            refused=counts.refused,
            last_error=talk.last_error if talk is not None else "",
        )

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        talk = session.Session(
            endpoint=self._endpoint,
            run=self._run,
            outbox=self._outbox,
            rng=random.Random(os.urandom(8)),  # the global generator belongs to the training
            now=time.monotonic(),
        )
        self._session = talk
        try:
            line = _Line(self._endpoint, self._wake_read)
        except Exception as error:
            talk.last_error = f"{type(error).__name__}: {error}"
            self._log.warning("ncmon cannot send anything: %s", talk.last_error)
            self._close_pipe()
            return
        try:
            self._talk(talk, line)
            talk.gave_up()
            self._report(talk)
        except Exception:
            self._log.warning("ncmon's sender ended", exc_info=True)
        finally:
            talk.lost(time.monotonic(), talk.last_error)
            line.close()
            self._close_pipe()

    def _talk(self, talk: session.Session, line: _Line) -> None:
        closing_since: float | None = None
        attempts_before = 0
        crashed = False
        while True:
            now = time.monotonic()
            if self._close_by is not None:
                if closing_since is None:
                    closing_since, attempts_before = now, talk.attempts
                    talk.hurry(now)
                never = not talk.reached or talk.refused
                hopeless = never and (talk.attempts > attempts_before or now >= closing_since + FIRST_CONTACT_S)
                if self._outbox.counts().held == 0 or now >= self._close_by or hopeless:
                    return
            try:
                self._step(talk, line, now)
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

    def _step(self, talk: session.Session, line: _Line, now: float) -> None:
        match talk.next(now):
            case session.Dial():
                error = line.dial()
                if error:
                    talk.lost(now, error)
            case session.HangUp():
                line.hang_up()
            case session.Send(frames=frames):
                if line.send(frames):
                    talk.sent(now)
                else:
                    talk.blocked()
            case session.Wait(seconds=seconds, writable=writable):
                if self._close_by is not None:
                    seconds = min(seconds, 0.05)
                self._listen(talk, line, seconds, writable)

    def _listen(self, talk: session.Session, line: _Line, seconds: float, writable: bool) -> None:
        heard = line.wait(seconds, writable=writable)
        now = time.monotonic()
        if heard.connected:
            talk.connected(now)
        if heard.writable:
            talk.writable()
        # What came before the connection broke is still worth reading: an acknowledgement is final.
        for frames in line.receive():
            talk.received(now, frames)
        if heard.lost:
            talk.lost(now, heard.lost)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """What a wait ended with."""

    connected: bool = False
    lost: str = ""
    writable: bool = False


class _Line:
    """The zmq of the client: a context, and one DEALER with its monitor for each session."""

    def __init__(self, endpoint: str, wake_fd: int) -> None:
        # Imported here because a training process that never sends must not pay for it (architecture: heavy imports
        # wait), and because the import runs in the sending thread.
        import zmq

        self._zmq = zmq
        self._endpoint = endpoint
        self._wake_fd = wake_fd
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    def dial(self) -> str:
        """Open a new socket; return why that is not possible, or nothing."""
        zmq = self._zmq
        self.hang_up()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        # One connection a socket: see `session` for what an automatic reconnection would do.
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.SNDHWM, 1_000)  # above any credit: how much is in flight is the session's business
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_META_BYTES + 1024)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 3_000)
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
        )
        self._monitor.linger = 0
        try:
            self._socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            return str(error)
        return ""

    def hang_up(self) -> None:
        """Close the socket with everything in it."""
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(0)
            self._socket = None
        if self._monitor is not None:
            self._monitor.close(0)
            self._monitor = None

    def close(self) -> None:
        """Close everything, at once."""
        self.hang_up()
        self._context.term()

    def send(self, frames: list[bytes]) -> bool:
        """Hand one message to the socket; return False when it takes none now."""
        assert self._socket is not None
        try:
            self._socket.send_multipart(frames, self._zmq.NOBLOCK)
        except self._zmq.Again:
            return False
        return True

    def wait(self, seconds: float, *, writable: bool) -> _Heard:
        """Wait until something comes in, the outbox has something new, or the time is over."""
        zmq = self._zmq
        poller = zmq.Poller()
        poller.register(self._wake_fd, zmq.POLLIN)
        if self._socket is not None and self._monitor is not None:
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if writable else 0))
            poller.register(self._monitor, zmq.POLLIN)
        # Rounded up, so that a short wait does not become a busy loop.
        ready = dict(poller.poll(int(seconds * 1000) + (seconds > 0)))
        if self._wake_fd in ready:
            with suppress(BlockingIOError):
                os.read(self._wake_fd, 4096)
        connected, lost = self._events() if self._monitor in ready else (False, "")
        return _Heard(
            connected=connected,
            lost=lost,
            writable=self._socket is not None and bool(ready.get(self._socket, 0) & zmq.POLLOUT),
        )

    def _events(self) -> tuple[bool, str]:
        from zmq.utils.monitor import recv_monitor_message

        zmq = self._zmq
        connected, lost = False, ""
        assert self._monitor is not None
        while self._monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                connected = True
            else:
                lost = "the connection ended" if event == zmq.EVENT_DISCONNECTED else "nobody listens there"
        return connected, lost

    def receive(self) -> list[list[bytes]]:
        """Return the messages that are there."""
        messages: list[list[bytes]] = []
        while self._socket is not None:
            try:
                messages.append(self._socket.recv_multipart(self._zmq.NOBLOCK))
            except self._zmq.Again:
                break
        return messages
