"""The fault scripts in short, with their controls: what they prove at length is also watched here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FAULTS = Path(__file__).parents[2] / "scripts" / "faults"

CAN_LOOP = os.geteuid() == 0 and Path("/dev/loop0").exists() and shutil.which("mkfs.ext4") is not None

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(240)]


def run(script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(FAULTS / script), *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_daemon_killed_again_and_again_loses_and_doubles_nothing() -> None:
    found = run("kill_daemon.py", "--windows", "600", "--kills", "3")
    assert (found["lost"], found["doubled"], found["held"], found["integrity"]) == (0, 0, 0, "ok")
    assert found["accepted"] == 600


@pytest.mark.parametrize(
    ("control", "harm"), [("ack-first", "lost"), ("no-dedupe", "doubled"), ("plain-reconnect", "lost")]
)
def test_a_daemon_without_one_of_its_promises_does_harm(control: str, harm: str) -> None:
    assert run("kill_daemon.py", "--windows", "600", "--kills", "4", "--control", control)[harm] > 0


def test_a_client_killed_again_and_again_loses_nothing_that_it_called_safe() -> None:
    found = run("kill_client.py", "--kills", "2", "--few", "60", "--most", "300")
    assert (found["lost"], found["doubled"], found["integrity"]) == (0, 0, "ok")
    assert found["accepted"] >= 120


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_a_full_disk_costs_time_and_no_window() -> None:
    found = run("disk_full.py", "--windows", "800", "--seconds", "2")
    assert (found["lost"], found["doubled"], found["integrity"], found["alive"]) == (0, 0, "ok", True)
    assert found["stored_while_full"] == 0
    assert found["lines_in_log"] == 1


@pytest.mark.parametrize(
    "state",
    [
        "stopped",
        "absent",
        pytest.param("full", marks=pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")),
        pytest.param("read-only", marks=pytest.mark.skipif(not CAN_LOOP, reason="loop devices, ext4 and root")),
    ],
)
def test_a_training_whose_daemon_is_away_goes_on_and_all_of_it_arrives(state: str) -> None:
    """The time it takes is for the long version: here it is only told."""
    found = run("away.py", "--state", state, "--seconds", "2", "--turn", "0.6")
    assert found["stored_during"] <= 1
    assert found["accepted"] == found["stored_after"] >= 2
    assert (found["refused"], found["doubled"], found["integrity"]) == (0, 0, "ok")
    assert found["waiting_at_the_end_of_the_fault"] > 0
    assert found["ram_grew_mb"] < 128
    assert found["warnings"] <= 2


def test_a_crowd_with_large_windows_before_a_stalled_writer_stays_within_memory() -> None:
    found = run("flood.py", "--clients", "20", "--windows", "2", "--seconds", "2")
    assert (found["lost"], found["doubled"], found["integrity"], found["alive"]) == (0, 0, "ok", True)
    assert found["accepted"] == 40
    assert found["stored_while_stuck"] == 0
    # Of twenty clients; a hundred are below 512 (the long version).
    assert found["peak_mb"] < 300


def test_a_viewer_that_hangs_is_named_bounded_and_survived() -> None:
    found = run("stuck_viewer.py", "--windows", "500", "--limit-mb", "1.5", "--seconds", "1")
    assert found["named_the_reader"]
    assert found["journal_mb"] < 1.5 + 2
    assert (found["lost"], found["doubled"], found["integrity"], found["held"]) == (0, 0, "ok", 0)
    assert found["stored_at_the_limit"] == 0


def test_more_windows_than_fit_stay_below_the_size_beside_ncmon_prune() -> None:
    found = run("max_bytes.py", "--windows", "650", "--mb", "2")
    assert found["below"]
    assert found["prunes"] > 0
    assert 0 < found["windows_left"] < 650
    assert (found["lost"], found["doubled"], found["integrity"], found["held"]) == (0, 0, "ok", 0)


def test_every_script_is_in_the_table_and_every_row_has_one() -> None:
    done = subprocess.run(
        [sys.executable, str(FAULTS / "all"), "--only", "no such fault", "--markdown"], capture_output=True, check=True
    )
    assert done.stdout.startswith(b"| fault | promise | figure |")
    text, index = (FAULTS / "all").read_text(), (FAULTS / "README.md").read_text()
    for script in FAULTS.glob("*.py"):
        if script.name not in ("stand.py", "client.py"):
            assert script.name in text or script.name == "away.py"
            assert script.name in index


def test_hostile_peers_end_nothing_and_hold_up_nobody() -> None:
    found = run("hostile.py", "--seconds", "5")
    assert found["alive"]
    assert found["served_within_s"] < 2.0
    assert found["lost"] == 0
