"""`ncmon export` and `ncmon merge`, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import ncmon
from tests.ncmon.cli.conftest import Run


def test_an_exported_database_merges_back_bit_for_bit(run: Run, made: Path, tmp_path: Path) -> None:
    done = run("export", "digits-bn", "run0", "-o", str(tmp_path / "two.db"))
    assert done.stdout == f"{tmp_path}/two.db: 2 runs, 84 windows\n"
    target = str(tmp_path / "all.db")
    (one, other) = json.loads(run("merge", str(tmp_path / "two.db"), "--db", target, "--format", "json").stdout)
    assert {one["outcome"], other["outcome"]} == {"new"}
    assert "known" in run("merge", str(tmp_path / "two.db"), "--db", target).stdout
    question = ("query", "SELECT * FROM history WHERE run_id IN ('run2', 'run0') ORDER BY 1, 3, 5, 8, 10")
    options = ("--max-rows", "1000000", "--timeout", "60", "--format", "csv")
    assert run(*question, *options, "--db", target).stdout == run(*question, *options).stdout
    assert run(*question, *options).stdout.count("\n") > 1000


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet", "x.npz"])
def test_a_file_is_written_by_its_ending(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "deep" / name
    done = run("export", "digits-bn", "-o", str(path))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{path}: 1 run, ")
    assert path.stat().st_size > 1000


def test_runs_are_picked_by_conditions(run: Run, tmp_path: Path) -> None:
    assert "2 runs" in run("export", "--config", "epochs<20", "--name", "*-*", "--parquet", str(tmp_path)).stdout
    assert sorted(path.name for path in (tmp_path / "history").iterdir()) == ["run_id=run1", "run_id=run2"]
    assert "4 runs" in run("export", "--all", "--tensorboard", str(tmp_path / "tb"), "--metric", "nc1_pinv").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("digits-bn",), 2, "say where to"),
        (("digits-bn", "-o", "x.xlsx"), 2, ".parquet"),
        (("-o", "x.csv"), 2, "say which runs"),
        (("digits-bn", "--all", "-o", "x.csv"), 2, "say which runs"),
        (("--name", "nosuch", "-o", "x.csv"), 1, "no run fulfils"),
        (("digits-bn", "-o", "x.csv", "--metric", "nc1_pniv"), 1, "nc1_pinv"),
        (("digits-bn", "-o", "x.csv", "--layer", "nosuch"), 1, "layer 'nosuch'"),
        (("digits-bn", "-o", "x.csv", "--split", "tset"), 1, "test"),
        (("digits-bn", "-o", "x.npz", "--table", "runs"), 2, "--table"),
        (("digits-bn", "--parquet", "x", "--table", "runs"), 2, "--table"),
        (("digits-bn", "-o", "x.db", "--split", "test"), 2, "whole runs"),
        (("digits-bn", "-o", "/etc/passwd/x.csv"), 1, "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("export", *arguments)
    assert done.exit_code == code, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "ending"), [("pyarrow", "parquet"), ("tensorboard", "tensorboard")])
def test_a_package_that_is_missing_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, ending: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    done = run("export", "digits-bn", f"--{ending}", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert f"pip install 'ncmon[{ending}]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_existing_database_is_not_overwritten(run: Run, made: Path) -> None:
    done = run("export", "digits-bn", "-o", str(made))
    assert done.exit_code == 2
    with ncmon.open(made) as store:
        assert len(store.runs()) == 4
