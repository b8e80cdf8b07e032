"""Taking over runs of another database: many nodes' stores become one.

A run is told by its id, a message by its stream and number, a window by run, split, step and kind. What is there is
not taken twice, so that merging again, or in another order, changes nothing; of two windows in one place the one of the
later attempt stays, of the same attempt the later one by the trainer's clock. Superseded tails come with their run. A
run whose messages are all known and that is not there was deleted here: it does not come back.

What waits in the source's inbox is no window yet; it stays there, and its messages are not said to be here.

The numbers of a source's messages are read before its windows and written after them: never is a message said to be
here whose window is not, whatever interrupts a merge and whatever goes on in the source. Both files may have a daemon;
every step here is one short transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ncmon
from ncmon.errors import StoreError
from ncmon.store import attempts, older, schema
from ncmon.store.connection import Reader, describe
from ncmon.store.edit import connect_editor, taking_turns, transaction
from ncmon.store.migrate import add_columns, connect_writer

STEP_WINDOWS = 50
"""Windows that are copied in one transaction."""

Outcome = Literal["new", "more", "known", "deleted here"]
"""What a merge did with a run."""

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What became of one run of a source."""

    run_id: str
    name: str
    outcome: Outcome
    added: int = 0
    """Windows that were not here."""
    replaced: int = 0
    """Windows in whose place stood an earlier one."""
    waiting: int = 0
    """Messages of it that wait in the source's inbox to be evaluated: once they are, merging again brings them."""


def merge(source: Path, target: Path, *, runs: Sequence[str] | None = None) -> tuple[Merged, ...]:
    """Take over the runs of `source`, or those with the ids `runs`, into `target`, which is made where it is not there.

    Raises `StoreError`. What was taken over before an error stays; merging again goes on from there.
    """
    with closing(Reader(source, older.connect(source))) as reader:
        if target.exists() and target.samefile(source):
            raise StoreError(f"{source} cannot be merged into itself")
        if not target.exists() or target.stat().st_size == 0:
            connect_writer(target, version=ncmon.__version__).close()
        with closing(connect_editor(target)) as connection:
            try:
                return tuple(_Merge(reader, connection, target).all(runs))
            except sqlite3.Error as error:
                raise StoreError(f"{target}: {describe(error)}") from error


