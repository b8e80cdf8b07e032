"""Histories that are read piece by piece are those that are read at once, whatever happened to the windows between."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncmon.model import CLASSIFIER_INPUT, Reading
from ncmon.store import growing
from ncmon.store.connection import Reader
from ncmon.store.edit import Editor
from ncmon.store.growing import Memory
from ncmon.store.queries import Store
from ncmon.store.results import Columns, RunSummary
from ncmon.store.runs import StoredRun
from ncmon.store.screens import Cache, layer_part
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run, make_window
from tests.ncmon.store.batches import stored

MADE = make_evaluation(make_window(run_id="run", exact=False))
CLASS_NAMES = ("intra_cos", "no_such", "class_loss")
NAMES = ("ce_loss", "nc1_pinv", "cert_intra_min")


class Training:
    """What a run's windows may go through, each time at another second and with another loss."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.stream = b""
        self.numbers = itertools.count(1)
        self.begin()

    def begin(self) -> None:
        """Begin, or go on as the next attempt."""
        number = next(self.numbers)
        self.stream, self.seq = number.to_bytes(16, "big"), itertools.count()
        self.writer.put_run(make_run(started=100.0 * number), self.stream, now=100.0 * number)

    def send(self, step: int, exact: bool, reason: str = "", split: str = "train") -> None:
        number = next(self.numbers)
        window = dataclasses.replace(MADE.window, epoch=step, step=step, split=split, exact=exact, time=float(number))
        last = MADE.layers[-1]
        reading = Reading(value=None, reason=reason) if reason else Reading(value=float(number))
        losses = np.arange(4.0) + number
        arrays = {**last.class_arrays, "class_loss": losses}
        layer = dataclasses.replace(last, readings={**last.readings, "ce_loss": reading}, class_arrays=arrays)
        item = dataclasses.replace(MADE, window=window, layers=(*MADE.layers[:-1], layer))
        self.writer.commit([stored(next(self.seq), item, self.stream)], now=1000.0 + number)

    def thin(self, every: int) -> None:
        with Editor.open(self.writer.path) as editor:
            editor.thin("run", every)
        self.writer.look_for_edits()


def the_same(one: Mapping[str, Columns], other: Mapping[str, Columns]) -> None:
    assert list(one) == list(other)
    for name, columns in one.items():
        for field in dataclasses.fields(Columns):
            np.testing.assert_array_equal(
                getattr(columns, field.name), getattr(other[name], field.name), f"{name} {field}"
            )


def the_same_lines(one: Sequence[RunSummary], other: Sequence[RunSummary]) -> None:
    assert len(one) == len(other)
    for found, expected in zip(one, other, strict=True):
        for field in dataclasses.fields(RunSummary):
            np.testing.assert_equal(getattr(found, field.name), getattr(expected, field.name), field.name)


def act(training: Training, what: tuple[Any, ...]) -> None:
    getattr(training, what[0])(*what[1:])


STEPS = st.integers(0, 7)
ACTS = st.one_of(
    st.tuples(st.just("send"), STEPS, st.booleans(), st.sampled_from(["", "not finite"])),
    st.tuples(st.just("send"), STEPS, st.booleans(), st.just(""), st.just("test")),
    st.tuples(st.just("begin")),
    st.tuples(st.just("thin"), st.integers(2, 3)),
)


