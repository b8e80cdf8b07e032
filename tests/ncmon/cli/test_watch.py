"""`ncmon watch` for scripts: one look in four formats, and a line for every window that comes, as real processes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ncmon.model import StreamSeq
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_run
from tests.ncmon.cli.conftest import Run

STREAM = b"f" * 16


def test_every_format_says_the_same_of_the_runs(run: Run, made: Path) -> None:
    record = json.loads(run("watch", str(made), "--format", "json").stdout)
    lines = [json.loads(line) for line in run("watch", str(made), "--format", "jsonl").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(run("watch", str(made), "--once", "--format", "csv").stdout)))
    assert len(record["runs"]) == len(lines) == len(rows) == 4
    for one, line, row in zip(record["runs"], lines, rows, strict=True):
        assert {key: line[key] for key in one} == one
        assert line["source"] is None
        assert line["source_state"] == "REPLAY"
        assert float(row["nc1_pinv"]) == one["nc1_pinv"] == line["nc1_pinv"]
    table = run("watch", str(made), "--once", "--format", "table").stdout
    assert table == run("watch", str(made)).stdout
    assert f"{record['runs'][1]['nc1_pinv']:.4g}" in table


def test_several_targets_say_which_run_is_whose(run: Run, made: Path, tmp_path: Path) -> None:
    other = store(tmp_path / "other.db", range(2))
    done = run("watch", str(made), str(other), "--once")
    assert done.exit_code == 0, done.stderr
    assert "runs   REPLAY" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("digits") and " other " in line]
    lines = [json.loads(x) for x in run("watch", str(made), str(other), "--format", "jsonl").stdout.splitlines()]
    assert {line["source"] for line in lines} == {"runs", "other"}
    assert "r1@other" in {line["run_id"] for line in lines}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--once", "--follow"), "expected one of them"),
        (("--follow", "--format", "json"), "--format jsonl"),
        (("nosuch.db", "--follow"), "nosuch.db"),
        (("nosuch.db", "other.db"), "nosuch.db"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run("watch", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def store(path: Path, epochs: range) -> Path:
    with Writer.open(path) as writer:
        if epochs.start == 0:
            writer.put_run(make_run(run_id="r1", name="digits"), STREAM, now=1_800_000_000.0)
        for epoch in epochs:
            item = make_evaluation(epoch=epoch, step=10 * (epoch + 1), run_id="r1")
            record = Stored(origins=(StreamSeq(stream=STREAM, seq=epoch),), item=item)
            writer.commit([record], now=1_800_000_000.0 + epoch)
    return path


@contextmanager
def follower(*arguments: str, out: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "ncmon.cli", "watch", "--follow", *arguments],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.mark.sockets
def test_following_tells_every_new_window_once_and_ends_at_an_interrupt(tmp_path: Path) -> None:
    path = store(tmp_path / "f.db", range(3))
    with follower(str(path), "--format", "csv") as child:
        assert child.stdout is not None
        head = child.stdout.readline()  # it has looked: what comes from now on is new
        assert head.startswith("source,run_id,name,split,epoch,step,time,exact,")
        store(path, range(3, 20))
        text = head + "".join(child.stdout.readline() for _ in range(17))
        child.send_signal(signal.SIGINT)
        rest, errors = child.communicate(timeout=30)
    assert (rest, errors, child.returncode) == ("", "", 0)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["epoch"]) for row in rows] == list(range(3, 20))
    expected = make_evaluation(epoch=9, step=100, run_id="r1").layers[-1].readings
    row = rows[6]
    assert float(row["nc1_pinv"]) == expected["nc1_pinv"].value
    assert float(row["cert_intra_min"]) == expected["cert_intra_min"].value


@pytest.mark.sockets
def test_following_several_names_the_source(tmp_path: Path) -> None:
    paths = [store(tmp_path / f"{name}.db", range(1)) for name in "ab"]
    with follower(*map(str, paths), "--format", "csv") as child:
        assert child.stdout is not None
        child.stdout.readline()
        for path in paths:
            store(path, range(1, 3))
        rows = [child.stdout.readline().split(",")[:5] for _ in range(4)]
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    assert sorted((row[0], row[1], row[4]) for row in rows) == [
        ("a", "r1@a", "1"),
        ("a", "r1@a", "2"),
        ("b", "r1@b", "1"),
        ("b", "r1@b", "2"),
    ]


@pytest.mark.sockets
def test_following_ends_when_nobody_reads_though_nothing_comes(tmp_path: Path) -> None:
    path = store(tmp_path / "f.db", range(1))
    read, write = os.pipe()
    with follower(str(path), out=write) as child:
        os.close(write)
        assert os.read(read, 64).startswith(b"TIME")
        os.close(read)
        assert child.wait(30) == 0
        assert child.stderr is not None
        assert child.stderr.read() == ""


@pytest.mark.sockets
def test_following_goes_on_while_the_daemon_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon answers: what another process stores is read from its database all the same."""
    monkeypatch.setenv("NCMON_DB", str(store(tmp_path / "f.db", range(1))))
    with follower("--format", "csv", f"ipc://{tmp_path}/none") as child:
        assert child.stdout is not None
        child.stdout.readline()
        store(tmp_path / "f.db", range(1, 3))
        assert [child.stdout.readline().split(",")[4] for _ in range(2)] == ["1", "2"]
