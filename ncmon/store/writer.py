"""Writing: one transaction a batch, all of it or nothing.

The rule that everything rests on: a message's content and `stream.next` are committed together, so that an
acknowledgement of `next` never promises more than the file holds. The content is what became of a message, with its
origin, or the message itself in the inbox, which what becomes of it leaves again in one transaction with the origin. A
record whose messages are all in the store already is ignored; PRIMARY KEY (stream, seq) of `origin` is the second belt.

A window of a run, split, step and kind (exact or streaming) that comes again, from a resumed run, replaces the first.
Scalars are kept for ever; class and pair arrays for the last ten windows and the last window of every tenth epoch.
The writer knows no clock, no lock and no viewer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import ncmon
from ncmon.errors import Rejected, StoreError
from ncmon.model import (
    Alert,
    Evaluation,
    Gap,
    Rejection,
    Run,
    RunEnd,
    StreamSeq,
)
from ncmon.store import alerts, attempts, inbox
from ncmon.store.connection import BUSY_S, describe
from ncmon.store.migrate import connect_writer
from ncmon.store.rows import Rows, as_json
from ncmon.store.streams import Streams
from ncmon.store.trim import Trimmed, Trimmer, file_bytes, vacuum

VACUUM_PAGES = 4096
MANY_FREE_PAGES, GIVE_BACK_PAGES = 25_000, 1_000
"""100 MB are kept to be used again; what is more goes in steps of some ms."""
MAX_REJECTED = 10_000
"""The newest are kept: a broken client must not fill the disk."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """Something to store, and the messages that it was made of."""

    origins: tuple[StreamSeq, ...]
    item: Evaluation | Gap | RunEnd | Rejection
    entry: inbox.Entry | None = None
    """Where it waited in the inbox; None for what was never put there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiting:
    """Messages that are put into the inbox, to be evaluated later as one thing."""

    origins: tuple[StreamSeq, ...]
    run_id: str
    messages: tuple[bytes, ...]
    """One of each origin, packed; empty where a newer one of the same rank counts."""
    received: float

    @property
    def nbytes(self) -> int:
        """Bytes of the messages."""
        return sum(map(len, self.messages))