@given(st.lists(ACTS, min_size=1, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_history_that_grows_is_the_one_read_at_once(acts: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder, Writer.open(Path(folder) / "runs.db") as writer:
        training, memory = Training(writer), Memory()
        training.send(3, False)
        with Store.open(writer.path) as store:
            for what in (("thin", 2), *acts):
                act(training, what)
                with Store.open(writer.path) as fresh:
                    the_same_lines(store.summary(trend="ce_loss"), fresh.summary(trend="ce_loss"))
                run = store.run("run")
                for split in run.splits:
                    found = growing.histories(run, NAMES, memory, layer=CLASSIFIER_INPUT, split=split)
                    the_same(found, run.histories(NAMES, split=split))
                    of_class = growing.class_histories(run, CLASS_NAMES, memory, split=split, index=1)
                    assert list(of_class) == ["intra_cos", "class_loss"]
                    for name, columns in of_class.items():
                        whole = run.classes(name, split=split)
                        np.testing.assert_array_equal(columns.value, whole.values[:, 1])
                        np.testing.assert_array_equal(columns.step, whole.step)
                        np.testing.assert_array_equal(columns.time, whole.time)
                        np.testing.assert_array_equal(columns.exact, whole.exact)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From after which step on histories were read, one entry a read."""
    found: list[int] = []
    read: Callable[..., Any] = StoredRun.histories

    def histories(run: StoredRun, *arguments: Any, since_step: int = -1, **more: Any) -> Any:
        found.append(since_step)
        return read(run, *arguments, since_step=since_step, **more)

    monkeypatch.setattr(StoredRun, "histories", histories)
    return found


def test_only_what_came_is_read(tmp_path: Path, asked: list[int]) -> None:
    with Writer.open(tmp_path / "runs.db") as writer, Store.open(writer.path) as store:
        training, memory = Training(writer), Memory()

        def look() -> Columns:
            return growing.history(store.run("run"), "ce_loss", memory, split="train")

        for step in (10, 20, 30):
            training.send(step, False)
        first = look()
        assert look() is first
        assert asked == [-1]
        training.send(40, False)
        assert look().step.tolist() == [10, 20, 30, 40]
        training.send(40, True)  # of the same step, measured at frozen weights: both stay
        assert look().step.tolist() == [10, 20, 30, 40, 40]
        assert asked == [-1, 39, 39]


def test_a_last_window_that_came_again_is_read_again_though_its_key_is_the_same(tmp_path: Path) -> None:
    with Writer.open(tmp_path / "runs.db") as writer, Store.open(writer.path) as store:
        training, memory = Training(writer), Memory()
        cache = Cache(memory=memory)
        keys, losses, pictured = [], [], []
        for _ in range(2):
            training.send(10, False)
            run = store.run("run")
            keys += run._reader.execute("SELECT window_key FROM window")
            losses += growing.history(run, "ce_loss", memory, split="train").value.tolist()
            pictured += layer_part(run, "ce_loss", "train", (), None, cache).values[-1].tolist()
        assert keys[0] == keys[1]
        assert losses[0] != losses[1]
        assert pictured == losses


def test_of_runs_into_which_nothing_came_no_trend_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer.open(tmp_path / "runs.db") as writer, Store.open(writer.path) as store:
        training = Training(writer)
        training.send(10, False)
        writer.put_run(make_run(run_id="other", started=5000.0), b"other" + bytes(11), now=5000.0)
        read: list[int] = []
        execute: Callable[..., Any] = Reader.execute

        def executed(reader: Reader, sql: str, *parameters: Any) -> Any:
            if "spanned" in sql:
                read.append(len(json.loads(parameters[0]["keys"])))
            return execute(reader, sql, *parameters)

        monkeypatch.setattr(Reader, "execute", executed)
        for _ in range(2):
            assert [line.run.run_id for line in store.summary(trend="ce_loss")] == ["other", "run"]
        assert read == [2]
        # The same step again, twice: the second has the key of the first.
        for _ in range(2):
            training.send(10, False)
            (line,) = (line for line in store.summary(trend="ce_loss") if line.run.run_id == "run")
            assert line.trend.tolist() == [float(line.time or 0)]
        assert read == [2, 1, 1]
        store.summary(trend="nc1_pinv")
        assert read == [2, 1, 1, 2]


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    monkeypatch.setattr(growing, "MOST_KEPT", 2)
    with Writer.open(tmp_path / "runs.db") as writer, Store.open(writer.path) as store:
        training, memory = Training(writer), Memory()
        training.send(10, False)
        run = store.run("run")
        for metric in ("ce_loss", "nc1_pinv", "ce_loss", "nc1_cdnv", "ce_loss"):
            growing.history(run, metric, memory, split="train")
        assert len(memory.grown) == 2
        assert len(asked) == 3  # the one that was used again stayed
