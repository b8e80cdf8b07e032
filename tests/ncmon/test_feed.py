"""What a viewer is told: states by the clock, versions, targets, and what happens when things are missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncmon.errors import ListenError, UsageError
from ncmon.feed import Feed, RunState, Selection, SourceState, open_feed, run_state, target_of
from ncmon.model import RunEnd, StreamSeq
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_run

STREAM = b"s" * 16
NOW = 1_800_000_100.0


def write(path: Path, epochs: range, *, end: bool = False) -> None:
    with Writer.open(path) as writer:
        writer.put_run(make_run(run_id="r1", name="first"), STREAM, now=NOW)
        for epoch in epochs:
            item = make_evaluation(epoch=epoch, step=epoch + 1, run_id="r1")
            writer.commit([Stored(origins=(StreamSeq(stream=STREAM, seq=epoch),), item=item)], now=NOW)
        if end:
            last = RunEnd(run_id="r1", status="finished", text="", time=NOW)
            writer.commit([Stored(origins=(StreamSeq(stream=STREAM, seq=epochs.stop),), item=last)], now=NOW)


def feed(database: Path | None, *, alive: bool = True, now: float = NOW) -> Feed:
    answer: dict[str, Any] | None = {"database": str(database), "counters": {"stored": 3}} if alive else None
    return Feed(endpoint="ipc:///x/s", database=database, clock=lambda: now, ask=lambda endpoint: answer)


@pytest.mark.parametrize(
    ("status", "silence_s", "interval_s", "state"),
    [
        ("live", 10.0, 1.0, RunState.LIVE),
        ("live", 89.0, 0.0, RunState.LIVE),
        ("live", 91.0, 0.0, RunState.STALE),
        ("live", 91.0, 60.0, RunState.LIVE),  # windows of a minute: three of them may pass
        ("live", 200.0, 60.0, RunState.STALE),
        ("finished", 1e6, 0.0, RunState.ENDED),
        ("failed", 0.0, 0.0, RunState.FAILED),
    ],
)
def test_a_run_is_stale_by_the_clock_alone(status: Any, silence_s: float, interval_s: float, state: RunState) -> None:
    run = dataclasses.replace(make_run(), status=status, last_seen=NOW - silence_s)
    assert run_state(run, NOW, interval_s) is state


def test_a_snapshot_holds_runs_and_the_newest_in_full(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    write(path, range(4))
    with feed(path) as source:
        snapshot = source.read(Selection(view="overview"))
    assert snapshot.source is SourceState.LIVE
    assert snapshot.counters == {"stored": 3}
    (summary,) = snapshot.runs
    assert (summary.run.name, summary.epoch, summary.n_layers) == ("first", 3, 3)
    detail = snapshot.detail
    assert detail is not None
    assert detail.layer is not None
    assert detail.layer.name == "classifier-input"
    expected = make_evaluation(epoch=3, step=4, run_id="r1").layers[-1].readings["nc1_pinv"].value
    columns = detail.series["train"]["nc1_pinv"]
    assert columns.epoch.tolist() == [0, 1, 2, 3]
    assert columns.value[-1] == expected
    certified = detail.certified("train")
    assert certified is not None
    assert certified[1] == 4


def test_versions_grow_when_something_changed_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    write(path, range(2))
    with feed(path) as source:
        first = source.read(Selection())
        again = source.read(Selection())
        assert again.version == first.version
        assert again.detail is first.detail  # nothing was read a second time
        other = source.read(Selection(layer="layer0"))
        assert other.version > first.version
        write(path, range(2, 3))
        later = source.read(Selection(layer="layer0"))
        assert later.version > other.version
        assert later.runs[0].epoch == 2


def test_without_a_daemon_its_database_is_shown_and_the_state_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.db"
    write(path, range(2), end=True)
    monkeypatch.setenv("NCMON_DB", str(path))
    with feed(None, alive=False) as source:
        snapshot = source.read(Selection())
    assert snapshot.source is SourceState.DOWN
    assert snapshot.state(snapshot.runs[0]) is RunState.ENDED
    assert snapshot.error == ""


def test_a_daemon_that_is_late_once_is_not_down(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    write(path, range(2))
    up = {"database": str(path), "counters": {"stored": 3}}
    answers = iter([up, None, up, None, None, None, up])
    with Feed(endpoint="ipc:///x/s", database=path, clock=lambda: NOW, ask=lambda endpoint: next(answers)) as source:
        said = [source.read(Selection()).source for _ in range(7)]
    live, down = SourceState.LIVE, SourceState.DOWN
    assert said == [live, live, live, live, down, down, live]


def test_no_daemon_and_no_database_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCMON_DB", str(tmp_path / "none.db"))
    with feed(None, alive=False) as source:
        snapshot = source.read(Selection())
    assert (snapshot.source, snapshot.runs, snapshot.error) == (SourceState.DOWN, (), "")
    assert not (tmp_path / "none.db").exists()


def test_a_file_is_a_replay_and_a_foreign_one_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    write(path, range(2))
    with open_feed(str(path)) as source:
        assert source.read(Selection()).source is SourceState.REPLAY
    foreign = tmp_path / "notes.txt"
    foreign.write_text("hello " * 300)
    with open_feed(str(foreign)) as source:
        snapshot = source.read(Selection())
    assert snapshot.runs == ()
    assert "notes.txt" in snapshot.error
    assert "\n" not in snapshot.error


def test_a_target_that_cannot_be_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        open_feed(str(tmp_path / "missing.db"))
    with pytest.raises(ListenError):
        open_feed("tcp://1.2.3.4")


def test_targets_at_collapse_come_from_the_registry() -> None:
    assert target_of("inter_cos_max", 10) == pytest.approx(-1 / 9)
    assert target_of("intra_cos_min", 10) == 1
    assert target_of("alpha", 10) is None
    assert target_of("cert_intra_min", 10) is None


def test_a_layer_that_the_run_lacks_falls_back_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    write(path, range(1))
    with feed(path) as source:
        snapshot = source.read(Selection(layer="of another run"))
    assert snapshot.detail is not None
    assert snapshot.detail.layer is not None
    assert snapshot.detail.layer.name == "classifier-input"
    assert np.isfinite(snapshot.detail.series["train"]["nc1_pinv"].value).all()
