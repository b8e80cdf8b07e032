"""The log as JSON lines: of a real daemon, and of text that would break lines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from ncmon.logs import JsonLines
from tests.end_to_end.conftest import site as site  # A fixture.
from tests.end_to_end.site import Site, wait_for


def test_whatever_is_said_is_one_object_on_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("ncmon.x", logging.WARNING, "f", 1, "run %s\n\x1b[2J", ("é\ud800",), sys.exc_info())
    line = JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert (found["level"], found["logger"]) == ("warning", "ncmon.x")
    assert found["message"] == "run é\ud800\n\x1b[2J"
    assert "ValueError: two\nlines" in found["exception"]
    assert datetime.fromisoformat(found["time"]).utcoffset() is not None


@pytest.mark.sockets
def test_a_daemon_logs_json_where_it_is_told_to(site: Site) -> None:
    child = site.start(
        *("-m", "ncmon.cli", "serve", "--headless", "--log-format", "json"),
        *("--db", str(site.database), "--listen", site.endpoint),
        log="daemon",
    )
    wait_for(lambda: child.poll() is not None or "ready endpoint" in site.read("daemon.err"), "the daemon")
    child.terminate()
    assert child.wait(timeout=10) == 0
    lines = [json.loads(line) for line in site.read("daemon.err").splitlines()]
    assert any(line["message"].startswith("ready endpoint=") and line["pid"] == child.pid for line in lines)
    assert lines[-1]["message"].startswith("stopped")


def test_another_format_is_a_usage_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncmon.cli", "serve", "--log-format", "xml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
