"""What shells complete, and what Datasette is told."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import ncmon
from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS
from tests.ncmon.cli.conftest import Run


def completed(database: Path | str, *words: str) -> list[str]:
    """Return what a shell would offer in place of the last word."""
    done = subprocess.run(
        [sys.executable, "-c", "from ncmon.cli import main; main(prog_name='ncmon')"],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "_NCMON_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("ncmon", *words)),
            "COMP_CWORD": str(len(words)),
            "NCMON_DB": str(database),
        },
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("his",), ["history"]),
        (("show", "di"), ["digits-bn"]),
        (("compare", "digits-bn", "run"), ["run3", "run2", "run1", "run0"]),
        (("history", "digits-bn", "--metric", "nc1_"), ["nc1_pinv", "nc1_balanced", "nc1_trace_ratio", "nc1_cdnv"]),
        (("show", "digits-bn", "--layer", "bl"), ["blocks.0", "blocks.1"]),
        (("plot", "digits-bn", "--split", ""), ["train", "test"]),
        (("tag", "nosuch"), []),
    ],
    ids=" ".join,
)
def test_words_are_completed(made: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(made, *words) == offered


def test_completion_without_a_database_is_silent(tmp_path: Path) -> None:
    assert completed(tmp_path / "nosuch.db", "show", "d") == []
    assert not (tmp_path / "nosuch.db").exists()


def test_a_hostile_name_is_not_offered(made: Path) -> None:
    offered = completed(made, "show", "")
    assert "digits-bn" in offered
    assert not any(word.startswith("evil") for word in offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_the_shell_reads(run: Run, shell: str, tmp_path: Path) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert "_NCMON_COMPLETE" in done.stdout
    program = shutil.which(shell)
    if program is not None:
        (tmp_path / "script").write_text(done.stdout)
        subprocess.run([program, "-n", str(tmp_path / "script")], check=True)


def test_datasette_is_told_about_every_table_and_column(run: Run, made: Path) -> None:
    told = json.loads(run("metrics", "--datasette", "runs.db").stdout)["databases"]["runs"]
    with ncmon.open(made) as store:
        kinds = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite%'"
        assert set(told["tables"]) == {name for (name,) in store.sql(kinds).rows}
        for table in ("reading", "class_reading"):
            columns = store.sql(f"SELECT * FROM {table} LIMIT 1").columns
            assert set(told["tables"][table]["columns"]) <= set(columns)
        for query in told["queries"].values():
            text = query["sql"]
            for name, value in (
                *((":run_id", "run2"), (":split", "test"), (":metric", "nc1_pinv")),
                *((":layer", "classifier-input"), (":key", "lr")),
            ):
                text = text.replace(name, f"'{value}'")
            assert store.sql(text).rows
    known = {entry.name for entry in (*METRICS, *BOUNDS) if entry.scope not in ("pair",)}
    assert known == {*told["tables"]["reading"]["columns"], *told["tables"]["class_reading"]["columns"]}
    assert run("metrics", "nc1_pinv", "--datasette", "runs").exit_code == 2


def test_datasette_can_follow_every_foreign_key(made: Path) -> None:
    """It fails on a page whose table refers to another without naming the column."""
    with closing(sqlite3.connect(made)) as connection:
        keys = connection.execute(
            """SELECT m.name, f."from", f."table", f."to" FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f"""
        ).fetchall()
    assert len(keys) > 8
    assert all(column == referred == f"{parent}_key" for _, column, parent, referred in keys)
