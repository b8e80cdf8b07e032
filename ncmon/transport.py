"""The daemon's sockets, and the little that a viewer needs to ask it: the only zmq of ncmon.

Rules of this module
- It carries frames and knows of their content only how many there may be.
- Sending never waits: a peer that is gone or does not read loses the message. Acknowledgements are cumulative and news
  are hints, so that nothing is lost with it.
- What a peer can make the daemon hold is bounded: frames by MAXMSGSIZE, messages by the high-water mark (which counts
  messages, not bytes), parts of a message by `wire.MAX_FRAMES`.

Three sockets: a ROUTER for clients, a ROUTER for viewers' requests, an XPUB for news. Viewers and clients meet in
different sockets, so that who may look cannot write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from ncmon import config
from ncmon.errors import ListenError
from ncmon_client import wire

RECEIVE_HWM = 4
SEND_HWM = 256
MAX_REQUEST_BYTES = 4096
HANDSHAKE_MS = 3_000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 2_000, 6_000
TOPIC = b"rev"
_REVISION = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message of a client."""

    peer: bytes
    """Routing id of the connection: where an answer goes."""
    frames: list[bytes]
    """At most `wire.MAX_FRAMES` + 1 of them: one more says that there were too many, the rest is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a wait ended with."""

    clients: bool
    viewers: bool
    woken: bool


