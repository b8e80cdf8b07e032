"""Tables, views and migrations of the store.

    run            one row a run                       layer          one a layer of a run
    window         one a window of a run and split     stream         one a sending process: what it may send next
    reading        one a (layer, window), wide: a REAL column for every metric and bound of the registry
    reason         why a reading has no value          class_label    names of classes
    class_reading  one a (window, class) of the classifier's input, wide likewise
    array          class and pair arrays as BLOBs      origin         every message that is in the store, once
    gap, rejected  what is missing, and why            definition     what each column means, by version
    inbox          messages that wait to be evaluated  migration      what was done to this file
    meta           the revision that viewers compare
    alert          what rules raised, and when it was over      alert_memory   what rules remember of a run

Fixed tables change by migrations: small named functions, applied in the transaction that records them. Columns of
metrics are no migration: whatever the registry has and the file has not is added whenever the file is opened for
writing, and a column is never dropped. The views `runs`, `history`, `class_history` and `aliases` are what outside
tools may rely on; they are made anew from the columns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ncmon.metrics.spec import Bound, Metric
from ncmon.model import CLASSIFIER_INPUT

APPLICATION_ID = 0x4E434D4E
"""`NCMN` in the file's header: what tells a store from any other SQLite database."""

QUALITY = (
    *("samples", "classes_present", "rank_used", "resolution_floor", "zero_norm", "nonfinite"),
    *("mean_shift", "movement_share"),
)
"""Columns of `reading` that say how far its numbers can be trusted."""

READING_KEYS = ("layer_key", "window_key", "attained")
READING_FIXED = ("layer_key", "window_key", *QUALITY, "attained")
CLASS_FIXED = ("window_key", "class")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step from a schema to the next."""

    name: str
    apply: Callable[[sqlite3.Connection], None]
    rewrites: bool = False
    """Whether it changes rows that are there already: then the file is copied first."""


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the first schema in an empty file."""
    for statement in _FIRST:
        connection.execute(statement)


def add_edits(connection: sqlite3.Connection) -> None:
    """Make room for what the user says of a run: a note, and that name or tags are the user's, not the trainer's."""
    connection.execute("ALTER TABLE run ADD COLUMN note TEXT NOT NULL DEFAULT ''")
    connection.execute("ALTER TABLE run ADD COLUMN name_given INTEGER NOT NULL DEFAULT 0")
    connection.execute("ALTER TABLE run ADD COLUMN tags_given INTEGER NOT NULL DEFAULT 0")


def add_assumptions(connection: sqlite3.Connection) -> None:
    """Make room for the panel of every window: a JSON object of name to [holds, fact]."""
    connection.execute("ALTER TABLE window ADD COLUMN assumptions TEXT")


def add_inbox(connection: sqlite3.Connection) -> None:
    """Make room for messages that are acknowledged and not evaluated yet, and for when a stream was first heard of."""
    connection.execute(
        """CREATE TABLE inbox (inbox_key INTEGER PRIMARY KEY, entry INTEGER NOT NULL, run_id TEXT NOT NULL,
  stream_key INTEGER NOT NULL REFERENCES stream (stream_key), seq INTEGER NOT NULL, received REAL NOT NULL,
  nbytes INTEGER NOT NULL, message BLOB NOT NULL) STRICT"""
    )
    # Holds what is counted, so that counting a long inbox does not read it.
    connection.execute("CREATE INDEX inbox_by_run ON inbox (run_id, inbox_key, nbytes)")
    connection.execute("ALTER TABLE stream ADD COLUMN opened REAL")


