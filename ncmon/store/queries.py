"""Reading the store, beside a live daemon or long after it.

    with Store.open(path) as store:
        store.run("latest").history("nc1_pinv").value

One read-only connection; no read lasts longer than one statement, so that the daemon's log can always be folded back.
A `Store` may move between threads and must not be used by two at once.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.errors import NotFound, StoreError, UsageError, near
from ncmon.metrics import METRICS, resolve
from ncmon.model import CLASSIFIER_INPUT, Alert, Run
from ncmon.store import alerts, older, schema
from ncmon.store.connection import Reader, describe
from ncmon.store.results import Rows, RunSummary, StoredGap, StoredRejection
from ncmon.store.runs import RUN_COLUMNS, StoredRun, run_of

OVERVIEW = ("ce_loss", "nc1_pinv", "intra_cos_min", "inter_cos_max", "ncc_acc", "accuracy")
"""What a line about a run shows when nothing else is asked for."""
TREND_POINTS = 32

MAX_VALUE_BYTES = 64 * 1024 * 1024
"""Of one value that a user's SQL may make; SQLite's own limit of a gigabyte would exhaust a small machine."""

_CHOSEN = """SELECT value AS run_key, coalesce(
    (SELECT 'train' FROM window WHERE run_key = value AND split = 'train' LIMIT 1),
    (SELECT split FROM window WHERE run_key = value ORDER BY window_key DESC LIMIT 1)) AS split FROM json_each(:keys)"""
"""The split that a line about a run shows: `train`, or else the last that came."""

_PRAGMAS = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "index_info", "user_version"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trend:
    """What was read of a run for its line."""

    mark: tuple[Any, ...]
    """Of which metric, how many windows, and what tells the last of them and the last step from all others."""
    values: tuple[float | None, ...]


class Store:
    """A database, open for reading."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._reader = Reader(path, connection)
        self._trends: dict[int, _Trend] = {}
        """By key of the run, of the last summary."""

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open a database; raises `StoreError` when it is missing, foreign, newer than this ncmon or damaged."""
        return cls(path, older.connect(path))

    def close(self) -> None:
        """Close the database. Closing twice does nothing."""
        self._reader.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[StoredRun]:
        """Go through the runs, newest first."""
        return iter(self.runs())

    def revision(self) -> int:
        """Return a number that every change of the store increments."""
        return int(self._reader.execute("SELECT revision FROM meta")[0][0])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics and bounds that can be asked for of one number a window: the registry's, then the file's own."""
        stored = self._reader.columns_of("reading", schema.READING_FIXED)
        aliases = (alias for metric in METRICS for alias in metric.aliases)
        return tuple(
            dict.fromkeys([*(entry.name for entry in schema.reading_entries((*METRICS, *BOUNDS))), *stored, *aliases])
        )

    def runs(self, limit: int | None = None, *, attempts: bool = False) -> tuple[StoredRun, ...]:
        """Return the runs, newest first; with `attempts` the superseded tails of earlier attempts among them."""
        rows = self._reader.execute(
            f"SELECT {RUN_COLUMNS} FROM run WHERE ? OR attempt_of IS NULL"  # noqa: S608 fixed columns
            " ORDER BY started DESC, run_key DESC LIMIT ?",
            (attempts, -1 if limit is None else limit),
        )
        return tuple(StoredRun(self._reader, row[0], run_of(row)) for row in rows)

    def run(self, ref: str) -> StoredRun:
        """Return a run by its id, its name (the newest of that name), a unique prefix of its id, or `latest`.

        Raises `NotFound` with near names, or with the runs that an ambiguous prefix could mean.
        """
        names = self._reader.execute(
            "SELECT run_key, run_id, name FROM run WHERE attempt_of IS NULL OR run_id = ?"
            " ORDER BY started DESC, run_key DESC",
            (ref,),
        )
        if not names:
            raise NotFound(f"{self.path} holds no run yet")
        for column in (1, 2):
            for row in names:
                if row[column] == ref:
                    return self._stored(row[0])
        if ref == "latest":
            return self._stored(names[0][0])
        begun = [row for row in names if ref and row[1].startswith(ref)]
        if len(begun) == 1:
            return self._stored(begun[0][0])
        if begun:
            some = ", ".join(row[1] for row in begun[:4]) + (", ..." if len(begun) > 4 else "")
            raise NotFound(f"{len(begun)} runs have an id that begins with {ref!r}: {some}")
        known = dict.fromkeys(text for row in names for text in (row[2], row[1]))
        raise NotFound(f"no run is named {ref!r}{near(ref, known) or '; `ncmon runs` lists all'}")

    def waiting(self) -> int:
        """Return how many messages wait in the inbox: received, on disk, and not evaluated yet."""
        ((count,),) = self._reader.execute("SELECT count(*) FROM inbox")
        return int(count)

    def summary(
        self,
        metrics: Sequence[str] = OVERVIEW,
        *,
        trend: str = "nc1_pinv",
        limit: int | None = None,
        where: Callable[[Run], bool] | None = None,
        attempts: bool = False,
    ) -> tuple[RunSummary, ...]:
        """Return one line a run, newest first: its last window and the trend of one metric, in three reads.

        `where` picks runs before their windows are read; `limit` counts what it left. With `attempts` the superseded
        tails of earlier attempts are among them.
        """
        stored = self._reader.columns_of("reading", schema.READING_FIXED)
        selected = "".join(f', d."{name}"' if name in stored else ", NULL" for name in map(resolve, metrics))
        line = f'd."{resolve(trend)}"' if resolve(trend) in stored else "NULL"
        everyone = (
            f"SELECT {RUN_COLUMNS} FROM run WHERE ? OR attempt_of IS NULL"  # noqa: S608 fixed columns
            " ORDER BY started DESC, run_key DESC"
        )
        # Windows are found by index, run by run: a store of years costs no more than one of a day.
        last = f"""SELECT c.run_key, n.window_key, n.time, (SELECT count(*) FROM window w WHERE w.run_key = c.run_key),
  (SELECT count(*) FROM layer l WHERE l.run_key = c.run_key), c.split, w.epoch, w.step, w.time, w.exact{selected}
FROM ({_CHOSEN}) c
  LEFT JOIN window w ON w.window_key = (SELECT x.window_key FROM window x WHERE x.run_key = c.run_key
    AND x.split = c.split ORDER BY x.step DESC, x.exact DESC LIMIT 1)
  LEFT JOIN window n ON n.window_key = (SELECT x.window_key FROM window x WHERE x.run_key = c.run_key
    ORDER BY x.window_key DESC LIMIT 1)
  LEFT JOIN layer l ON l.run_key = c.run_key AND l.name = :layer
  LEFT JOIN reading d ON d.layer_key = l.layer_key AND d.window_key = w.window_key"""  # noqa: S608 names are columns
        # The trend is that of the whole run, at steps as far from each other as they can be: its end alone would look
        # flat. Of these windows the index knows enough. Materialised: written out it would look for both ends of a run
        # again for every point.
        points = f"""WITH spanned AS MATERIALIZED (SELECT c.run_key, c.split,
    (SELECT min(step) FROM window w WHERE w.run_key = c.run_key AND w.split = c.split) AS low,
    (SELECT max(step) FROM window w WHERE w.run_key = c.run_key AND w.split = c.split) AS high FROM ({_CHOSEN}) c),
placed AS MATERIALIZED (SELECT s.run_key, l.layer_key, p.value AS place,
    (SELECT x.window_key FROM window x WHERE x.run_key = s.run_key AND x.split = s.split
      AND x.step >= s.low + (s.high - s.low) * p.value / :points ORDER BY x.step, x.exact LIMIT 1) AS window_key
  FROM spanned s JOIN layer l ON l.run_key = s.run_key AND l.name = :layer CROSS JOIN json_each(:places) p)
SELECT p.run_key, p.window_key, {line} FROM placed p
  CROSS JOIN reading d ON d.layer_key = p.layer_key AND d.window_key = p.window_key
ORDER BY p.run_key, p.place"""  # noqa: S608 names are columns
        with self._reader.snapshot():
            found = [(row[0], run_of(row)) for row in self._reader.execute(everyone, (attempts,))]
            runs = dict([pair for pair in found if where is None or where(pair[1])][:limit])
            options = {"keys": json.dumps(list(runs)), "layer": CLASSIFIER_INPUT, "points": TREND_POINTS}
            ends = {row[0]: row[1:] for row in self._reader.execute(last, options)}
            # A run into which no window came has the trend that it had. What came last tells: its key alone may be that
            # of one that was deleted.
            marks = {key: (line, *row[:3], *row[4:8]) for key, row in ends.items()}
            trends = {key: known for key, known in self._trends.items() if marks.get(key) == known.mark}
            changed = [key for key in runs if key not in trends]
            options |= {"keys": json.dumps(changed), "places": json.dumps(list(range(TREND_POINTS + 1)))}
            found_points: dict[int, dict[int, float | None]] = {key: {} for key in changed}
            for run_key, window_key, value in self._reader.execute(points, options) if changed else ():
                found_points[run_key][window_key] = value
            for key, values in found_points.items():
                trends[key] = _Trend(mark=marks[key], values=tuple(values.values()))
        self._trends = trends
        return tuple(_summary(run, ends[key][2:], trends[key].values, metrics) for key, run in runs.items())

    def gaps(self, run: StoredRun | str) -> tuple[StoredGap, ...]:
        """Return the windows of a run that were announced and never came."""
        return (self.run(run) if isinstance(run, str) else run).gaps()

    def alerts(
        self, run: StoredRun | str | None = None, *, only_open: bool = False, limit: int | None = None
    ) -> tuple[Alert, ...]:
        """Return alerts of a run or of all: those that are open first, then the newest first."""
        found = self.run(run) if isinstance(run, str) else run
        return alerts.read(
            self._reader, run_id=None if found is None else found.run_id, only_open=only_open, limit=limit
        )

    def rejected(self, limit: int = 100) -> tuple[StoredRejection, ...]:
        """Return messages that could not become windows, newest first."""
        rows = self._reader.execute(
            "SELECT stream, seq, run_id, code, reason, head, time FROM rejected ORDER BY rejected_key DESC LIMIT ?",
            (limit,),
        )
        return tuple(
            StoredRejection(stream=stream, seq=seq, run_id=run_id, code=code, reason=reason, head=head, time=at)
            for stream, seq, run_id, code, reason, head, at in rows
        )

    def sql(self, text: str, *, max_rows: int = 1000, timeout_s: float = 10.0) -> Rows:
        """Run one SELECT of a user's.

        It can read this database and nothing else: no other file, no pragma that changes something, no extension.
        Raises `UsageError` for what is not one readable statement and `StoreError` when it takes longer than it may.
        """
        deadline = time.monotonic() + timeout_s
        # A connection of its own: limits and the authoriser must not outlive the statement.
        with closing(older.connect(self.path)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.set_authorizer(_authorise)
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
            try:
                cursor = connection.execute(text)
                if cursor.description is None:
                    raise UsageError("expected one SELECT statement")
                rows = cursor.fetchmany(max_rows + 1)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                    raise StoreError(f"the query took longer than {timeout_s:g} s (--timeout)") from error
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH:
                    raise UsageError(
                        f"read-only: {error}; SELECT reads the views runs, history, class_history"
                    ) from error
                raise UsageError(f"SQL: {describe(error)}") from error
            except (sqlite3.Warning, ValueError) as error:
                raise UsageError(f"SQL: {error}") from error
            return Rows(
                columns=tuple(column[0] for column in cursor.description),
                rows=tuple(rows[:max_rows]),
                truncated=len(rows) > max_rows,
            )

    def _stored(self, run_key: int) -> StoredRun:
        (row,) = self._reader.execute(
            f"SELECT {RUN_COLUMNS} FROM run WHERE run_key = ?",  # noqa: S608 fixed columns
            (run_key,),
        )
        return StoredRun(self._reader, run_key, run_of(row))


def _summary(run: Run, row: tuple[Any, ...], trend: Sequence[float | None], metrics: Sequence[str]) -> RunSummary:
    """Return one line from a run, a row of its last window (windows, layers, split, epoch, step, time, exact, then
    `metrics`), and the trend.
    """
    line = np.array(trend, dtype=np.float64)  # None becomes NaN.
    return RunSummary(
        run=run,
        n_windows=row[0],
        n_layers=row[1],
        split=row[2] or "",
        epoch=row[3],
        step=row[4],
        time=row[5],
        exact=bool(row[6]),
        values=dict(zip(metrics, np.array(row[7:], dtype=np.float64).tolist(), strict=True)),
        trend=line[~np.isnan(line)],
    )


def _authorise(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and second != "load_extension":
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
