"""Readers beside the writer: no lock errors, and a journal that is folded back all the same."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as ContextManager
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ncmon.store.checkpoint import Checkpoints
from ncmon.store.writer import Writer
from tests.ncmon.store.test_attempts import hello, send

pytestmark = pytest.mark.sockets

READ = """
import sys
from pathlib import Path
from ncmon.store.queries import Store
path, turns = Path(sys.argv[1]), 0
with Store.open(path) as store:
    print("ready", flush=True)
    while store.run("run").status == "live":
        run = store.run("run")
        steps = run.window_columns().step.tolist()
        history = run.history("nc1_pinv")
        # What one read sees is whole: never fewer windows than an earlier read saw.
        assert steps == sorted(set(steps))
        assert len(history) >= len(steps)
        store.summary(), run.readings(), run.classes("intra_cos")
        store.sql("SELECT max(value) FROM history WHERE run_id = 'run' AND metric = 'nc1_pinv'")
        turns += 1
        if (path.parent / "end").exists():
            break
print(turns)
"""
RELIEVE = """
import sqlite3, sys, time
path, pause = sys.argv[1], float(sys.argv[2])
connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
print("ready", flush=True)
time.sleep(pause)
while True:
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM window").fetchall()
    time.sleep(0.045)
    connection.execute("COMMIT")
"""
WINDOWS = 400
PAGES, LONG_BYTES = 256, 4 * 1024 * 1024
"""What the writer folds back at a time here, a megabyte; and from when on readers are waited for."""


@contextmanager
def readers(path: Path, script: str, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), argument],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for argument in arguments
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.communicate()


def write(
    path: Path, *, long_bytes: int = LONG_BYTES, windows: int = WINDOWS, beside: Callable[[], ContextManager[object]]
) -> int:
    """Write windows with somebody beside, and return the most bytes that the journal had."""
    most = 0
    with Writer.open(path, checkpoint_pages=PAGES) as writer, Checkpoints(path, long_bytes=long_bytes):
        hello(writer, 1, started=100.0)
        send(writer, 1, 0, 0)
        with beside():
            for seq in range(1, windows):
                send(writer, 1, seq, 10 * seq)
                most = max(most, writer.journal_bytes)
                time.sleep(0.005)
    return most


def test_reading_all_the_time_neither_fails_nor_keeps_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "r.db"

    @contextmanager
    def reading() -> Iterator[None]:
        with readers(path, READ, "", "") as children:
            yield
            (tmp_path / "end").touch()
            for child in children:
                assert child.stdout is not None
                assert child.stderr is not None
                said, errors = child.stdout.read(), child.stderr.read()
                assert child.wait(timeout=60) == 0, errors
                assert int(said) > 10

    @contextmanager
    def stuck() -> Iterator[None]:
        with closing(sqlite3.connect(tmp_path / "kept.db", isolation_level=None)) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM window").fetchall()
            yield

    beside = write(path, beside=reading)
    # The control: one that keeps a transaction open does keep the journal, which then is all that was written.
    kept = write(tmp_path / "kept.db", beside=stuck)
    assert beside < kept / 2, (beside, kept)


def test_readers_that_relieve_each_other_are_waited_for(tmp_path: Path) -> None:
    def relieving(name: str) -> Callable[[], ContextManager[object]]:
        return lambda: readers(tmp_path / name, RELIEVE, "0", "0.015", "0.03")

    waited = write(tmp_path / "waited.db", windows=2 * WINDOWS, beside=relieving("waited.db"))
    never = write(tmp_path / "never.db", windows=2 * WINDOWS, long_bytes=2**40, beside=relieving("never.db"))
    assert waited < never / 2, (waited, never)
