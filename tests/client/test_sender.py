"""The thread and its socket, against a real ROUTER on a real ipc socket."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from ncmon_client import wire
from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.messages import Prepared, make_gap, make_info

pytestmark = pytest.mark.sockets


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="nc"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def wait_for(condition: Callable[[], bool], what: str, *, deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.01)


class Daemon:
    """A daemon as the protocol describes it, in a thread: it remembers what it acknowledged over its restarts."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.stored: dict[bytes, list[wire.Meta]] = {}
        self.silent = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def messages(self) -> list[int]:
        return [meta.step for stored in self.stored.values() for meta in stored if isinstance(meta, wire.Gap)]

    def _run(self) -> None:
        context = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.bind(self.endpoint)
        greeted: set[bytes] = set()
        while not self._stop.is_set():
            if not router.poll(20):
                continue
            peer, *frames = router.recv_multipart()
            message = wire.decode(frames)
            stored = self.stored.setdefault(message.stream, [])
            answer: wire.Meta
            if isinstance(message.meta, wire.Hello):
                greeted.add(peer)
                answer = wire.Welcome(
                    version=1, next=len(stored), credit_messages=4, credit_bytes=1 << 20, max_frame_bytes=1 << 24
                )
            elif peer not in greeted:
                answer = wire.Reset()
            elif message.seq == len(stored):
                stored.append(message.meta)
                answer = wire.Ack(next=len(stored))
            else:
                answer = wire.Nack(next=len(stored))
            if not self.silent:
                router.send_multipart([peer, *wire.encode(answer, stream=message.stream)])
        router.close(0)
        context.term()


@contextlib.contextmanager
def running(place: Path) -> Iterator[Daemon]:
    daemon = Daemon(f"ipc://{place}/s")
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


def make_sender(place: Path, name: str = "s") -> tuple[Sender, Outbox]:
    outbox = Outbox()
    sender = Sender(endpoint=f"ipc://{place}/{name}", run=make_info(), outbox=outbox, log=logging.getLogger("ncmon_t"))
    return sender, outbox


def offer(sender: Sender, outbox: Outbox, steps: range) -> None:
    for step in steps:
        assert outbox.offer(Prepared(make_gap(step=step)), 100)
        sender.start()
        sender.wake()


def test_everything_arrives_in_order_and_close_waits_for_it(place: Path) -> None:
    with running(place) as daemon:
        sender, outbox = make_sender(place)
        offer(sender, outbox, range(300))
        assert sender.close(10.0)
        assert daemon.messages() == list(range(300))
        status = sender.status()
        assert (status.acknowledged, status.held, status.connected, status.reached) == (300, 0, False, True)


def test_a_daemon_that_comes_and_goes_gets_everything_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon(f"ipc://{place}/s")
    sender, outbox = make_sender(place)
    try:
        for turn in range(4):
            offer(sender, outbox, range(40 * turn, 40 * turn + 20))
            daemon.start()
            offer(sender, outbox, range(40 * turn + 20, 40 * turn + 40))
            already = 40 * turn + 10
            wait_for(lambda already=already: len(daemon.messages()) >= already, f"{already} messages")
            daemon.stop()
        daemon.start()
        assert sender.close(10.0)
    finally:
        daemon.stop()
    assert daemon.messages() == list(range(160))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_store_that_was_deleted_gets_the_rest_behind_a_gap(place: Path) -> None:
    with running(place) as daemon:
        sender, outbox = make_sender(place)
        offer(sender, outbox, range(5))
        wait_for(lambda: sender.status().acknowledged == 5, "five acknowledgements")
        daemon.stop()
        daemon.stored.clear()
        daemon.start()
        offer(sender, outbox, range(5, 8))
        assert sender.close(10.0)
        reasons = [meta.reason for stored in daemon.stored.values() for meta in stored if isinstance(meta, wire.Gap)]
        assert len(reasons) == 4
        assert "lost 5 messages" in reasons[0]
        assert daemon.messages()[1:] == [5, 6, 7]


