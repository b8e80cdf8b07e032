"""Leaving when there is nobody left to draw for: the terminal is gone, the parent has died, a signal says so.

Textual reads from a closed terminal as fast as it can, and hangs in a write to one that takes no more; then its event
loop hears no signal either. So this is a thread: it asks the application to leave, and ends the process where that
does not help. How the user looked is saved before, for the next session.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

LOOK_EVERY_S = 0.3
GRACE_S = 2.0
"""How long the application has to leave in order."""

SIGNALS = (signal.SIGHUP, signal.SIGTERM)


class Watchman:
    """Watches over the terminal of this process, from `start` until `stop`."""

    def __init__(
        self, leave: Callable[[], None], keep: Callable[[], None], *, end: Callable[[int], object] = os._exit
    ) -> None:
        """`leave` asks the application to end and `keep` saves what the next session goes on with, from any thread."""
        self._leave, self._keep, self._end = leave, keep, end
        self._parent = os.getppid()
        self._told = 0
        self._wake, self._over = threading.Event(), threading.Event()
        self._before: dict[int, Any] = {}
        self._thread = threading.Thread(target=self._watch, name="ncmon-watchman", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.obey()
        self._thread.start()

    def obey(self) -> None:
        """Take the signals; again once Textual, which may take some for itself, has begun."""
        for number in SIGNALS:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def stop(self) -> None:
        """The application has left."""
        self._over.set()
        self._wake.set()
        for number, handler in self._before.items():
            with contextlib.suppress(TypeError):
                signal.signal(number, handler)

    @property
    def told(self) -> int:
        """The signal that said so; SIGHUP for a terminal that is gone."""
        return self._told

    @property
    def dropped(self) -> bool:
        """Whether the session ended without the user having said so."""
        return bool(self._told)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._told = self._told or number
        self._wake.set()

    def _watch(self) -> None:
        while not self._over.is_set():
            if self._told or self._gone():
                self._told = self._told or signal.SIGHUP
                self._keep()
                with contextlib.suppress(Exception):
                    self._leave()
                if not self._over.wait(GRACE_S):
                    self._end(128 + self._told)
                return
            self._wake.wait(LOOK_EVERY_S)

    def _gone(self) -> bool:
        """Whether nobody is at the other end of stdin."""
        if os.getppid() != self._parent:
            return True
        poll = select.poll()
        try:
            poll.register(sys.__stdin__.fileno() if sys.__stdin__ is not None else 0, select.POLLHUP | select.POLLERR)
            return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
        except (OSError, ValueError):
            return True
