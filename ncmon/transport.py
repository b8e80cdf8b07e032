"""The daemon's sockets, and the little that a viewer needs to ask it: with `gate` the only zmq of ncmon.

Rules of this module
- It carries frames and knows of their content only how many there may be.
- Sending never waits: a peer that is gone or does not read loses the message. Acknowledgements are cumulative and news
  are hints, so that nothing is lost with it.
- What a peer can make the daemon hold is bounded: frames by MAXMSGSIZE, messages by the high-water mark (which counts
  messages, not bytes), parts of a message by `wire.MAX_FRAMES`.

Over tcp nobody comes in without a key (`gate`); what is bound to a unix socket is guarded by its directory.

Three sockets: a ROUTER for clients, a ROUTER for viewers' requests, an XPUB for news. Viewers and clients meet in
different sockets, so that who may look cannot write.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from ncmon import config
from ncmon.errors import ListenError
from ncmon.gate import Gate
from ncmon.keyring import Allowed, ServerKey
from ncmon_client import keys, wire

RECEIVE_HWM = 4
SEND_HWM = 256
MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 64 * 1024 * 1024
HANDSHAKE_MS = 3_000
REBIND_S = 3.0
TOPIC = b"rev"
_REVISION = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message of a client."""

    peer: bytes
    """Routing id of the connection: where an answer goes."""
    frames: list[bytes]
    """At most `wire.MAX_FRAMES` + 1 of them: one more says that there were too many, the rest is dropped."""
    user: str = ""
    """Whose key it was; empty for the owner of this account, who came through the unix socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a wait ended with."""

    clients: bool
    viewers: bool
    woken: bool
    finished: bool = False
    """The descriptor that is watched besides is readable."""


