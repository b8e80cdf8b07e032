"""Opening the store's file for writing: made when it is not there, brought up to date when it is older.

Fixed tables change by migrations, metric columns by adding what the registry has and the file has not; both in the
transaction that records them. A file is copied before a migration that changes rows which are there already.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ncmon.bounds import BOUNDS
from ncmon.errors import StoreError
from ncmon.metrics import METRICS
from ncmon.metrics.spec import Bound, Metric
from ncmon.store import schema
from ncmon.store.connection import BUSY_S, describe, harden, schema_of

REGISTRY: tuple[Metric | Bound, ...] = (*METRICS, *BOUNDS)
JOURNAL_LIMIT_BYTES = 64 * 1024 * 1024

# Where pandas is installed sqlite-utils loads it, to know its types: 60 MB and half a second of a daemon that has none.
_hidden = "pandas" not in sys.modules
if _hidden:
    sys.modules["pandas"] = None  # type: ignore[assignment]
try:
    from sqlite_utils import Database
    from sqlite_utils.db import Table
finally:
    if _hidden:
        del sys.modules["pandas"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def connect_writer(
    path: Path, *, version: str, migrations: Sequence[schema.Migration] = schema.MIGRATIONS
) -> sqlite3.Connection:
    """Open the database for writing, made or brought up to date if needed; raises `StoreError`. `version`: ncmon's."""
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(
            path.absolute().as_uri() + "?mode=rwc", uri=True, timeout=BUSY_S, isolation_level=None
        )
        applied = schema_of(connection, path, known=len(migrations), new_allowed=True)
        if applied == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal != "wal":
            raise StoreError(
                f"{path}: this file system does not allow a write-ahead log; put the database on a local disk"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
        harden(connection)
        if any(migration.rewrites for migration in migrations[applied:]) and applied > 0:
            _back_up(connection, path, applied)
        connection.execute("PRAGMA foreign_keys = OFF")  # A migration may rebuild a table that others refer to.
        connection.execute("BEGIN IMMEDIATE")
        migrate(connection, migrations=migrations, version=version)
        add_columns(connection)
        connection.execute("COMMIT")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        _close(connection)
        raise StoreError(f"{path}: {describe(error)}") from error
    except OSError as error:
        _close(connection)
        raise StoreError(f"{path}: {error.strerror or error}") from error
    except BaseException:
        _close(connection)
        raise
    return connection


def library() -> tuple[str, bool]:
    """Return the version of SQLite, and whether it is free of the bug by which a write-ahead log is reset too early."""
    version = sqlite3.sqlite_version_info
    return sqlite3.sqlite_version, version >= (3, 51, 3) or version in ((3, 50, 7), (3, 44, 6))


def migrate(
    connection: sqlite3.Connection, *, migrations: Sequence[schema.Migration] = schema.MIGRATIONS, version: str
) -> None:
    """Apply what is pending; the caller has begun the transaction and commits it. `version` is that of ncmon."""
    (applied,) = connection.execute("PRAGMA user_version").fetchone()
    for number, migration in enumerate(migrations[applied:], start=applied + 1):
        migration.apply(connection)
        connection.execute(
            "INSERT INTO migration (number, name, applied, ncmon) VALUES (?, ?, ?, ?)",
            (number, migration.name, time.time(), version),
        )
        connection.execute(f"PRAGMA user_version = {number}")
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")


def add_columns(
    connection: sqlite3.Connection,
    registry: Sequence[Metric | Bound] = REGISTRY,
    *,
    now: float | None = None,
) -> None:
    """Give every entry of the registry its column, record what it means, and make the views anew where needed."""
    database = Database(connection, execute_plugins=False)
    for name, fixed, entries in (
        ("reading", schema.READING_FIXED, schema.reading_entries(registry)),
        ("class_reading", schema.CLASS_FIXED, schema.class_entries(registry)),
    ):
        table = database[name]
        assert isinstance(table, Table)
        present = set(schema.columns_of(connection, name, fixed))
        for entry in entries:
            words = (entry.name, *getattr(entry, "aliases", ()))
            if not all(map(_NAME.fullmatch, words)) or entry.name in fixed:
                raise StoreError(f"{entry.name!r} cannot name a column: expected a new word of a-z, 0-9 and _")
            if entry.name not in present:
                table.add_column(entry.name, "REAL")
    _record_definitions(connection, registry, time.time() if now is None else now)
    at_classifier = {entry.name for entry in registry if entry.at_classifier}
    database.create_view("runs", schema.RUNS_VIEW, replace=True)
    columns = schema.columns_of(connection, "reading", schema.READING_FIXED)
    database.create_view("history", schema.history_view(columns, at_classifier), replace=True)
    columns = schema.columns_of(connection, "class_reading", schema.CLASS_FIXED)
    database.create_view("class_history", schema.class_history_view(columns), replace=True)
    database.create_view("aliases", schema.aliases_view(registry), replace=True)


def _record_definitions(connection: sqlite3.Connection, registry: Iterable[Metric | Bound], now: float) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO definition (name, version, kind, scope, definition, source, first_seen)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                entry.name,
                entry.version,
                "metric" if isinstance(entry, Metric) else "bound",
                entry.scope,
                entry.definition,
                entry.source,
                now,
            )
            for entry in registry
        ],
    )


def _back_up(connection: sqlite3.Connection, path: Path, applied: int) -> None:
    """Copy the database to `FILE.schema-N.bak`, complete or not at all."""
    target = path.with_name(f"{path.name}.schema-{applied}.bak")
    unfinished = target.with_name(target.name + ".part")
    unfinished.unlink(missing_ok=True)
    copy = sqlite3.connect(unfinished)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    unfinished.replace(target)


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
