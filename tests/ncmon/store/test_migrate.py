"""Schemas: made, brought up to date, refused, copied before rows change."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ncmon.bounds import BOUNDS
from ncmon.errors import StoreError
from ncmon.metrics import METRICS
from ncmon.store import migrate, schema
from ncmon.store.queries import Store
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run
from tests.ncmon.store.batches import STREAM, stored


def make(path: Path) -> None:
    with Writer.open(path) as writer:
        writer.put_run(make_run(), STREAM, now=1.0)
        writer.commit([stored(0, make_evaluation())], now=2.0)


def test_a_new_file_says_what_it_is_and_what_its_columns_mean(path: Path) -> None:
    Writer.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        names = {name for (name,) in connection.execute("SELECT name FROM definition")}
        assert names == {entry.name for entry in (*METRICS, *BOUNDS)}
        columns = {row[1] for row in connection.execute("PRAGMA table_info(reading)")}
        assert {entry.name for entry in METRICS if entry.scope in ("layer", "classifier", "window")} <= columns


def test_a_metric_that_is_new_gets_a_column_and_an_old_one_keeps_its_own(path: Path) -> None:
    make(path)
    new = dataclasses.replace(METRICS[0], name="nc9_new")
    with closing(migrate.connect_writer(path, version="9")) as connection:
        connection.execute("BEGIN")
        migrate.add_columns(connection, [*METRICS[1:], *BOUNDS, new], now=3.0)
        connection.execute("COMMIT")
        columns = schema.columns_of(connection, "reading", schema.READING_FIXED)
        assert "nc9_new" in columns
        assert METRICS[0].name in columns
        rows = connection.execute("SELECT count(*) FROM history WHERE metric = ?", (METRICS[0].name,)).fetchone()
        assert rows[0] > 0


def test_a_name_that_could_be_sql_is_no_column(path: Path) -> None:
    make(path)
    bad = dataclasses.replace(METRICS[0], name='x" REAL; DROP TABLE run; --')
    with closing(migrate.connect_writer(path, version="9")) as connection:
        with pytest.raises(StoreError, match="cannot name a column"):
            migrate.add_columns(connection, [bad])
        assert connection.execute("SELECT count(*) FROM run").fetchone() == (1,)


def _touch(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE run SET name = 'touched'")


def _fail(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE run SET name = 'half'")
    connection.execute("SELECT nonsense")


def test_a_migration_that_changes_rows_copies_the_file_first(path: Path) -> None:
    make(path)
    second = schema.Migration(name="touch", apply=_touch, rewrites=True)
    migrate.connect_writer(path, version="9", migrations=(*schema.MIGRATIONS, second)).close()
    copy = path.with_name(f"{path.name}.schema-{schema.SCHEMA}.bak")
    for file, name in ((path, "touched"), (copy, "run")):
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("SELECT name FROM run").fetchone() == (name,)
    assert not list(path.parent.glob("*.part"))


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    make(path)
    second = schema.Migration(name="fail", apply=_fail)
    with pytest.raises(StoreError, match="no such column"):
        migrate.connect_writer(path, version="9", migrations=(*schema.MIGRATIONS, second))
    with Store.open(path) as store:
        assert store.run("latest").name == "run"


@pytest.mark.parametrize("open_it", [Writer.open, Store.open])
def test_what_is_none_of_ours_is_refused_and_left_alone(path: Path, open_it: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not one of ncmon's"):
        open_it(path)
    assert path.read_bytes() == before

    path.write_text("not a database, only text " * 100)
    with pytest.raises(StoreError, match="not an SQLite database"):
        open_it(path)

    path.unlink()
    make(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
    with pytest.raises(StoreError, match="newer ncmon"):
        open_it(path)


def test_reading_what_is_not_there_is_one_line(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such database"):
        Store.open(path)
    with pytest.raises(StoreError, match="is a directory"):
        Store.open(tmp_path)
    path.touch()
    with pytest.raises(StoreError, match="is empty"):
        Store.open(path)
    with pytest.raises(StoreError) as caught:
        Writer.open(Path("/proc/none/t.db"))
    assert "\n" not in str(caught.value)


def test_a_file_cut_in_half_is_damaged_not_a_traceback(path: Path) -> None:
    make(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"), Store.open(path) as store:
        store.run("latest").readings()
        store.sql("SELECT count(*) FROM class_history")
