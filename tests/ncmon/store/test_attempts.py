"""Attempts: what a later one repeats stands under the earlier one's own id, whatever order messages come in."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncmon.errors import NotFound
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store import schema
from ncmon.store.attempts import SKEW_S
from ncmon.store.edit import Editor
from ncmon.store.merge import merge
from ncmon.store.queries import Store
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run, make_window
from tests.ncmon.store.batches import stored

MADE = make_evaluation(make_window(run_id="run", exact=False))


def stream(number: int) -> bytes:
    return bytes([number]) * 16


def hello(writer: Writer, number: int, *, started: float, rank: int = 0) -> None:
    run = make_run(name="net", started=started, class_names=tuple("abcd"))
    writer.put_run(run, stream(number), now=started, rank=rank)


def send(writer: Writer, number: int, seq: int, step: int, *, split: str = "train", loss: float = 0.0) -> None:
    window = dataclasses.replace(MADE.window, epoch=step // 100, step=step, split=split, time=1000.0 + step)
    last = MADE.layers[-1]
    reading = dataclasses.replace(last.readings["ce_loss"], value=loss)
    layer = dataclasses.replace(last, readings={**last.readings, "ce_loss": reading})
    item = dataclasses.replace(MADE, window=window, layers=(*MADE.layers[:-1], layer))
    writer.commit([stored(seq, item, stream(number))], now=2000.0)


def losses(path: Path, run_id: str, split: str = "train") -> dict[int, float]:
    with Store.open(path) as store:
        found = store.run(run_id).history("ce_loss", split=split)
    return dict(zip(found.step.tolist(), found.value.tolist(), strict=True))


def attempts_of(path: Path) -> list[tuple[bytes, int]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT stream, attempt FROM stream ORDER BY stream").fetchall()


def begun_again(writer: Writer) -> None:
    """One window at step 100, and the next attempt's at step 50."""
    hello(writer, 1, started=100.0)
    send(writer, 1, 0, 100)
    hello(writer, 2, started=500.0)
    send(writer, 2, 0, 50)


def test_the_tail_that_a_checkpoint_forgot_is_kept_apart(path: Path, writer: Writer) -> None:
    hello(writer, 1, started=100.0)
    for seq, step in enumerate((100, 200, 250, 300)):
        send(writer, 1, seq, step, loss=1.0)
    hello(writer, 2, started=500.0)
    # Until it has said something the run stands as it stood.
    assert losses(path, "run") == {100: 1.0, 200: 1.0, 250: 1.0, 300: 1.0}
    send(writer, 2, 0, 200, loss=2.0)
    assert losses(path, "run") == {100: 1.0, 200: 2.0}
    assert losses(path, "run@1") == {200: 1.0, 250: 1.0, 300: 1.0}
    send(writer, 2, 1, 300, loss=2.0)
    assert losses(path, "run") == {100: 1.0, 200: 2.0, 300: 2.0}
    with Store.open(path) as store:
        run, tail = store.run("run"), store.run("run@1")
        assert (run.run.attempt, run.run.attempt_of) == (2, "")
        assert (tail.run.attempt, tail.run.attempt_of, tail.status, tail.run.started) == (1, "run", "failed", 100.0)
        assert tail.run.ended == 1300.0
        # Everything moved with the numbers: layers, classes, matrices, reasons.
        (window,) = tail.readings()
        assert list(window.layers) == [layer.key.name for layer in MADE.layers]
        at = window.layers[CLASSIFIER_INPUT]
        assert set(at.class_arrays)
        assert at.readings["nc1_pinv"] == MADE.layers[-1].readings["nc1_pinv"]
        assert tail.matrix("inter_cos").shape == (4, 4)
        assert tail.run.class_names == tuple("abcd")


def test_a_tail_is_listed_only_where_it_is_asked_for(path: Path, writer: Writer) -> None:
    begun_again(writer)
    with Store.open(path) as store:
        assert [run.run_id for run in store.runs()] == ["run"]
        assert {run.run_id for run in store.runs(attempts=True)} == {"run", "run@1"}
        assert [line.run.run_id for line in store.summary()] == ["run"]
        assert {line.run.run_id for line in store.summary(attempts=True)} == {"run", "run@1"}
        for ref in ("latest", "net", "ru"):
            assert store.run(ref).run_id == "run"
        with pytest.raises(NotFound):
            store.run("run@2")


def test_splits_are_superseded_each_by_its_own(path: Path, writer: Writer) -> None:
    hello(writer, 1, started=100.0)
    for seq, (step, split) in enumerate([(100, "train"), (150, "test"), (200, "train"), (250, "test")]):
        send(writer, 1, seq, step, split=split, loss=1.0)
    hello(writer, 2, started=500.0)
    send(writer, 2, 0, 110, loss=2.0)
    assert losses(path, "run") == {100: 1.0, 110: 2.0}
    assert losses(path, "run", "test") == {150: 1.0, 250: 1.0}
    send(writer, 2, 1, 160, split="test", loss=2.0)
    assert losses(path, "run", "test") == {150: 1.0, 160: 2.0}


