"""Alerts from a real daemon to a real command, and the commands that list and acknowledge them."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncmon.store.writer import Writer
from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.end_to_end.conftest import site as site  # A fixture.
from tests.end_to_end.site import Site, wait_for
from tests.factories import make_features, window_from_features
from tests.messages import Prepared, make_info, to_wire
from tests.ncmon.cli.conftest import Run
from tests.ncmon.store.test_alerts import make_alert, make_database


def ncmon(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "ncmon.cli", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = make_database(tmp_path / "t.db", runs=2)
    with Writer.open(path) as writer:
        writer.put_alerts(
            [
                make_alert(),
                make_alert(rule="collapse-reached", severity="info", class_index=None, text="it is there"),
                make_alert(run_id="run1", rule="nonfinite", severity="alert", text="evil\x1b[2J name"),
            ],
            {},
        )
        writer.put_alerts([make_alert(rule="nc1-rising")], {})
        writer.put_alerts([make_alert(rule="nc1-rising", cleared=2e9)], {})
    return path


def listed(database: Path, *arguments: str) -> list[dict[str, Any]]:
    return json.loads(ncmon("alerts", *arguments, "--db", str(database), "--format", "json").stdout)


def test_alerts_are_listed_and_acknowledged(database: Path) -> None:
    text = ncmon("alerts", "--db", str(database)).stdout
    assert "class dead" in text
    assert "\x1b" not in text
    everything = listed(database)
    assert [one["state"] for one in everything] == ["open", "open", "open", "over"]
    assert {one["rule"] for one in listed(database, "run", "--open")} == {"class-dead", "collapse-reached"}
    first = next(one for one in everything if one["rule"] == "class-dead")
    assert (first["class"], first["class_name"], first["epoch"], first["run"]) == (2, "c", 3, "run")
    assert first["text"] == "none of class c, nor of 9"
    once = ("watch", str(database), "--once")
    assert "! class-dead" in ncmon(*once, code=3).stdout
    assert len(json.loads(ncmon(*once, "--format", "json", code=3).stdout)["alerts"]) == 3
    assert ncmon("ack", str(first["id"]), "--db", str(database)).stdout == "1 alert acknowledged\n"
    ncmon(*once, code=3)
    assert ncmon("ack", "--run", "run1", "--db", str(database)).stdout == "1 alert acknowledged\n"
    # What is left open is good news.
    assert "!" not in ncmon(*once).stdout.splitlines()[0]
    assert ncmon("ack", "--all", "--db", str(database)).stdout == "1 alert acknowledged\n"
    assert [one["state"] for one in listed(database)] == ["seen", "seen", "seen", "over"]


def test_a_run_and_its_report_say_what_is_open(database: Path, tmp_path: Path) -> None:
    assert "! class dead: none of class c" in ncmon("show", "run", "--db", str(database)).stdout
    ncmon("report", "run1", "--db", str(database), "-o", str(tmp_path / "r.html"))
    html = (tmp_path / "r.html").read_text()
    assert "<h2>Alerts</h2>" in html
    assert "values are not finite" in html
    assert "\x1b" not in html


def test_the_rules_are_explained() -> None:
    text = ncmon("alerts", "--rules").stdout
    assert "nc1-rising  NC1 rises again" in text
    assert "stalled-s" in text
    rows = json.loads(ncmon("alerts", "--rules", "--format", "json").stdout)
    assert {"name", "meaning", "advice", "limits", "cooldown_s"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ack",), 2, "expected numbers of alerts"),
        (("ack", "1", "--all"), 2, "expected numbers of alerts"),
        (("ack", "x"), 2, "'x'"),
        (("ack", "99"), 1, "there is no alert 99"),
        (("alerts", "nobody"), 1, "no run is named 'nobody'"),
        (("alerts", "run", "--rules"), 2, "lists rules"),
        (("serve", "--headless", "--alert", "nc1-rise"), 2, "expected nc1-rise=NUMBER"),
        (("serve", "--headless", "--alert", "nonsense=1"), 2, "no limit or rule is named 'nonsense'"),
        (("serve", "--headless", "--on-alert", "no-such-command"), 2, "there is no command 'no-such-command'"),
        (("serve", "--headless", "--on-alert", "a 'b"), 2, "cannot be split"),
    ],
)
def test_mistakes_are_one_line(run: Run, database: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run(*arguments, "--db", str(database))
    assert done.exit_code == code
    assert said in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) <= 3


RINGER = """
import json, os, subprocess, sys
record = json.load(sys.stdin)
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(record | {"pid": os.getpid()}) + "\\n")
if "sleep" in sys.argv:
    subprocess.run(["sleep", "600"])
"""


@pytest.mark.sockets
@pytest.mark.timeout(180)
def test_an_alert_travels_from_a_training_to_a_command_once(site: Site) -> None:
    rung = site.path / "rung"
    script = site.path / "ring.py"
    script.write_text(RINGER)
    ring = f"{sys.executable} {script} {rung}"

    def records() -> list[dict[str, Any]]:
        return [json.loads(line) for line in rung.read_text().splitlines()] if rung.exists() else []

    def send(steps: range, *, broken: bool, split: str = "train") -> None:
        for step in steps:
            made = make_features(layers=1)
            features = {"classifier-input": made.last.copy()}
            if broken:
                features["classifier-input"][0, 0] = np.nan
            window = window_from_features(features, made.labels, made.weight, made.bias, step=step, split=split)
            meta, blob = to_wire(window)
            assert outbox.offer(Prepared(meta, blob), len(blob))
        sender.wake()

    def stored() -> int:
        found = json.loads(ncmon("runs", "--db", str(site.database), "--format", "json").stdout)
        return found[0]["windows"] if found else 0

    daemon = site.daemon("--on-alert", ring)
    outbox = Outbox()
    sender = Sender(
        endpoint=site.endpoint, run=make_info(run_id="run"), outbox=outbox, log=logging.getLogger("ncmon_t")
    )
    sender.start()
    try:
        send(range(1, 3), broken=True)
        wait_for(lambda: len(records()) == 1, "the command to run")
        (record,) = records()
        assert (record["rule"], record["run_id"], record["severity"]) == ("nonfinite", "run", "alert")
        # Killed and started again, while it is still so: no second alert.
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        daemon = site.daemon("--on-alert", f"{ring} sleep")
        send(range(3, 5), broken=True)
        wait_for(lambda: stored() == 4, "all windows")
        assert len(listed(site.database)) == 1
        send(range(5, 8), broken=False)
        wait_for(lambda: not listed(site.database, "--open"), "the end of the alert")
        assert len(records()) == 1
        # A command that hangs holds up neither windows nor the daemon's end, and does not survive it.
        send(range(8, 9), broken=True, split="test")
        wait_for(lambda: len(records()) == 2, "the command to run again")
        send(range(9, 10), broken=False)
        wait_for(lambda: stored() == 9, "one more window")
    finally:
        sender.close(5.0)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=10) == 0
    wait_for(lambda: not Path(f"/proc/{records()[1]['pid']}").exists(), "the end of the command")
