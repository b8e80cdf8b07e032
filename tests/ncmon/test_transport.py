"""The daemon's sockets: bounded, private, and never in anybody's way."""

from __future__ import annotations

import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from ncmon import config, security
from ncmon.errors import ListenError
from ncmon.transport import Delivery, News, Transport, status
from ncmon_client import wire

pytestmark = pytest.mark.sockets


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="nc"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def wake() -> Iterator[tuple[socket.socket, socket.socket]]:
    read, write = socket.socketpair()
    with read, write:
        yield read, write


@pytest.fixture
def transport(place: Path, wake: tuple[socket.socket, socket.socket]) -> Iterator[Transport]:
    with (
        security.private_files(),
        Transport([f"ipc://{place}/s", f"ipc://{place}/t"], wake_fd=wake[0].fileno()) as transport,
    ):
        yield transport


class Peers:
    """Sockets of the other side, held until they are closed together."""

    def __init__(self) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def make(self, kind: int) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.linger = 0
        made.rcvtimeo = 10_000
        self._sockets.append(made)
        return made

    def dealer(self, endpoint: str) -> zmq.Socket[bytes]:
        made = self.make(zmq.DEALER)
        made.connect(endpoint)
        return made

    def close(self) -> None:
        for made in self._sockets:
            made.close(0)
        self._context.term()


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    made.close()


def heard(transport: Transport) -> Delivery:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if transport.wait(0.1).clients and (delivery := transport.receive()) is not None:
            return delivery
    pytest.fail("nothing came")


def test_sockets_are_private_and_taken_away(place: Path, wake: tuple[socket.socket, socket.socket]) -> None:
    with security.private_files(), Transport([f"ipc://{place}/s"], wake_fd=wake[0].fileno()):
        files = sorted(place.iterdir())
        assert [path.name for path in files] == ["s", "s.news", "s.view"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert list(place.iterdir()) == []


def test_an_endpoint_that_cannot_be_bound_is_one_line(place: Path, wake: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ListenError, match="cannot be bound"):
        Transport([f"ipc://{place}/none/s"], wake_fd=wake[0].fileno())


def test_a_message_comes_in_and_its_answer_goes_back(transport: Transport, peers: Peers, place: Path) -> None:
    for name in ("s", "t"):
        client = peers.dealer(f"ipc://{place}/{name}")
        client.send_multipart([b"a", b"b"])
        delivery = heard(transport)
        assert delivery.frames == [b"a", b"b"]
        transport.send(delivery.peer, [b"c"])
        assert client.recv_multipart() == [b"c"]
    assert transport.receive() is None
    assert transport.connected == 2


def test_connections_are_counted_until_they_end(transport: Transport, peers: Peers, place: Path) -> None:
    client = peers.dealer(f"ipc://{place}/s")
    client.send(b"a")
    heard(transport)
    client.close(0)
    end = time.monotonic() + 10
    while transport.connected and time.monotonic() < end:
        transport.wait(0.05)
    assert transport.connected == 0


def test_too_many_parts_are_drained_and_told_by_one_too_many(transport: Transport, peers: Peers, place: Path) -> None:
    client = peers.dealer(f"ipc://{place}/s")
    client.send_multipart([b"%d" % part for part in range(5000)])
    client.send(b"next")
    assert heard(transport).frames == [b"%d" % part for part in range(wire.MAX_FRAMES + 1)]
    assert heard(transport).frames == [b"next"]


def test_a_frame_beyond_the_limit_ends_its_connection_and_nobody_elses(
    transport: Transport, peers: Peers, place: Path
) -> None:
    good, bad = peers.dealer(f"ipc://{place}/s"), peers.dealer(f"ipc://{place}/s")
    bad.send(bytes(wire.MAX_FRAME_BYTES + 1))
    good.send(b"good")
    assert heard(transport).frames == [b"good"]
    transport.wait(0.2)
    assert transport.receive() is None


def test_sending_to_who_is_gone_or_does_not_read_does_not_wait(transport: Transport, peers: Peers, place: Path) -> None:
    client = peers.dealer(f"ipc://{place}/s")
    client.send(b"a")
    peer = heard(transport).peer
    start = time.monotonic()
    for _ in range(20_000):
        transport.send(peer, [bytes(100)])
    client.close(0)
    transport.wait(0.05)
    transport.send(peer, [b"x"])
    transport.send(b"never seen", [b"x"])
    assert time.monotonic() - start < 5


def test_a_wait_ends_when_the_wake_up_descriptor_becomes_readable(
    transport: Transport, wake: tuple[socket.socket, socket.socket]
) -> None:
    wake[1].send(b"\0")
    start = time.monotonic()
    assert transport.wait(10.0).woken
    assert time.monotonic() - start < 5


def test_clients_can_be_left_waiting(transport: Transport, peers: Peers, place: Path) -> None:
    client = peers.dealer(f"ipc://{place}/s")
    client.send(b"a")
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert not transport.wait(0.1, clients=False).clients
    assert heard(transport).frames == [b"a"]


def test_after_a_rebind_clients_are_heard_again(transport: Transport, peers: Peers, place: Path) -> None:
    client = peers.dealer(f"ipc://{place}/s")
    client.send(b"a")
    heard(transport)
    transport.rebind()
    assert transport.connected == 0
    assert (place / "s").exists()
    late = peers.dealer(f"ipc://{place}/s")
    late.send(b"late")
    assert heard(transport).frames == [b"late"]


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ])
def test_a_viewer_asks_and_is_answered(transport: Transport, peers: Peers, place: Path, kind: int) -> None:
    viewer = peers.make(kind)
    viewer.connect(config.view_endpoint(f"ipc://{place}/s"))
    viewer.send(b"status")
    assert transport.wait(10.0).viewers
    [(envelope, request, user)] = transport.requests()
    assert user == ""
    assert request == b"status"
    transport.answer(envelope, b"reply")
    assert viewer.recv() == b"reply"


