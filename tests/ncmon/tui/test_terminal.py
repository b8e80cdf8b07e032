"""The real program in a real pseudo-terminal: kinds of terminals, no colour, and terminals that go away."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GREYS = {*range(232, 256), 16, 59, 102, 145, 188, 231}
"""Of the 256 colours, those without one."""
ROOT = Path(__file__).resolve().parents[3]


class Terminal:
    """A process in a pseudo-terminal, and everything that it has drawn."""

    def __init__(self, database: Path, state: Path, **environment: str) -> None:
        self.main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "LC_ALL", "COLORTERM")}
        settings = {"TERM": "xterm-256color", "XDG_STATE_HOME": str(state), "XDG_CONFIG_HOME": str(state)}
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ncmon.cli", "watch", str(database)],
            stdin=other,
            stdout=other,
            stderr=other,
            env=kept | settings | paths | environment,
            start_new_session=True,
        )
        os.close(other)
        self.drawn = b""

    def wait_for(self, text: str, timeout_s: float = 30.0) -> str:
        """Read until a text was drawn; styles in between do not count."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.main], [], [], 0.1)
            if ready:
                try:
                    self.drawn += os.read(self.main, 65_536)
                except OSError:
                    break
            if text in self.plain():
                return self.plain()
        pytest.fail(f"{text!r} was never drawn; the process {self.process.poll()}; last {self.drawn[-300:]!r}")

    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?=<>]*[a-zA-Z]|\x1b[()][A-Z0-9]", "", self.drawn.decode("utf-8", "replace"))

    def press(self, keys: str) -> None:
        self.drawn = b""
        os.write(self.main, keys.encode())


def colours(drawn: bytes) -> set[int]:
    """Return which of the 256 colours were used."""
    return {int(number) for number in re.findall(rb"[34]8;5;(\d+)[;m]", drawn)}


@contextmanager
def terminal(database: Path, state: Path, **environment: str) -> Iterator[Terminal]:
    shown = Terminal(database, state, **environment)
    try:
        yield shown
    finally:
        if shown.process.poll() is None:
            shown.process.kill()
        shown.process.wait()
        try:
            os.close(shown.main)
        except OSError:
            pass


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
        {"TERM": "tmux-256color", "NO_COLOR": "1"},
        {"TERM": "screen", "LC_ALL": "C"},
        {"TERM": "linux"},
    ],
    ids=lambda environment: "-".join(environment.values()),
)
def test_every_kind_of_terminal_gets_every_screen(database: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    with terminal(database, tmp_path, **environment) as shown:
        shown.wait_for("digits-bn")
        for key, said in (("2", "NC1"), ("3", "by depth"), ("4", "closest pair"), ("5", "assumes"), ("6", "REACHED")):
            shown.press(key)
            text = shown.wait_for(said)
            if environment.get("LC_ALL") == "C":
                assert text.isascii()
            if "NO_COLOR" in environment:
                assert colours(shown.drawn) <= GREYS
        shown.press("q")
        shown.wait_for("RUN ")
        shown.press("q")
        assert shown.process.wait(20) == 0


def test_a_terminal_that_goes_away_ends_the_program(database: Path, tmp_path: Path) -> None:
    with terminal(database, tmp_path) as shown:
        shown.wait_for("digits-bn")
        os.close(shown.main)
        shown.process.wait(20)


def test_a_look_and_keys_of_ones_own_are_used(database: Path, tmp_path: Path) -> None:
    (tmp_path / "ncmon").mkdir()
    (tmp_path / "ncmon/keys.toml").write_text('layers = "v"\n')
    (tmp_path / "ncmon/look.json").write_text('{"layer_metric": 2}')
    with terminal(database, tmp_path) as shown:
        shown.wait_for("digits-bn")
        shown.press("v")
        shown.wait_for("min intra cosine of each layer")
        shown.process.send_signal(signal.SIGTERM)
        shown.process.wait(20)


def test_keys_that_cannot_be_are_one_line_and_a_usage_error(database: Path, tmp_path: Path) -> None:
    (tmp_path / "ncmon").mkdir()
    (tmp_path / "ncmon/keys.toml").write_text('frieze = "F"\n')
    with terminal(database, tmp_path) as shown:
        text = shown.wait_for("did you mean freeze")
        assert "Traceback" not in text
        assert shown.process.wait(20) == 2
