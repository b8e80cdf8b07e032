"""`close` returns within a second, whatever became of the daemon; what it could not deliver is on disk."""

from __future__ import annotations

import errno
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from ncmon_client import spool, wire
from ncmon_client.monitor import CLOSE_S
from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.client.test_sender import Daemon
from tests.end_to_end.site import Site, wait_for
from tests.messages import Prepared, make_gap, make_info
from tests.ports import free_ports

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(120)]

LONGEST_S = 1.0
MESSAGES = 40


class Deaf(Daemon):
    """Welcomes everybody and acknowledges nothing: its writer is held up, or hundreds are before us."""

    def messages(self) -> list[int]:
        return []

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.bind(self.endpoint)
        while not self._stop.is_set():
            if router.poll(20):
                peer, *frames = router.recv_multipart()
                message = wire.decode(frames)
                if isinstance(message.meta, wire.Hello):
                    answer = self.answer()
                    router.send_multipart([peer, *wire.encode(answer, stream=message.stream)])
        router.close(0)
        context.term()

    def answer(self) -> wire.Meta:
        return wire.Welcome(version=1, next=0, credit_messages=4, credit_bytes=1 << 20, max_frame_bytes=1 << 24)


class Refusing(Deaf):
    def answer(self) -> wire.Meta:
        return wire.Refuse(code="stream", text="the stream belongs to another key")


class Case:
    """A sender with something to deliver, and what becomes of its daemon."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.monkeypatch = site, monkeypatch
        self.endpoint = site.endpoint
        self.outbox = Outbox()
        self.ends: list[Callable[[], object]] = []

    def sender(self) -> Sender:
        self._sender = Sender(
            endpoint=self.endpoint,
            run=make_info(),
            outbox=self.outbox,
            log=logging.getLogger("closing"),
            level="auto",
            place=self.site.path / "spool",
        )
        return self._sender

    def offer(self, sender: Sender, steps: range) -> None:
        for step in steps:
            assert self.outbox.offer(Prepared(make_gap(step=step)), 100)
            sender.start()
            sender.wake()

    def fake(self, daemon: Daemon) -> None:
        daemon.start()
        self.ends.append(daemon.stop)


def nobody(case: Case) -> Sender:
    sender = case.sender()
    case.offer(sender, range(MESSAGES))
    return sender


def reached(case: Case) -> Sender:
    """Everything before was acknowledged; the caller does something to the daemon next."""
    sender = case.sender()
    case.offer(sender, range(5))
    wait_for(lambda: case.outbox.counts().acknowledged == 5, "five acknowledgements")
    return sender


def stopped(case: Case) -> Sender:
    daemon = case.site.daemon()
    sender = reached(case)
    daemon.send_signal(signal.SIGSTOP)
    case.offer(sender, range(5, MESSAGES))
    return sender


def stopped_before_the_first_word(case: Case) -> Sender:
    case.site.daemon().send_signal(signal.SIGSTOP)
    return nobody(case)


def killed(case: Case) -> Sender:
    daemon = case.site.daemon()
    sender = reached(case)
    daemon.kill()
    daemon.wait()
    case.offer(sender, range(5, MESSAGES))
    return sender


def full_disk(case: Case) -> Sender:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sender = stopped(case)
    case.monkeypatch.setattr(spool, "_check_free", full)
    return sender


def flooded(case: Case) -> Sender:
    case.fake(Deaf(case.endpoint))
    sender = case.sender()
    case.offer(sender, range(MESSAGES))
    wait_for(lambda: sender.status().connected, "a welcome")
    return sender


def refused(case: Case) -> Sender:
    case.fake(Refusing(case.endpoint))
    sender = case.sender()
    case.offer(sender, range(MESSAGES))
    wait_for(lambda: "refused" in sender.status().last_error, "a refusal")
    return sender


def without_a_key(case: Case) -> Sender:
    case.endpoint = f"tcp://127.0.0.1:{free_ports(3)}"
    case.monkeypatch.setenv("NCMON_KEY", str(case.site.path / "none.key"))
    return nobody(case)


@pytest.mark.parametrize(
    "become",
    [nobody, stopped, stopped_before_the_first_word, killed, full_disk, flooded, refused, without_a_key],
    ids=lambda become: become.__name__,
)
def test_close_returns_within_a_second(
    site: Site, monkeypatch: pytest.MonkeyPatch, become: Callable[[Case], Sender]
) -> None:
    case = Case(site, monkeypatch)
    sender = become(case)
    try:
        begin = time.monotonic()
        delivered = sender.close(CLOSE_S)
        took = time.monotonic() - begin
    finally:
        for end in case.ends:
            end()
    counts = case.outbox.counts()
    assert took < LONGEST_S
    assert not delivered
    assert counts.accepted == MESSAGES == counts.acknowledged + counts.held
    on_disk = sum(len(spool.look(path)[0].records) for path in spool.files(site.path / "spool"))
    assert counts.spooled == (0 if become is full_disk else counts.held) == on_disk


def test_a_close_that_makes_progress_is_not_cut_short(site: Site) -> None:
    """A daemon that works, slowly: each acknowledgement is a reason to stay."""

    case = Case(site, pytest.MonkeyPatch())
    daemon = Daemon(case.endpoint)

    class Patient(dict[bytes, list[wire.Meta]]):
        def setdefault(self, key: bytes, default: list[wire.Meta] | None = None) -> list[wire.Meta]:  # type: ignore[override]
            time.sleep(0.2)
            return super().setdefault(key, default if default is not None else [])

    daemon.stored = Patient()
    case.fake(daemon)
    sender = case.sender()
    case.offer(sender, range(10))
    begin = time.monotonic()
    assert sender.close(CLOSE_S)
    assert time.monotonic() - begin > LONGEST_S
    case.ends[0]()
    assert daemon.messages() == list(range(10))
