"""What a process asks of its system: to be told when to stop, how much memory it takes, who else has a file open."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self


class StopSignal:
    """SIGTERM and SIGINT as a flag and a readable file descriptor: a batch is finished before they are obeyed.

    Outside of the main thread, where Python takes no signals, only `set` stops.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # A wake-up descriptor, because the poller waits in C, where Python's handlers do not run.
            self._fd_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._fd_before)
        self._read.close()
        self._write.close()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = True

    def set(self) -> None:
        """Stop, as a signal would; from any thread."""
        self.stopped = True
        with suppress(OSError):
            self._write.send(b"\0")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._read.fileno()


def resident_bytes() -> int:
    """Return the resident memory of this process, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def give_back_memory() -> None:
    """Let the allocator return to the system what it keeps for later; does nothing where it cannot (glibc can)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def openers(path: Path) -> str:
    """Return who else has a file open, as text like `pid 12 (python)`; only of processes that we may look into."""
    found = []
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda process: int(process.name)):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):
            if any(_same(link, path) for link in (process / "fd").iterdir()):
                found.append(f"pid {process.name} ({(process / 'comm').read_text().strip()})")
    return ", ".join(found[:5])


def _same(link: Path, path: Path) -> bool:
    with suppress(OSError):
        return os.readlink(link) == str(path)
    return False