def test_closing_without_a_daemon_is_quick_and_one_warning(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    sender, outbox = make_sender(place, "nobody")
    offer(sender, outbox, range(3))
    start = time.monotonic()
    assert not sender.close(5.0)
    assert time.monotonic() - start < 0.7
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "3 messages" in record.getMessage()


def test_closing_right_after_the_start_still_delivers(place: Path) -> None:
    with running(place) as daemon:
        sender, outbox = make_sender(place)
        offer(sender, outbox, range(1))
        assert sender.close(5.0)
        assert daemon.messages() == [0]


def test_closing_before_a_daemon_that_hangs_keeps_the_deadline(place: Path) -> None:
    with running(place) as daemon:
        sender, outbox = make_sender(place)
        offer(sender, outbox, range(1))
        wait_for(lambda: sender.status().acknowledged == 1, "the first acknowledgement")
        daemon.silent = True
        offer(sender, outbox, range(1, 2))
        start = time.monotonic()
        assert not sender.close(0.5)
        assert time.monotonic() - start < 0.9


def test_a_sender_that_never_began_closes_at_once_and_does_not_begin_again(place: Path) -> None:
    sender, outbox = make_sender(place)
    assert sender.close(5.0)
    sender.start()
    sender.wake()
    assert outbox.offer(Prepared(make_gap()), 1)
    assert not sender.close(5.0)
    assert threading.active_count() == 1 or all(thread.name != "ncmon-sender" for thread in threading.enumerate())


def test_an_absent_daemon_is_warned_about_once_and_its_return_is_told(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sender, outbox = make_sender(place)
    offer(sender, outbox, range(2))
    wait_for(lambda: bool(caplog.records), "a warning")
    time.sleep(0.3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with running(place) as daemon:
        wait_for(lambda: len(daemon.messages()) == 2, "delivery")
        assert sender.close(5.0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_is_inert_and_leaves_the_parent_alone(place: Path) -> None:
    with running(place) as daemon:
        sender, outbox = make_sender(place)
        offer(sender, outbox, range(2))
        with sender._lock:  # as if another thread of the parent held it at the fork
            child = os.fork()
            if child == 0:
                sender.start()
                sender.wake()
                inert = not sender.close(5.0) and not sender.status().connected
                os._exit(0 if inert else 1)
            done, status = 0, 0
            end = time.monotonic() + 10
            while not done and time.monotonic() < end:
                done, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.01)
            if not done:
                os.kill(child, 9)
                os.waitpid(child, 0)
        assert done
        assert os.waitstatus_to_exitcode(status) == 0
        offer(sender, outbox, range(2, 4))
        assert sender.close(5.0)
        assert daemon.messages() == [0, 1, 2, 3]


def test_zmq_is_imported_by_the_thread_only() -> None:
    script = textwrap.dedent(
        """
        import logging, sys
        from ncmon_client import wire
        from ncmon_client.outbox import Outbox
        from ncmon_client.sender import Sender
        run = wire.RunInfo(run_id="r", name="r", config="{}", tags=[], host="h", pid=1, started=0.0, rank=0,
                           world_size=1, n_classes=2, class_names=[], client="0")
        sender = Sender(endpoint="ipc:///nowhere/s", run=run, outbox=Outbox(), log=logging.getLogger())
        assert "zmq" not in sys.modules and "asyncio" not in sys.modules and "torch" not in sys.modules
        sender.start()
        sender.close(1.0)
        assert "zmq" in sys.modules
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_that_forgets_to_close_ends_by_itself(place: Path) -> None:
    """No thread, socket or context of ours may hold up the exit of a training process."""
    script = textwrap.dedent(
        f"""
        import logging
        from ncmon_client.outbox import Outbox
        from ncmon_client.sender import Sender
        from tests.messages import Prepared, make_gap, make_info
        outbox = Outbox()
        sender = Sender(endpoint="ipc://{place}/nobody", run=make_info(), outbox=outbox, log=logging.getLogger())
        outbox.offer(Prepared(make_gap()), 1)
        sender.start()
        sender.wake()
        import time; time.sleep(0.3)
        """
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, cwd=root, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
