"""One tab: its process, begun with it and ended with it.

textual-serve ends a process by asking it and waiting for as long as it takes. A process that hangs in writing to a
browser that reads no more does not hear that, nor SIGTERM: so it is asked, told, and then killed, each in its time, and
with its whole session, whatever it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version

from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

QUIT_S = 1.0
TERM_S = 1.0
"""How long a process has to end when it is asked, and when it is told; then it is killed."""


class Session(AppService):
    """The process behind one tab."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        write_bytes: Callable[[bytes], Awaitable[None]],
        write_str: Callable[[str], Awaitable[None]],
        close: Callable[[], Awaitable[None]],
        download_manager: DownloadManager,
    ) -> None:
        super().__init__(
            "ncmon", write_bytes=write_bytes, write_str=write_str, close=close, download_manager=download_manager
        )
        self._arguments = tuple(arguments)

    @property
    def pid(self) -> int:
        """The process's id, 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        """Start it: no shell in between that would have to pass signals on, and a session of its own to kill."""
        environment = os.environ | {
            "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver",
            "TEXTUAL_COLOR_SYSTEM": "truecolor",
            "TERM_PROGRAM": "textual",
            "TERM_PROGRAM_VERSION": version("textual-serve"),
            "COLUMNS": str(width),
            "ROWS": str(height),
            # Browsers know UTF-8, whatever the daemon's own terminal knew.
            "LC_ALL": "C.UTF-8",
        }
        environment.pop("NO_COLOR", None)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ncmon.web.tab",
            *self._arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        self._process, self._stdin = process, process.stdin
        return process

    async def stop(self) -> None:
        """End the process, however it does; stopping twice does nothing."""
        process, task, self._process = self._process, self._task, None
        if process is None:
            return
        try:
            with contextlib.suppress(Exception):
                await self._download_manager.cancel_app_downloads(app_service_id=self.app_service_id)
                await asyncio.wait_for(self.send_meta({"type": "quit"}), QUIT_S)
            if not await _ended(process, QUIT_S):
                _signal(process.pid, signal.SIGTERM)
                await _ended(process, TERM_S)
        finally:
            # Also where this is cancelled half-way; and what the process may have started.
            _signal(process.pid, signal.SIGKILL)
            if self._stdin is not None:
                self._stdin.close()
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
                self._task = None
        await process.wait()


async def _ended(process: Process, within_s: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), within_s)
    except TimeoutError:
        return False
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
