"""The write-ahead log is folded back by a thread beside the writer, so that no acknowledgement waits for it.

A checkpoint copies pages and waits for the disk, 4 MB at a time by SQLite's default, inside the commit that happens to
fill them. Here it runs beside the commits (both wait outside of Python's lock), a little at a time. The writer's own
checkpoint stays as what brings the log back to its beginning, once it is long: then little is left for it to do.

The log begins anew only in a moment in which nobody reads from it. Where readers relieve each other without a pause
that moment does not come by itself: then this waits for it, with the writer, and the longer the longer the log is.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

EVERY_S = 0.25
WRITER_PAGES = 8 * 1024
"""32 MB, for the writer's own: by then most is folded back here, and little is left for the commit that meets it."""
LEAST_BYTES = 1024 * 1024
"""Of log that was written since the last time; less is not worth the disk's attention."""

LONG_BYTES = 32 * 1024 * 1024
"""Of log since it last began anew; from then on its beginning is waited for."""
WAIT_S, LONGEST_WAIT_S, WAIT_SHARE = 0.1, 1.0, 0.1
"""How long, for every `LONG_BYTES` of it; at most; and which share of the time at most."""
AGAIN_S = 1.0
"""After an error."""
MOST_DOUBLINGS = 5
"""Of the time between waits that were in vain."""

log = logging.getLogger("ncmon.daemon")


class Checkpoints:
    """Folds the log of one database back while it is open for writing elsewhere."""

    def __init__(self, database: Path, *, every_s: float = EVERY_S, long_bytes: int = LONG_BYTES) -> None:
        self._database = database
        self._log = database.with_name(database.name + "-wal")
        self._every_s = every_s
        self._long_bytes = long_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ncmon-checkpoints", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                with closing(self._connect()) as connection:
                    for _ in self._fold(connection):
                        failing = False
            except sqlite3.Error as error:
                # A full disk, as a rule, which the writer meets as well and says. It is not full for ever, and a log
                # that nobody folds back fills it again.
                if not failing:
                    log.warning("the write-ahead log is folded back by the writer alone for now: %s", error)
                failing = True
                self._stop.wait(AGAIN_S)

    def _connect(self) -> sqlite3.Connection:
        address = self._database.absolute().as_uri() + "?mode=rw"
        connection = sqlite3.connect(address, uri=True, timeout=0.0, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _fold(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Fold the log back again and again until the end; yield each time that it went well."""
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        before, next_wait, in_vain = -1, float("-inf"), 0
        while not self._stop.wait(self._every_s):
            changes = self._changed()
            if changes == before:
                continue
            before = changes
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            yield
            share = pages * page_size / self._long_bytes
            if share >= 1.0 and time.monotonic() >= next_wait:
                begin = time.monotonic()
                in_vain = 0 if _restart(connection, min(WAIT_S * share, LONGEST_WAIT_S)) else in_vain + 1
                end = time.monotonic()
                # A reader that hangs is not waited for at a tenth of all time.
                next_wait = end + (end - begin) / WAIT_SHARE * 2 ** min(in_vain, MOST_DOUBLINGS)

    def _changed(self) -> int:
        """Return how often so much was written, as far as the file's time tells; -1 while it is short."""
        try:
            found = self._log.stat()
        except OSError:
            return -1
        return found.st_mtime_ns if found.st_size >= LEAST_BYTES else -1


def _restart(connection: sqlite3.Connection, wait_s: float) -> bool:
    """Have the next commit begin the log anew; return whether those who read from it were done within that time."""
    connection.execute(f"PRAGMA busy_timeout = {int(1e3 * wait_s)}")
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    return not busy
