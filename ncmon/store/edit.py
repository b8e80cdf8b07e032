"""What the user changes in stored runs: name, tags, note; and what is thrown away: arrays, windows, whole runs.

Safe beside a daemon that writes: every change is a transaction of its own that is over in a fraction of a second,
waits for the daemon's like the daemon waits for it, and increments the revision, so that viewers look again. What is
large goes in steps; a deletion that was interrupted is finished by deleting again.

A deleted run stays known by the numbers of its messages, those that waited in the inbox among them: what its trainer
sends once more, or a merge brings once more, is not stored a second time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ncmon.errors import NotFound, StoreError, UsageError
from ncmon.store import alerts, schema
from ncmon.store.connection import BUSY_S, check_file, describe, harden, schema_of

STEP_WINDOWS = 50
"""Windows that are deleted in one transaction: tens of milliseconds at twenty layers."""
STEP_BYTES = 4 * 1024 * 1024
"""Of messages that wait, likewise."""
FIRST_PAGES = 64
"""Pages that are given back to the file system in one, to begin with: moving one costs what the disk makes of it."""
MOST_PAGES = 10_000
STEP_S = 0.1
"""What one such step shall take."""
LEAST_PAUSE_S = 0.005
LONGEST_NAME = 200
LONGEST_TAG = 100


class Editor:
    """A connection that changes stored runs. Not thread-safe."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Editor:
        """Open a database that is there and up to date; raises `StoreError` for any other."""
        return cls(path, connect_editor(path))

    def close(self) -> None:
        """Close the database. Closing twice does nothing."""
        self._connection.close()

    def __enter__(self) -> Editor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name, which its trainer no longer changes."""
        with transaction(self._connection, self.path):
            self._update(run_id, "name = ?, name_given = 1", check_text(name, "name", LONGEST_NAME))

    def set_note(self, run_id: str, note: str) -> None:
        """Replace the note of a run."""
        with transaction(self._connection, self.path):
            self._update(run_id, "note = ?", note)

    def tag(self, run_id: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> tuple[str, ...]:
        """Change the tags of a run, which its trainer no longer changes; return what it has now."""
        added = [check_text(tag, "tag", LONGEST_TAG) for tag in add]
        gone = set(remove)
        with transaction(self._connection, self.path):
            row = self._connection.execute("SELECT tags FROM run WHERE run_id = ?", (run_id,)).fetchone()
            before = json.loads(row[0]) if row is not None else []
            absent = gone.difference(before)
            if row is not None and absent:
                raise NotFound(f"run {run_id} has no tag {min(absent)!r}; it has {', '.join(before) or 'none'}")
            tags = tuple(dict.fromkeys(tag for tag in [*before, *added] if tag not in gone))
            self._update(
                run_id, "tags = ?, tags_given = 1", json.dumps(tags, ensure_ascii=False, separators=(",", ":"))
            )
        return tags

    def acknowledge(self, ids: Sequence[int], *, now: float) -> int:
        """Mark alerts as seen; return how many were not marked before."""
        with transaction(self._connection, self.path):
            return alerts.acknowledge(self._connection, ids, now)

    def delete(self, run_id: str) -> int:
        """Delete a run with all that belongs to it, tails of earlier attempts too; return how many windows it had."""
        tails = self._connection.execute("SELECT run_id FROM run WHERE attempt_of = ?", (run_id,)).fetchall()
        return self._delete(run_id) + sum(self._delete(tail) for (tail,) in tails)

    def _delete(self, run_id: str) -> int:
        # Before the windows, so that no new ones come of it meanwhile.
        self._delete_waiting(run_id)
        windows = self._windows(
            "SELECT w.window_key FROM window w JOIN run r USING (run_key) WHERE r.run_id = ?", run_id
        )
        self._delete_windows(windows)
        # Without its foreign keys: to check that no array is left of a layer SQLite would read all arrays there are.
        self._connection.execute("PRAGMA foreign_keys = OFF")
        try:
            with transaction(self._connection, self.path):
                self._delete_rest(run_id)
        finally:
            self._connection.execute("PRAGMA foreign_keys = ON")
        return len(windows)

    def drop_arrays(self, run_id: str) -> int:
        """Throw away class and pair arrays except those of the last window of every split and kind.

        Numbers stay. Returns how many windows lost theirs.
        """
        windows = self._windows(
            """SELECT w.window_key FROM window w JOIN run r USING (run_key) WHERE r.run_id = ? AND w.arrays > 0
  AND EXISTS (SELECT 1 FROM window x WHERE x.run_key = w.run_key AND x.split = w.split AND x.exact = w.exact
    AND x.step > w.step)""",
            run_id,
        )
        for part in _steps(windows):
            with taking_turns(), transaction(self._connection, self.path):
                self._for_each("DELETE FROM array WHERE window_key = ?", part)
                self._for_each("UPDATE window SET arrays = 0 WHERE window_key = ?", part)
        return len(windows)

    def thin(self, run_id: str, every: int) -> int:
        """Keep the first, the last and every `every`-th window of each split and kind; return how many were deleted."""
        if every < 2:
            raise UsageError(f"expected to keep every 2nd window or fewer, got every {every}")
        windows = self._windows(
            """SELECT window_key FROM
  (SELECT w.window_key, row_number() OVER up AS place, row_number() OVER down AS rest
  FROM window w JOIN run r USING (run_key) WHERE r.run_id = ?
  WINDOW up AS (PARTITION BY w.split, w.exact ORDER BY w.step),
    down AS (PARTITION BY w.split, w.exact ORDER BY w.step DESC))
