"""The stand that the fault scripts share: a daemon and clients as real processes, and what the store says of them.

Every process is started here and ended by its pid. A trigger in the store counts each time that a window is written, so
that one that was stored twice shows although its second copy replaces the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(ROOT / "scripts")]

import environment  # noqa: E402

environment.settle()

SERVE = "import sys; from pathlib import Path; from ncmon.daemon import run_daemon; "
SERVE_END = "sys.exit(run_daemon(Path(sys.argv[1]), sys.argv[2:]))"


class Stand:
    """A short temporary directory with a database, a socket, a spool and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "t.db"
        self.endpoint = f"ipc://{path}/s"
        self.spool = path / "spool"
        self.children: list[subprocess.Popen[str]] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
            "OMP_NUM_THREADS": "1",
            "NCMON_SPOOL": str(self.spool),
            "XDG_STATE_HOME": str(path / "state"),
        }

    def start(self, *arguments: str, log: str) -> subprocess.Popen[str]:
        with open(self.path / log, "a") as out:
            child = subprocess.Popen(
                [sys.executable, *arguments], stdout=out, stderr=out, env=self.environment, text=True, cwd=ROOT
            )
        self.children.append(child)
        return child

    def daemon(self, spoil: str = "", *, database: Path | None = None) -> subprocess.Popen[str]:
        """Start the daemon and wait until it answers; `spoil` is code that breaks one of its promises first."""
        database = database or self.database
        child = self.start("-c", SERVE + spoil + SERVE_END, str(database), self.endpoint, log="daemon.log")
        from ncmon.config import view_endpoint
        from ncmon.transport import status

        def answers() -> bool:
            if child.poll() is not None:
                raise SystemExit(self.read("daemon.log"))
            found = status(view_endpoint(self.endpoint), timeout_s=0.2)
            return found is not None and found["pid"] == child.pid

        wait_for(answers, "the daemon to answer")
        return child

    def client(
        self, run_id: str, windows: int, level: str = "memory", *, first: int = 0, n_features: int = 6, spoil: str = ""
    ) -> subprocess.Popen[str]:
        """Start a client that offers windows as fast as they are taken; `spoil` is as for `daemon`."""
        begin = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{spoil}import client; client.main()"
        arguments = (self.endpoint, run_id, str(first), str(windows), level, str(n_features))
        return self.start("-c", begin, *arguments, log=f"{run_id}.log")

    def read(self, log: str) -> str:
        return (self.path / log).read_text() if (self.path / log).exists() else ""

    def watch_inserts(self) -> None:
        """Count every write of a window, from now on."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=20)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS written (run_key INTEGER, step INTEGER)")
            connection.execute(
                "CREATE TRIGGER IF NOT EXISTS count_written AFTER INSERT ON window"
                " BEGIN INSERT INTO written VALUES (new.run_key, new.step); END"
            )
            connection.commit()

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=20)) as connection:
            return connection.execute(query).fetchall()

    def stored(self) -> int:
        """Return how many windows are on disk, evaluated or waiting in the inbox."""
        try:
            return int(self.rows("SELECT (SELECT count(*) FROM window) + (SELECT count(*) FROM inbox)")[0][0])
        except sqlite3.Error:
            return 0

    def verdict(self, accepted: dict[str, set[int]]) -> dict[str, Any]:
        """Compare what clients say was accepted with what the store holds, once nothing waits in its inbox any more."""
        waiting = self.rows("SELECT count(*) FROM inbox")[0][0]
        wait_for(
            lambda: self.rows("SELECT count(*) FROM inbox")[0][0] == 0,
            "the inbox to be evaluated",
            deadline_s=60.0 + 0.2 * waiting,
        )
        found: dict[str, list[int]] = {}
        for run_id, step in self.rows("SELECT run_id, step FROM written JOIN run USING (run_key)"):
            found.setdefault(run_id, []).append(step)
        return {
            "accepted": sum(map(len, accepted.values())),
            "lost": sum(len(steps - set(found.get(run, ()))) for run, steps in accepted.items()),
            "doubled": sum(len(found.get(run, ())) - len(set(found.get(run, ()))) for run in accepted),
            "integrity": self.rows("PRAGMA integrity_check")[0][0],
            "rejected": self.rows("SELECT count(*) FROM rejected")[0][0],
        }

    def end(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()


@contextlib.contextmanager
def stand(path: Path | None = None) -> Iterator[Stand]:
    """A stand that is taken down afterwards."""
    made = Stand(Path(tempfile.mkdtemp(prefix="ncf", dir=path)))
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(made.path, ignore_errors=True)


def wait_for(condition: Callable[[], bool], what: str, *, deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.02)


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has now."""
    return _memory(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had."""
    return _memory(pid, "VmHWM")


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"/proc/{pid}/status has no {name}")


def report(**figures: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(figures), flush=True)
