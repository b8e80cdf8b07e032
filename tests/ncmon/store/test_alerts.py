"""Alerts in the store: raised once, over once, acknowledged, gone with their run, merged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import ncmon
from ncmon.model import Alert, StreamSeq
from ncmon.store.edit import Editor
from ncmon.store.merge import merge
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_run, make_window

NOW = 1_800_000_000.0


def make_alert(**fields: object) -> Alert:
    defaults = {
        "run_id": "run",
        "rule": "class-dead",
        "severity": "warning",
        "split": "train",
        "layer": "classifier-input",
        "class_index": 2,
        "epoch": 3,
        "step": 400,
        "since": NOW,
        "value": 0.0,
        "text": "none of class {class:2}, nor of {class:9}",
    }
    return Alert(**(defaults | fields))  # type: ignore[arg-type]


def make_database(path: Path, *, runs: int = 1) -> Path:
    with Writer.open(path) as writer:
        for number in range(runs):
            run_id = "run" if not number else f"run{number}"
            run = make_run(run_id=run_id, class_names=("a", "b", "c", "d"))
            writer.put_run(run, bytes([number]) * 16, now=NOW)
            item = make_evaluation(make_window(run_id=run_id))
            origin = StreamSeq(stream=bytes([number]) * 16, seq=0)
            writer.commit([Stored(origins=(origin,), item=item)], now=NOW)
    return path


def alerts_of(path: Path, run: str | None = None, *, only_open: bool = False) -> tuple[Alert, ...]:
    with ncmon.open(path) as store:
        return store.alerts(run, only_open=only_open)


def test_an_alert_is_stored_with_its_class_named_and_never_twice_while_open(tmp_path: Path) -> None:
    path = make_database(tmp_path / "t.db")
    with Writer.open(path) as writer:
        before = writer.revision
        (stored,) = writer.put_alerts([make_alert()], {"run": "{}"})
        assert writer.revision == before + 1
        assert stored.text == "none of class c, nor of 9"
        assert writer.put_alerts([make_alert(since=NOW + 5)], {}) == ()
        assert len(writer.put_alerts([make_alert(class_index=None)], {})) == 1
        assert writer.put_alerts([make_alert(run_id="nobody")], {"nobody": "{}"}) == ()
        writer.put_alerts([make_alert(cleared=NOW + 9)], {})
        (again,) = writer.put_alerts([make_alert(since=NOW + 10)], {})
        opened, memories = writer.alert_state(since=NOW + 20)
    assert memories == (("run", "{}"),)
    assert {alert.alert_id for alert in opened} == {2, again.alert_id}
    found = alerts_of(path)
    assert [alert.open for alert in found] == [True, True, False]
    assert dataclasses.replace(found[-1], cleared=None) == stored
    assert found[-1].cleared == NOW + 9
    assert alerts_of(path, "run", only_open=True) == found[:2]


def test_what_was_acknowledged_no_longer_presses_and_stands_behind(tmp_path: Path) -> None:
    path = make_database(tmp_path / "t.db")
    with Writer.open(path) as writer:
        writer.put_alerts([make_alert(class_index=index, since=NOW + index) for index in range(3)], {})
    with Editor.open(path) as editor:
        assert editor.acknowledge([3, 99], now=NOW + 50) == 1
        assert editor.acknowledge([3], now=NOW + 60) == 0
    found = alerts_of(path)
    assert [(alert.alert_id, alert.pressing) for alert in found] == [(2, True), (1, True), (3, False)]
    assert found[-1].acknowledged == NOW + 50
    assert not make_alert(severity="info").pressing


def test_alerts_go_with_their_run(tmp_path: Path) -> None:
    path = make_database(tmp_path / "t.db", runs=2)
    with Writer.open(path) as writer:
        writer.put_alerts([make_alert(), make_alert(run_id="run1")], {"run": "{}", "run1": "{}"})
    with Editor.open(path) as editor:
        editor.delete("run")
    assert [alert.run_id for alert in alerts_of(path)] == ["run1"]
    with ncmon.open(path) as store:
        assert store.sql("SELECT count(*) FROM alert_memory").rows == ((1,),)


@pytest.mark.parametrize("again", [False, True])
def test_a_merge_brings_alerts_and_what_is_known_of_them(tmp_path: Path, again: bool) -> None:
    source = make_database(tmp_path / "a.db")
    with Writer.open(source) as writer:
        writer.put_alerts([make_alert(), make_alert(class_index=1)], {})
    target = tmp_path / "b.db"
    merge(source, target)
    assert [(a.class_index, a.text) for a in alerts_of(target)] == [(a.class_index, a.text) for a in alerts_of(source)]
    with Editor.open(target) as editor:
        editor.acknowledge([1, 2], now=NOW + 1)
    with Writer.open(source) as writer:
        writer.put_alerts([make_alert(cleared=NOW + 9)], {})
        item = make_evaluation(make_window(epoch=1))
        writer.commit([Stored(origins=(StreamSeq(stream=bytes(16), seq=1),), item=item)], now=NOW)
    merge(source, target)
    if again:
        merge(source, target)
    found = {alert.class_index: alert for alert in alerts_of(target)}
    assert len(alerts_of(target)) == 2
    assert (found[2].cleared, found[2].acknowledged) == (NOW + 9, NOW + 1)
    assert found[1].open