class _Merge:
    """One merge: a source to read, a target to write."""

    def __init__(self, source: Reader, target: sqlite3.Connection, path: Path) -> None:
        self._source = source
        self._target = target
        self._path = path

    def all(self, runs: Sequence[str] | None) -> Iterator[Merged]:
        self._match_columns()
        for run in self._source.named("SELECT * FROM run ORDER BY attempt_of IS NOT NULL, started, run_key"):
            if runs is None or (run["attempt_of"] or run["run_id"]) in runs or run["run_id"] in runs:
                yield self._run(run)

    def _match_columns(self) -> None:
        """Give the target the metrics that only the source has, and what they mean."""
        with transaction(self._target, self._path):
            for table, fixed in (("reading", schema.READING_FIXED), ("class_reading", schema.CLASS_FIXED)):
                here = schema.columns_of(self._target, table, fixed)
                for name in schema.columns_of(self._source, table, fixed):
                    if name not in here:
                        if not name.isidentifier():
                            raise StoreError(f"{self._source.path} has a column {name[:40]!r}, which no ncmon made")
                        self._target.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" REAL')
            self._insert("definition", self._source.named("SELECT * FROM definition"))
            add_columns(self._target)

    def _run(self, run: _Row) -> Merged:
        run_id = run["run_id"]
        if run["attempt_of"] is not None and not self._is_here(run["attempt_of"]):
            # The tail of a run that was deleted here, or is not asked for.
            return Merged(run_id=run_id, name=run["name"], outcome="deleted here")
        streams = self._source.named(
            "SELECT stream_key, stream, opened, rank, begun, attempt FROM stream WHERE run_id = ?", (run_id,)
        )
        origins = {
            row["stream"]: self._source.execute("SELECT seq FROM origin WHERE stream_key = ?", (row["stream_key"],))
            for row in streams
        }
        here = self._target.execute("SELECT run_key FROM run WHERE run_id = ?", (run_id,)).fetchone()
        ((waiting,),) = self._source.execute("SELECT count(*) FROM inbox WHERE run_id = ?", (run_id,))
        outcome: Outcome
        if any(origins.values()) and self._all_known(origins):
            outcome = "known" if here is not None else "deleted here"
            return Merged(run_id=run_id, name=run["name"], outcome=outcome, waiting=waiting)
        added, replaced = self._windows(run, self._put_run(run))
        with transaction(self._target, self._path):
            if run["attempt"] > 1:
                (key,) = self._target.execute("SELECT run_key FROM run WHERE run_id = ?", (run_id,)).fetchone()
                attempts.settle(self._target, key)
            self._put_gaps(run_id)
            self._put_alerts(run_id)
            for row in streams:
                self._put_stream(row, run_id, origins[row["stream"]])
        outcome = "new" if here is None else "more" if added or replaced else "known"
        return Merged(run_id=run_id, name=run["name"], outcome=outcome, added=added, replaced=replaced, waiting=waiting)

    def _is_here(self, run_id: str) -> bool:
        return self._target.execute("SELECT 1 FROM run WHERE run_id = ?", (run_id,)).fetchone() is not None

    def _all_known(self, origins: Mapping[bytes, Sequence[tuple[int]]]) -> bool:
        for stream, numbers in origins.items():
            known = {
                seq
                for (seq,) in self._target.execute(
                    "SELECT o.seq FROM origin o JOIN stream s USING (stream_key) WHERE s.stream = ?", (stream,)
                )
            }
            if any(seq not in known for (seq,) in numbers):
                return False
        return True

    def _put_run(self, run: _Row) -> int:
        """Store the run, its classes and layers; return its key. What the user said of it here stays."""
        fields = {name: value for name, value in run.items() if name != "run_key"}
        with transaction(self._target, self._path):
            new = self._insert("run", [fields])
            row = self._target.execute("SELECT run_key FROM run WHERE run_id = ?", (run["run_id"],)).fetchone()
            key = int(row[0])
            if not new:
                # How a run ended is what was heard of it last.
                self._target.execute(
                    """UPDATE run SET status = :status, ended = :ended, end_text = :end_text, last_seen = :last_seen
WHERE run_key = :key AND coalesce(last_seen, 0) < coalesce(:last_seen, 0)""",
                    {**{name: run[name] for name in ("status", "ended", "end_text", "last_seen")}, "key": key},
                )
                self._target.execute(
                    "UPDATE run SET note = :note WHERE run_key = :key AND note = ''", {**run, "key": key}
                )
                self._target.execute(
                    "UPDATE run SET started = min(started, ?), attempt = max(attempt, ?) WHERE run_key = ?",
                    (run["started"], run["attempt"], key),
                )
            labels = self._source.named("SELECT * FROM class_label WHERE run_key = ?", (run["run_key"],))
            self._insert("class_label", [{**label, "run_key": key} for label in labels])
        return key

    def _windows(self, run: _Row, run_key: int) -> tuple[int, int]:
        """Copy the windows that are not here, or later than what is here; return how many of either."""
        there = self._source.named(
            "SELECT window_key, split, step, exact, attempt, time FROM window WHERE run_key = ? ORDER BY window_key",
            (run["run_key"],),
        )
        place = "SELECT split, step, exact, window_key, attempt, time FROM window WHERE run_key = ?"
        here = {row[:3]: row[3:] for row in self._target.execute(place, (run_key,))}
        wanted, replaced = [], 0
        for row in there:
            known = here.get((row["split"], row["step"], row["exact"]))
            if known is None or (row["attempt"], row["time"]) > known[1:]:
                wanted.append((row["window_key"], known[0] if known is not None else None))
                replaced += known is not None
        for start in range(0, len(wanted), STEP_WINDOWS):
            part = wanted[start : start + STEP_WINDOWS]
            copies = [self._read(window_key) for window_key, _ in part]
            with taking_turns(), transaction(self._target, self._path):
                layers = self._put_layers(run["run_key"], run_key)
                for (_, old), copy in zip(part, copies, strict=True):
                    if old is not None:
                        self._target.execute("DELETE FROM window WHERE window_key = ?", (old,))
                    self._put_window(copy, run_key, layers)
        return len(wanted) - replaced, replaced

    def _read(self, window_key: int) -> dict[str, list[_Row]]:
        """Read one window as a whole; empty where the source has replaced it in the meantime."""
        tables = ("window", "reading", "reason", "class_reading", "array")
        with self._source.snapshot():
            return {
                table: self._source.named(f"SELECT * FROM {table} WHERE window_key = ?", (window_key,))  # noqa: S608
                for table in tables
            }

    def _put_layers(self, source_key: int, run_key: int) -> dict[int, int]:
        """Store the layers of a run; return the keys here by the keys there."""
        there = self._source.named("SELECT * FROM layer WHERE run_key = ?", (source_key,))
        fields = [{**{n: v for n, v in row.items() if n != "layer_key"}, "run_key": run_key} for row in there]
        self._insert("layer", fields)
        here = dict(self._target.execute("SELECT name, layer_key FROM layer WHERE run_key = ?", (run_key,)))
        return {row["layer_key"]: here[row["name"]] for row in there}

    def _put_window(self, copy: dict[str, list[_Row]], run_key: int, layers: Mapping[int, int]) -> None:
        for window in copy["window"]:
            fields = {name: value for name, value in window.items() if name != "window_key"}
            self._insert("window", [{**fields, "run_key": run_key}], keep=False)
            (window_key,) = self._target.execute("SELECT last_insert_rowid()").fetchone()
            for table in ("reading", "reason", "array"):
                rows = [{**row, "window_key": window_key, "layer_key": layers[row["layer_key"]]} for row in copy[table]]
                self._insert(table, rows, keep=False)
            classes = [{**row, "window_key": window_key} for row in copy["class_reading"]]
            self._insert("class_reading", classes, keep=False)

    def _put_gaps(self, run_id: str) -> None:
        key = ("run_id", "split", "epoch", "step", "time", "reason")
        same = " AND ".join(f"{name} = :{name}" for name in key)
        for gap in self._source.named("SELECT * FROM gap WHERE run_id = ?", (run_id,)):
            found = self._target.execute(f"SELECT 1 FROM gap WHERE {same}", gap).fetchone()  # noqa: S608 fixed text
            if found is None:
                self._insert("gap", [{name: value for name, value in gap.items() if name != "gap_key"}], keep=False)

    def _put_alerts(self, run_id: str) -> None:
        """Take over alerts: those of one rule, place and moment are the same, and what is known of them adds up."""
        target = self._target.execute("SELECT run_key FROM run WHERE run_id = ?", (run_id,)).fetchone()
        key = ("run_key", "rule", "split", "exact", "layer", "class", "since")
        same = " AND ".join(f"{name} IS :{name}" for name in key)
        for alert in self._source.named(
            "SELECT a.* FROM alert a JOIN run r USING (run_key) WHERE r.run_id = ? ORDER BY a.alert_key", (run_id,)
        ):
            row = {**{n: v for n, v in alert.items() if n != "alert_key"}, "run_key": target[0]}
            cursor = self._target.execute(
                f"""UPDATE alert SET cleared = coalesce(cleared, :cleared),
acknowledged = coalesce(acknowledged, :acknowledged) WHERE {same}""",  # noqa: S608 fixed text
                row,
            )
            if not cursor.rowcount:
                self._insert("alert", [row], keep=False)

    def _put_stream(self, row: _Row, run_id: str, numbers: Sequence[tuple[int]]) -> None:
        """Record which messages are here now, and what the stream may send next."""
        self._target.execute(
            "INSERT INTO stream (stream, next, run_id, opened, rank, begun, attempt) VALUES (?, 0, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (row["stream"], run_id, *(row[name] for name in ("opened", "rank", "begun", "attempt"))),
        )
        find = "SELECT stream_key, next FROM stream WHERE stream = ?"
        key, following = self._target.execute(find, (row["stream"],)).fetchone()
        self._target.executemany(
            "INSERT INTO origin (stream_key, seq) VALUES (?, ?) ON CONFLICT DO NOTHING",
            [(key, seq) for (seq,) in numbers],
        )
        # Only over what is here without a hole: the trainer may be waiting to send what is missing to this database.
        known = {seq for (seq,) in self._target.execute("SELECT seq FROM origin WHERE stream_key = ?", (key,))}
        while following in known:
            following += 1
        self._target.execute("UPDATE stream SET next = ? WHERE stream_key = ?", (following, key))

    def _insert(self, table: str, rows: Iterable[_Row], *, keep: bool = True) -> int:
        """Insert rows by column name; with `keep`, what is there already stays. Returns how many came."""
        rows = list(rows)
        if not rows:
            return 0
        names = ", ".join(f'"{name}"' for name in rows[0])
        marks = ", ".join("?" * len(rows[0]))
        conflict = " ON CONFLICT DO NOTHING" if keep else ""
        cursor = self._target.executemany(
            f"INSERT INTO {table} ({names}) VALUES ({marks}){conflict}",  # noqa: S608 names are columns
            [tuple(row.values()) for row in rows],
        )
        return cursor.rowcount
