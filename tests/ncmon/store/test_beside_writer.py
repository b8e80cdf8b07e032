"""Readers beside the writer: no lock errors, and a journal that is folded back all the same."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
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


def write(path: Path, *, beside: Callable[[], ContextManager[object]]) -> int:
    """Write windows with somebody beside, and return the most bytes that the journal had."""
    most = 0
    with Writer.open(path, checkpoint_pages=PAGES) as writer, Checkpoints(path, long_bytes=LONG_BYTES):
        hello(writer, 1, started=100.0)
        send(writer, 1, 0, 0)
        with beside():
            for seq in range(1, WINDOWS):
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
                assert int(said) > 3

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


class Relay:
    """Two readers of one database of which one always reads: no moment is without."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Relay:
        self._thread.start()
        assert self._begun.wait(30)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        with closing(self._connect()) as reading, closing(self._connect()) as other:
            self._read(reading)
            self._begun.set()
            while not self._stop.wait(0.02):
                self._read(other)
                reading.execute("COMMIT")
                reading, other = other, reading

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None)

    def _read(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM window").fetchall()


def salt(path: Path) -> bytes:
    """Return what the journal's header has anew whenever it begins anew."""
    with path.with_name(path.name + "-wal").open("rb") as journal:
        return journal.read(24)[16:]


def windows_until_anew(path: Path, *, long_bytes: int, most: int) -> int:
    """Return after how many windows the journal began anew beside readers without a pause; `most` where it did not."""
    with Writer.open(path, checkpoint_pages=PAGES) as writer, Checkpoints(path, long_bytes=long_bytes):
        hello(writer, 1, started=100.0)
        send(writer, 1, 0, 0)
        with Relay(path):
            before = salt(path)
            for seq in range(1, most):
                send(writer, 1, seq, 10 * seq)
                if salt(path) != before:
                    return seq
                time.sleep(0.005)
    return most


def test_readers_that_relieve_each_other_are_waited_for(tmp_path: Path) -> None:
    # However busy the machine is: the longer the journal, the longer they are waited for.
    anew = windows_until_anew(tmp_path / "waited.db", long_bytes=LONG_BYTES, most=4000)
    assert anew < 4000
    assert windows_until_anew(tmp_path / "never.db", long_bytes=2**40, most=2 * anew) == 2 * anew


class Failing(Checkpoints):
    """One that meets a full disk three times."""

    failures = 3

    def _connect(self) -> sqlite3.Connection:
        if self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return super()._connect()


def test_a_full_disk_does_not_end_the_folding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ncmon.store.checkpoint.AGAIN_S", 0.05)
    path = tmp_path / "f.db"
    # The writer itself folds nothing back: what comes into the file came by the thread.
    with Writer.open(path, checkpoint_pages=0) as writer, Failing(path, every_s=0.02) as checkpoints:
        assert isinstance(checkpoints, Failing)
        hello(writer, 1, started=100.0)
        before = path.stat().st_size
        seq = 0
        end = time.monotonic() + 30.0
        while path.stat().st_size < before + 256 * 1024 and time.monotonic() < end:
            send(writer, 1, seq, 10 * seq)
            seq += 1
        assert path.stat().st_size >= before + 256 * 1024
        assert checkpoints.failures == 0
    # Said once, however often it failed.
    assert [record.getMessage() for record in caplog.records if "folded back" in record.getMessage()] == [
        "the write-ahead log is folded back by the writer alone for now: database or disk is full"
    ]
