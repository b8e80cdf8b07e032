"""The sweep: spool files that trainings of this machine left behind are delivered to the daemon they were meant for.

A thread beside the daemon's loop that says what any client would say, over the daemon's own socket, so that there is
one way in. It leaves alone what belongs to a process that lives, to another daemon, or to a run that is connected now:
the next client of a run delivers the files of the one before it first, and their order is its business.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ncmon_client import courier, spool

FIRST_S = 5.0
"""Clients that were there before the daemon have come back by then."""
EVERY_S = 30.0
ONE_FILE_S = 60.0

log = logging.getLogger("ncmon.sweep")


class Sweep:
    """Looks through the spool directory every now and then, from a thread of its own."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        connected: Callable[[], frozenset[str]],
        place: Path | None = None,
        first_s: float = FIRST_S,
        every_s: float = EVERY_S,
    ) -> None:
        """`endpoints` are those of this daemon; `connected` tells the runs that are connected, from any thread."""
        self._endpoints = frozenset(endpoints)
        self._connected = connected
        self._place = place
        self._first_s, self._every_s = first_s, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ncmon-sweep", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # It looks at `stop` ten times a second; a file that is not done stays where it is.
        self._thread.join(2.0)

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._stop.wait(wait_s):
            wait_s = self._every_s
            try:
                self.once()
            except Exception:
                log.warning("the spool directory could not be swept", exc_info=True)

    def once(self) -> int:
        """Deliver what there is; return how many messages arrived."""
        messages = 0
        for path in spool.files(self._place):
            if self._stop.is_set():
                break
            try:
                found, lives = spool.look(path)
                label = found.label
                if lives or label.endpoint not in self._endpoints or label.run.run_id in self._connected():
                    continue
                done = courier.deliver(path, timeout_s=ONE_FILE_S, log=log, stop=self._stop)
            except spool.InUse:
                continue
            except spool.SpoolError as error:
                log.warning("%s", error)
                # Said once: what has no legible label is of use to nobody.
                if path.exists():
                    spool.set_aside(path)
                continue
            messages += done.messages - done.left
            if not done.left:
                log.info("%d messages of run %s were delivered from %s", done.messages, done.run_id, path.name)
            if done.damaged:
                log.warning("%s was damaged in part, what could not be read is a gap in run %s", path.name, done.run_id)
        return messages
