"""Opening the store's file for reading, and saying in one line what is wrong with a file.

One connection writes (`ncmon.store.migrate` opens it). Any number reads beside it: `mode=ro` and `query_only`, no
transaction longer than one statement. A file in a directory that cannot be written, with no daemon's journal beside it,
is read as immutable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ncmon.errors import StoreError
from ncmon.store import schema

BUSY_S = 5.0


class OlderSchema(StoreError):
    """The file is of an earlier ncmon, and nothing is wrong with it: `ncmon.store.older` reads it."""


class Reader:
    """A read-only connection whose errors are `StoreError`, and whose results are complete when they are returned."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._columns: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}
        self._columns_at = -1

    def columns_of(self, table: str, fixed: Sequence[str]) -> tuple[str, ...]:
        """Return the metric columns of a wide table; they are looked up again when the schema has changed."""
        ((version,),) = self.execute("PRAGMA schema_version")
        if version != self._columns_at:
            self._columns, self._columns_at = {}, version
        key = (table, tuple(fixed))
        if key not in self._columns:
            self._columns[key] = schema.columns_of(self, table, fixed)
        return self._columns[key]

    def execute(self, sql: str, parameters: Any = (), /) -> list[tuple[Any, ...]]:
        """Return all rows of a SELECT."""
        return self._fetch(sql, parameters)[1]

    def named(self, sql: str, parameters: Any = (), /) -> list[dict[str, Any]]:
        """Return all rows of a SELECT, each by column name."""
        names, rows = self._fetch(sql, parameters)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let several reads see the database as it is now; keep it short."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            self.execute("COMMIT")

    def close(self) -> None:
        """Close the database. Closing twice does nothing."""
        self._connection.close()

    def _fetch(self, sql: str, parameters: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
        try:
            cursor = self._connection.execute(sql, parameters)
            return [column[0] for column in cursor.description or ()], cursor.fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {describe(error)}") from error


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open the database read-only, as it lies there.

    Raises `OlderSchema` for one of an earlier ncmon, `StoreError` for one that is missing, foreign, newer or damaged.
    """
    return _connect(path, schema.SCHEMA)


def connect_any(path: Path) -> sqlite3.Connection:
    """As `connect_reader`, with whatever schema the file has: for a copy of it."""
    return _connect(path, 1)


def _connect(path: Path, oldest: int) -> sqlite3.Connection:
    check_file(path)
    address = path.absolute().as_uri()
    try:
        return _read(address + "?mode=ro", path, oldest)
    except sqlite3.OperationalError as error:
        # Without write access to the directory SQLite cannot make the shared index of a write-ahead log. No log beside
        # the file means that nobody writes it: then it may be read as it lies there.
        journal = path.with_name(path.name + "-wal")
        if journal.exists() or not _is_access(error):
            raise StoreError(f"{path}: {describe(error)}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {describe(error)}") from error
    try:
        return _read(address + "?immutable=1", path, oldest)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {describe(error)}") from error


def check_file(path: Path) -> None:
    """Raise `StoreError` where there is no file."""
    if path.is_dir():
        raise StoreError(f"{path} is a directory, expected a database file")
    if not path.exists():
        raise StoreError(f"{path}: no such database; `ncmon serve` makes it, `ncmon demo` makes one to look at")


def describe(error: sqlite3.Error) -> str:
    """Return what SQLite said, in words that lead on."""
    text = str(error)
    return {
        "file is not a database": "not an SQLite database",
        "database disk image is malformed": "the database is damaged; restore it from a copy",
        "database is locked": f"another process has been writing to it for {BUSY_S:.0f} s",
        "unable to open database file": "cannot be opened; look at the permissions of file and directory",
        "attempt to write a readonly database": "cannot be written; look at the permissions of file and directory",
        "database or disk is full": "the disk is full",
    }.get(text, text)


def _read(uri: str, path: Path, oldest: int) -> sqlite3.Connection:
    # A viewer reads in worker threads, one at a time; SQLite itself is built for that.
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        schema_of(connection, path, known=schema.SCHEMA, oldest=oldest, new_allowed=False)
        connection.execute("PRAGMA query_only = ON")
        harden(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def schema_of(
    connection: sqlite3.Connection, path: Path, *, known: int, new_allowed: bool, oldest: int | None = None
) -> int:
    """Return how many migrations the file has seen; refuse foreign and newer files, and those below `oldest`."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (applied,) = connection.execute("PRAGMA user_version").fetchone()
    if application != schema.APPLICATION_ID:
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if objects or application or applied:
            raise StoreError(f"{path} is an SQLite database, but not one of ncmon's")
        if not new_allowed:
            raise StoreError(f"{path} is empty: no daemon has written to it yet")
    if applied > known:
        raise StoreError(
            f"{path} was written by a newer ncmon (schema {applied}, this one knows {known}): upgrade ncmon"
        )
    if applied < (known if oldest is None else oldest) and not new_allowed:
        raise OlderSchema(f"{path} has schema {applied}, this ncmon reads {known}: start `ncmon serve` on it once")
    return int(applied)


def harden(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1e3)}")


def _is_access(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)