def add_alerts(connection: sqlite3.Connection) -> None:
    """Make room for alerts, and for what the rules remember of a run."""
    connection.execute(
        """CREATE TABLE alert (alert_key INTEGER PRIMARY KEY,
  run_key INTEGER NOT NULL REFERENCES run (run_key) ON DELETE CASCADE,
  rule TEXT NOT NULL, severity TEXT NOT NULL, split TEXT NOT NULL, exact INTEGER NOT NULL, layer TEXT NOT NULL,
  class INTEGER, epoch INTEGER NOT NULL, step INTEGER NOT NULL, since REAL NOT NULL, cleared REAL, acknowledged REAL,
  value REAL, text TEXT NOT NULL) STRICT"""
    )
    connection.execute("CREATE INDEX alert_by_run ON alert (run_key)")
    connection.execute("CREATE INDEX alert_open ON alert (since) WHERE cleared IS NULL")
    connection.execute(
        """CREATE TABLE alert_memory (run_key INTEGER PRIMARY KEY REFERENCES run (run_key) ON DELETE CASCADE,
  memory TEXT NOT NULL) STRICT"""
    )


def add_movement(connection: sqlite3.Connection) -> None:
    """Make room for how far class means moved since the window before, and for what that adds to their variance."""
    connection.execute("ALTER TABLE reading ADD COLUMN mean_shift REAL")
    connection.execute("ALTER TABLE reading ADD COLUMN movement_share REAL")


def add_attempts(connection: sqlite3.Connection) -> None:
    """Make room for attempts: which one a stream, a window and a run belong to, and whose superseded tail a run is."""
    for column in ("rank INTEGER DEFAULT 0", "begun REAL", "attempt INTEGER DEFAULT 1"):
        connection.execute(f"ALTER TABLE stream ADD COLUMN {column}")
    connection.execute("ALTER TABLE window ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1")
    connection.execute("ALTER TABLE run ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1")
    connection.execute("ALTER TABLE run ADD COLUMN attempt_of TEXT")
    connection.execute("CREATE INDEX stream_by_run ON stream (run_id)")
    # Empty but for runs that were begun again, where every window asks from which step on a later attempt counts.
    connection.execute("CREATE INDEX window_of_later ON window (run_key, split, attempt, step) WHERE attempt > 1")


MIGRATIONS: tuple[Migration, ...] = (
    Migration(name="create_tables", apply=create_tables),
    Migration(name="add_edits", apply=add_edits),
    Migration(name="add_assumptions", apply=add_assumptions),
    Migration(name="add_inbox", apply=add_inbox),
    Migration(name="add_alerts", apply=add_alerts),
    Migration(name="add_movement", apply=add_movement),
    Migration(name="add_attempts", apply=add_attempts),
)
"""In order; the schema's number is how many have been applied."""

SCHEMA = len(MIGRATIONS)


def reading_entries(registry: Iterable[Metric | Bound]) -> list[Metric | Bound]:
    """Return the entries that have a column in `reading`."""
    return [entry for entry in registry if entry.scope in ("layer", "classifier", "window")]


def class_entries(registry: Iterable[Metric | Bound]) -> list[Metric | Bound]:
    """Return the entries that have a column in `class_reading`."""
    return [entry for entry in registry if entry.scope == "class"]