def test_ranks_that_come_together_are_one_attempt(path: Path, writer: Writer) -> None:
    for number, (rank, started) in enumerate([(0, 100.0), (1, 100.4), (1, 300.1), (0, 300.5), (2, 301.0)], start=1):
        hello(writer, number, started=started, rank=rank)
    assert [attempt for _, attempt in attempts_of(path)] == [1, 1, 2, 2, 2]
    # A third one, of which rank 2 says first that it is there.
    hello(writer, 6, started=900.0, rank=2)
    hello(writer, 7, started=899.0, rank=0)
    assert [attempt for _, attempt in attempts_of(path)][5:] == [3, 3]


def test_a_spool_that_comes_late_goes_where_it_belongs(path: Path, writer: Writer) -> None:
    hello(writer, 2, started=500.0)
    send(writer, 2, 0, 200, loss=2.0)
    hello(writer, 3, started=900.0)
    send(writer, 3, 0, 300, loss=3.0)
    # Of the process before both, which never reached a daemon; and of the second, the rest of its own.
    hello(writer, 1, started=500.0 - SKEW_S - 1.0)
    for seq, step in enumerate((100, 200, 300)):
        send(writer, 1, seq, step, loss=1.0)
    send(writer, 2, 1, 350, loss=2.0)
    assert losses(path, "run")[300] == 3.0
    assert 350 not in losses(path, "run")
    assert losses(path, "run@1")[350] == 2.0


def test_deleting_a_run_deletes_its_tails(path: Path, writer: Writer) -> None:
    begun_again(writer)
    with Editor.open(path) as editor:
        assert editor.delete("run") == 2
    with Store.open(path) as store:
        assert not store.runs(attempts=True)


def test_a_merge_brings_tails_and_settles_what_it_brought_before(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    with Writer.open(source) as writer:
        hello(writer, 1, started=100.0)
        for seq, step in enumerate((100, 200, 250)):
            send(writer, 1, seq, step, loss=1.0)
        merge(source, target)
        hello(writer, 2, started=500.0)
        send(writer, 2, 0, 200, loss=2.0)
    for _ in range(2):
        merge(source, target)
        for run_id in ("run", "run@1"):
            assert losses(target, run_id) == losses(source, run_id)
    with Editor.open(target) as editor:
        editor.delete("run")
    merge(source, target)
    with Store.open(target) as store:
        assert not store.runs(attempts=True)


def test_streams_of_before_attempts_were_known_are_the_first(path: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    with closing(sqlite3.connect(older, isolation_level=None)) as connection:
        for number, migration in enumerate(schema.MIGRATIONS[:6], start=1):
            migration.apply(connection)
            connection.execute("INSERT INTO migration VALUES (?, ?, 0, '')", (number, migration.name))
        connection.execute(f"PRAGMA user_version = {6}")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(
            "INSERT INTO stream (stream, next, run_id, opened) VALUES (?, 3, 'run', 100.0)", (stream(1),)
        )
    with Writer.open(older) as writer:
        hello(writer, 2, started=500.0)
    assert attempts_of(older) == [(stream(1), 1), (stream(2), 2)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True), min_size=1, max_size=4),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, plan: list[list[int]], shuffle: object
) -> None:
    path = tmp_path_factory.mktemp("attempts") / "r.db"
    messages = [(number, seq, step) for number, steps in enumerate(plan) for seq, step in enumerate(sorted(steps))]
    with Writer.open(path) as writer:
        for number in range(len(plan)):
            hello(writer, number, started=100.0 * (number + 1))
        # Of one stream messages come in order; streams come in any.
        order = [number for number, _, _ in messages]
        shuffle.shuffle(order)
        following = {number: iter([m for m in messages if m[0] == number]) for number in range(len(plan))}
        for number in order:
            _, seq, step = next(following[number])
            send(writer, number, seq, step, loss=float(number))
    first = {number: min(steps) for number, steps in enumerate(plan)}
    expected: dict[str, dict[int, float]] = {"run": {}}
    for number, steps in enumerate(plan):
        cut = min((first[later] for later in range(number + 1, len(plan))), default=99)
        for step in steps:
            where = "run" if step < cut else f"run@{number + 1}"
            expected.setdefault(where, {})[step] = float(number)
    with Store.open(path) as store:
        assert {run.run_id for run in store.runs(attempts=True)} == set(expected)
    for run_id, found in expected.items():
        assert losses(path, run_id) == found
