"""`ncmon doctor`: a sound house is said to be, and what is wrong comes with what to type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ncmon import disk
from tests.client.test_spool import written
from tests.ncmon.cli.conftest import Run


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, made: Path) -> dict[str, Any]:
    """What a daemon answers; the test may change it."""
    import ncmon

    counters = {"accepted": 5, "stored": 3, "rejected": 1, "waiting": 1, "duplicates": 0, "refused": 0, "connected": 1}
    found: dict[str, Any] = {"version": ncmon.__version__, "pid": 7, "database": str(made), "counters": counters}
    monkeypatch.setattr("ncmon.transport.status", lambda endpoint, timeout_s: found or None)
    return found


def rows(run: Run, *arguments: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in json.loads(run("doctor", *arguments, "--format", "json").stdout):
        found.setdefault(row["check"], []).append(row)
    return found


def test_a_sound_house_is_said_to_be(run: Run, answer: dict[str, Any]) -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.stdout
    found = rows(run)
    assert set(found) == {"daemon", "counters", "socket", "database", "disk", "sqlite", "spool", "keys"}
    assert found["counters"][0]["found"] == "5 accepted = 3 stored + 1 rejected + 1 waiting"


def test_no_daemon_comes_with_the_command_that_starts_one(run: Run, answer: dict[str, Any]) -> None:
    answer.clear()
    assert run("doctor").exit_code == 1
    assert rows(run)["daemon"][0]["found"].endswith(": ncmon serve")
    assert "ncmon serve --listen ipc:///x/s" in rows(run, "ipc:///x/s")["daemon"][0]["found"]


def test_what_waits_is_told_with_its_age(run: Run, answer: dict[str, Any]) -> None:
    answer["counters"] |= {"inbox": 1, "inbox_bytes": 4096, "deleted": 2, "accepted": 7}
    answer["lag_s"] = 3.0
    first, _, second = rows(run)["counters"]
    assert first["found"] == "7 accepted = 3 stored + 1 rejected + 1 waiting + 2 deleted with their run"
    assert second["state"] == "ok"
    assert "not evaluated yet (4 KB), the oldest for 3 s" in second["found"]
    answer["lag_s"] = 300.0
    assert rows(run)["counters"][2]["state"] == "look"


def test_counters_that_do_not_add_up_are_a_failure(run: Run, answer: dict[str, Any]) -> None:
    answer["counters"]["stored"] = 2
    assert run("doctor").exit_code == 1
    assert "does not add up" in rows(run)["counters"][0]["found"]


def test_a_store_in_trouble_is_a_failure(run: Run, answer: dict[str, Any]) -> None:
    answer["trouble"] = "the disk is full"
    assert run("doctor").exit_code == 1
    assert "the disk is full" in rows(run)["daemon"][-1]["found"]


def test_what_waits_in_the_spool_is_said_with_what_to_type(
    run: Run, answer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCMON_SPOOL", str(tmp_path / "spool"))
    written(tmp_path / "spool", 4)
    [row] = rows(run)["spool"]
    assert row["state"] == "look"
    assert row["found"].startswith("4 messages of 1 processes")
    assert row["found"].endswith("ncmon spool push")


def test_a_full_disk_a_network_disk_and_an_open_key_are_failures(
    run: Run, answer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "space", lambda path: disk.Space(total=1 << 40, free=1 << 20))
    monkeypatch.setattr(disk, "network_kind", lambda path: "nfs4")
    key = tmp_path / "ncmon" / "client.key"
    key.parent.mkdir()
    key.write_text("")
    key.chmod(0o644)
    found = rows(run)
    assert [row["state"] for row in found["disk"]] == ["wrong", "wrong"]
    assert "chmod 600" in found["keys"][0]["found"]


def test_a_check_that_fails_is_a_finding_and_no_traceback(run: Run, answer: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is no database" * 100)
    done = run("doctor", "--db", str(tmp_path / "x.db"))
    assert done.exit_code == 1
    assert "not an SQLite database" in " ".join(done.stdout.split())