class Executes(Protocol):
    """What answers a statement with its rows: a connection of sqlite3, or a reader."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Iterable[Any]:
        """Return the rows."""


def columns_of(connection: Executes, table: str, fixed: Sequence[str]) -> tuple[str, ...]:
    """Return the metric columns of a wide table, in the order in which they came."""
    rows = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
    return tuple(name for (name,) in rows if name not in fixed)


def history_view(columns: Sequence[str], at_classifier: Iterable[str] = ()) -> str:
    """Return the SELECT of `history`: one branch a column, and one of the reasons why there is no value.

    SQLite moves the conditions of a query into each branch, where a condition on `metric` compares two constants: the
    branches of all other metrics end before they read a row. No JSON functions: SQLite does not count them as safe in
    a view, and a careful tool (trusted_schema off) could not read it.
    """
    only = frozenset(at_classifier)
    branches = [
        _branch(
            f"'{name}'",
            f'd."{name}"',
            "NULL",
            table="reading",
            where=f'd."{name}" IS NOT NULL' + (f" AND l.name = '{CLASSIFIER_INPUT}'" if name in only else ""),
        )
        for name in columns
    ]
    return "\nUNION ALL\n".join([*branches, _branch("d.name", "NULL", "d.text", table="reason", where="1")])


def class_history_view(columns: Sequence[str]) -> str:
    """Return the SELECT of `class_history`: as `history`, of the classifier's input, with the class and its name."""
    branches = [
        f"""SELECT r.run_id, r.name AS run_name, l.name AS layer, l.idx AS layer_index, w.split, w.exact, w.epoch,
  w.step, w.time, '{name}' AS metric, d."{name}" AS value, NULL AS reason, d.class,
  coalesce(c.name, CAST(d.class AS TEXT)) AS class_name
FROM run r JOIN layer l ON l.run_key = r.run_key AND l.name = '{CLASSIFIER_INPUT}'
  JOIN window w ON w.run_key = r.run_key JOIN class_reading d ON d.window_key = w.window_key
  LEFT JOIN class_label c ON c.run_key = r.run_key AND c.class = d.class
WHERE d."{name}" IS NOT NULL"""  # noqa: S608 names are checked
        for name in columns
    ]
    return "\nUNION ALL\n".join(branches)


def _branch(metric: str, value: str, reason: str, *, table: str, where: str) -> str:
    return f"""SELECT r.run_id, r.name AS run_name, l.name AS layer, l.idx AS layer_index, w.split, w.exact, w.epoch,
  w.step, w.time, {metric} AS metric, {value} AS value, {reason} AS reason
FROM run r JOIN layer l ON l.run_key = r.run_key JOIN {table} d ON d.layer_key = l.layer_key
  JOIN window w ON w.window_key = d.window_key
WHERE {where}"""  # noqa: S608 names are checked


def aliases_view(registry: Iterable[Metric | Bound]) -> str:
    """Return the SELECT of `aliases`: other names of metrics, for joins with `history`."""
    pairs = [(alias, entry.name) for entry in registry for alias in getattr(entry, "aliases", ())]
    rows = " UNION ALL ".join(f"SELECT '{alias}' AS alias, '{name}' AS metric" for alias, name in pairs)
    return rows or "SELECT '' AS alias, '' AS metric WHERE 0"


RUNS_VIEW = """SELECT run_id, name, status, started, ended, host, world_size, n_classes, config, tags, note, attempt,
  attempt_of FROM run"""