class Transport:
    """The bound sockets of one daemon, each at every endpoint. `ListenError` where one cannot be used.

    `wake_fd` is a file descriptor that ends a wait when it becomes readable.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        wake_fd: int,
        key: ServerKey | None = None,
        allowed: Iterable[Allowed] = (),
    ) -> None:
        # Options count for what is bound after them: unix sockets first, without keys.
        self.endpoints = tuple(sorted(endpoints, key=config.is_tcp))
        self._key = key
        self._bound_before: set[str] = set()
        self.gate: Gate | None = None
        self._wake_fd = wake_fd
        self._watched = -1
        self._context = zmq.Context(io_threads=1)
        self._connected: set[int] = set()
        self._poller = zmq.Poller()
        self._poller.register(wake_fd, zmq.POLLIN)
        self._ingest: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            if key is not None:
                self.gate = Gate(self._context, allowed)
            self._open_ingest()
            self._open_viewers()
        except BaseException:
            if self.gate is not None:
                self.gate.close()
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything at once and take the socket files away."""
        if self.gate is not None:
            self.gate.close()
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

    def cut(self) -> None:
        """Close every connection, viewers' as well: everybody has to show a key again."""
        self.rebind()
        for socket in (self._view, self._news):
            self._poller.unregister(socket)
            socket.close(0)
        self._open_viewers()

    def prove(self) -> None:
        """Raise `ListenError` where a stranger gets in over tcp, or nobody can."""
        if self.gate is not None and self._key is not None:
            self.gate.prove(self.guarded(), self._key.public)

    def guarded(self) -> dict[str, str]:
        """Return the tcp endpoints with the role that each asks for."""
        tcp = [endpoint for endpoint in self.endpoints if config.is_tcp(endpoint)]
        return dict.fromkeys(tcp, "write") | {config.view_endpoint(endpoint): "view" for endpoint in tcp}

    def watch(self, fd: int) -> None:
        """Let a wait end when this descriptor becomes readable, too."""
        self._watched = fd
        self._poller.register(fd, zmq.POLLIN)

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
            finished=self._watched in ready,
        )

    def receive(self) -> Delivery | None:
        """Return the next message of a client, None when there is none now."""
        assert self._ingest is not None
        peer: bytes
        user = ""
        try:
            if self._key is None:
                peer = self._ingest.recv(zmq.NOBLOCK)
            else:
                first = self._ingest.recv(zmq.NOBLOCK, copy=False)
                peer, user = first.bytes, _user_of(first)
        except zmq.Again:
            return None
        frames: list[bytes] = []
        more = self._ingest.get
        while more(zmq.RCVMORE):
            frame = self._ingest.recv()
            if len(frames) <= wire.MAX_FRAMES:
                frames.append(frame)
        return Delivery(peer=peer, frames=frames, user=user)

    def send(self, peer: bytes, frames: Sequence[bytes]) -> None:
        """Answer a client, if it is still there and reads."""
        assert self._ingest is not None
        with suppress(zmq.ZMQError):
            self._ingest.send_multipart([peer, *frames], zmq.NOBLOCK)

    # -- viewers ------------------------------------------------------------------------------------------------------

    def requests(self) -> list[tuple[list[bytes], bytes, str]]:
        """Return viewers' requests as `(envelope, request, user)`; the envelope is for `answer`.

        `user` is whose key it was; empty for the owner of this account, who came through the unix socket.
        """
        found: list[tuple[list[bytes], bytes, str]] = []
        while True:
            try:
                parts = self._view.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return found
            frames = [part.bytes for part in parts]
            # A REQ puts an empty frame before its request, a DEALER does not.
            if len(frames) == 2 or (len(frames) == 3 and frames[1] == b""):
                found.append((frames[:-1], frames[-1], _user_of(parts[-1])))

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
        self._ingest = self._bound(zmq.ROUTER, self.endpoints, {zmq.MAXMSGSIZE: wire.MAX_FRAME_BYTES}, "write")
        self._monitor = self._ingest.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._poller.register(self._ingest, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _open_viewers(self) -> None:
        small = {zmq.MAXMSGSIZE: MAX_REQUEST_BYTES}
        self._view = self._bound(zmq.ROUTER, map(config.view_endpoint, self.endpoints), small, "view")
        self._news = self._bound(zmq.XPUB, map(config.news_endpoint, self.endpoints), small, "view")
        self._poller.register(self._view, zmq.POLLIN)
        self._poller.register(self._news, zmq.POLLIN)

    def _bound(
        self, kind: int, endpoints: Iterable[str], options: Mapping[zmq.SocketOption, int], role: str
    ) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        common = {
            zmq.LINGER: 0,
            zmq.RCVHWM: RECEIVE_HWM,
            zmq.SNDHWM: SEND_HWM,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            # Not the library's heartbeats: a peer that fills its queue and hangs up makes their timer abort the whole
            # process (libzmq 4.3.5, `!_io_error`, its issues 3937 and 4767). The system notices dead machines.
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: 10,
            zmq.TCP_KEEPALIVE_INTVL: 5,
            zmq.TCP_KEEPALIVE_CNT: 3,
        }
        for option, value in {**common, **options}.items():
            socket.setsockopt(option, value)
        for endpoint in endpoints:
            if config.is_tcp(endpoint):
                self._lock_up(socket, endpoint, role)
            try:
                self._bind(socket, endpoint)
            except zmq.ZMQError as error:
                socket.close(0)
                raise ListenError(f"{endpoint} cannot be bound: {error}") from None
        return socket

    def _bind(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        # The library closes in the background: a port that was ours a moment ago may still be.
        end = time.monotonic() + (REBIND_S if endpoint in self._bound_before else 0.0)
        while True:
            try:
                socket.bind(endpoint)
                self._bound_before.add(endpoint)
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() >= end:
                    raise
                time.sleep(0.01)

    def _lock_up(self, socket: zmq.Socket[bytes], endpoint: str, role: str) -> None:
        if self._key is None:
            raise ListenError(f"{endpoint}: tcp needs keys")
        socket.setsockopt(zmq.ZAP_DOMAIN, role.encode())
        # Without it everybody with any key is let in as soon as nobody answers for the list.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.curve_server = 1
        socket.curve_publickey, socket.curve_secretkey = self._key.public.encode(), self._key.secret.encode()

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
    try:
        answer = ask(view_endpoint, b"status", timeout_s=timeout_s, most_bytes=1024 * 1024)
        return None if answer is None else msgspec.msgpack.decode(answer, type=dict[str, Any])
    except msgspec.MsgspecError:
        return None


def ask(view_endpoint: str, request: bytes, *, timeout_s: float, most_bytes: int = MAX_ANSWER_BYTES) -> bytes | None:
    """Ask the daemon behind a viewers' endpoint; None when none answers in time.

    Raises `ListenError` where a key is needed and there is none.
    """
    context: zmq.Context[Any] = zmq.Context(io_threads=1)
    try:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
        _show_key(socket, view_endpoint)
        socket.connect(view_endpoint)
        socket.send(request)
        return socket.recv() if socket.poll(int(timeout_s * 1000)) else None
    except zmq.ZMQError:
        return None
    finally:
        context.destroy(linger=0)


def _show_key(socket: zmq.Socket[Any], endpoint: str) -> None:
    if config.is_tcp(endpoint):
        try:
            key = keys.read()
        except keys.KeyProblem as error:
            raise ListenError(f"{endpoint} needs a key: {error}") from None
        socket.curve_serverkey = key.server.encode()
        socket.curve_publickey, socket.curve_secretkey = key.public.encode(), key.secret.encode()


def _user_of(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # it came through a unix socket
        return ""


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
            _show_key(self._socket, news_endpoint)
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