class Writer:
    """The one connection that writes. Not thread-safe; the caller holds the lock on the file."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._rows = Rows(connection)
        self._trimmer = Trimmer(connection)
        self._data_version = -1
        self.edited = True
        """Whether another connection has written since the owner of this flag put it down."""
        self._streams = Streams(connection)
        self._last_key: int | None = None
        """The greatest key of the inbox, as far as this connection knows: nobody else puts anything in."""

    @classmethod
    def open(cls, path: Path, *, checkpoint_pages: int | None = None) -> Writer:
        """Open or make a database; raises `StoreError` for one that is foreign, newer, damaged or out of reach.

        `checkpoint_pages` is how long the write-ahead log may be before a commit folds it back, by default SQLite's.
        """
        connection = connect_writer(path, version=ncmon.__version__)
        if checkpoint_pages is not None:
            connection.execute(f"PRAGMA wal_autocheckpoint = {int(checkpoint_pages)}")
        return cls(path, connection)

    def close(self) -> None:
        """Close the file; SQLite folds its journal back into it. Closing twice does nothing."""
        self._connection.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stream_next(self, stream: bytes) -> int | None:
        """Return the sequence number that is expected from a stream, None for one that was never seen."""
        row = self._connection.execute("SELECT next FROM stream WHERE stream = ?", (stream,)).fetchone()
        return None if row is None else int(row[0])

    def attempt(self, stream: bytes) -> int:
        """Return which attempt of its run a stream belongs to, the first for one that was never seen."""
        row = self._connection.execute("SELECT attempt FROM stream WHERE stream = ?", (stream,)).fetchone()
        return 1 if row is None else int(row[0])

    @property
    def revision(self) -> int:
        """The number that every change increments."""
        return int(self._connection.execute("SELECT revision FROM meta").fetchone()[0])

    def put_run(self, run: Run, stream: bytes, *, now: float, rank: int = 0) -> None:
        """Store what a rank says of its run. A new stream of a run that had ended resumes it: it is live again.

        A name or tags that the user has given since stay the user's. What a resumed run repeats: see `attempts`.
        """
        with self._transaction():
            known = self.stream_next(stream) is not None
            attempt = (
                self.attempt(stream)
                if known
                else attempts.number(self._connection, run.run_id, rank=rank, begun=run.started)
            )
            self._connection.execute(
                """INSERT INTO run (run_id, name, status, started, host, pid, world_size, n_classes, class_names,
                     config, tags, client, last_seen)
                   VALUES (:run_id, :name, 'live', :started, :host, :pid, :world_size, :n_classes, :class_names,
                     :config, :tags, :client, :now)
                   ON CONFLICT (run_id) DO UPDATE SET name = CASE WHEN name_given THEN name ELSE :name END,
                     started = min(started, :started), host = :host, pid = :pid,
                     world_size = :world_size, n_classes = :n_classes, class_names = :class_names, config = :config,
                     tags = CASE WHEN tags_given THEN tags ELSE :tags END, client = :client, last_seen = :now,
                     status = CASE WHEN :known THEN status ELSE 'live' END,
                     ended = CASE WHEN :known THEN ended END, end_text = CASE WHEN :known THEN end_text END""",
                {
                    "run_id": run.run_id,
                    "name": run.name,
                    "started": run.started,
                    "host": run.host,
                    "pid": run.pid,
                    "world_size": run.world_size,
                    "n_classes": run.n_classes,
                    "class_names": as_json(list(run.class_names)),
                    "config": as_json(dict(run.config)),
                    "tags": as_json(list(run.tags)),
                    "client": run.client,
                    "now": now,
                    "known": known,
                },
            )
            (run_key,) = self._connection.execute("SELECT run_key FROM run WHERE run_id = ?", (run.run_id,)).fetchone()
            self._connection.execute("DELETE FROM class_label WHERE run_key = ?", (run_key,))
            self._connection.executemany(
                "INSERT INTO class_label (run_key, class, name) VALUES (?, ?, ?)",
                [(run_key, number, name) for number, name in enumerate(run.class_names)],
            )
            self._connection.execute(
                """INSERT INTO stream (stream, next, run_id, opened, rank, begun, attempt) VALUES (?, 0, ?, ?, ?, ?, ?)
                   ON CONFLICT (stream) DO UPDATE SET run_id = excluded.run_id, rank = excluded.rank,
                     begun = excluded.begun""",
                (stream, run.run_id, now, rank, run.started, attempt),
            )
            if attempt > 1:
                self._connection.execute(
                    "UPDATE run SET attempt = max(attempt, ?) WHERE run_key = ?", (attempt, run_key)
                )
                self._rows.forget()
            self._connection.execute("UPDATE meta SET revision = revision + 1")

    def commit(self, batch: Sequence[Stored | Waiting], *, now: float) -> list[Stored | Waiting]:
        """Store a batch in one transaction, or raise and store nothing of it.

        Returns what was passed over: what waited in an inbox where it no longer is, because its run was deleted, and
        what shall wait and is here already.

        Raises `StoreError` when the file cannot be written, now, and `Rejected` when something in the batch can never
        be: then its neighbours may be committed without it. Afterwards `stream_next` of every stream in it stands
        behind its last message. `now` is the daemon's clock, in unix seconds.
        """
        passed: list[Stored | Waiting] = []
        if not batch:
            return passed
        with self._transaction():
            seen: set[str] = set()
            rows: list[inbox.Row] = []
            changed = False
            for record in batch:
                if isinstance(record, Waiting):
                    if self._put_off(record, rows):
                        seen.add(record.run_id)
                    else:
                        passed.append(record)
                    continue
                if record.entry is not None and not inbox.take(self._connection, record.entry):
                    passed.append(record)
                    continue
                if not self._streams.take(record.origins, waited=record.entry is not None):
                    continue
                changed = True
                run_id = self._put(record, now)
                # What waited says that its run was alive when it came, which was recorded then.
                if run_id and record.entry is None:
                    seen.add(run_id)
            self._streams.write()
            inbox.put(self._connection, rows)
            self._connection.executemany(
                "UPDATE run SET last_seen = ? WHERE run_id = ?", [(now, run_id) for run_id in sorted(seen)]
            )
            if changed:
                self._connection.execute("UPDATE meta SET revision = revision + 1")
        return passed

    def queues(self) -> dict[str, inbox.Queue]:
        """Return what waits in the inbox, by run. Raises `StoreError`."""
        with self._reading():
            return inbox.queues(self._connection)

    def entries(self, run_id: str, after: int) -> list[inbox.Entry]:
        """Return the next entries of a run in the inbox, behind the one with key `after`. Raises `StoreError`."""
        with self._reading():
            return inbox.entries(self._connection, run_id, after)

    def messages(self, entry: inbox.Entry) -> tuple[bytes, ...]:
        """Return the messages of an entry of the inbox, none where it is gone. Raises `StoreError`."""
        with self._reading():
            return inbox.messages(self._connection, entry)

    def oldest_waiting(self) -> float | None:
        """Return when the oldest message in the inbox was received, in Unix seconds. Raises `StoreError`."""
        with self._reading():
            return inbox.oldest(self._connection)

    def look_for_edits(self) -> None:
        """Set `edited` where another connection has written. Raises `StoreError`."""
        with self._reading():
            self._forget_if_edited()

    def put_alerts(self, changes: Sequence[Alert], memories: Mapping[str, str]) -> tuple[Alert, ...]:
        """Store alerts that were raised or are over, and what rules remember; return those raised, as they are now."""
        with self._transaction():
            raised = alerts.put(self._connection, changes)
            alerts.remember(self._connection, memories)
            if changes:
                self._connection.execute("UPDATE meta SET revision = revision + 1")
        return raised

    def acknowledge(self, ids: Sequence[int], *, now: float) -> int:
        """Mark alerts as seen; return how many were not marked before."""
        with self._transaction():
            count = alerts.acknowledge(self._connection, ids, now)
            self._connection.execute("UPDATE meta SET revision = revision + 1")
        return count

    def alert_state(self, *, since: float) -> tuple[tuple[Alert, ...], tuple[tuple[str, str], ...]]:
        """Return open alerts and those raised after `since`, and what rules remember, for an engine that begins."""
        return alerts.state(self._connection, since)

    def live_runs(self, *, heard_after: float) -> dict[str, str]:
        """Return the names of runs that have not ended and were heard of after this time, by id."""
        rows = self._connection.execute(
            "SELECT run_id, name FROM run WHERE status = 'live' AND last_seen > ?", (heard_after,)
        )
        return dict(rows.fetchall())

    @property
    def nbytes(self) -> int:
        """Size of the file, once its journal is folded back."""
        return file_bytes(self._connection)

    def trim(self, max_bytes: int) -> Trimmed:
        """Make the file smaller where it is larger than `max_bytes`, by a slice; `trim` says what goes."""
        with self._transaction():
            dropped = self._trimmer.slice(max_bytes)
            if dropped.windows:
                self._connection.execute("UPDATE meta SET revision = revision + 1")
        if self.nbytes > max_bytes:
            vacuum(self._connection, VACUUM_PAGES)
        return dropped

    @property
    def journal_bytes(self) -> int:
        """Size of the write-ahead log."""
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_size
        except OSError:
            return 0

    def fold_journal(self) -> None:
        """Fold the write-ahead log back and cut it off, unless somebody reads from it; waits for nobody."""
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1e3)}")

    def give_back(self) -> None:
        """Give some of many free pages back to the file system: a long inbox leaves them. Raises `StoreError`."""
        with self._reading():
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if free > MANY_FREE_PAGES:
                vacuum(self._connection, GIVE_BACK_PAGES)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._streams.forget()
            self._connection.execute("BEGIN IMMEDIATE")
            self._forget_if_edited()
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            # What was learned of keys inside the transaction is undone with it.
            self._rows.forget()
            self._last_key = None
            try:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # A closed or broken connection rolls back by itself.
            if isinstance(error, _UNSTORABLE):
                raise Rejected("store", f"a value cannot be stored: {error}") from error
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self.path}: {describe(error)}") from error
            raise

    def _forget_if_edited(self) -> None:
        """Look keys up anew once another connection has written: it may have deleted their run."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            self._data_version = version
            self.edited = True
            self._rows.forget()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {describe(error)}") from error

    def _put_off(self, record: Waiting, rows: list[inbox.Row]) -> bool:
        """Add the rows of what shall wait and move its streams on; False when all of it is here already."""
        places = [self._streams.place(origin.stream) for origin in record.origins]
        if all(origin.seq < place.next for origin, place in zip(record.origins, places, strict=True)):
            return False
        if self._last_key is None:
            self._last_key = inbox.last_key(self._connection)
        entry = self._last_key + 1
        for origin, place, message in zip(record.origins, places, record.messages, strict=True):
            self._last_key += 1
            row = (self._last_key, entry, record.run_id, place.key, origin.seq, record.received, len(message), message)
            rows.append(row)
            place.move(origin.seq + 1)
        return True

    def _put(self, record: Stored, now: float) -> str:
        """Store one item; return the run that it is about."""
        item, entry = record.item, record.entry
        match item:
            case Evaluation():
                attempt = max((self._streams.place(origin.stream).attempt for origin in record.origins), default=1)
                self._rows.put(item, now if entry is None else entry.received, attempt)
                return item.window.run_id
            case Gap():
                self._connection.execute(
                    "INSERT INTO gap (run_id, split, epoch, step, time, reason, received) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (item.run_id, item.split, item.epoch, item.step, item.time, item.reason, now),
                )
            case RunEnd():
                # Of several ranks the first failure stands. An end that waited while the run was resumed is none.
                self._connection.execute(
                    """UPDATE run SET end_text = CASE WHEN status = 'failed' THEN end_text ELSE :text END,
                         status = CASE WHEN status = 'failed' THEN status ELSE :status END,
                         ended = max(coalesce(ended, :time), :time)
                       WHERE run_id = :run_id AND (:received IS NULL OR NOT EXISTS
                         (SELECT 1 FROM stream s WHERE s.run_id = :run_id AND s.opened > :received))""",
                    {
                        "text": item.text,
                        "status": item.status,
                        "time": item.time,
                        "run_id": item.run_id,
                        "received": None if entry is None else entry.received,
                    },
                )
            case Rejection():
                cursor = self._connection.execute(
                    "INSERT INTO rejected (stream, seq, run_id, code, reason, head, time) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (item.stream, item.seq, item.run_id, item.code, item.reason, item.head, item.time),
                )
                self._connection.execute(
                    "DELETE FROM rejected WHERE rejected_key <= ?", ((cursor.lastrowid or 0) - MAX_REJECTED,)
                )
        return item.run_id


_UNSTORABLE = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, ValueError, OverflowError)
"""The fault of what was to be stored, not of the file: trying again would not help."""
