"""Reading databases of an earlier ncmon: a copy of theirs, brought up to date, and the file left as it is.

A node may run last month's daemon beside this month's command line, and an archive may lie on a disk that nobody
writes to. The copy is SQLite's private temporary database: in memory as long as it is small, then in the temporary
directory, gone when it is closed. It shows the file as it was when it was opened.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import ncmon
from ncmon.errors import StoreError
from ncmon.store.connection import OlderSchema, connect_any, connect_reader, describe, harden


def connect(path: Path) -> sqlite3.Connection:
    """Open a database read-only, whichever ncmon up to this one made it; raises `StoreError`."""
    try:
        return connect_reader(path)
    except OlderSchema:
        return _copy(path)


def _copy(path: Path) -> sqlite3.Connection:
    # What migrates brings sqlite-utils with it, and that pandas where there is one: half a second and 60 MB of every
    # viewer, for files that are rarely met.
    from ncmon.store.migrate import add_columns, migrate

    copy = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        with closing(connect_any(path)) as original:
            original.backup(copy)
        copy.execute("PRAGMA foreign_keys = OFF")  # as where a file is migrated in its place
        copy.execute("BEGIN")
        migrate(copy, version=ncmon.__version__)
        add_columns(copy)
        copy.execute("COMMIT")
        copy.execute("PRAGMA query_only = ON")
        harden(copy)
    except sqlite3.Error as error:
        copy.close()
        raise StoreError(f"{path}: {describe(error)}") from error
    except BaseException:
        copy.close()
        raise
    return copy