class Transport:
    """The bound sockets of one daemon, each at every endpoint. `ListenError` where one cannot be used.

    `wake_fd` is a file descriptor that ends a wait when it becomes readable.
    """

    def __init__(self, endpoints: Sequence[str], *, wake_fd: int) -> None:
        self.endpoints = tuple(endpoints)
        self._wake_fd = wake_fd
        self._context = zmq.Context(io_threads=1)
        self._connected: set[int] = set()
        self._poller = zmq.Poller()
        self._poller.register(wake_fd, zmq.POLLIN)
        self._ingest: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            self._open_ingest()
            small = {zmq.MAXMSGSIZE: MAX_REQUEST_BYTES}
            self._view = self._bound(zmq.ROUTER, map(config.view_endpoint, self.endpoints), small)
            self._news = self._bound(zmq.XPUB, map(config.news_endpoint, self.endpoints), small)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poller.register(self._view, zmq.POLLIN)
        self._poller.register(self._news, zmq.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything at once and take the socket files away."""
        self._context.destroy(linger=0)
        for endpoint in self.endpoints:
            for name in (endpoint, config.view_endpoint(endpoint), config.news_endpoint(endpoint)):
                path = config.ipc_path(name)
                if path is not None:
                    path.unlink(missing_ok=True)

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return len(self._connected)

    # -- clients ------------------------------------------------------------------------------------------------------

    def rebind(self) -> None:
        """Close the clients' socket with all that it holds, and open it again: everybody begins a new session.

        The only cure for a message without an end: its parts are counted by no limit of the library before the last
        one has come.
        """
        assert self._ingest is not None
        assert self._monitor is not None
        for socket in (self._ingest, self._monitor):
            with suppress(KeyError):  # not polled while the daemon backs off
                self._poller.unregister(socket)
        self._ingest.disable_monitor()
        self._monitor.close(0)
        self._ingest.close(0)
        self._connected.clear()
        self._open_ingest()

    def wait(self, timeout_s: float, *, clients: bool = True) -> Heard:
        """Wait until something comes in; with `clients` False leave the clients' messages where they are."""
        assert self._ingest is not None
        self._poller.modify(self._ingest, zmq.POLLIN if clients else 0)
        # Rounded up, so that a short wait does not become a busy loop.
        ready = dict(self._poller.poll(int(timeout_s * 1000) + (timeout_s > 0)))
        if self._monitor in ready:
            self._count_connections()
        return Heard(
            clients=self._ingest in ready,
            viewers=self._view in ready or self._news in ready,
            woken=self._wake_fd in ready,
        )

    def receive(self) -> Delivery | None:
        """Return the next message of a client, None when there is none now."""
        assert self._ingest is not None
        try:
            peer = self._ingest.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        frames: list[bytes] = []
        while self._ingest.getsockopt(zmq.RCVMORE):
            frame = self._ingest.recv()
            if len(frames) <= wire.MAX_FRAMES:
                frames.append(frame)
        return Delivery(peer=peer, frames=frames)

    def send(self, peer: bytes, frames: Sequence[bytes]) -> None:
        """Answer a client, if it is still there and reads."""
        assert self._ingest is not None
        with suppress(zmq.ZMQError):
            self._ingest.send_multipart([peer, *frames], zmq.NOBLOCK)

    # -- viewers ------------------------------------------------------------------------------------------------------

    def requests(self) -> list[tuple[list[bytes], bytes]]:
        """Return viewers' requests as `(envelope, request)`; the envelope is for `answer`."""
        found: list[tuple[list[bytes], bytes]] = []
        while True:
            try:
                frames = self._view.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            # A REQ puts an empty frame before its request, a DEALER does not.
            if len(frames) == 2 or (len(frames) == 3 and frames[1] == b""):
                found.append((frames[:-1], frames[-1]))

    def answer(self, envelope: Sequence[bytes], reply: bytes) -> None:
        """Answer a viewer, if it is still there."""
        with suppress(zmq.ZMQError):
            self._view.send_multipart([*envelope, reply], zmq.NOBLOCK)

    def publish(self, revision: int) -> None:
        """Tell every viewer who listens that the store has moved on."""
        with suppress(zmq.ZMQError):
            self._news.send_multipart([TOPIC, _REVISION.pack(revision)], zmq.NOBLOCK)

    def new_listeners(self) -> bool:
        """Return whether a viewer began to listen since the last call: it does not know the revision yet."""
        came = False
        while True:
            try:
                subscription: bytes = self._news.recv(zmq.NOBLOCK)
                came = came or subscription.startswith(b"\x01")
            except zmq.Again:
                return came

    # -- sockets ------------------------------------------------------------------------------------------------------

    def _open_ingest(self) -> None:
        # Clients choose no routing ids, so ROUTER_HANDOVER, by which one could take over another's, stays off.
        self._ingest = self._bound(zmq.ROUTER, self.endpoints, {zmq.MAXMSGSIZE: wire.MAX_FRAME_BYTES})
        self._monitor = self._ingest.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._poller.register(self._ingest, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _bound(self, kind: int, endpoints: Iterable[str], options: Mapping[zmq.SocketOption, int]) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        common = {
            zmq.LINGER: 0,
            zmq.RCVHWM: RECEIVE_HWM,
            zmq.SNDHWM: SEND_HWM,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
            zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT_MS,
        }
        for option, value in {**common, **options}.items():
            socket.setsockopt(option, value)
        for endpoint in endpoints:
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as error:
                socket.close(0)
                raise ListenError(f"{endpoint} cannot be bound: {error}") from None
        return socket

    def _count_connections(self) -> None:
        assert self._monitor is not None
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._connected.add(event["value"])
            else:
                self._connected.discard(event["value"])


def status(view_endpoint: str, *, timeout_s: float = 1.0) -> dict[str, Any] | None:
    """Ask the daemon behind a viewers' endpoint how it is; None when none answers in time."""
    context = zmq.Context(io_threads=1)
    try:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.MAXMSGSIZE, 1024 * 1024)
        socket.connect(view_endpoint)
        socket.send(b"status")
        if not socket.poll(int(timeout_s * 1000)):
            return None
        return msgspec.msgpack.decode(socket.recv(), type=dict[str, Any])
    except (zmq.ZMQError, msgspec.MsgspecError):
        return None
    finally:
        context.destroy(linger=0)


class News:
    """A viewer's ear: hints that the store has moved on. They may be lost, so that nobody relies on them alone."""

    def __init__(self, news_endpoint: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.RCVHWM, 64)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1024)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        self._socket.subscribe(TOPIC)
        try:
            self._socket.connect(news_endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ListenError(f"{news_endpoint} cannot be listened to: {error}") from None

    def wait(self, timeout_s: float) -> int | None:
        """Return the newest revision that was told within the time, None when nothing was said."""
        newest: int | None = None
        if self._socket.poll(int(timeout_s * 1000)):
            with suppress(zmq.Again):
                while True:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK)
                    if len(frames) == 2 and len(frames[1]) == _REVISION.size:
                        newest = _REVISION.unpack(frames[1])[0]
        return newest

    def close(self) -> None:
        """Stop listening."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
