"""Picking, comparing and editing runs, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ncmon
from tests.ncmon.cli.conftest import Run


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the database that a test may change."""
    return Path(shutil.copy(made, tmp_path / "own.db"))


def ids(run: Run, *arguments: str) -> list[str]:
    done = run("runs", *arguments, "--format", "json")
    assert done.exit_code == 0, done.stderr
    return [row["run_id"] for row in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--name", "digits"), ["run2"]),
        (("--name", "*-*"), ["run2", "run1", "run0"]),
        (("--status", "failed"), ["run1"]),
        (("--status", "failed", "--status", "finished"), ["run1", "run0"]),
        (("--config", "epochs>20"), ["run0"]),
        (("--config", "epochs<20", "--config", "lr=0.1", "--name", "*-*"), ["run2", "run1"]),
        (("--config", "nosuch"), []),
        (("--tag", "sw*", "--limit", "2"), ["run3", "run2"]),
        (("--tag", "nosuch"), []),
        (("--until", "2001-01-01"), []),
        (("--since", "2001-01-01", "--status", "failed"), ["run1"]),
        (("--sort", "name", "--name", "-"), ["run2", "run1", "run0"]),
        (("--sort", "-config.epochs", "--name", "*-*"), ["run0", "run2", "run1"]),
        (("--sort", "epoch", "--limit", "1"), ["run3"]),
    ],
)
def test_runs_are_picked_and_sorted(run: Run, arguments: tuple[str, ...], expected: list[str]) -> None:
    assert ids(run, *arguments) == expected


def test_runs_are_picked_and_sorted_by_their_last_readings(run: Run, made: Path) -> None:
    with ncmon.open(made) as store:
        last = {one.run_id: one.history("nc1_pinv").value[-1] for one in store.runs()}
    assert ids(run, "--sort", "nc1_pinv") == sorted(last, key=lambda key: last[key])
    assert ids(run, "--sort", "-nc1_pinv", "--limit", "1") == [max(last, key=lambda key: last[key])]
    middle = sorted(last.values())[1]
    assert set(ids(run, "--where", f"nc1_pinv<={float(middle)!r}")) == {key for key in last if last[key] <= middle}
    rows = json.loads(run("runs", "--metric", "w_etf_err", "--format", "json").stdout)
    assert all("w_etf_err" in row and "nc1_pinv" not in row for row in rows)


def test_no_run_that_fits_is_said(run: Run) -> None:
    assert run("runs", "--config", "lr>7").stdout == "no run fulfils these conditions\n"


def test_compare_says_what_the_histories_say(run: Run, made: Path) -> None:
    names = ("run0", "run2")
    done = run(
        "compare", *names, "--metric", "nc1_pinv", "--first", "nc1_pinv<2", "--split", "test", "--format", "json"
    )
    rows = json.loads(done.stdout)
    with ncmon.open(made) as store:
        histories = {name: store.run(name).history("nc1_pinv", split="test") for name in names}
    for name, history in histories.items():
        mine = {row["kind"]: row for row in rows if row["run_id"] == name and row["kind"] != "config"}
        assert mine["value"]["value"] == history.value[-1]
        assert mine["value"]["epoch"] == history.epoch[-1]
        under = [epoch for epoch, value in zip(history.epoch, history.value, strict=True) if value < 2]
        assert mine["first"]["epoch"] == (int(under[0]) if under else None)
        assert under
    config = {(row["name"], row["run_id"]): row["value"] for row in rows if row["kind"] == "config"}
    assert config == {("epochs", "run0"): 30, ("epochs", "run2"): 12}
    early = json.loads(run("compare", *names, "--metric", "nc1_pinv", "--epoch", "3", "--format", "json").stdout)
    assert {row["epoch"] for row in early if row["kind"] == "value"} == {3}


def test_compare_reads_well(run: Run) -> None:
    text = run("compare", "run0", "run2").stdout
    for part in (
        "vit-small-wd1e-4",
        "digits-bn",
        "LAST VALUE",
        "B - A",
        "FIRST EPOCH WITH",
        "never",
        "CONFIG",
        "epochs",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    assert run("compare", "run0", "run1", "run2", "run3").exit_code == 0


def test_a_run_is_tagged_noted_and_renamed(run: Run, own: Path) -> None:
    database = ("--db", str(own))
    assert "sweep, good" in run("tag", "run2", "good", *database).stdout
    assert run("tag", "run2", "sweep", "--remove", *database).stdout == "digits-bn (run2): good\n"
    assert run("note", "run2", "-", *database, input="two\nlines\n").exit_code == 0
    assert run("note", "run2", *database).stdout == "two\nlines\n"
    assert run("rename", "run2", "best", *database).stdout == "run2: digits-bn is now best\n"
    (row,) = json.loads(run("runs", "--tag", "good", "--format", "json", *database).stdout)
    assert (row["name"], row["tags"], row["note"]) == ("best", ["good"], "two\nlines")
    assert "two" in run("show", "best", *database).stdout
    assert run("note", "best", "--clear", *database).stdout == "best (run2): no note\n"


def test_delete_asks_first(run: Run, own: Path) -> None:
    database = ("--db", str(own))
    no = run("delete", "run0", *database, input="n\n")
    assert no.exit_code == 1
    assert "Delete vit-small-wd1e-4 (run0) for good?" in no.stderr
    nobody = run("delete", "run0", *database)
    assert nobody.exit_code == 2
    assert "--yes" in nobody.stderr
    assert len(ids(run, *database)) == 4
    assert "60 windows" in run("delete", "run0", *database, input="y\n").stdout
    assert run("delete", "run1", "run2", *database, "--yes").exit_code == 0
    assert ids(run, *database) == ["run3"]
    size = own.stat().st_size
    assert run("prune", "--compact", *database).stdout.endswith("MB given back\n")
    assert own.stat().st_size < size / 2


def test_a_run_that_is_training_is_not_deleted(run: Run, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_700.0)
    refused = run("delete", "run2", "--yes", "--db", str(own))
    assert refused.exit_code == 1
    assert "still training" in refused.stderr
    assert run("delete", "run2", "--yes", "--force", "--db", str(own)).exit_code == 0


def test_prune_says_what_goes_and_gives_space_back(run: Run, own: Path) -> None:
    database = ("--db", str(own))
    would = run("prune", "--runs", "--status", "failed", "--dry-run", *database)
    assert would.stdout == "would delete everything of 1 run: resnet-lr1 (run1)\n"
    assert "6 windows" in run("prune", "--runs", "--status", "failed", "--yes", *database).stdout
    size = own.stat().st_size
    thinned = run("prune", "run0", "--thin", "10", "--yes", *database)
    assert "52 windows" in thinned.stdout
    assert own.stat().st_size < size
    with ncmon.open(own) as store:
        assert store.run("run0").history("nc1_pinv", split="test").epoch.tolist() == [0, 10, 20, 29]
        before = store.run("run0").history("nc1_pinv").value.tolist()
    assert run("prune", "--arrays", "run0", "--yes", *database).exit_code == 0
    with ncmon.open(own) as store:
        assert store.run("run0").history("nc1_pinv").value.tolist() == before
    assert "no run" in run("prune", "--arrays", "--name", "nosuch", "--yes", *database).stdout
