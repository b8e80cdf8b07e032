"""The line: the zmq of the client, a context and one DEALER with its monitor for each session.

`step` does the one thing that a session says next; it is the whole of what `sender` and `courier` have in common.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ncmon_client import keys, session, wire

if TYPE_CHECKING:
    import zmq


def step(talk: session.Session, line: Line, now: float, *, longest_s: float = 60.0) -> None:
    """Do what the session says, and tell it what came of it; wait at most `longest_s`."""
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
            _listen(talk, line, min(seconds, longest_s), writable)


def _listen(talk: session.Session, line: Line, seconds: float, writable: bool) -> None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a wait ended with."""

    connected: bool = False
    lost: str = ""
    writable: bool = False


class Line:
    """A context, and one DEALER with its monitor at a time. `wake_fd` ends a wait when it becomes readable."""

    def __init__(self, endpoint: str, wake_fd: int = -1) -> None:
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
        # Not the library's heartbeats: with a full queue their timer can abort the whole process, which is a training
        # (libzmq 4.3.5, its issues 3937 and 4767). The session watches what is in flight; the system does the rest.
        for option, value in (
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 10),
            (zmq.TCP_KEEPALIVE_INTVL, 5),
            (zmq.TCP_KEEPALIVE_CNT, 3),
        ):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 3_000)
        if self._endpoint.startswith("tcp://"):
            try:
                key = keys.read()
            except keys.KeyProblem as error:
                self.hang_up()
                return str(error)
            self._socket.curve_serverkey = key.server.encode()
            self._socket.curve_publickey, self._socket.curve_secretkey = key.public.encode(), key.secret.encode()
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
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

    def wait(self, seconds: float, *, writable: bool) -> Heard:
        """Wait until something comes in, the outbox has something new, or the time is over."""
        zmq = self._zmq
        poller = zmq.Poller()
        if self._wake_fd >= 0:
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
        return Heard(
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
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                lost = "the daemon does not know this key, or the key may not do this"
            elif event in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
                lost = "no handshake: is it this daemon's key, and ncmon's port?"
            else:
                lost = lost or ("the connection ended" if event == zmq.EVENT_DISCONNECTED else "nobody listens there")
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
