"""Real processes for the end-to-end tests: started here, waited for by polling, ended by their pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ncmon

TRAINER = Path(__file__).with_name("trainer.py")


def wait_for(condition: Callable[[], bool], what: str, *, deadline_s: float = 30.0) -> None:
    """Poll until the condition holds; fail with `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.02)


class Site:
    """A short temporary directory with a database, a socket and the processes of one test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "t.db"
        self.endpoint = f"ipc://{path}/s"
        self.children: list[subprocess.Popen[str]] = []
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "XDG_RUNTIME_DIR": str(path / "run"),
            "XDG_DATA_HOME": str(path / "data"),
            "NCMON_SPOOL": str(path / "spool"),
        }
        self.environment.pop("NCMON_ENDPOINT", None)

    def start(self, *command: str, log: str) -> subprocess.Popen[str]:
        """Start one Python process whose stdout and stderr go to files beside the database."""
        with open(self.path / f"{log}.out", "a") as out, open(self.path / f"{log}.err", "a") as err:
            child = subprocess.Popen(
                [sys.executable, *command], stdout=out, stderr=err, env=self.environment, text=True
            )
        self.children.append(child)
        return child

    def settle(self) -> None:
        """Wait until everything that is on disk can be read."""
        with ncmon.open(self.database) as store:
            wait_for(lambda: store.waiting() == 0, "the inbox to be empty", deadline_s=60.0)

    def read(self, log: str) -> str:
        return (self.path / log).read_text()

    def daemon(self, *more: str) -> subprocess.Popen[str]:
        """Start the daemon and wait until it answers on its socket."""
        child = self.start(
            "-m",
            "ncmon.cli",
            "serve",
            "--headless",
            "--db",
            str(self.database),
            "--listen",
            self.endpoint,
            *more,
            log="daemon",
        )
        from ncmon.config import view_endpoint
        from ncmon.transport import status

        def answers() -> bool:
            assert child.poll() is None, self.read("daemon.err")
            answer = status(view_endpoint(self.endpoint), timeout_s=0.5)
            return answer is not None and answer["pid"] == child.pid

        wait_for(answers, "the daemon to answer")
        return child

    def trainer(self, *arguments: str, log: str = "trainer") -> subprocess.Popen[str]:
        return self.start(str(TRAINER), *arguments, log=log)

    def end(self) -> None:
        for child in self.children:
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
