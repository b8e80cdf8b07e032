"""The bell: runs the user's command for every alert, with the alert as JSON on its standard input.

Rules of this module
- No shell: the command was split once (`shlex`), and nothing of an alert is part of a command line.
- It never holds up the daemon: a thread of its own runs one command at a time, what waits is bounded, and what finds no
  room is counted and said.
- A command has `LIMIT_S`; then it and what it started are killed. Every child is waited for, so that none stays behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from ncmon.errors import UsageError

LIMIT_S = 30.0
WAITING = 64
"""Alerts that wait for their command."""
MOST_SAID = 500
"""Characters of what a failing command says, in the log."""
POLL_S = 0.05

log = logging.getLogger("ncmon.bell")


def parse_command(text: str) -> tuple[str, ...]:
    """Return a command's words; `UsageError` for what cannot be run."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--on-alert: {text!r} cannot be split into words: {error}") from None
    if not words:
        raise UsageError("--on-alert: expected a command, got an empty text")
    if shutil.which(words[0]) is None:
        raise UsageError(f"--on-alert: there is no command {words[0]!r} to run; no shell is used")
    return words


class Bell:
    """Runs one command for every alert that it is given."""

    def __init__(self, command: Sequence[str], *, limit_s: float = LIMIT_S) -> None:
        self._command = tuple(command)
        self._limit_s = limit_s
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue(WAITING)
        self._stop = threading.Event()
        self.failed = 0
        """Commands that failed, took too long, or could not be run."""
        self.dropped = 0
        """Alerts without a command, because too many waited."""
        self._thread = threading.Thread(target=self._run, name="ncmon-bell", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Run nothing more; a command that is running is ended."""
        self._stop.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(5.0)

    def ring(self, record: Mapping[str, Any]) -> None:
        """Run the command for this alert, soon; returns at once."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            log.warning("--on-alert: %d alerts wait for their command already, one is left out", WAITING)

    def _run(self) -> None:
        while not self._stop.is_set():
            record = self._waiting.get()
            if record is None or self._stop.is_set():
                return
            try:
                problem = self._once(json.dumps(record).encode() + b"\n")
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            if problem:
                self.failed += 1
                log.warning("--on-alert: %s: %s", shlex.join(self._command)[:200], problem)

    def _once(self, content: bytes) -> str:
        """Run the command; return what went wrong, empty if nothing did."""
        try:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        assert child.stdin is not None
        assert child.stderr is not None
        said = b""
        try:
            # An alert is far smaller than a pipe: writing it does not wait for the command to read.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(content)
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            os.set_blocking(child.stderr.fileno(), False)
            end = time.monotonic() + self._limit_s
            while child.poll() is None:
                said = (said + (child.stderr.read(65_536) or b""))[-4 * MOST_SAID :]
                if time.monotonic() >= end or self._stop.is_set():
                    return f"took longer than {self._limit_s:g} s and was ended" if not self._stop.is_set() else ""
                self._stop.wait(POLL_S)
            said += child.stderr.read(65_536) or b""
            if child.returncode == 0:
                return ""
            text = " ".join(said.decode("utf-8", "replace").split())[-MOST_SAID:]
            return f"ended with {child.returncode}" + (f": {text}" if text else "")
        finally:
            # Also what it left running behind it: its session is its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            child.stderr.close()
