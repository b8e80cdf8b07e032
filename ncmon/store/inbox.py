"""The inbox: messages that are acknowledged and not evaluated yet, as they came. On disk, so that they need no memory.

An *entry* is one thing to be stored later: the message of one rank, or those of several that make one window. Its rows
have consecutive keys, of which the first is the entry's own. Rows are put in by the transaction that moves
`stream.next` behind them, and taken out by the one that stores what became of them: no message is in neither place, or
in both.

Called inside the writer's transactions; this module begins and ends none.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from ncmon.model import StreamSeq

MOST_ENTRIES = 8
"""Of one run, that are looked up at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One thing to be evaluated."""

    key: int
    run_id: str
    origins: tuple[StreamSeq, ...]
    received: float
    """Unix seconds, by the daemon's clock."""
    nbytes: int
    """Of its messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What waits of one run."""

    messages: int
    nbytes: int


Row = tuple[int, int, str, int, int, float, int, bytes]
"""Key, entry, run id, stream key, seq, received, bytes, message."""


def put(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Put messages in."""
    connection.executemany(
        "INSERT INTO inbox (inbox_key, entry, run_id, stream_key, seq, received, nbytes, message)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )


def take(connection: sqlite3.Connection, entry: Entry) -> bool:
    """Take an entry out; False where it is no longer there, because its run was deleted."""
    cursor = connection.execute(
        "DELETE FROM inbox WHERE inbox_key BETWEEN ? AND ? AND entry = ?",
        (entry.key, entry.key + len(entry.origins) - 1, entry.key),
    )
    return cursor.rowcount > 0


def last_key(connection: sqlite3.Connection) -> int:
    """Return the greatest key in use, 0 for none."""
    return int(connection.execute("SELECT coalesce(max(inbox_key), 0) FROM inbox").fetchone()[0])


def entries(connection: sqlite3.Connection, run_id: str, after: int) -> list[Entry]:
    """Return the next entries of a run behind the one with key `after`, in the order in which they came."""
    found: list[Entry] = []
    cursor = connection.execute(
        """SELECT i.entry, i.received, s.stream, i.seq, i.nbytes FROM inbox i JOIN stream s USING (stream_key)
WHERE i.run_id = ? AND i.inbox_key > ? AND i.entry > ? ORDER BY i.inbox_key""",
        (run_id, after, after),
    )
    try:
        for key, group in itertools.groupby(cursor, key=lambda row: row[0]):
            rows = list(group)
            found.append(
                Entry(
                    key=key,
                    run_id=run_id,
                    origins=tuple(StreamSeq(stream=stream, seq=seq) for _, _, stream, seq, _ in rows),
                    received=rows[0][1],
                    nbytes=sum(nbytes for *_, nbytes in rows),
                )
            )
            if len(found) == MOST_ENTRIES:
                break
    finally:
        # An open statement would keep the write-ahead log from being folded back.
        cursor.close()
    return found


def messages(connection: sqlite3.Connection, entry: Entry) -> tuple[bytes, ...]:
    """Return the messages of an entry, one of each origin, packed by `ingest.pack`; none where it is gone.

    Empty is one in whose place a newer one of the same rank counts.
    """
    rows = connection.execute(
        "SELECT message FROM inbox WHERE inbox_key BETWEEN ? AND ? AND entry = ? ORDER BY inbox_key",
        (entry.key, entry.key + len(entry.origins) - 1, entry.key),
    ).fetchall()
    return tuple(message for (message,) in rows) if len(rows) == len(entry.origins) else ()


def queues(connection: sqlite3.Connection) -> dict[str, Queue]:
    """Return what waits, by run, the one that has waited for longest first."""
    rows = connection.execute(
        """SELECT run_id, count(*), sum(nbytes) FROM inbox INDEXED BY inbox_by_run
GROUP BY run_id ORDER BY min(inbox_key)"""
    )
    return {run_id: Queue(messages=messages, nbytes=nbytes) for run_id, messages, nbytes in rows}


def oldest(connection: sqlite3.Connection) -> float | None:
    """Return when the oldest message that waits was received, in Unix seconds; None when none waits."""
    row = connection.execute("SELECT received FROM inbox ORDER BY inbox_key LIMIT 1").fetchone()
    return None if row is None else float(row[0])
