"""Attempts: a training that goes on from a checkpoint repeats steps, and what they stood for before is kept apart.

Every HELLO of a new stream of a run belongs to an attempt, from 1. A rank that comes again begins the next; ranks that
come beside it join. Of one split a later attempt counts from its first window on: windows of earlier ones at that step
and behind it are the *superseded tail*. They move, readings, arrays and all, into a run of their own with the id
`RUN@ATTEMPT`, which is read like any other and listed only where it is asked for. A message of an earlier attempt that
comes late, out of a spool, goes there at once.

Inside the writer's transaction.
"""

from __future__ import annotations

import sqlite3

SKEW_S = 60.0
"""Ranks of one attempt begin within this time of each other."""

_LATER = "SELECT min(step) FROM window WHERE run_key = ? AND split = ? AND attempt > ? AND attempt > 1"
_EARLIER = "SELECT window_key, attempt FROM window WHERE run_key = ? AND split = ? AND step >= ? AND attempt < ?"


def number(connection: sqlite3.Connection, run_id: str, *, rank: int, begun: float) -> int:
    """Return the attempt of a stream that is new: of which rank, begun when, in Unix seconds of the trainer's clock."""
    rows = connection.execute(
        """SELECT attempt, min(since), max(CASE WHEN rank = ? THEN since END)
FROM (SELECT attempt, rank, coalesce(begun, opened, 0) AS since FROM stream WHERE run_id = ?)
GROUP BY attempt ORDER BY attempt""",
        (rank, run_id),
    ).fetchall()
    if not rows:
        return 1
    latest, first, own = rows[-1]
    if own is None and begun >= first - SKEW_S:
        return int(latest)
    if own is not None and begun > own:
        return int(latest) + 1
    # Out of a spool, after later ones have come: it is as old as it says.
    return int(max((attempt for attempt, since, _ in rows if since <= begun), default=rows[0][0]))


def place(connection: sqlite3.Connection, run_key: int, *, split: str, step: int, attempt: int, latest: int) -> int:
    """Return the run that a window is to be stored in; what it supersedes has been moved out of its way.

    `run_key` is the run that it says it belongs to, `latest` that run's latest attempt; another run is returned where a
    later attempt has passed its step.
    """
    if attempt < latest:
        (passed,) = connection.execute(_LATER, (run_key, split, attempt)).fetchone()
        if passed is not None and step >= passed:
            return _tail(connection, run_key, attempt)
    if attempt > 1:
        superseded = connection.execute(_EARLIER, (run_key, split, step, attempt)).fetchall()
        for earlier in sorted({old for _, old in superseded}):
            _move(connection, run_key, earlier, [key for key, old in superseded if old == earlier])
    return run_key


def settle(connection: sqlite3.Connection, run_key: int) -> None:
    """Move what later attempts supersede out of a run whose windows came in any order."""
    superseded = connection.execute(
        """SELECT w.attempt, w.window_key FROM window w WHERE w.run_key = ? AND w.step >=
  (SELECT min(x.step) FROM window x WHERE x.run_key = w.run_key AND x.split = w.split AND x.attempt > w.attempt)""",
        (run_key,),
    ).fetchall()
    for earlier in sorted({attempt for attempt, _ in superseded}):
        _move(connection, run_key, earlier, [key for attempt, key in superseded if attempt == earlier])


def _tail(connection: sqlite3.Connection, run_key: int, attempt: int) -> int:
    """Return the run that keeps the superseded tail of an attempt, made where it is not there."""
    row = connection.execute(
        "SELECT t.run_key FROM run r JOIN run t ON t.run_id = r.run_id || '@' || ? WHERE r.run_key = ?",
        (attempt, run_key),
    ).fetchone()
    if row is not None:
        return int(row[0])
    begun = "(SELECT min(begun) FROM stream s WHERE s.run_id = r.run_id AND s.attempt = :attempt)"
    cursor = connection.execute(
        f"""INSERT INTO run (run_id, name, status, started, ended, end_text, host, pid, world_size, n_classes,
  class_names, config, tags, client, last_seen, attempt, attempt_of)
SELECT run_id || '@' || :attempt, name, 'failed', coalesce({begun}, started), NULL, 'superseded by a later attempt',
  host, pid, world_size, n_classes, class_names, config, tags, client, last_seen, :attempt, run_id
FROM run r WHERE run_key = :key""",  # noqa: S608 fixed text
        {"attempt": attempt, "key": run_key},
    )
    key = int(cursor.lastrowid or 0)
    connection.execute(
        "INSERT INTO class_label (run_key, class, name) SELECT ?, class, name FROM class_label WHERE run_key = ?",
        (key, run_key),
    )
    return key


def _move(connection: sqlite3.Connection, run_key: int, attempt: int, windows: list[int]) -> None:
    """Move windows of an attempt, with all that belongs to them, into the run that keeps its tail."""
    target = _tail(connection, run_key, attempt)
    connection.execute(
        """INSERT INTO layer (run_key, name, idx, module, reduction, note, n_features)
SELECT ?, name, idx, module, reduction, note, n_features FROM layer WHERE run_key = ? ON CONFLICT DO NOTHING""",
        (target, run_key),
    )
    layers = connection.execute(
        "SELECT t.layer_key, o.layer_key FROM layer o JOIN layer t ON t.run_key = ? AND t.name = o.name"
        " WHERE o.run_key = ?",
        (target, run_key),
    ).fetchall()
    for window in windows:
        for table in ("reading", "reason", "array"):
            connection.executemany(
                f"UPDATE {table} SET layer_key = ? WHERE layer_key = ? AND window_key = ?",  # noqa: S608 fixed text
                [(new, old, window) for new, old in layers],
            )
        # Of one attempt in one place there is one window: the later to come, as everywhere.
        connection.execute(
            """DELETE FROM window WHERE window_key = (SELECT t.window_key FROM window o JOIN window t
  ON t.run_key = ? AND t.split = o.split AND t.step = o.step AND t.exact = o.exact WHERE o.window_key = ?)""",
            (target, window),
        )
        connection.execute("UPDATE window SET run_key = ? WHERE window_key = ?", (target, window))
    connection.execute(
        "UPDATE run SET ended = (SELECT max(time) FROM window WHERE run_key = :key) WHERE run_key = :key",
        {"key": target},
    )
