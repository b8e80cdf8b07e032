"""Keeping a database below a size: what goes first, what goes next, and what never does.

    arrays of the oldest windows     no number is lost with them
    every second window              of the longest history, and again, where no arrays are left; its first window, its
                                     last and those before that stay

A slice at a time, so that trainings are not kept waiting; the caller has begun the transaction and commits it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

SLICE = 256
STAY = 20
"""Of a run, split and kind, the newest windows, which are never thinned out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """What was dropped."""

    arrays: int = 0
    """Windows that lost their arrays."""
    windows: int = 0

    def __bool__(self) -> bool:
        return bool(self.arrays or self.windows)


class Trimmer:
    """Remembers between slices which windows are still to be thinned out, so that it goes once over a history."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._doomed: list[int] = []

    def slice(self, max_bytes: int) -> Trimmed:
        """Drop something where more than `max_bytes` are in use; nothing where they are not, or nothing may go."""
        arrays = 0
        if used_bytes(self._connection) <= max_bytes:
            return Trimmed()
        old = self._connection.execute(
            "SELECT window_key FROM window WHERE arrays > 0 ORDER BY window_key LIMIT ?", (SLICE,)
        ).fetchall()
        for (window_key,) in old:
            if used_bytes(self._connection) <= max_bytes:
                break
            self._connection.execute("DELETE FROM array WHERE window_key = ?", (window_key,))
            self._connection.execute("UPDATE window SET arrays = 0 WHERE window_key = ?", (window_key,))
            arrays += 1
        if arrays:
            return Trimmed(arrays=arrays)
        return Trimmed(windows=self._thin(max_bytes))

    def _thin(self, max_bytes: int) -> int:
        if not self._doomed:
            self._doomed = self._every_second()
        dropped = 0
        while self._doomed and dropped < SLICE and used_bytes(self._connection) > max_bytes:
            cursor = self._connection.execute("DELETE FROM window WHERE window_key = ?", (self._doomed.pop(),))
            dropped += cursor.rowcount
        return dropped

    def _every_second(self) -> list[int]:
        longest = self._connection.execute(
            "SELECT run_key, split, exact FROM window GROUP BY run_key, split, exact HAVING count(*) > ?"
            " ORDER BY count(*) DESC LIMIT 1",
            (STAY + 2,),
        ).fetchone()
        if longest is None:
            return []
        found = self._connection.execute(
            """SELECT window_key FROM
  (SELECT window_key, row_number() OVER (ORDER BY step) AS place, row_number() OVER (ORDER BY step DESC) AS rest
   FROM window WHERE run_key = ? AND split = ? AND exact = ?)
WHERE place % 2 = 0 AND rest > ? ORDER BY place DESC""",
            (*longest, STAY),
        )
        return [key for (key,) in found]


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the file that are in use."""
    return (_number(connection, "page_count") - _number(connection, "freelist_count")) * _number(
        connection, "page_size"
    )


def file_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the file, once its journal is folded back."""
    return _number(connection, "page_count") * _number(connection, "page_size")


def vacuum(connection: sqlite3.Connection, pages: int) -> None:
    """Give free pages back to the file system."""
    # As a script: sqlite3 would take one step of a statement without columns, and free one page.
    connection.executescript(f"PRAGMA incremental_vacuum({pages})")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