def test_status_without_a_daemon_is_none_and_in_time(place: Path) -> None:
    start = time.monotonic()
    assert status(f"ipc://{place}/nobody", timeout_s=0.2) is None
    assert status("nonsense", timeout_s=0.2) is None
    assert time.monotonic() - start < 2


def test_status_of_a_stranger_is_none(place: Path, peers: Peers) -> None:
    router = peers.make(zmq.ROUTER)
    router.bind(f"ipc://{place}/x")

    def answer() -> None:
        peer, *_ = router.recv_multipart()
        router.send_multipart([peer, msgspec.msgpack.encode([1])])

    stranger = threading.Thread(target=answer)
    stranger.start()
    assert status(f"ipc://{place}/x", timeout_s=10) is None
    stranger.join()


def test_news_reach_who_listens_and_newcomers_are_noticed(transport: Transport, place: Path) -> None:
    with News(config.news_endpoint(f"ipc://{place}/s")) as news:
        assert news.wait(0.0) is None
        assert transport.wait(10.0).viewers
        assert transport.new_listeners()
        assert not transport.new_listeners()
        for revision in (1, 2, 2**40):
            transport.publish(revision)
        end, newest = time.monotonic() + 10, None
        while newest != 2**40 and time.monotonic() < end:
            newest = news.wait(0.1) or newest
        assert newest == 2**40
    with pytest.raises(ListenError):
        News("nonsense")


FLOODED = """
import os, sys, time
from ncmon import transport
if sys.argv[2] == "heartbeats":
    bound = transport.Transport._bound
    def beating(self, kind, endpoints, options, role):
        return bound(self, kind, endpoints, {**options, transport.zmq.HEARTBEAT_IVL: 300}, role)
    transport.Transport._bound = beating
read, write = os.pipe()
with transport.Transport([sys.argv[1]], wake_fd=read) as served:
    print("ready", flush=True)
    time.sleep(3.0)
    while served.wait(0.2).clients:
        served.receive()
"""


@pytest.mark.parametrize("setting", ["as it is", "heartbeats"])
def test_a_peer_that_floods_and_hangs_up_does_not_end_the_process(tmp_path: Path, setting: str) -> None:
    """With the library's heartbeats, the control, it does: a daemon that is busy for seconds is aborted."""
    place = Path(tempfile.mkdtemp(prefix="nc"))
    command = [sys.executable, "-c", FLOODED, f"ipc://{place}/s", setting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for _ in range(20):
            context: zmq.Context[Any] = zmq.Context()
            peer = context.socket(zmq.DEALER)
            peer.linger = 0
            peer.connect(f"ipc://{place}/s")
            for _ in range(300):
                peer.send(bytes(10_000))
            time.sleep(0.02)
            context.destroy(linger=0)
        code = child.wait(timeout=30)
    shutil.rmtree(place, ignore_errors=True)
    assert code == (0 if setting == "as it is" else -signal.SIGABRT)
