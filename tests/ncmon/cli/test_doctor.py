"""`ncmon doctor`: a sound house is said to be, and what is wrong comes with what to type."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ncmon import disk, security
from ncmon_client import spool
from tests.client.test_spool import label, packed, written
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


def test_a_socket_that_was_left_is_said_to_be_harmless(run: Run, answer: dict[str, Any], tmp_path: Path) -> None:
    answer.clear()
    place = tmp_path / "sockets"
    place.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place / "s"))
    row = rows(run, f"ipc://{place}/s")["socket"][-1]
    assert row["state"] == "look"
    assert "`ncmon serve` takes it over" in row["found"]


def test_who_holds_a_socket_and_does_not_answer_is_named(run: Run, answer: dict[str, Any], tmp_path: Path) -> None:
    answer.clear()
    place = tmp_path / "sockets"
    place.mkdir(mode=0o700)
    with security.lock_socket(place / "s"):
        row = rows(run, f"ipc://{place}/s")["socket"][-1]
    assert row["state"] == "wrong"
    assert f"pid {os.getpid()}" in row["found"]


def test_a_database_that_another_daemon_serves_is_said(run: Run, answer: dict[str, Any], made: Path) -> None:
    with security.lock_database(made):
        row = rows(run)["database"][0]
        assert row["state"] == "look"
        assert f"served by pid {os.getpid()}" in row["found"]
        # The one that answered holds it rightly.
        answer["pid"] = os.getpid()
        assert [row["state"] for row in rows(run)["database"]] == ["ok"]


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ((3, 51, 3), True),
        ((3, 52, 0), True),
        ((3, 50, 7), True),
        ((3, 44, 6), True),
        ((3, 51, 2), False),
        ((3, 50, 8), False),
        ((3, 44, 5), False),
        ((3, 40, 1), False),
    ],
)
def test_an_sqlite_with_the_bug_is_named_with_where_it_is_cured(
    run: Run, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], sound: bool
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    [row] = rows(run)["sqlite"]
    assert row["state"] == ("ok" if sound else "look")
    assert ("3.51.3" in row["found"]) == (not sound)


def test_a_newer_schema_is_a_failure(run: Run, answer: dict[str, Any], tmp_path: Path) -> None:
    from ncmon.store import schema
    from ncmon.store.writer import Writer

    Writer.open(tmp_path / "new.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
    done = run("doctor", "--db", str(tmp_path / "new.db"), "--format", "json")
    assert done.exit_code == 1
    [row] = [row for row in json.loads(done.stdout) if row["check"] == "database"]
    assert row["found"].endswith("upgrade ncmon")


def test_a_rank_that_is_missing_from_the_last_window_is_named(run: Run, answer: dict[str, Any], tmp_path: Path) -> None:
    from ncmon.store.writer import Writer
    from tests.factories import make_evaluation, make_run, make_window
    from tests.ncmon.store.batches import STREAM, stored

    path = tmp_path / "ranks.db"
    with Writer.open(path) as writer:
        writer.put_run(make_run(world_size=3), STREAM, now=1.0)
        for seq, ranks in enumerate([(0, 1, 2), (0, 2)]):
            window = make_window(step=seq, epoch=seq, world_size=3, ranks=ranks)
            writer.commit([stored(seq, make_evaluation(window))], now=2.0)
            found = rows(run, "--db", str(path)).get("ranks", [])
            assert [row["state"] for row in found] == (["look"] if seq else [])
    assert "rank 1 of 3 was not in the window of step 1" in found[0]["found"]


def test_a_backlog_is_said_and_where_it_lies(
    run: Run, answer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer["counters"] |= {"accepted": 304, "waiting": 300}
    assert rows(run)["counters"][1]["found"].startswith("300 messages wait")
    monkeypatch.setenv("NCMON_SPOOL", str(tmp_path / "spool"))
    living = spool.SpoolFile.create(label(), place=tmp_path / "spool")
    for seq in range(250):
        living.append(seq, packed(seq))
    assert rows(run)["spool"][-1]["found"].startswith("250 messages of processes that live")
    living.close()
