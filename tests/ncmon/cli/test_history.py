"""`ncmon history --follow`: every window of a run once, in whatever order they come; and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ncmon.store.writer import Writer
from tests.ncmon.store.test_attempts import hello, send

pytestmark = pytest.mark.sockets


def test_following_tells_every_window_once_also_where_steps_go_back(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with Writer.open(path) as writer:
        hello(writer, 1, started=100.0)
        for seq, step in enumerate((10, 20, 30)):
            send(writer, 1, seq, step, loss=1.0)
        options = ("--metric", "ce_loss", "--follow", "--format", "jsonl", "--db", str(path))
        child = subprocess.Popen(
            [sys.executable, "-m", "ncmon.cli", "history", "run", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert child.stdout is not None

            def told(count: int) -> list[tuple[int, float]]:
                rows = [json.loads(child.stdout.readline()) for _ in range(count)]
                return [(row["step"], row["value"]) for row in rows]

            assert told(3) == [(10, 1.0), (20, 1.0), (30, 1.0)]
            send(writer, 1, 3, 40, loss=1.0)
            assert told(1) == [(40, 1.0)]
            # From a checkpoint at step 15.
            hello(writer, 2, started=500.0)
            send(writer, 2, 0, 21, loss=2.0)
            assert told(1) == [(21, 2.0)]
            send(writer, 2, 1, 31, loss=2.0)
            assert told(1) == [(31, 2.0)]
            child.send_signal(signal.SIGINT)
            rest, errors = child.communicate(timeout=30)
        finally:
            if child.poll() is None:
                child.kill()
                child.communicate()
    assert rest == ""
    assert "Traceback" not in errors
