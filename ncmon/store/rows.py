"""Rows of what was evaluated: windows, readings, reasons, class and pair arrays. Inside the writer's transaction.

What a key of a run or a layer is, is remembered from one window to the next; `forget` whenever a transaction was undone
or another connection has written.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ncmon.model import CLASSIFIER_INPUT, Evaluation, LayerReadings, Reading, Window
from ncmon.store import arrays, attempts, schema
from ncmon.store.migrate import REGISTRY

RECENT_WINDOWS = 10
"""Windows of a run, split and kind whose arrays are kept whatever their epoch."""
KEPT_EPOCHS = 10
"""The last window of every epoch divisible by this keeps its arrays for good."""
MAX_HIDDEN_ARRAY_BYTES = 1024 * 1024
"""Larger arrays are kept for the classifier's input only: (C, C) of every layer is 8 MB each at a thousand classes."""


class Rows:
    """Puts evaluations into the tables of one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._reading_names = [entry.name for entry in schema.reading_entries(REGISTRY)]
        self._class_names = [entry.name for entry in schema.class_entries(REGISTRY)]
        self._insert_reading = _insert("reading", (*schema.READING_FIXED, *self._reading_names))
        self._insert_class = _insert("class_reading", (*schema.CLASS_FIXED, *self._class_names))
        self._runs: dict[str, tuple[int, int]] = {}
        """Key of a run, and which attempt of it is the latest."""
        self._layers: dict[tuple[int, str], tuple[int, tuple[object, ...]]] = {}

    def forget(self) -> None:
        """Look keys up anew."""
        self._runs.clear()
        self._layers.clear()

    def put(self, evaluation: Evaluation, now: float, attempt: int = 1) -> None:
        """Store one window of an attempt, in the place of one that stands there.

        `now` is when it was received, in Unix seconds.
        """
        window = evaluation.window
        run_key, latest = self._run(window, now)
        if latest > 1 or attempt > 1:
            run_key = attempts.place(
                self._connection, run_key, split=window.split, step=window.step, attempt=attempt, latest=latest
            )
        self._connection.execute(
            "DELETE FROM window WHERE run_key = ? AND split = ? AND step = ? AND exact = ?",
            (run_key, window.split, window.step, int(window.exact)),
        )
        cursor = self._connection.execute(
            _INSERT_WINDOW,
            (
                run_key,
                window.split,
                window.step,
                int(window.exact),
                window.epoch,
                window.time,
                window.duration_s,
                window.steps,
                window.sampled_steps,
                int(window.partial),
                as_json(list(window.ranks)),
                window.world_size,
                window.n_classes,
                window.ncc_source,
                window.ignored_labels,
                as_json(dict(window.skipped_batches)) if window.skipped_batches else None,
                window.overhead,
                now,
                1,
                as_json({fact.name: [fact.holds, fact.fact] for fact in evaluation.assumptions}),
                attempt,
            ),
        )
        window_key = int(cursor.lastrowid or 0)
        for layer in evaluation.layers:
            key = self._layer_key(run_key, layer)
            self._put_readings(key, window_key, layer)
            at_classifier = layer.key.name == CLASSIFIER_INPUT
            if at_classifier:
                self._connection.executemany(
                    self._insert_class, _class_rows(window_key, window.n_classes, self._class_names, layer.class_arrays)
                )
            limit = math.inf if at_classifier else MAX_HIDDEN_ARRAY_BYTES
            found = {**({} if at_classifier else layer.class_arrays), **layer.pair_arrays}
            blobs = [(window_key, key, name, arrays.pack(values)) for name, values in found.items()]
            self._connection.executemany(
                "INSERT INTO array (window_key, layer_key, name, value) VALUES (?, ?, ?, ?)",
                [row for row in blobs if len(row[3]) <= limit],
            )
        self._retire_arrays(run_key, window)

    def _retire_arrays(self, run_key: int, window: Window) -> None:
        """Drop the arrays of windows that are no longer recent, unless they close a tenth epoch."""
        series = (run_key, window.split, int(window.exact))
        old = self._connection.execute(
            "SELECT window_key, epoch, step FROM window"
            " WHERE run_key = ? AND split = ? AND exact = ? AND arrays = 1 ORDER BY step DESC LIMIT -1 OFFSET ?",
            (*series, RECENT_WINDOWS),
        ).fetchall()
        for window_key, epoch, step in old:
            kept = epoch >= 0 and epoch % KEPT_EPOCHS == 0 and not self._epoch_goes_on(series, epoch, step)
            if not kept:
                self._connection.execute("DELETE FROM array WHERE window_key = ?", (window_key,))
            self._connection.execute(
                "UPDATE window SET arrays = ? WHERE window_key = ?", (2 if kept else 0, window_key)
            )

    def _epoch_goes_on(self, series: tuple[int, str, int], epoch: int, step: int) -> bool:
        """Whether the window after this one is of the same epoch."""
        row = self._connection.execute(
            "SELECT epoch FROM window WHERE run_key = ? AND split = ? AND exact = ? AND step > ? ORDER BY step LIMIT 1",
            (*series, step),
        ).fetchone()
        return row is not None and row[0] == epoch

    def _run(self, window: Window, now: float) -> tuple[int, int]:
        found = self._runs.get(window.run_id)
        if found is None:
            # A window without a HELLO (a database that was deleted under a live daemon) is still data.
            self._connection.execute(
                """INSERT INTO run (run_id, name, status, started, host, pid, world_size, n_classes, class_names,
                     config, tags, client, last_seen)
                   VALUES (?, ?, 'live', ?, '', 0, ?, ?, '[]', '{}', '[]', '', ?) ON CONFLICT DO NOTHING""",
                (window.run_id, window.run_id, window.time, window.world_size, window.n_classes, now),
            )
            query = "SELECT run_key, attempt FROM run WHERE run_id = ?"
            row = self._connection.execute(query, (window.run_id,)).fetchone()
            found = self._runs[window.run_id] = (int(row[0]), int(row[1]))
        return found

    def _layer_key(self, run_key: int, layer: LayerReadings) -> int:
        name = layer.key.name
        facts = (layer.key.index, layer.module, layer.reduction, layer.note, layer.n_features)
        known = self._layers.get((run_key, name))
        if known is not None and known[1] == facts:
            return known[0]
        row = self._connection.execute(
            """INSERT INTO layer (run_key, name, idx, module, reduction, note, n_features) VALUES (?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT (run_key, name) DO UPDATE SET idx = excluded.idx, module = excluded.module,
                 reduction = excluded.reduction, note = excluded.note, n_features = excluded.n_features
               RETURNING layer_key""",
            (run_key, name, *facts),
        ).fetchone()
        self._layers[run_key, name] = (int(row[0]), facts)
        return int(row[0])

    def _put_readings(self, layer_key: int, window_key: int, layer: LayerReadings) -> None:
        values: list[float | None] = []
        reasons: list[tuple[int, int, str, str]] = []
        attained: dict[str, list[int]] = {}
        for name in self._reading_names:
            reading = layer.readings.get(name)
            value = None if reading is None else _finite(reading)
            values.append(value)
            if reading is None:
                continue
            if value is None:
                reasons.append((layer_key, window_key, name, reading.reason or f"not finite: {reading.value}"))
            elif reading.attained_at:
                attained[name] = list(reading.attained_at)
        quality = (layer.quality.get(name) for name in schema.QUALITY)
        row = (layer_key, window_key, *quality, as_json(attained) if attained else None, *values)
        self._connection.execute(self._insert_reading, row)
        self._connection.executemany(_INSERT_REASON, reasons)


_INSERT_REASON = "INSERT INTO reason (layer_key, window_key, name, text) VALUES (?, ?, ?, ?)"

_INSERT_WINDOW = """INSERT INTO window (run_key, split, step, exact, epoch, time, duration_s, steps, sampled_steps,
  partial, ranks, world_size, n_classes, ncc_source, ignored_labels, skipped, overhead, received, arrays,
  assumptions, attempt)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""


def _insert(table: str, columns: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 names are checked


def as_json(value: Any) -> str:
    """Return a value as compact JSON."""
    # A configuration may hold what JSON cannot say: its text is better than a run that is not stored.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _finite(reading: Reading) -> float | None:
    value = reading.value
    return float(value) if value is not None and math.isfinite(value) else None


def _class_rows(
    window_key: int, n_classes: int, names: Sequence[str], found: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
) -> list[tuple[object, ...]]:
    """Return the rows of the classes that have any value; SQLite stores NaN as NULL."""
    table = np.full((n_classes, len(names)), np.nan)
    for place, name in enumerate(names):
        if name in found:
            table[:, place] = found[name]
    table[~np.isfinite(table)] = np.nan
    alive = np.flatnonzero(~np.isnan(table).all(axis=1))
    return [(window_key, int(row), *table[row].tolist()) for row in alive]
