"""Rules at work on a store, over restarts and while the disk is full; and a daemon that rings a bell."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ncmon
from ncmon.errors import StoreError
from ncmon.lookout import REMEMBER_S, Lookout
from ncmon.model import Alert, Evaluation, StreamSeq
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_features, make_run, window_from_features

NOW = 1_800_000_000.0


def broken(step: int = 100) -> Evaluation:
    made = make_features()
    layers = {name: values.copy() for name, values in made.layers.items()}
    layers["blocks.0"][0, 0] = np.inf
    return make_evaluation(window_from_features(layers, made.labels, made.weight, made.bias, step=step, exact=False))


class Site:
    """A database with one live run, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.seq = path, NOW, 0
        self.rung: list[dict[str, Any]] = []
        self.begin()
        self.writer.put_run(make_run(name="digits", class_names=("a", "b", "c", "d")), b"s" * 16, now=NOW)

    def begin(self) -> None:
        self.writer = Writer.open(self.path)
        self.lookout = Lookout(self.writer, ring=self.rung.append, wall=lambda: self.now)
        self.lookout.tick()

    def commit(self, *items: Evaluation) -> None:
        for item in items:
            self.now += 1
            origin = StreamSeq(stream=b"s" * 16, seq=self.seq)
            self.seq += 1
            self.writer.commit([Stored(origins=(origin,), item=item)], now=self.now)
            self.lookout.committed([item])

    def alerts(self) -> list[tuple[str, bool]]:
        with ncmon.open(self.path) as store:
            return [(alert.rule, alert.open) for alert in store.alerts()]


def test_an_alert_is_stored_told_and_cleared(tmp_path: Path) -> None:
    site = Site(tmp_path / "t.db")
    site.now += 30
    site.lookout.tick()
    site.commit(broken())
    assert site.alerts() == [("nonfinite", True)]
    (record,) = site.rung
    assert (record["run"], record["rule"], record["layer"]) == ("digits", "nonfinite", "blocks.0")
    assert record["alert_id"] == 1
    json.dumps(record, allow_nan=False)
    site.commit(*[make_evaluation()] * 3)
    assert site.alerts() == [("nonfinite", False)]
    assert (len(site.rung), site.lookout.raised) == (1, 1)


@pytest.mark.parametrize("killed", [False, True])
def test_a_daemon_that_starts_again_does_not_raise_what_is_open(tmp_path: Path, killed: bool) -> None:
    site = Site(tmp_path / "t.db")
    site.commit(broken())
    if not killed:
        site.lookout.close()
    site.writer.close()
    site.now += 5
    site.begin()
    site.commit(broken(200), broken(300))
    assert site.alerts() == [("nonfinite", True)]
    assert len(site.rung) == 1
    site.commit(*[make_evaluation()] * 3)
    assert site.alerts() == [("nonfinite", False)]
    # And what is raised within the cooldown of the last daemon's alert is the same event.
    site.writer.close()
    site.begin()
    site.commit(broken(400))
    assert len(site.rung) == 1


def test_silence_counts_from_the_start_of_the_daemon(tmp_path: Path) -> None:
    site = Site(tmp_path / "t.db")
    site.commit(*[make_evaluation()] * 5)
    site.lookout.close()
    site.writer.close()
    site.now += 3000
    site.begin()
    site.lookout.tick()
    assert site.alerts() == []
    for _ in range(310):
        site.now += 1
        site.lookout.tick()
    assert site.alerts() == [("run-stalled", True)]
    site.commit(make_evaluation())
    assert site.alerts() == [("run-stalled", False)]


def test_a_run_that_was_silent_for_days_is_not_waited_for(tmp_path: Path) -> None:
    site = Site(tmp_path / "t.db")
    site.writer.close()
    site.now += 2 * 86_400
    site.begin()
    for _ in range(400):
        site.now += 15
        site.lookout.tick()
    assert site.alerts() == []


class FullDisk:
    """A store that cannot be written for a while."""

    def __init__(self) -> None:
        self.full = True
        self.stored: list[Alert] = []
        self.memories: dict[str, str] = {}

    def put_alerts(self, changes: list[Alert], memories: Mapping[str, str]) -> tuple[Alert, ...]:
        if self.full:
            raise StoreError("the disk is full")
        self.stored += changes
        self.memories.update(memories)
        return tuple(alert for alert in changes if alert.open)

    def alert_state(self, *, since: float) -> tuple[tuple[Alert, ...], tuple[tuple[str, str], ...]]:
        return (), ()

    def live_runs(self, *, heard_after: float) -> dict[str, str]:
        return {"run": "digits"}


def test_what_cannot_be_stored_now_is_stored_later() -> None:
    disk, now = FullDisk(), [NOW]
    lookout = Lookout(disk, wall=lambda: now[0])
    lookout.committed([broken()])
    assert disk.stored == []
    disk.full = False
    now[0] += 1
    lookout.tick()
    assert [alert.rule for alert in disk.stored] == ["nonfinite"]
    # What is remembered is written now and then, not with every window.
    assert set(disk.memories) == {"run"}
    disk.memories.clear()
    for _ in range(5):
        now[0] += REMEMBER_S / 10
        lookout.committed([make_evaluation()])
    assert disk.memories == {}
    now[0] += REMEMBER_S
    lookout.committed([make_evaluation()])
    assert set(disk.memories) == {"run"}


def test_a_rule_that_fails_costs_its_alerts_and_nothing_else() -> None:
    disk = FullDisk()
    disk.full = False
    lookout = Lookout(disk, wall=lambda: NOW)
    good = make_evaluation()
    odd = dataclasses.replace(good, layers=None)  # type: ignore[arg-type]
    lookout.committed([odd, odd, broken()])
    assert [alert.rule for alert in disk.stored] == ["nonfinite"]
