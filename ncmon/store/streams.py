"""Where streams stand: which message of each comes next. Inside the writer's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from ncmon.model import StreamSeq


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a stream stands inside a transaction."""

    key: int
    next: int
    attempt: int
    """Which attempt of its run it belongs to."""
    moved: bool = False

    def move(self, following: int) -> None:
        """Expect `following` next, unless the stream is further already."""
        if following > self.next:
            self.next, self.moved = following, True


class Streams:
    """The streams that a transaction has to do with, looked up once and written once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._places: dict[bytes, Place] = {}

    def forget(self) -> None:
        """A transaction begins."""
        self._places.clear()

    def place(self, stream: bytes) -> Place:
        """Return where a stream stands, a new one at 0."""
        found = self._places.get(stream)
        if found is None:
            row = self._connection.execute(
                "SELECT stream_key, next, attempt FROM stream WHERE stream = ?", (stream,)
            ).fetchone()
            if row is None:
                cursor = self._connection.execute("INSERT INTO stream (stream, next) VALUES (?, 0)", (stream,))
                row = (cursor.lastrowid, 0, 1)
            found = self._places[stream] = Place(key=row[0], next=row[1], attempt=row[2])
        return found

    def take(self, origins: Sequence[StreamSeq], *, waited: bool) -> bool:
        """Record the messages that are new and move their streams on; False when all of them are stored already.

        A stream has moved on behind those that `waited` in the inbox.
        """
        fresh = False
        for origin in origins:
            place = self.place(origin.stream)
            if origin.seq < place.next and not waited:
                continue
            cursor = self._connection.execute(
                "INSERT INTO origin (stream_key, seq) VALUES (?, ?) ON CONFLICT DO NOTHING", (place.key, origin.seq)
            )
            fresh = fresh or cursor.rowcount > 0
            place.move(origin.seq + 1)
        return fresh

    def write(self) -> None:
        """Write where the streams that moved stand now."""
        self._connection.executemany(
            "UPDATE stream SET next = ? WHERE stream_key = ?",
            [(place.next, place.key) for place in self._places.values() if place.moved],
        )
