"""One transaction a batch: content, origin and `stream.next` together, each message once."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ncmon.errors import Rejected, StoreError
from ncmon.model import CLASSIFIER_INPUT, Gap, Rejection, RunEnd
from ncmon.store.queries import Store
from ncmon.store.rows import KEPT_EPOCHS, RECENT_WINDOWS
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run, make_window
from tests.ncmon.store.batches import STREAM, stored


def count(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_what_is_stored_is_what_was_evaluated_bit_for_bit(path: Path, writer: Writer) -> None:
    run = make_run(class_names=("a", "b", "c", "d"), config={"lr": 0.1, "deep": {"x": [1]}}, tags=("t",))
    evaluation = make_evaluation(make_window(exact=True, epoch=3))
    writer.put_run(run, STREAM, now=1.0)
    writer.commit([stored(0, evaluation)], now=2.0)
    with Store.open(path) as store:
        found = store.run("run")
        assert dataclasses.replace(found.run, last_seen=None) == run
        (window,) = found.readings()
        assert (window.epoch, window.step, window.exact, window.partial) == (3, 400, True, False)
        assert list(window.layers) == [layer.key.name for layer in evaluation.layers]
        for layer in evaluation.layers:
            read = window.layers[layer.key.name]
            assert (read.module, read.n_features, read.key) == (layer.module, layer.n_features, layer.key)
            for name, reading in layer.readings.items():
                assert read.readings[name] == reading, name
            assert read.quality == layer.quality
            for name, matrix in layer.pair_arrays.items():
                np.testing.assert_array_equal(found.matrix(name, layer=layer.key.name), matrix)
            for name, values in layer.class_arrays.items():
                columns = found.classes(name, layer=layer.key.name)
                np.testing.assert_array_equal(columns.values, values[None])
        at_classifier = evaluation.layers[-1]
        for name, values in window.layers[CLASSIFIER_INPUT].class_arrays.items():
            np.testing.assert_array_equal(values, at_classifier.class_arrays[name])


def test_a_message_that_comes_again_changes_nothing(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    writer.commit([stored(0, make_evaluation())], now=2.0)
    revision = writer.revision
    other = make_evaluation(seed=9, epoch=5)
    writer.commit([stored(0, other)], now=3.0)
    assert (count(path, "window"), count(path, "origin")) == (1, 1)
    assert writer.revision == revision
    assert writer.stream_next(STREAM) == 1
    assert writer.stream_next(b"?" * 16) is None


def test_a_batch_is_stored_whole_or_not_at_all(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    poison = make_evaluation(epoch=1)
    poison = dataclasses.replace(poison, window=dataclasses.replace(poison.window, step=2**70))
    with pytest.raises(Rejected):
        writer.commit([stored(0, make_evaluation()), stored(1, poison)], now=2.0)
    assert (count(path, "window"), count(path, "origin"), writer.stream_next(STREAM)) == (0, 0, 0)
    writer.commit([stored(0, make_evaluation())], now=2.0)
    assert (count(path, "window"), writer.stream_next(STREAM)) == (1, 1)


def test_a_resumed_run_overwrites_the_steps_that_it_repeats(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    writer.commit([stored(0, make_evaluation(epoch=0)), stored(1, make_evaluation(epoch=1))], now=2.0)
    again = b"t" * 16
    second = make_evaluation(epoch=1, seed=5)
    writer.put_run(make_run(), again, now=3.0)
    writer.commit([stored(0, second, again)], now=4.0)
    with Store.open(path) as store:
        history = store.run("run").history("nc1_pinv")
        assert history.epoch.tolist() == [0, 1]
        assert history.value[1] == second.layers[-1].readings["nc1_pinv"].value


def test_a_run_ends_fails_and_goes_on(path: Path, writer: Writer) -> None:
    def status() -> tuple[str, float | None]:
        with Store.open(path) as store:
            run = store.run("run").run
            return run.status, run.ended

    writer.put_run(make_run(), STREAM, now=1.0)
    assert status() == ("live", None)
    writer.commit([stored(0, RunEnd(run_id="run", status="failed", text="oops", time=5.0))], now=5.0)
    writer.commit([stored(1, RunEnd(run_id="run", status="finished", text="", time=6.0))], now=6.0)
    assert status() == ("failed", 6.0)  # of several ranks the failure stands
    writer.put_run(make_run(), STREAM, now=7.0)  # the same stream says HELLO again
    assert status() == ("failed", 6.0)
    writer.put_run(make_run(), b"t" * 16, now=8.0)  # another process takes the run up
    assert status() == ("live", None)


def test_a_window_whose_run_never_said_hello_is_still_data(path: Path, writer: Writer) -> None:
    writer.commit([stored(0, make_evaluation())], now=2.0)
    with Store.open(path) as store:
        assert store.run("run").windows() == 1


def test_gaps_and_rejections_are_kept_with_their_reasons(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    gap = Gap(run_id="run", split="train", epoch=2, step=30, time=3.0, reason="could not be sealed")
    rejection = Rejection(
        stream=STREAM, seq=1, run_id="run", code="shape", reason="expected 4", head=b"\x00\xff", time=4.0
    )
    writer.commit([stored(0, gap), stored(1, rejection)], now=5.0)
    with Store.open(path) as store:
        assert [found.gap for found in store.run("run").gaps()] == [gap]
        (found,) = store.rejected()
        assert (found.code, found.reason, found.head) == ("shape", "expected 4", b"\x00\xff")


def test_arrays_stay_for_recent_windows_and_every_tenth_epoch(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    epochs = 25
    for seq in range(2 * epochs):
        window = make_window(epoch=seq // 2, step=10 * (seq + 1), n_classes=3)
        writer.commit([stored(seq, make_evaluation(window))], now=2.0)
    with Store.open(path) as store:
        run = store.run("run")
        kept = run.classes("intra_cos", layer="blocks.0")
        recent = list(range(10 * (2 * epochs - RECENT_WINDOWS + 1), 10 * 2 * epochs + 1, 10))
        tenths = [20 * (epoch + 1) for epoch in range(0, epochs, KEPT_EPOCHS)]
        assert kept.step.tolist() == sorted({*recent, *tenths})
        # Scalars and the classes of the classifier's input stay for ever.
        assert len(run.history("nc1_pinv")) == len(run.classes("intra_cos")) == 2 * epochs


def test_a_missing_number_is_a_reason_and_a_value_that_is_none_is_not_zero(path: Path, writer: Writer) -> None:
    evaluation = make_evaluation(n_classes=2, per_class=[20, 0])
    writer.put_run(make_run(n_classes=2), STREAM, now=1.0)
    writer.commit([stored(0, evaluation)], now=2.0)
    with Store.open(path) as store:
        history = store.run("run").history("inter_cos_max")
        assert np.isnan(history.value).all()
        assert history.reason == (evaluation.layers[-1].readings["inter_cos_max"].reason,)
        assert history.reason[0]
        expected = evaluation.layers[-1].readings["alpha"].value
        assert expected is not None
        assert store.run("run").history("alpha").value[0] == expected


def test_a_database_that_cannot_be_written_raises_and_loses_nothing(path: Path, writer: Writer) -> None:
    writer.put_run(make_run(), STREAM, now=1.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer._connection.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(StoreError, match="another process"):
            writer.commit([stored(0, make_evaluation())], now=2.0)
        other.execute("ROLLBACK")
    writer.commit([stored(0, make_evaluation())], now=2.0)
    assert count(path, "window") == 1