WHERE (place - 1) % ? <> 0 AND rest > 1""",
            run_id,
            every,
        )
        self._delete_windows(windows)
        return len(windows)

    def compact(self) -> int:
        """Give free pages back to the file system; return how many bytes."""
        given, step = 0, FIRST_PAGES
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        with _described(self.path):
            while True:
                (before,) = self._connection.execute("PRAGMA freelist_count").fetchone()
                start = time.monotonic()
                if before:
                    with taking_turns():
                        # As a script: sqlite3 would take one step of a statement without columns, and free one page.
                        self._connection.executescript(f"PRAGMA incremental_vacuum({step})")
                        took = time.monotonic() - start
                    step = min(max(int(step * STEP_S / max(took, 1e-3)), 1), 2 * step, MOST_PAGES)
                (after,) = self._connection.execute("PRAGMA freelist_count").fetchone()
                given += before - after
                if not before or after >= before:
                    return int(given * size)

    def _windows(self, sql: str, *parameters: Any) -> list[int]:
        with _described(self.path):
            return [key for (key,) in self._connection.execute(sql, parameters)]

    def _delete_windows(self, windows: Sequence[int]) -> None:
        for part in _steps(windows):
            with taking_turns(), transaction(self._connection, self.path):
                self._for_each("DELETE FROM window WHERE window_key = ?", part)

    def _delete_waiting(self, run_id: str) -> None:
        """Delete what waits of a run in the inbox."""
        with _described(self.path):
            rows = self._connection.execute(
                "SELECT inbox_key, nbytes FROM inbox WHERE run_id = ? ORDER BY inbox_key", (run_id,)
            ).fetchall()
        part: list[int] = []
        nbytes = 0
        for place, (key, size) in enumerate(rows):
            part.append(key)
            nbytes += size
            if nbytes >= STEP_BYTES or place == len(rows) - 1:
                with taking_turns(), transaction(self._connection, self.path):
                    self._take_out("inbox_key BETWEEN ? AND ? AND run_id = ?", part[0], part[-1], run_id)
                part, nbytes = [], 0

    def _take_out(self, which: str, *parameters: Any) -> None:
        known = f"SELECT stream_key, seq FROM inbox WHERE {which}"  # noqa: S608 fixed text
        self._connection.execute(f"INSERT INTO origin (stream_key, seq) {known} ON CONFLICT DO NOTHING", parameters)
        self._connection.execute(f"DELETE FROM inbox WHERE {which}", parameters)  # noqa: S608 fixed text

    def _delete_rest(self, run_id: str) -> None:
        """Delete a run, its layers, whatever table refers to it, and what has come in the meantime."""
        found = self._connection.execute("SELECT run_key FROM run WHERE run_id = ?", (run_id,)).fetchone()
        if found is None:
            raise NotFound(f"run {run_id} is no longer in {self.path}")
        self._take_out("run_id = ?", run_id)
        of_windows = dict(self._referring("window"))
        for table, column in of_windows.items():
            self._connection.execute(
                f"DELETE FROM {table} WHERE {column} IN (SELECT window_key FROM window WHERE run_key = ?)",  # noqa: S608
                found,
            )
        for table, column in self._referring("layer"):
            if table not in of_windows:
                self._connection.execute(
                    f"DELETE FROM {table} WHERE {column} IN (SELECT layer_key FROM layer WHERE run_key = ?)",  # noqa: S608
                    found,
                )
        for table, column in self._referring("run"):
            self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", found)  # noqa: S608 names of the schema
        self._connection.execute("DELETE FROM gap WHERE run_id = ?", (run_id,))
        self._connection.execute("DELETE FROM run WHERE run_key = ?", found)

    def _referring(self, parent: str) -> list[tuple[str, str]]:
        """Return the tables that refer to a table, and the column that does."""
        return self._connection.execute(
            """SELECT m.name, f."from" FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f
WHERE m.type = 'table' AND f."table" = ?""",
            (parent,),
        ).fetchall()

    def _for_each(self, sql: str, keys: Sequence[int]) -> None:
        self._connection.executemany(sql, [(key,) for key in keys])

    def _update(self, run_id: str, assignment: str, value: str) -> None:
        cursor = self._connection.execute(
            f"UPDATE run SET {assignment} WHERE run_id = ?",  # noqa: S608 fixed text
            (value, run_id),
        )
        if not cursor.rowcount:
            raise NotFound(f"run {run_id} is no longer in {self.path}")


def connect_editor(path: Path) -> sqlite3.Connection:
    """Open a database for changes; it has to be there and up to date. Raises `StoreError`."""
    check_file(path)
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            path.absolute().as_uri() + "?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None
        )
        schema_of(connection, path, known=schema.SCHEMA, new_allowed=False)
        harden(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise StoreError(f"{path}: {describe(error)}") from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Change something, all of it or nothing, and increment the revision; raises `StoreError`."""
    with _described(path):
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("UPDATE meta SET revision = revision + 1")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def check_text(text: str, what: str, longest: int) -> str:
    """Return a name or a tag without spaces around it; raises `UsageError` for what cannot be one."""
    kept = text.strip()
    if not kept or len(kept) > longest or not kept.isprintable():
        raise UsageError(f"{text[:40]!r} cannot be a {what}: expected one line of 1 to {longest} letters")
    return kept


@contextmanager
def taking_turns() -> Iterator[None]:
    """Stay out of the database for as long as the step inside took.

    Who waits for a lock of SQLite looks again every now and then; one step right after the other would keep a daemon
    out for as long as there are steps.
    """
    start = time.monotonic()
    yield
    time.sleep(max(time.monotonic() - start, LEAST_PAUSE_S))


@contextmanager
def _described(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {describe(error)}") from error


def _steps(windows: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(windows), STEP_WINDOWS):
        yield windows[start : start + STEP_WINDOWS]