# Foreign keys name the column they refer to: SQLite would do without, Datasette does not.
_FIRST = (
    """CREATE TABLE migration (number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied REAL NOT NULL,
  ncmon TEXT NOT NULL) STRICT""",
    "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL) STRICT",
    "INSERT INTO meta (id, revision) VALUES (1, 0)",
    """CREATE TABLE definition (name TEXT NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL, scope TEXT NOT NULL,
  definition TEXT NOT NULL, source TEXT NOT NULL, first_seen REAL NOT NULL, PRIMARY KEY (name, version))
  STRICT, WITHOUT ROWID""",
    """CREATE TABLE run (run_key INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('live', 'finished', 'failed')), started REAL NOT NULL, ended REAL,
  end_text TEXT, host TEXT NOT NULL, pid INTEGER NOT NULL, world_size INTEGER NOT NULL, n_classes INTEGER NOT NULL,
  class_names TEXT NOT NULL, config TEXT NOT NULL, tags TEXT NOT NULL, client TEXT NOT NULL, last_seen REAL) STRICT""",
    """CREATE TABLE stream (stream_key INTEGER PRIMARY KEY, stream BLOB NOT NULL UNIQUE, next INTEGER NOT NULL,
  run_id TEXT) STRICT""",
    """CREATE TABLE origin (stream_key INTEGER NOT NULL REFERENCES stream (stream_key), seq INTEGER NOT NULL,
  PRIMARY KEY (stream_key, seq)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE layer (layer_key INTEGER PRIMARY KEY,
  run_key INTEGER NOT NULL REFERENCES run (run_key) ON DELETE CASCADE,
  name TEXT NOT NULL, idx INTEGER NOT NULL, module TEXT NOT NULL, reduction TEXT NOT NULL, note TEXT NOT NULL,
  n_features INTEGER NOT NULL, UNIQUE (run_key, name)) STRICT""",
    # `arrays`: 0 none, 1 while among the last windows, 2 kept for good.
    """CREATE TABLE window (window_key INTEGER PRIMARY KEY,
  run_key INTEGER NOT NULL REFERENCES run (run_key) ON DELETE CASCADE,
  split TEXT NOT NULL, step INTEGER NOT NULL, exact INTEGER NOT NULL, epoch INTEGER NOT NULL, time REAL NOT NULL,
  duration_s REAL NOT NULL, steps INTEGER NOT NULL, sampled_steps INTEGER NOT NULL, partial INTEGER NOT NULL,
  ranks TEXT NOT NULL, world_size INTEGER NOT NULL, n_classes INTEGER NOT NULL, ncc_source TEXT NOT NULL,
  ignored_labels INTEGER NOT NULL, skipped TEXT, overhead REAL, received REAL NOT NULL,
  arrays INTEGER NOT NULL DEFAULT 0, UNIQUE (run_key, split, step, exact)) STRICT""",
    "CREATE INDEX window_by_run ON window (run_key)",
    "CREATE INDEX window_with_arrays ON window (run_key, split, exact, step) WHERE arrays = 1",
    """CREATE TABLE reading (layer_key INTEGER NOT NULL REFERENCES layer (layer_key) ON DELETE CASCADE,
  window_key INTEGER NOT NULL REFERENCES window (window_key) ON DELETE CASCADE,
  samples REAL, classes_present REAL, rank_used REAL,
  resolution_floor REAL, zero_norm REAL, nonfinite REAL, attained TEXT,
  PRIMARY KEY (layer_key, window_key)) STRICT, WITHOUT ROWID""",
    "CREATE INDEX reading_by_window ON reading (window_key)",
    """CREATE TABLE reason (layer_key INTEGER NOT NULL REFERENCES layer (layer_key) ON DELETE CASCADE,
  window_key INTEGER NOT NULL REFERENCES window (window_key) ON DELETE CASCADE, name TEXT NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (layer_key, window_key, name)) STRICT, WITHOUT ROWID""",
    "CREATE INDEX reason_by_window ON reason (window_key)",
    """CREATE TABLE class_label (run_key INTEGER NOT NULL REFERENCES run (run_key) ON DELETE CASCADE,
  class INTEGER NOT NULL,
  name TEXT NOT NULL, PRIMARY KEY (run_key, class)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE class_reading (window_key INTEGER NOT NULL REFERENCES window (window_key) ON DELETE CASCADE,
  class INTEGER NOT NULL, PRIMARY KEY (window_key, class)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE array (window_key INTEGER NOT NULL REFERENCES window (window_key) ON DELETE CASCADE,
  layer_key INTEGER NOT NULL REFERENCES layer (layer_key) ON DELETE CASCADE, name TEXT NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY (window_key, layer_key, name)) STRICT""",
    """CREATE TABLE gap (gap_key INTEGER PRIMARY KEY, run_id TEXT NOT NULL, split TEXT NOT NULL, epoch INTEGER NOT NULL,
  step INTEGER NOT NULL, time REAL NOT NULL, reason TEXT NOT NULL, received REAL NOT NULL) STRICT""",
    "CREATE INDEX gap_by_run ON gap (run_id)",
    """CREATE TABLE rejected (rejected_key INTEGER PRIMARY KEY, stream BLOB NOT NULL, seq INTEGER NOT NULL,
  run_id TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL, head BLOB NOT NULL, time REAL NOT NULL) STRICT""",
)
