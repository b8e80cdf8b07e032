"""A database that is kept below a size: arrays first, then every second window of the longest history."""

from __future__ import annotations

import dataclasses
import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

from ncmon.store.trim import STAY
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_window
from tests.ncmon.store.batches import stored
from tests.ncmon.store.test_writer import count


def rows(path: Path, query: str) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [key for (key,) in connection.execute(query)]


def fill(writer: Writer, windows: int, *, n_classes: int = 4) -> None:
    made = make_evaluation(make_window(n_classes=n_classes, n_features=8))
    for step in range(windows):
        window = dataclasses.replace(made.window, epoch=step, step=step)
        writer.commit([stored(step, dataclasses.replace(made, window=window))], now=1.0)


def test_the_oldest_arrays_go_first_and_no_scalar_with_them(path: Path, writer: Writer) -> None:
    fill(writer, 8, n_classes=40)
    readings, size, arrays = count(path, "reading"), writer.nbytes, count(path, "array")
    assert not writer.trim(size)
    limit = size - size // 3
    dropped = writer.trim(limit)
    assert 0 < dropped.arrays < 8
    assert dropped.windows == 0
    assert 0 < count(path, "array") < arrays
    assert count(path, "reading") == readings
    kept = rows(path, "SELECT DISTINCT window_key FROM array ORDER BY 1")
    newest = rows(path, "SELECT max(window_key) FROM window")[0]
    assert kept == list(range(newest - len(kept) + 1, newest + 1))
    assert rows(path, "PRAGMA integrity_check") == ["ok"]


def test_the_file_itself_becomes_smaller(path: Path, writer: Writer) -> None:
    fill(writer, 12, n_classes=60)
    writer.fold_journal()
    before = path.stat().st_size
    limit = before // 2
    while writer.trim(limit):
        pass
    writer.trim(limit)
    writer.fold_journal()
    assert path.stat().st_size <= limit


def test_without_arrays_the_longest_history_loses_every_second_window_but_its_ends(path: Path, writer: Writer) -> None:
    fill(writer, 200)
    limit = writer.nbytes * 7 // 10
    while writer.trim(limit):
        pass
    assert count(path, "array") == 0
    steps = rows(path, "SELECT step FROM window ORDER BY step")
    assert writer.nbytes <= limit
    assert 40 <= len(steps) < 200
    assert steps[0] == 0
    assert steps[-STAY:] == list(range(200 - STAY, 200))
    # Evenly, the oldest first: distances are powers of two that only become smaller.
    gaps = [two - one for one, two in itertools.pairwise(steps)]
    assert set(gaps) <= {1, 2, 4}
    assert gaps == sorted(gaps, reverse=True)
    for table in ("reading", "reason", "class_reading"):
        orphans = rows(path, f"SELECT count(*) FROM {table} WHERE window_key NOT IN (SELECT window_key FROM window)")
        assert orphans == [0], table
    assert rows(path, "PRAGMA foreign_key_check") == []


def test_what_may_not_go_stays_however_small_the_limit(path: Path, writer: Writer) -> None:
    fill(writer, 60)
    for _ in range(50):
        writer.trim(1)
    steps = rows(path, "SELECT step FROM window ORDER BY step")
    assert steps[0] == 0
    assert steps[-STAY:] == list(range(60 - STAY, 60))
    assert len(steps) == STAY + 2
    assert not writer.trim(1)


def test_a_reader_in_the_way_keeps_the_journal_and_nobody_waits(path: Path, writer: Writer) -> None:
    fill(writer, 30, n_classes=40)
    with closing(sqlite3.connect(path, isolation_level=None)) as stuck:
        stuck.execute("BEGIN")
        seen = stuck.execute("SELECT count(*) FROM window").fetchone()
        # Whatever is written now stays behind what the reader sees.
        made = make_evaluation(make_window(n_classes=40, n_features=8))
        for step in range(30, 130):
            window = dataclasses.replace(made.window, epoch=step, step=step)
            writer.commit([stored(step, dataclasses.replace(made, window=window))], now=1.0)
        grown = writer.journal_bytes
        writer.fold_journal()
        assert writer.journal_bytes == grown > 0
        assert stuck.execute("SELECT count(*) FROM window").fetchone() == seen
    writer.fold_journal()
    assert writer.journal_bytes == 0
    assert count(path, "window") == 130
