"""The fault scripts in short, with their controls: what they prove at length is also watched here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FAULTS = Path(__file__).parents[2] / "scripts" / "faults"

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
    found = run("kill_client.py", "--kills", "2")
    assert (found["lost"], found["doubled"], found["integrity"]) == (0, 0, "ok")
    assert found["accepted"] >= 400


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_a_full_disk_costs_time_and_no_window() -> None:
    found = run("disk_full.py", "--windows", "800", "--seconds", "2")
    assert (found["lost"], found["doubled"], found["integrity"], found["alive"]) == (0, 0, "ok", True)
    assert found["stored_while_full"] == 0
    assert found["lines_in_log"] == 1


@pytest.mark.parametrize("name", ["hostile.py"])
def test_hostile_peers_end_nothing_and_hold_up_nobody(name: str) -> None:
    found = run(name, "--seconds", "4")
    assert found["alive"]
    assert found["served_within_s"] < 2.0
    assert found["lost"] == 0
