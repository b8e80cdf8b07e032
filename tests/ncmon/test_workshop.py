"""What waits is evaluated aside, in order, whatever becomes of the process that does it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ncmon import ingest
from ncmon.evaluate import evaluate
from ncmon.model import Evaluation, Rejection, RunEnd, StreamSeq
from ncmon.store.inbox import Entry
from ncmon.store.writer import Waiting, Writer
from ncmon.workshop import ATTEMPTS, NICENESS, Bench, Done, Workshop, become
from ncmon_client import wire
from tests.factories import make_window
from tests.messages import STREAM, window_frames

END = wire.encode(wire.End(run_id="run", status="finished", text="", time=2.0), stream=STREAM, seq=9)


def entry(number: int = 1, *, ranks: int = 1) -> Entry:
    origins = tuple(StreamSeq(stream=bytes([rank]) * 16, seq=number) for rank in range(ranks))
    return Entry(key=number, run_id="run", origins=origins, received=5.0, nbytes=1)


def test_a_message_becomes_the_readings_of_its_window() -> None:
    window = make_window()
    item = become(entry(), [ingest.pack(window_frames(window))], compute=evaluate, now=1.0)
    assert isinstance(item, Evaluation)
    assert item.layers[-1].readings == evaluate(window).layers[-1].readings


def test_shares_become_one_window_without_those_that_were_replaced() -> None:
    shares = [
        ingest.pack(window_frames(make_window(seed=rank, layers=1, scatter=True, ranks=(rank,), world_size=2)))
        for rank in range(2)
    ]
    item = become(entry(ranks=3), [shares[1], b"", shares[0]], compute=evaluate, now=1.0)
    assert isinstance(item, Evaluation)
    assert (item.window.ranks, item.window.partial) == ((0, 1), False)


def test_what_can_never_be_a_window_becomes_a_rejection_with_its_reason() -> None:
    packed = ingest.pack(window_frames(make_window()))
    for broken, code in ((packed[:-1] + b"\xff", "crc"), (packed[:20], "frames"), (b"x", "frames")):
        item = become(entry(), [broken], compute=evaluate, now=1.0)
        assert isinstance(item, Rejection)
        assert (item.code, item.run_id, item.seq) == (code, "run", 1)
        assert item.head
    item = become(entry(), [ingest.pack(window_frames(make_window(), sampled_steps=10**6))], compute=evaluate, now=1.0)
    assert isinstance(item, Rejection)
    assert item.code == "counts"
    assert isinstance(become(entry(), [ingest.pack(END)], compute=evaluate, now=1.0), RunEnd)
    assert become(entry(), [], compute=evaluate, now=1.0) is None


def test_a_bench_has_room_for_one_slice() -> None:
    now = [0.0]

    def compute(window: object) -> Evaluation:
        now[0] += 0.004
        return Evaluation(window=make_window(), layers=())

    packed = ingest.pack(window_frames(make_window(layers=1)))
    bench = Bench(lambda _: (packed,), compute=compute, monotonic=lambda: now[0])
    given = 0
    while bench.room():
        given += 1
        bench.give(entry(given))
    assert given == 3
    assert [one.entry.key for one in bench.done()] == [1, 2, 3]
    assert bench.room()


# -- as a process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Writer.open(tmp_path / "t.db") as made:
        messages = [ingest.pack(window_frames(make_window(layers=1, step=step), seq=step)) for step in range(6)]
        made.commit(
            [
                Waiting(origins=(StreamSeq(stream=STREAM, seq=seq),), run_id="run", messages=(one,), received=5.0)
                for seq, one in enumerate(messages)
            ],
            now=5.0,
        )
        yield made


@pytest.fixture
def workshop(writer: Writer) -> Iterator[Workshop]:
    made = Workshop(writer.path)
    yield made
    made.close()


def finished(workshop: Workshop, enough: Callable[[list[Done]], bool], *, deadline_s: float = 60.0) -> list[Done]:
    found: list[Done] = []
    end = time.monotonic() + deadline_s
    while not enough(found):
        assert time.monotonic() < end
        found += workshop.done()
        time.sleep(0.01)
    return found


@pytest.mark.sockets
def test_a_process_evaluates_what_is_in_the_database(writer: Writer, workshop: Workshop) -> None:
    entries = writer.entries("run", 0)
    for one in entries[:4]:
        assert workshop.room()
        workshop.give(one)
    assert not workshop.room()
    found = finished(workshop, lambda done: len(done) == 4)
    assert [one.entry.key for one in found] == [one.key for one in entries[:4]]
    for step, one in enumerate(found):
        assert isinstance(one.item, Evaluation)
        assert one.item.window.step == step
        assert one.item.layers[-1].readings == evaluate(make_window(layers=1, step=step)).layers[-1].readings
    process = workshop._process
    assert process is not None
    # Nice, and no nicer for a daemon that is nice already.
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    # What is not wanted any more is not told.
    workshop.give(entries[4])
    workshop.forget()
    workshop.give(entries[5])
    assert [one.entry.key for one in finished(workshop, bool)] == [entries[5].key]


@pytest.mark.sockets
def test_a_process_that_is_killed_is_replaced_and_a_message_that_kills_it_is_rejected(
    writer: Writer, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncmon.workshop.RESTART_MIN_S", 0.0)
    workshop._restart_s = 0.0
    first, second, *_ = writer.entries("run", 0)
    workshop.give(first)
    assert workshop._process is not None
    workshop._process.kill()  # before it has begun: nobody is to blame
    assert isinstance(finished(workshop, bool)[0].item, Evaluation)
    workshop.give(second)
    deaths = 0
    found: list[Done] = []
    end = time.monotonic() + 60.0
    while not found:
        assert time.monotonic() < end
        process = workshop._process
        if process is not None and process.poll() is None:
            # Stopped, so that it cannot finish, and said to be at it: as if the message had ended it.
            process.send_signal(signal.SIGSTOP)
            workshop._begun = next(iter(workshop._flying), None)
            process.kill()
            process.wait()
            deaths += 1
        found += workshop.done()
    assert deaths >= ATTEMPTS
    item = found[0].item
    assert isinstance(item, Rejection)
    assert (item.code, item.seq) == ("evaluate", 1)


@pytest.mark.sockets
def test_it_ends_with_its_owner(writer: Writer) -> None:
    workshop = Workshop(writer.path)
    workshop.give(writer.entries("run", 0)[0])
    process = workshop._process
    assert process is not None
    assert process.stdin is not None
    finished(workshop, bool)
    process.stdin.close()  # as when the daemon is killed
    assert process.wait(timeout=30) == 0
    workshop.close()
