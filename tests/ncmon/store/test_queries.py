"""Reading: references, columns, views for outside tools, SQL that can only read, beside a writer."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import ncmon
from ncmon.errors import NotFound, StoreError, UsageError
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store.queries import Store
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run, make_window
from tests.ncmon.store.batches import STREAM, stored

EPOCHS = 6


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "t.db"
    with Writer.open(path) as writer:
        for number, (run_id, name) in enumerate([("abc1", "digits"), ("abd2", "digits"), ("xyz3", "other")]):
            stream = bytes([number]) * 16
            writer.put_run(make_run(run_id=run_id, name=name, started=100.0 + number), stream, now=1.0)
            for epoch in range(EPOCHS if run_id != "xyz3" else 0):
                window = make_window(run_id=run_id, seed=number, collapse=epoch / EPOCHS, epoch=epoch, exact=epoch == 2)
                writer.commit([stored(epoch, make_evaluation(window), stream)], now=2.0)
    return path


@pytest.fixture
def store(database: Path) -> Iterator[Store]:
    with ncmon.open(database) as opened:
        yield opened


@pytest.mark.parametrize(
    ("ref", "run_id"), [("abc1", "abc1"), ("abd", "abd2"), ("digits", "abd2"), ("latest", "xyz3"), ("x", "xyz3")]
)
def test_a_run_goes_by_id_prefix_name_or_latest(store: Store, ref: str, run_id: str) -> None:
    assert store.run(ref).run_id == run_id


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("ab", "2 runs have an id that begins with 'ab'"),
        ("digit", "digits"),
        ("nosuchrun", "there is other"),
        ("", "no run"),
    ],
)
def test_a_run_that_is_not_there_leads_on(store: Store, ref: str, says: str) -> None:
    with pytest.raises(NotFound, match=says):
        store.run(ref)


def test_histories_are_columns_in_order(store: Store) -> None:
    history = store.run("abc1").history("nc1_pinv")
    assert history.epoch.tolist() == list(range(EPOCHS))
    assert history.step.tolist() == [100 * (epoch + 1) for epoch in range(EPOCHS)]
    assert history.exact.tolist() == [epoch == 2 for epoch in range(EPOCHS)]
    expected = [
        make_evaluation(make_window(run_id="abc1", seed=0, collapse=epoch / EPOCHS, epoch=epoch))
        .layers[-1]
        .readings["nc1_pinv"]
        .value
        for epoch in range(EPOCHS)
    ]
    assert history.value.tolist() == expected
    assert store.run("abc1").history("nc1_pinv", since_step=400).epoch.tolist() == [4, 5]
    assert len(store.run("abc1").history("nc1_pinv", split="nosuch")) == 0
    assert len(store.run("xyz3").history("nc1_pinv")) == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [("nc1_pniv", "nc1_pinv"), ("intra_cos", "classes"), ("inter_cos", "matrix"), ("nonsense", "no metric")],
)
def test_a_metric_that_is_no_history_leads_on(store: Store, name: str, says: str) -> None:
    with pytest.raises(NotFound, match=says):
        store.run("abc1").history(name)


def test_a_layer_that_is_not_there_leads_on(store: Store) -> None:
    with pytest.raises(NotFound, match=r"blocks\.0"):
        store.run("abc1").history("nc1_pinv", layer="block.0")


def test_a_summary_has_the_last_window_of_every_run(store: Store) -> None:
    first, second, third = store.summary()
    assert [line.run.run_id for line in (first, second, third)] == ["xyz3", "abd2", "abc1"]
    assert (first.n_windows, first.epoch, first.split) == (0, None, "")
    assert np.isnan(first.values["nc1_pinv"])
    assert (third.n_windows, third.n_layers, third.epoch, third.split) == (EPOCHS, 3, EPOCHS - 1, "train")
    history = store.run("abc1").history("nc1_pinv")
    assert third.values["nc1_pinv"] == history.value[-1]
    np.testing.assert_array_equal(third.trend, history.value)
    assert len(store.summary(limit=1)) == 1


def test_views_give_long_rows_to_any_tool(database: Path, store: Store) -> None:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        rows = connection.execute(
            "SELECT epoch, value FROM history WHERE run_name = 'digits' AND run_id = 'abc1' AND metric = 'nc1_pinv'"
            " AND layer = 'classifier-input' ORDER BY step"
        ).fetchall()
        history = store.run("abc1").history("nc1_pinv")
        assert rows == list(zip(history.epoch.tolist(), history.value.tolist(), strict=True))
        classes = connection.execute(
            "SELECT class, class_name, value FROM class_history WHERE run_id = 'abc1' AND metric = 'intra_cos'"
            " AND epoch = 3 ORDER BY class"
        ).fetchall()
        expected = store.run("abc1").classes("intra_cos").values[3]
        assert classes == [(c, str(c), value) for c, value in enumerate(expected.tolist())]
        names = [row[0] for row in connection.execute("SELECT name FROM runs ORDER BY started")]
        assert names == ["digits", "digits", "other"]
        assert connection.execute("SELECT count(*) FROM history WHERE reason IS NOT NULL AND value IS NULL").fetchone()


def test_python_is_not_needed_to_read_the_file(database: Path) -> None:
    import shutil

    if shutil.which("sqlite3") is None:
        pytest.skip("no sqlite3 shell here")
    done = subprocess.run(
        ["sqlite3", "-safe", "-readonly", str(database), "SELECT count(*) FROM history WHERE metric = 'alpha'"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == 2 * EPOCHS * 3


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM run",
        "UPDATE run SET name = 'x'",
        "DROP TABLE run",
        "INSERT INTO run (name) VALUES ('x')",
        "CREATE TABLE t (x)",
        "ATTACH '/tmp/x.db' AS other",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = ON",
        "SELECT load_extension('x')",
        "VACUUM INTO '/tmp/x.db'",
        "SELECT 1; DROP TABLE run",
        "BEGIN",
        "",
        "   ",
        "nonsense",
        "SELECT nosuch FROM run",
    ],
)
def test_sql_can_only_read(store: Store, database: Path, text: str) -> None:
    before = database.read_bytes()
    with pytest.raises(UsageError) as caught:
        store.sql(text)
    assert "\n" not in str(caught.value)
    assert database.read_bytes() == before


def test_sql_has_its_limits(store: Store) -> None:
    rows = store.sql("SELECT run_id FROM runs ORDER BY run_id", max_rows=2)
    assert rows.columns == ("run_id",)
    assert rows.rows == (("abc1",), ("abd2",))
    assert rows.truncated
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StoreError, match="longer than"):
        store.sql(endless, timeout_s=0.1)
    with pytest.raises(UsageError):
        store.sql("SELECT length(zeroblob(1000000000))")


def test_reading_beside_a_writer_sees_whole_windows_only(path: Path, writer: Writer) -> None:
    """Each committed batch holds both splits of an epoch: a reader never sees one without the other."""
    writer.put_run(make_run(), STREAM, now=1.0)
    writer.commit([stored(0, make_evaluation(split="a")), stored(1, make_evaluation(split="b"))], now=1.0)
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def read() -> None:
        with Store.open(path) as store:
            while not done.is_set():
                (row,) = store.sql("SELECT sum(split = 'a'), sum(split = 'b') FROM window").rows
                seen.append(row)  # type: ignore[arg-type]

    reader = threading.Thread(target=read)
    reader.start()
    for epoch in range(1, 15):
        batch = [
            stored(2 * epoch + place, make_evaluation(epoch=epoch, split=split)) for place, split in enumerate("ab")
        ]
        writer.commit(batch, now=2.0)
    done.set()
    reader.join()
    assert all(a == b for a, b in seen)
    assert len(set(seen)) > 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_in_a_directory_without_write_access_can_be_read(tmp_path: Path) -> None:
    place = tmp_path / "ro"
    place.mkdir()
    with Writer.open(place / "t.db") as writer:
        writer.put_run(make_run(), STREAM, now=1.0)
    place.chmod(0o500)
    try:
        with Store.open(place / "t.db") as store:
            assert store.run("latest").run_id == "run"
    finally:
        place.chmod(0o700)


def test_the_last_window_of_each_split_and_kind(store: Store) -> None:
    streaming, exact = store.run("abc1").readings()
    assert (streaming.epoch, streaming.exact) == (EPOCHS - 1, False)
    assert (exact.epoch, exact.exact) == (2, True)
    (second,) = store.run("abc1").readings(epoch=1, layer=CLASSIFIER_INPUT)
    assert second.step == 200
    assert list(second.layers) == [CLASSIFIER_INPUT]
    assert store.run("abc1").readings(epoch=99) == ()
    assert store.run("xyz3").readings() == ()
