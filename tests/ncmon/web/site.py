"""A daemon with a page, as a process, and the processes below it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ncmon.tui.stage import make_store


class Site:
    """`ncmon serve --headless --web 127.0.0.1:0`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_store(path / "t.db", epochs=6, others=False)
        environment = {**os.environ, "XDG_STATE_HOME": str(path / "state"), "XDG_CONFIG_HOME": str(path / "config")}
        arguments = ["--db", str(path / "t.db"), "--listen", f"ipc://{path}/s", "--web", "127.0.0.1:0"]
        with open(path / "log", "ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "ncmon.cli", "serve", "--headless", *arguments],
                stdout=log,
                stderr=log,
                env=environment,
            )
        wait_for(lambda: "in a browser" in self.log() or self.daemon.poll() is not None, "the link")
        assert self.daemon.poll() is None, self.log()
        found = re.search(r"in a browser: (http://\S+?)\?token=(\S+)", self.log())
        assert found is not None
        self.url, self.token = found[1], found[2]
        wait_for(lambda: "ready pid=" in self.web_log(), "the web server")
        self.server = int(re.findall(r"ready pid=(\d+)", self.web_log())[-1])
        self.seen: set[int] = set()

    def log(self) -> str:
        return (self.path / "log").read_text()

    def web_log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.path / "t-web.log").read_text()
        return ""

    def tabs(self) -> list[int]:
        """Return the processes of tabs, those that lost their server too."""
        found = [pid for pid, parent, words in processes() if "ncmon.web.tab" in words and str(self.path) in words]
        self.seen.update(found)
        return found

    def end(self) -> None:
        for pid in (self.daemon.pid, self.server, *self.tabs()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemon.wait()


def processes() -> Iterator[tuple[int, int, str]]:
    """Yield pid, parent and command line of what runs, without what has ended and waits for its parent."""
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if state != "Z":
                    yield int(place.name), int(parent), words


def alive(pid: int) -> bool:
    return any(found == pid for found, _, _ in processes())


def wait_for(condition: Callable[[], object], what: str, *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def site() -> Iterator[Site]:
    path = Path(tempfile.mkdtemp(prefix="nc"))
    made = None
    try:
        made = Site(path)
        yield made
    finally:
        if made is not None:
            made.end()
        shutil.rmtree(path, ignore_errors=True)
