"""The loop: with fakes for what cannot be provoked, and as a real process for what users meet."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

import ncmon
from ncmon.breaker import Breaker
from ncmon.config import view_endpoint
from ncmon.daemon import BATCH_MESSAGES, Daemon
from ncmon.disk import Space
from ncmon.errors import Rejected, StoreError
from ncmon.evaluate import evaluate
from ncmon.intake import PAUSE_MAX_S
from ncmon.model import Evaluation, Rejection, Run, Window
from ncmon.process import resident_bytes
from ncmon.store.inbox import Entry, Queue
from ncmon.store.writer import Stored
from ncmon.transport import Delivery, Heard, status
from ncmon_client import wire
from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.factories import make_window
from tests.messages import STREAM, Prepared, make_gap, make_info, to_wire, window_frames

# -- with fakes -------------------------------------------------------------------------------------------------------


class FakeTransport:
    """Deliveries from a list, answers into one."""

    endpoints = ("ipc:///x/s",)
    connected = 0
    gate = None

    def __init__(self) -> None:
        self.inbox: collections.deque[list[bytes]] = collections.deque()
        self.sent: list[wire.Meta] = []
        self.published: list[int] = []
        self.asked: list[bytes] = []
        self.answered: list[bytes] = []
        self.now = 0.0
        self.rebound = 0

    def wait(self, timeout_s: float, *, clients: bool = True) -> Heard:
        self.now += 0.0 if clients and self.inbox else max(timeout_s, 1e-6)
        return Heard(clients=clients and bool(self.inbox), viewers=bool(self.asked), woken=False)

    def receive(self) -> Delivery | None:
        return Delivery(peer=b"peer", frames=self.inbox.popleft()) if self.inbox else None

    def send(self, peer: bytes, frames: Sequence[bytes]) -> None:
        self.sent.append(wire.decode(frames).meta)

    def publish(self, revision: int) -> None:
        self.published.append(revision)

    def requests(self) -> list[tuple[list[bytes], bytes, str]]:
        asked, self.asked = self.asked, []
        return [([b"viewer"], request, "") for request in asked]

    def answer(self, envelope: Sequence[bytes], reply: bytes) -> None:
        self.answered.append(reply)

    def new_listeners(self) -> bool:
        return False

    def rebind(self) -> None:
        self.rebound += 1


class FakeWriter:
    """A store that fails when it is told to."""

    journal_bytes = 0

    def __init__(self) -> None:
        self.records: list[Stored] = []
        self.next: dict[bytes, int] = {}
        self.revision = 0
        self.commits = 0
        self.failing = 0
        self.poison: Callable[[Stored], bool] = lambda record: False
        self.edited = True

    def stream_next(self, stream: bytes) -> int | None:
        return self.next.get(stream)

    def put_run(self, run: Run, stream: bytes, *, now: float, rank: int = 0) -> None:
        self.next.setdefault(stream, 0)

    def attempt(self, stream: bytes) -> int:
        return 1

    def queues(self) -> dict[str, Queue]:
        return {}

    def oldest_waiting(self) -> float | None:
        return None

    def messages(self, entry: Entry) -> tuple[bytes, ...]:
        return ()

    def look_for_edits(self) -> None:
        pass

    def give_back(self) -> None:
        pass

    def commit(self, batch: Sequence[Stored], *, now: float) -> list[Stored]:
        if self.failing:
            self.failing -= 1
            raise StoreError("the disk is full")
        if any(self.poison(record) for record in batch):
            raise Rejected("store", "a value cannot be stored")
        self.commits += 1
        self.revision += 1
        self.records += batch
        for record in batch:
            for origin in record.origins:
                self.next[origin.stream] = max(self.next.get(origin.stream, 0), origin.seq + 1)
        return []


def shallow(window: Window) -> Evaluation:
    return Evaluation(window=window, layers=())


class Rig:
    def __init__(self, *, compute: Callable[[Window], Evaluation] = shallow, breaker: Breaker | None = None) -> None:
        self.transport = FakeTransport()
        self.writer = FakeWriter()
        self.daemon = Daemon(
            writer=self.writer,  # type: ignore[arg-type]
            transport=self.transport,  # type: ignore[arg-type]
            database=Path("/x/t.db"),
            compute=compute,
            breaker=breaker or Breaker(resident=lambda: 0),
            monotonic=lambda: self.transport.now,
            wall=lambda: 1000.0 + self.transport.now,
        )
        self.say(wire.encode(wire.Hello(versions=[1], run=make_info()), stream=STREAM))
        self.transport.sent.clear()

    def say(self, *messages: list[bytes]) -> list[wire.Meta]:
        """Deliver these, take one turn, return the answers."""
        self.transport.sent.clear()
        self.transport.inbox.extend(messages)
        self.daemon.turn()
        return list(self.transport.sent)

    def stored(self) -> list[tuple[int, type]]:
        return [(record.origins[0].seq, type(record.item)) for record in self.writer.records]


def gap(seq: int) -> list[bytes]:
    return wire.encode(make_gap(step=seq), stream=STREAM, seq=seq)


def window(seq: int, **fields: Any) -> list[bytes]:
    return window_frames(make_window(layers=1, step=100 + seq), seq=seq, **fields)


def test_a_batch_is_one_commit_one_acknowledgement_and_one_hint() -> None:
    rig = Rig()
    assert rig.say(*(gap(seq) for seq in range(10))) == [wire.Ack(next=10)]
    assert rig.writer.commits == 1
    assert rig.transport.published == [1]


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncmon.daemon.BATCH_MESSAGES", 64)
    rig = Rig()
    rig.say(*(gap(seq) for seq in range(100)))
    assert len(rig.writer.records) == 64


def test_a_window_that_cannot_be_evaluated_is_a_rejection_and_its_neighbours_are_stored() -> None:
    def compute(window: Window) -> Evaluation:
        if window.step == 101:
            raise ZeroDivisionError("a bug")
        return shallow(window)

    rig = Rig(compute=compute)
    assert rig.say(window(0), window(1), window(2)) == [wire.Ack(next=3)]
    assert rig.stored() == [(0, Evaluation), (1, Rejection), (2, Evaluation)]
    rejection = rig.writer.records[1].item
    assert isinstance(rejection, Rejection)
    assert (rejection.code, rejection.run_id) == ("evaluate", "run")
    assert "a bug" in rejection.reason


def test_a_record_that_cannot_be_written_is_a_rejection_and_its_neighbours_are_stored() -> None:
    rig = Rig()
    rig.writer.poison = lambda record: record.origins[0].seq == 1 and isinstance(record.item, Evaluation)
    assert rig.say(window(0), window(1), window(2)) == [wire.Ack(next=3)]
    assert rig.stored() == [(0, Evaluation), (1, Rejection), (2, Evaluation)]


def test_a_store_in_trouble_acknowledges_nothing_and_asks_again_when_it_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig()
    rig.writer.failing = 3
    assert rig.say(gap(0), gap(1)) == []
    # The client's own in-flight messages come while the daemon pauses, and again when they are asked for.
    answers: list[wire.Meta] = []
    for _ in range(50):
        answers += rig.say(*([gap(0), gap(1)] if answers[-1:] == [wire.Nack(next=0)] else []))
        if rig.writer.records:
            break
    assert wire.Ack(next=2) in answers
    assert wire.Ack(next=1) not in answers
    assert rig.stored() == [(0, type(rig.writer.records[0].item)), (1, type(rig.writer.records[1].item))]
    lines = [record.getMessage() for record in caplog.records if "store" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == [
        "nothing is acknowledged until the store works again",
        "the store works again",
    ]


def test_while_the_store_is_in_trouble_clients_wait_and_viewers_do_not() -> None:
    rig = Rig()
    rig.writer.failing = 10**6
    rig.say(gap(0))
    rig.transport.inbox.append(gap(1))
    rig.transport.asked.append(b"status")
    rig.daemon.turn()
    assert len(rig.transport.inbox) == 1
    assert len(rig.transport.answered) == 1
    for _ in range(20):
        before = rig.transport.now
        rig.daemon.turn()
        assert rig.transport.now - before <= PAUSE_MAX_S


def test_a_message_that_crashes_the_reception_costs_a_pause_and_not_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    crash = [True]
    receive = rig.daemon._reception.receive

    def receive_or_crash(*arguments: Any, **fields: Any) -> Any:
        if crash.pop() if crash else False:
            raise RuntimeError("a bug")
        return receive(*arguments, **fields)

    monkeypatch.setattr(rig.daemon._reception, "receive", receive_or_crash)
    assert rig.say(gap(0)) == []
    for _ in range(3):
        rig.say()
    assert rig.say(gap(0)) == [wire.Ack(next=1)]


def test_a_crash_of_the_clockwork_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    def broken(**_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(rig.daemon._collector, "tick", broken)
    assert rig.say(gap(0)) == []
    monkeypatch.undo()
    for _ in range(10):
        rig.say()
    assert rig.say(gap(0)) == [wire.Ack(next=1)]


def test_the_answer_to_status_is_what_was_agreed() -> None:
    rig = Rig()
    rig.transport.connected = 1
    rig.say(gap(0), gap(0))
    found = rig.daemon.status()
    assert (found["version"], found["protocol"], found["pid"]) == (ncmon.__version__, 1, os.getpid())
    assert (found["database"], found["endpoint"], found["revision"]) == ("/x/t.db", "ipc:///x/s", 1)
    counters = {"accepted": 1, "stored": 1, "rejected": 0, "waiting": 0, "duplicates": 1, "refused": 0, "connected": 1}
    assert found["counters"] == counters | {"alerts": 0, "inbox": 0, "inbox_bytes": 0, "deleted": 0}
    assert found["lag_s"] == 0.0


def test_on_a_disk_that_is_nearly_full_nothing_is_stored_or_acknowledged_until_there_is_room() -> None:
    rig = Rig()
    space = [Space(total=1 << 40, free=1 << 20)]
    rig.daemon._intake._space = lambda path: space[0]
    rig.transport.now += 2.0
    assert rig.say(gap(0), gap(1)) == []
    assert rig.writer.commits == 0
    assert "MB left" in rig.daemon.status()["trouble"]
    asked = [meta for _ in range(10) for meta in rig.say()]
    assert asked == [wire.Nack(next=0)]
    assert rig.say(gap(0), gap(1)) == []
    asked = [meta for _ in range(10) for meta in rig.say()]
    assert asked == [wire.Nack(next=0)]
    space[0] = Space(total=1 << 40, free=1 << 39)
    assert rig.say(gap(0), gap(1)) == [wire.Ack(next=2)]
    found = rig.daemon.status()
    assert found["trouble"] == ""
    # What was received, forgotten and received again counts once.
    assert (found["counters"]["accepted"], found["counters"]["stored"]) == (2, 2)


def test_a_journal_that_only_grows_is_said_and_in_the_end_nothing_is_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    folded: list[int] = []
    rig.writer.fold_journal = lambda: folded.append(1)  # type: ignore[attr-defined]
    for size, answer, says in (
        (400 << 20, [wire.Ack(next=1)], ""),
        (600 << 20, [wire.Ack(next=2)], "somebody reads for too long"),
        (1100 << 20, [], "nothing is acknowledged until"),
    ):
        caplog.clear()
        rig.writer.journal_bytes = size
        rig.transport.now += 2.0
        assert rig.say(gap(len(rig.writer.records))) == answer
        assert (says in caplog.text) if says else not caplog.text
    assert len(folded) == 2
    rig.writer.journal_bytes = 0
    for _ in range(5):
        rig.say()
    assert rig.say(gap(2)) == [wire.Ack(next=3)]


def test_counters_add_up_whatever_came() -> None:
    rig = Rig()
    bad = wire.encode(make_gap(step=-1), stream=STREAM, seq=1)
    rig.say(gap(0), bad, gap(2), gap(2))
    counters = rig.daemon.status()["counters"]
    assert (counters["accepted"], counters["stored"], counters["rejected"]) == (3, 2, 1)
    rig.writer.failing = 1
    rig.say(gap(3), gap(4))
    for _ in range(10):
        rig.say()
    counters = rig.daemon.status()["counters"]
    assert counters["accepted"] == counters["stored"] + counters["rejected"] + counters["waiting"]


def test_memory_that_no_honest_traffic_explains_closes_the_clients_socket_once() -> None:
    rig = Rig(breaker=Breaker(resident=lambda: 10**12, give_back=lambda: None))
    for _ in range(40):
        rig.daemon.turn()
    assert rig.transport.rebound == 1
    assert resident_bytes() > 10**6


def test_a_batch_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    messages = [window(seq) for seq in range(9)]
    monkeypatch.setattr("ncmon.daemon.BATCH_BYTES", sum(map(len, messages[0])) * 5)
    rig.say(*messages)
    assert len(rig.writer.records) == 5
    assert rig.writer.commits == 1
    rig.say()
    assert len(rig.writer.records) == 9


def test_who_waits_because_the_daemon_is_behind_is_told_so_and_does_not_hang_up() -> None:
    rig = Rig()
    rig.transport.connected = 1
    rig.say(*(gap(seq) for seq in range(BATCH_MESSAGES + 1)))
    rig.transport.now += 1.0
    rig.writer.failing = 1
    # The second batch fails: until the next attempt nobody's messages are read.
    assert wire.Ack(next=BATCH_MESSAGES) in rig.say()
    for _ in range(10):
        rig.say()
    assert rig.say(gap(BATCH_MESSAGES)) == [wire.Ack(next=BATCH_MESSAGES + 1)]
    rig.transport.now += 2.0
    assert rig.say() == [], "who waits for nothing is left in peace"


# -- as a process -----------------------------------------------------------------------------------------------------

COMMAND = "import sys; from pathlib import Path; from ncmon.daemon import run_daemon; sys.exit(run_daemon("
LAUNCH = COMMAND + "Path(sys.argv[1]), sys.argv[2:]))"


class Site:
    """A short temporary directory, and the processes of one test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "t.db"
        self.endpoint = f"ipc://{path}/s"
        self.children: list[subprocess.Popen[bytes]] = []

    def launch(self, *, database: Path | None = None, listen: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        arguments = [str(database or self.database), *(listen or (self.endpoint,))]
        with open(self.path / "log", "ab") as log:
            child = subprocess.Popen([sys.executable, "-c", LAUNCH, *arguments], stdout=log, stderr=log)
        self.children.append(child)
        return child

    def daemon(self) -> subprocess.Popen[bytes]:
        child = self.launch()
        wait_for(lambda: self.answers(child), "the daemon to answer")
        return child

    def answers(self, child: subprocess.Popen[bytes]) -> bool:
        assert child.poll() is None, self.log()
        found = status(view_endpoint(self.endpoint), timeout_s=0.2)
        return found is not None and found["pid"] == child.pid

    def log(self) -> str:
        return (self.path / "log").read_text()

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()

    def settle(self) -> None:
        """Wait until everything that is on disk is evaluated."""
        wait_for(lambda: self.rows("SELECT count(*) FROM inbox") == [(0,)], "the inbox to be empty", deadline_s=60.0)

    def sender(self, *, run_id: str = "run", **fields: Any) -> tuple[Sender, Outbox]:
        outbox = Outbox()
        run = make_info(run_id=run_id, **fields)
        return Sender(endpoint=self.endpoint, run=run, outbox=outbox, log=logging.getLogger("ncmon_t")), outbox

    def end(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()


@pytest.fixture
def site() -> Iterator[Site]:
    path = Path(tempfile.mkdtemp(prefix="nc"))
    made = Site(path)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(path, ignore_errors=True)


def wait_for(condition: Callable[[], bool], what: str, *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.02)


def offer(sender: Sender, outbox: Outbox, steps: range, *, run_id: str = "run") -> None:
    for step in steps:
        made = dataclasses.replace(make_window(layers=1, n_features=6, per_class=4, step=step), run_id=run_id)
        meta, blob = to_wire(made)
        assert outbox.offer(Prepared(meta, blob), len(blob))
        sender.start()
        sender.wake()


@pytest.mark.sockets
def test_a_daemon_killed_three_times_stores_every_accepted_window_once(site: Site) -> None:
    """SIGKILL with messages in every queue between the two processes."""
    daemon = site.daemon()
    sender, outbox = site.sender()
    total = 0
    for _ in range(3):
        offer(sender, outbox, range(total, total + 60))
        already = total + 10
        wait_for(lambda already=already: sender.status().acknowledged >= already, f"{already} acknowledgements")
        daemon.kill()
        daemon.wait()
        offer(sender, outbox, range(total + 60, total + 70))
        total += 70
        daemon = site.daemon()
    assert sender.close(30.0), (sender.status(), site.log())
    site.settle()
    counts = outbox.counts()
    assert (counts.accepted, counts.acknowledged, counts.refused) == (total, total, 0)
    assert [row[0] for row in site.rows("SELECT step FROM window ORDER BY window_key")] == list(range(total))
    assert site.rows("SELECT count(*), count(DISTINCT seq), max(seq) FROM origin") == [(total, total, total - 1)]
    assert site.rows("SELECT count(*) FROM rejected") == [(0,)]
    assert site.rows("PRAGMA integrity_check") == [("ok",)]
    assert site.rows("SELECT count(*) FROM reading WHERE intra_cos_min IS NOT NULL") == [(total,)]


@pytest.mark.sockets
def test_a_database_deleted_between_two_daemons_gets_the_rest_and_a_gap(site: Site) -> None:
    daemon = site.daemon()
    sender, outbox = site.sender()
    offer(sender, outbox, range(5))
    wait_for(lambda: sender.status().acknowledged == 5, "five acknowledgements")
    daemon.kill()
    daemon.wait()
    for path in site.path.glob("t.db*"):
        path.unlink()
    site.daemon()
    offer(sender, outbox, range(5, 9))
    assert sender.close(30.0)
    site.settle()
    assert [row[0] for row in site.rows("SELECT step FROM window ORDER BY step")] == [5, 6, 7, 8]
    [(step, reason)] = site.rows("SELECT step, reason FROM gap")
    assert step == 4
    assert "lost 5 messages" in reason
    assert site.rows("SELECT run_id, name, status FROM run") == [("run", "digits", "live")]


def spoilt(kind: str) -> list[bytes]:
    made = make_window(layers=1, step=101)
    frames = window_frames(made, seq=1)
    match kind:
        case "corrupt":
            return [*frames[:-1], bytes(len(frames[-1]))]
        case "version":
            return [frames[0][:4] + b"\x63\x00" + frames[0][6:], *frames[1:]]
        case "nan":
            layer = made.layers[0]
            means = np.full_like(layer.class_means, np.nan)
            layers = (dataclasses.replace(layer, class_means=means),)
            return window_frames(dataclasses.replace(made, layers=layers), seq=1)
        case "shape":
            meta, blob = to_wire(made)
            return wire.encode(meta, stream=STREAM, seq=1, blob=blob[:-16])
        case "meta":
            return wire.encode(make_gap(step=-1), stream=STREAM, seq=1)
        case _:
            return [*frames, *[b"more"] * 40]


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("corrupt", "crc"),
        ("version", "version"),
        ("nan", "nonfinite"),
        ("shape", "length"),
        ("meta", "meta"),
        ("frames", "frames"),
    ],
)
def test_a_poisoned_message_is_kept_with_its_reason_and_harms_nobody(site: Site, kind: str, code: str) -> None:
    daemon = site.daemon()
    context: zmq.Context[Any] = zmq.Context()
    try:
        client = context.socket(zmq.DEALER)
        client.linger = 0
        client.rcvtimeo = 10_000
        client.connect(site.endpoint)
        client.send_multipart(wire.encode(wire.Hello(versions=[1], run=make_info()), stream=STREAM))
        assert isinstance(wire.decode(client.recv_multipart()).meta, wire.Welcome)
        client.send_multipart([b"noise"])
        for frames in (
            window_frames(make_window(layers=1, step=100)),
            spoilt(kind),
            window_frames(make_window(layers=1, step=102), seq=2),
        ):
            client.send_multipart(frames)
        acknowledged = 0
        while acknowledged < 3:
            meta = wire.decode(client.recv_multipart()).meta
            assert isinstance(meta, wire.Ack)
            acknowledged = meta.next
    finally:
        context.destroy(linger=0)
    site.settle()
    assert [row[0] for row in site.rows("SELECT step FROM window ORDER BY step")] == [100, 102]
    [(seq, found, reason, run_id)] = site.rows("SELECT seq, code, reason, run_id FROM rejected")
    assert (seq, found, run_id) == (1, code, "run")
    assert reason
    assert daemon.poll() is None
    assert f"({code})" in site.log()


