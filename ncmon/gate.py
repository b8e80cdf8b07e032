"""The gate: who may connect to the daemon over tcp. CURVE proves the key, the list of `keyring` says what it may do.

Rules of this module
- Whatever goes wrong, the answer is no. The callback never raises; where no answer comes at all, the sockets refuse,
  because they insist on a domain (ZAP_ENFORCE_DOMAIN; without it libzmq lets everybody in once the handler is gone).
- That it holds is proved at the start and every minute, by strangers that try to connect. A proof comes with its
  control: a key that is let in for its sake has to get in, or the proof is worth nothing.

Domains are roles: trainers' sockets ask for `write`, viewers' for `view`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from ncmon.errors import ListenError
from ncmon.keyring import Allowed

ADDRESS = "inproc://zeromq.zap.01"
POLL_MS = 200
PROBE_S = 2.0
PROBE_NAME = "(proof)"

log = logging.getLogger("ncmon.gate")

Roles = Mapping[bytes, tuple[str, frozenset[str]]]
"""Raw public key -> name and roles."""


class Gate:
    """Answers libzmq's question who may come in, for all sockets of one context, from a thread of its own."""

    def __init__(self, context: zmq.Context[Any], allowed: Iterable[Allowed]) -> None:
        self._roles: Roles = {}
        self._probes: dict[bytes, tuple[str, frozenset[str]]] = {}
        self.refused = 0
        """How often somebody was sent away."""
        self.let(allowed)
        self._stop = threading.Event()
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ADDRESS)
        self._thread = threading.Thread(target=self._run, name="ncmon-gate", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more; from then on nobody is let in."""
        self._stop.set()
        self._thread.join()

    def let(self, allowed: Iterable[Allowed]) -> None:
        """Replace the list; one assignment, so that the thread sees the old one or the new one."""
        self._roles = {z85.decode(one.public): (one.name, frozenset(one.roles)) for one in allowed}

    def decide(self, frames: list[bytes]) -> list[bytes]:
        """Return the reply to one request (RFC 27). Never raises."""
        request = frames[1] if len(frames) > 1 else b""
        try:
            version, request, domain, _address, _identity, mechanism, key = frames
            name, roles = self._roles.get(key) or self._probes.get(key) or ("", frozenset())
            if version == b"1.0" and mechanism == b"CURVE" and domain.decode() in roles:
                return [b"1.0", request, b"200", b"OK", name.encode(), b""]
        except Exception:
            log.warning("a connection was refused, because it could not be judged", exc_info=True)
        self.refused += 1
        return [b"1.0", request, b"400", b"not allowed", b"", b""]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._socket.poll(POLL_MS):
                    self._socket.send_multipart(self.decide(self._socket.recv_multipart()))
        except zmq.ZMQError as error:
            log.error("the gate is closed, nobody can connect over tcp any more: %s", error)
        finally:
            self._socket.close(0)

    def prove(self, endpoints: Mapping[str, str], server_public: str) -> None:
        """Let strangers try every endpoint (endpoint -> role); `ListenError` where one gets in, or nobody can."""
        public, secret = zmq.curve_keypair()
        other = {"write": "view", "view": "write"}
        for endpoint, role in endpoints.items():
            for roles, key, inside, who in (
                ({role}, (public, secret), True, "a key that is on the list"),
                ({other[role]}, (public, secret), False, f"a key that may only {other[role]}"),
                (set(), zmq.curve_keypair(), False, "a key that nobody knows"),
                (set(), None, False, "somebody without a key"),
            ):
                self._probes = {z85.decode(public): (PROBE_NAME, frozenset(roles))} if roles else {}
                try:
                    came_in = shakes_hands(endpoint, server_public.encode(), key)
                finally:
                    self._probes = {}
                if came_in != inside:
                    did = "was let in" if came_in else "was not let in"
                    raise ListenError(f"{endpoint} is not safe to serve: {who} {did}")


def shakes_hands(endpoint: str, server: bytes, key: tuple[bytes, bytes] | None, *, within_s: float = PROBE_S) -> bool:
    """Return whether a handshake succeeds with this key, or with none."""
    context: zmq.Context[Any] = zmq.Context(io_threads=1)
    try:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        if key is not None:
            socket.curve_serverkey = server
            socket.curve_publickey, socket.curve_secretkey = key
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        monitor.linger = 0
        socket.connect(reachable(endpoint))
        end = time.monotonic() + within_s
        while (left := end - time.monotonic()) > 0:
            if monitor.poll(max(1, int(left * 1000))):
                return bool(recv_monitor_message(monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED)
        return False
    finally:
        context.destroy(linger=0)


def reachable(endpoint: str) -> str:
    """Return an address of this machine for one that may mean all of them."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return f"tcp://{'127.0.0.1' if host in ('*', '0.0.0.0') else '[::1]' if host == '[::]' else host}:{port}"


class Proof:
    """Proves the gate again every minute, from a thread of its own; `breach` says what was found, once it was."""

    def __init__(self, gate: Gate, endpoints: Mapping[str, str], server_public: str, *, every_s: float = 60.0) -> None:
        self.breach = ""
        self._gate, self._endpoints, self._server = gate, endpoints, server_public
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ncmon-proof", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._gate.prove(self._endpoints, self._server)
            except ListenError as error:
                if self._stop.is_set():
                    return
                if "was let in" in str(error):
                    self.breach = str(error)
                    return
                # Too busy to answer within seconds is no breach: nobody was let in.
                log.warning("%s", error)
            except Exception:
                log.warning("the gate could not be proved", exc_info=True)


def new_pair() -> tuple[str, str]:
    """Return a new public and secret key, in Z85."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()
