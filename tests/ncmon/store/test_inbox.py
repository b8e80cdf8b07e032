"""What is acknowledged and not evaluated yet: in the file once, in order, and out of it with what became of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from ncmon.backlog import Backlog
from ncmon.model import Gap, RunEnd, StreamSeq
from ncmon.store import inbox
from ncmon.store.edit import Editor
from ncmon.store.merge import merge
from ncmon.store.queries import Store
from ncmon.store.writer import Stored, Waiting, Writer
from tests.factories import make_evaluation, make_run
from tests.ncmon.store.batches import STREAM, stored

OTHER = b"t" * 16


def waiting(
    seq: int, message: bytes = b"message", *, run_id: str = "run", stream: bytes = STREAM, at: float = 5.0
) -> Waiting:
    origins = (StreamSeq(stream=stream, seq=seq),)
    return Waiting(origins=origins, run_id=run_id, messages=(message,), received=at)


def become(entry: inbox.Entry, **options: Any) -> Stored:
    return Stored(origins=entry.origins, item=make_evaluation(**options), entry=entry)


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_what_waits_moves_its_stream_on_and_is_no_origin_yet(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    revision = writer.revision
    assert writer.commit([waiting(0), waiting(1)], now=6.0) == []
    assert writer.stream_next(STREAM) == 2
    assert rows(path, "SELECT count(*) FROM origin") == [(0,)]
    # There is nothing new to be read, but the run was heard of.
    assert writer.revision == revision
    assert rows(path, "SELECT last_seen FROM run") == [(6.0,)]
    assert writer.queues() == {"run": inbox.Queue(messages=2, nbytes=14)}
    assert writer.oldest_waiting() == 5.0
    with Store.open(path) as store:
        assert store.waiting() == 2


def test_what_became_of_it_takes_it_out_in_the_same_transaction(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    writer.commit([waiting(0), waiting(1)], now=6.0)
    first, second = writer.entries("run", 0)
    assert writer.messages(first) == (b"message",)
    writer.commit([become(first)], now=9.0)
    assert writer.messages(first) == ()
    assert writer.entries("run", 0)[0].key == second.key
    assert rows(path, "SELECT seq FROM origin") == [(0,)]
    assert writer.stream_next(STREAM) == 2
    # The run was alive when the message came, not when it was evaluated.
    assert rows(path, "SELECT last_seen FROM run") == [(6.0,)]
    assert rows(path, "SELECT received FROM window") == [(5.0,)]


def test_what_is_not_in_the_inbox_any_more_is_passed_over(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    writer.commit([waiting(0)], now=6.0)
    [entry] = writer.entries("run", 0)
    record = become(entry)
    writer.commit([record], now=9.0)
    assert writer.commit([record], now=9.0) == [record]
    assert rows(path, "SELECT count(*) FROM window") == [(1,)]


def test_what_is_here_already_does_not_wait_again(writer: Writer) -> None:
    writer.commit([stored(0, make_evaluation()), waiting(1)], now=6.0)
    again = [waiting(0), waiting(1)]
    assert writer.commit(again, now=7.0) == again
    assert writer.queues()["run"].messages == 1
    assert writer.stream_next(STREAM) == 2


def test_shares_of_several_ranks_are_one_entry(writer: Writer) -> None:
    origins = (StreamSeq(stream=STREAM, seq=0), StreamSeq(stream=OTHER, seq=0))
    both = Waiting(origins=origins, run_id="run", messages=(b"one", b"two"), received=5.0)
    writer.commit([waiting(0, run_id="other", stream=b"o" * 16), both, waiting(1)], now=6.0)
    first, second = writer.entries("run", 0)
    assert (first.origins, writer.messages(first), first.nbytes) == (origins, (b"one", b"two"), 6)
    assert second.origins == (StreamSeq(stream=STREAM, seq=1),)
    assert [entry.key for entry in writer.entries("run", first.key)] == [second.key]
    writer.commit([become(first)], now=7.0)
    assert {run_id: queue.messages for run_id, queue in writer.queues().items()} == {"other": 1, "run": 1}


def test_a_transaction_that_fails_leaves_the_inbox_as_it_was(path: Path, writer: Writer) -> None:
    writer.commit([waiting(0)], now=6.0)
    poison = Gap(run_id="run", split="train", epoch=2**70, step=1, time=1.0, reason="r")
    try:
        writer.commit([waiting(1), stored(2, poison)], now=7.0)
    except Exception:
        pass
    assert writer.stream_next(STREAM) == 1
    writer.commit([waiting(1, b"later")], now=7.0)
    assert [writer.messages(entry) for entry in writer.entries("run", 0)] == [(b"message",), (b"later",)]


def test_an_end_that_waited_while_the_run_was_resumed_is_none(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    writer.commit([waiting(0, at=5.0)], now=5.0)
    [entry] = writer.entries("run", 0)
    writer.put_run(make_run(), OTHER, now=6.0)
    end = RunEnd(run_id="run", status="finished", text="", time=4.0)
    writer.commit([Stored(origins=entry.origins, item=end, entry=entry)], now=7.0)
    assert rows(path, "SELECT status FROM run") == [("live",)]
    writer.commit([waiting(0, stream=OTHER, at=8.0)], now=8.0)
    [entry] = writer.entries("run", 0)
    writer.commit([Stored(origins=entry.origins, item=end, entry=entry)], now=9.0)
    assert rows(path, "SELECT status FROM run") == [("finished",)]


def test_a_deleted_run_is_deleted_with_what_waits_and_does_not_come_back(path: Path, writer: Writer) -> None:
    backlog = Backlog(writer)
    backlog.count()
    writer.put_run(make_run(), STREAM, now=1.0)
    records = [
        stored(0, make_evaluation()),
        *(waiting(seq) for seq in range(1, 5)),
        waiting(0, run_id="other", stream=OTHER),
    ]
    writer.commit(records, now=6.0)
    for record in records[1:]:
        assert isinstance(record, Waiting)
        backlog.put(record)
    entry = backlog.next()
    assert entry is not None
    with Editor.open(path) as editor:
        assert editor.delete("run") == 1
    # It was being evaluated all the while.
    record = become(entry)
    assert writer.commit([record], now=7.0) == [record]
    backlog.count()
    assert (backlog.deleted, backlog.messages, backlog.has("run")) == (4, 1, False)
    assert rows(path, "SELECT run_id FROM run") == []
    assert rows(path, "SELECT seq FROM origin ORDER BY seq") == [(0,), (1,), (2,), (3,), (4,)]
    assert writer.stream_next(STREAM) == 5


def test_runs_take_turns_and_within_a_run_nothing_overtakes(writer: Writer) -> None:
    backlog = Backlog(writer)
    backlog.count()
    many = [waiting(seq, b"%d" % seq) for seq in range(20)]
    few = [waiting(seq, b"%d" % seq, run_id="other", stream=OTHER) for seq in range(2)]
    writer.commit([*many, *few], now=6.0)
    for record in (*many, *few):
        backlog.put(record)
    found = []
    while (entry := backlog.next()) is not None:
        found.append((entry.run_id, entry.origins[0].seq))
    assert [seq for run_id, seq in found if run_id == "run"] == list(range(20))
    assert [seq for run_id, seq in found if run_id == "other"] == [0, 1]
    assert found.index(("other", 0)) == inbox.MOST_ENTRIES
    # Nothing of it was stored: it is read again.
    backlog.forget()
    again = backlog.next()
    assert again is not None
    assert again.origins[0].seq == 0


def test_a_merge_takes_what_is_evaluated_and_the_rest_the_next_time(tmp_path: Path) -> None:
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    with Writer.open(source) as writer:
        writer.put_run(make_run(), STREAM, now=1.0)
        writer.commit([stored(0, make_evaluation()), waiting(1)], now=2.0)
        [merged] = merge(source, target)
        assert (merged.added, merged.waiting) == (1, 1)
        assert rows(target, "SELECT seq FROM origin") == [(0,)]
        assert rows(target, "SELECT next FROM stream") == [(1,)]
        writer.commit([become(writer.entries("run", 0)[0], epoch=1)], now=3.0)
        [merged] = merge(source, target)
        assert (merged.added, merged.waiting) == (1, 0)
    assert rows(target, "SELECT step FROM window ORDER BY step") == rows(
        source, "SELECT step FROM window ORDER BY step"
    )
    assert rows(target, "SELECT next FROM stream") == [(2,)]


def test_what_a_merge_brought_is_not_stored_twice_when_its_turn_comes(tmp_path: Path) -> None:
    """The database was restored from a copy that was made while the window waited."""
    here, there = tmp_path / "here.db", tmp_path / "there.db"
    for path in (here, there):
        with Writer.open(path) as writer:
            writer.put_run(make_run(), STREAM, now=1.0)
            writer.commit([waiting(0)], now=2.0)
    with Writer.open(there) as writer:
        writer.commit([become(writer.entries("run", 0)[0])], now=3.0)
    [merged] = merge(there, here)
    assert merged.added == 1
    with Writer.open(here) as writer:
        [entry] = writer.entries("run", 0)
        assert writer.commit([become(entry, seed=9)], now=4.0) == []
        assert writer.queues() == {}
    assert rows(here, "SELECT count(*) FROM window") == [(1,)]
    assert rows(here, "SELECT seq FROM origin") == [(0,)]
