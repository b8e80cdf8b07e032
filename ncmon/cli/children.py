"""The processes that `serve` and `demo` start: begun in a session of their own, ended by their pid, never by name.

A session of its own: Ctrl-C in the terminal reaches the command alone, which then ends its children in the right order.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ncmon import config
from ncmon.errors import NcmonError

READY_S = 20.0
"""A daemon is ready within a second; a slow disk or a first start takes longer."""
STOP_S = 5.0
"""A daemon commits and ends within two."""
POLL_S = 0.05


class Child:
    """One process with its log file."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        pipe: bool = False,
        environment: Mapping[str, str] | None = None,
        hand_down: Sequence[int] = (),
    ) -> None:
        """Start `python -m module arguments`; stderr, and stdout unless it is piped to us, go to the end of the log.

        `hand_down` are descriptors that it shall have, too.
        """
        self.name = name
        self.log = log
        try:
            log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NcmonError(f"{log} cannot be written: {error.strerror}") from None
        try:
            self._begin = os.fstat(handle).st_size
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else handle,
                stderr=handle,
                start_new_session=True,
                text=True,
                env=None if environment is None else dict(environment),
                pass_fds=tuple(hand_down),
            )
        finally:
            os.close(handle)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def said(self) -> str:
        """Return the last line that it logged, without the name in front; empty if there is none."""
        with contextlib.suppress(OSError):
            text = self.log.read_bytes()[self._begin :].decode(errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            return lines[-1].removeprefix("ncmon: ") if lines else ""
        return ""

    def failure(self) -> str:
        """Return why it ended, on one line."""
        code = self.process.returncode
        how = f"ended with code {code}" if code is None or code >= 0 else f"was killed by signal {-code}"
        return f"the {self.name} {how}: {self.said() or 'it said nothing'} (log: {self.log})"

    def stop(self, *, timeout_s: float = STOP_S) -> None:
        """End it: SIGTERM, and SIGKILL where that does not help in time."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def leave(self) -> None:
        """Let it live on without us; Python shall not remind of it."""
        self.process.returncode = 0


def start_daemon(database: Path, listen: Sequence[str], *, log: Path, more: Sequence[str] = ()) -> Child:
    """Start a daemon and wait until it answers; raises `NcmonError` with its own words when it does not."""
    arguments = ["serve", "--headless", "--db", str(database), *(part for one in listen for part in ("--listen", one))]
    arguments += more
    child = Child("daemon", "ncmon.cli", arguments, log=log)
    try:
        _wait_until_ready(child, listen[0])
    except BaseException:
        child.stop()
        raise
    return child


def answering(endpoint: str, *, timeout_s: float = 0.3) -> int | None:
    """Return the pid of the daemon that answers at an ingest endpoint, None when there is none."""
    path = config.ipc_path(config.view_endpoint(endpoint))
    if path is None or not path.exists():
        return None  # over tcp a key would be needed; a port that is taken is refused by the system
    from ncmon.transport import status

    found = status(config.view_endpoint(endpoint), timeout_s=timeout_s)
    return None if found is None else int(found["pid"])


def _wait_until_ready(child: Child, endpoint: str) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if not child.running:
            raise NcmonError(child.said() or child.failure())
        if answering(endpoint) == child.pid:
            return
        time.sleep(POLL_S)
    raise NcmonError(f"the daemon did not answer within {READY_S:.0f} s; its log is {child.log}")