@pytest.mark.sockets
def test_a_second_daemon_is_refused_on_the_same_database_and_on_the_same_socket(site: Site) -> None:
    first = site.daemon()
    for database, listen in ((None, [f"ipc://{site.path}/other"]), (site.path / "other.db", [site.endpoint])):
        second = site.launch(database=database, listen=listen)
        assert second.wait(timeout=30) != 0
        last = site.log().strip().splitlines()[-1]
        assert f"pid {first.pid}" in last
    assert site.answers(first)
    # Neither attempt left anything behind that a later one would stumble over.
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=10) == 0
    site.daemon()


@pytest.mark.sockets
def test_tcp_without_keys_is_refused_before_anything_is_made(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCMON_KEYS", str(site.path / "keys"))
    child = site.launch(listen=["tcp://127.0.0.1:5555"])
    assert child.wait(timeout=30) != 0
    assert "tcp needs keys" in site.log().strip().splitlines()[-1]
    assert not site.database.exists()


@pytest.mark.sockets
@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1", "ipc://relative", "inproc://x"])
def test_an_endpoint_that_others_could_reach_is_refused(site: Site, endpoint: str) -> None:
    child = site.launch(listen=[endpoint])
    assert child.wait(timeout=30) != 0
    assert endpoint in site.log().strip().splitlines()[-1]
    assert not site.database.exists()


@pytest.mark.sockets
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_within_two_seconds(site: Site, number: signal.Signals) -> None:
    daemon = site.daemon()
    sender, outbox = site.sender()
    offer(sender, outbox, range(50))
    wait_for(lambda: sender.status().acknowledged >= 1, "an acknowledgement")
    daemon.send_signal(number)
    start = time.monotonic()
    assert daemon.wait(timeout=10) == 0
    assert time.monotonic() - start < 2
    sender.close(0.0)
    assert sorted(path.name for path in site.path.iterdir()) == ["log", "s.lock", "t.db", "t.db.lock"]
    stored = site.rows("SELECT (SELECT count(*) FROM window) + (SELECT count(*) FROM inbox)")[0][0]
    assert stored >= sender.status().acknowledged >= 1
    lines = site.log().splitlines()
    assert sum("ready endpoint=" in line for line in lines) == 1
    assert "stopped" in lines[-1]


@pytest.mark.sockets
def test_two_ranks_meet_in_one_window(site: Site) -> None:
    site.daemon()
    senders = [site.sender(rank=rank, world_size=2) for rank in range(2)]
    parts = []
    for rank, (sender, outbox) in enumerate(senders):
        made = make_window(seed=rank, layers=1, n_features=6, scatter=True, step=100, world_size=2, ranks=(rank,))
        parts.append(made)
        meta, blob = to_wire(made)
        assert outbox.offer(Prepared(meta, blob), len(blob))
        sender.start()
        sender.wake()
    assert all(sender.close(20.0) for sender, _ in senders)
    site.settle()
    [(ranks, partial)] = site.rows("SELECT ranks, partial FROM window")
    assert (ranks, partial) == ("[0,1]", 0)
    [(samples,)] = site.rows("SELECT samples FROM reading")
    assert samples == sum(part.layers[0].class_counts.sum() for part in parts)


@pytest.mark.sockets
def test_the_stored_numbers_are_those_of_the_window_that_was_sent(site: Site) -> None:
    site.daemon()
    sender, outbox = site.sender()
    made = make_window(step=100)
    meta, blob = to_wire(made)
    assert outbox.offer(Prepared(meta, blob), len(blob))
    sender.start()
    sender.wake()
    assert sender.close(20.0)
    site.settle()
    expected = {layer.key.name: layer.readings["nc1_pinv"].value for layer in evaluate(made).layers}
    found = dict(site.rows("SELECT l.name, r.nc1_pinv FROM reading r JOIN layer l USING (layer_key)"))
    assert found == expected


def speak_zmtp(path: Path) -> socket.socket:
    """Return a raw connection after a ZMTP 3.1 handshake as DEALER: the library itself cannot be made to misbehave."""
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(10)
    raw.connect(str(path))
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32))
    greeting = b""
    while len(greeting) < 64:
        greeting += raw.recv(64 - len(greeting))
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
    raw.recv(256)
    return raw


@pytest.mark.sockets
def test_a_message_without_an_end_is_cut_off_and_the_daemon_goes_on(site: Site) -> None:
    """No limit of the library counts parts before the last one has come; with 200 MB here in the place of 400."""
    script = "import ncmon.daemon as d; b = d.Breaker; d.Breaker = lambda: b(200 << 20); "
    with open(site.path / "log", "ab") as log:
        arguments = [sys.executable, "-c", script + LAUNCH, str(site.database), site.endpoint]
        daemon = subprocess.Popen(arguments, stdout=log, stderr=log)
    site.children.append(daemon)
    wait_for(lambda: site.answers(daemon), "the daemon to answer")
    part = b"\x03" + (65536).to_bytes(8, "big") + bytes(65536)
    sent = 0
    with speak_zmtp(site.path / "s") as raw, pytest.raises(OSError):
        while sent < 400 << 20:
            raw.sendall(part)
            sent += len(part)
            time.sleep(0.0005)
    assert sent > 60 << 20
    assert "MB of memory are in use" in site.log()
    sender, outbox = site.sender()
    offer(sender, outbox, range(3))
    assert sender.close(20.0)
    site.settle()
    assert site.rows("SELECT count(*) FROM window") == [(3,)]
