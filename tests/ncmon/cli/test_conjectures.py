"""`ncmon conjectures` on a store made for it: verdicts follow from the stored margins."""

from __future__ import annotations

import json
from pathlib import Path

import ncmon
from ncmon.model import StreamSeq
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_run, make_window
from tests.ncmon.cli.conftest import Run


def make(path: Path) -> None:
    """Three runs that fit perfectly, with weight decays that order their collapse, and one that does not fit.

    Noise three times the means: at the factory's 0 it depends on the machine's LAPACK whether a sample is lost.
    """
    with Writer.open(path) as writer:
        for number, (decay, collapse) in enumerate([(1e-4, 0.7), (1e-3, 0.95), (1e-2, 0.85), (1e-3, -2.0)]):
            stream = bytes([number]) * 16
            name = f"run{number}"
            writer.put_run(
                make_run(run_id=name, config={"weight_decay": decay}, started=float(number)), stream, now=1.0
            )
            window = make_window(
                run_id=name, seed=1, collapse=collapse, exact=True, layers=4, n_classes=6, per_class=12, split="train"
            )
            writer.commit([Stored(origins=(StreamSeq(stream=stream, seq=0),), item=make_evaluation(window))], now=2.0)


def test_verdicts_follow_from_what_is_stored(run: Run, tmp_path: Path) -> None:
    database = tmp_path / "c.db"
    make(database)
    rows = json.loads(run("conjectures", "--all", "--db", str(database), "--format", "json").stdout)
    with ncmon.open(database) as store:
        margin = {name: store.run(name).history("cos_margin").value[-1] for name in ("run0", "run1", "run2")}
        fits = {f"run{n}": store.run(f"run{n}").history("accuracy").value[-1] == 1.0 for n in range(4)}
    assert fits == {"run0": True, "run1": True, "run2": True, "run3": False}
    depth = {row["run_id"]: row["verdict"] for row in rows if row["conjecture"] == "3.2.1"}
    assert depth["run3"] == "not applicable"
    assert {depth[name] for name in ("run0", "run1", "run2")} <= {"consistent", "violated"}
    pairs = {(row["run_id"], row["other_id"]): row for row in rows if row["conjecture"] == "3.1.1"}
    assert set(pairs) == {("run0", "run1"), ("run0", "run2"), ("run1", "run2")}
    for (less, more), row in pairs.items():
        assert (row["verdict"] == "violated") == (margin[more] < margin[less])
        assert (row["violation"] > 0) == (margin[more] < margin[less])
    assert pairs["run1", "run2"]["verdict"] == "violated"
    text = run("conjectures", "run0", "run1", "--db", str(database)).stdout
    assert "3.1.1" in text
    assert "consistent" in text


def test_only_runs_that_are_alike_in_all_else_are_paired(run: Run, tmp_path: Path) -> None:
    database = tmp_path / "c.db"
    with Writer.open(database) as writer:
        for number, (decay, seed) in enumerate([(1e-4, 0), (1e-2, 0), (1e-4, 1), (1e-2, 1)]):
            stream, name = bytes([number]) * 16, f"run{number}"
            config = {"optimizer": {"weight_decay": decay}, "seed": seed}
            writer.put_run(make_run(run_id=name, config=config, started=float(number)), stream, now=1.0)
            window = make_window(
                run_id=name, seed=1, collapse=0.9, exact=True, layers=4, n_classes=6, per_class=12, split="train"
            )
            writer.commit([Stored(origins=(StreamSeq(stream=stream, seq=0),), item=make_evaluation(window))], now=2.0)
    command = ("conjectures", "--all", "--key", "optimizer.weight_decay", "--db", str(database))

    def pairs(*more: str) -> set[tuple[str, str]]:
        rows = json.loads(run(*command, *more, "--format", "json").stdout)
        return {(row["run_id"], row["other_id"]) for row in rows if row["conjecture"] == "3.1.1"}

    assert pairs() == {("run0", "run1"), ("run2", "run3")}
    assert pairs("--across", "seed") == {("run0", "run1"), ("run2", "run3"), ("run0", "run3"), ("run2", "run1")}
    text = run(*command).stdout
    assert "2 pairs differ in more than optimizer.weight_decay" in text
    assert "3.1.1  consistent in 2 of 2 pairs" in text


def test_what_to_look_at_has_to_be_said(run: Run) -> None:
    for arguments in ((), ("digits-bn", "--all")):
        done = run("conjectures", *arguments)
        assert done.exit_code == 2
        assert "expected the runs to look at, or --all" in done.stderr
