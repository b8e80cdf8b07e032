"""What screens ask of a run beyond histories: all layers over time, all classes at one moment, one class over time.

Each is a frozen part of a snapshot and costs few reads however long the run is: of a long history at most
`MOST_WINDOWS` windows are read, and those that were read before are taken from a `Cache`: a stored window never
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ncmon.model import CLASSIFIER_INPUT, FloatArray, IntArray, Run
from ncmon.store import arrays, growing, schema, windows
from ncmon.store.results import Columns
from ncmon.store.runs import StoredRun

CLASS_ORDERS = ("worst", "class", "confused", "accuracy")
"""In which a table of classes may stand."""
MOST_WINDOWS = 256
"""Of the picture layers x time: more columns than a wide terminal has, few enough to read at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPart:
    """One metric of all layers over time, and several of them at one moment."""

    metric: str
    split: str
    layers: tuple[str, ...]
    step: IntArray
    """(T,) ascending; of a long history evenly chosen windows, the last one always."""
    epoch: IntArray
    values: FloatArray
    """(L, T) NaN where a layer has no value."""
    place: int
    """The column of the moment that is looked at, -1 before the first window."""
    table: Mapping[str, FloatArray]
    """(L,) by metric, at that moment."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassPart:
    """All classes of one layer at one moment, and one of them over time."""

    layer: str
    split: str
    step: int
    epoch: int
    exact: bool
    arrays: Mapping[str, FloatArray]
    """(C,) by name; empty where the store kept none of this layer."""
    matrix: FloatArray | None
    """(C, C) cosines between classes of the nearest kept window up to that moment, None where none was kept."""
    matrix_epoch: int
    matrix_low: float = np.nan
    """The least of them, NaN where there is none."""
    index: int
    """The class whose history follows."""
    history: Mapping[str, Columns]
    """By name, of the classifier's input; of all names over the same windows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """One run's line in a comparison."""

    run: Run
    split: str
    columns: Columns


@dataclass(slots=True, kw_only=True)
class Cache:
    """What was read of windows before; belongs to one database."""

    memory: growing.Memory = field(default_factory=growing.Memory)
    """Of histories."""
    key: tuple[Any, ...] = ()
    rows: dict[tuple[int, float], FloatArray] = field(default_factory=dict)
    """(L,) by key of the window and when it was received: a later one may get the key of one that is gone."""
    matrix_key: tuple[Any, ...] = ()
    matrix: FloatArray | None = None
    matrix_low: float = np.nan


def layer_part(
    run: StoredRun, metric: str, split: str, table: Sequence[str], step: int | None, cache: Cache
) -> LayerPart:
    """Return one metric of all layers over time, and `table` at the moment of `step` (None: the last)."""
    reader = run._reader
    stored = reader.columns_of("reading", schema.READING_FIXED)
    layers = tuple(key.name for key in run.layers)
    rows = reader.execute(
        "SELECT step, window_key, epoch, received FROM window WHERE run_key = ? AND split = ? ORDER BY step, exact",
        (run._key, split),
    )
    # Of one step the exact window counts: it comes later.
    windows = list({row[0]: row for row in rows}.values())
    upto = len(windows) if step is None else sum(row[0] <= step for row in windows)
    moment = upto - 1
    # A stride that is a power of two: when the history grows, the windows that stay chosen were read before.
    stride = 1
    while len(windows) / stride > MOST_WINDOWS:
        stride *= 2
    chosen = sorted({*range(0, len(windows), stride), *([len(windows) - 1, moment] if moment >= 0 else [])})
    key = (run.run_id, metric, split, layers)
    row_of = {name: row for row, name in enumerate(layers)}
    if cache.key != key:
        cache.key, cache.rows = key, {}
    wanted = [(windows[i][1], windows[i][3]) for i in chosen]
    known = {window: cache.rows[window] for window in wanted if window in cache.rows}
    missing = {window: at for window, at in wanted if (window, at) not in known}
    for start in range(0, len(missing) if metric in stored else 0, 500):
        some = list(missing)[start : start + 500]
        for window, layer, value in reader.execute(
            f"""SELECT d.window_key, l.name, d."{metric}" FROM reading d JOIN layer l ON l.layer_key = d.layer_key
WHERE d.window_key IN ({", ".join("?" * len(some))})""",  # noqa: S608 the name is a column
            some,
        ):
            if value is not None and layer in row_of:
                column = known.setdefault((window, missing[window]), np.full(len(layers), np.nan))
                column[row_of[layer]] = value
    nothing = np.full(len(layers), np.nan)
    cache.rows = {window: known.get(window, nothing) for window in wanted}
    # Row by row in memory, as it is looked at.
    values = np.ascontiguousarray(np.array(list(cache.rows.values())).reshape(len(wanted), len(layers)).T)
    columns = {name: np.full(len(layers), np.nan) for name in table}
    named = [name for name in table if name in stored]
    if moment >= 0 and named:
        selected = "".join(f', d."{name}"' for name in named)
        for row in reader.execute(
            f"SELECT l.name{selected} FROM reading d JOIN layer l ON l.layer_key = d.layer_key"  # noqa: S608 columns
            " WHERE d.window_key = ?",
            (windows[moment][1],),
        ):
            for name, value in zip(named, row[1:], strict=True):
                if value is not None and row[0] in row_of:
                    columns[name][row_of[row[0]]] = value
    return LayerPart(
        metric=metric,
        split=split,
        layers=layers,
        step=np.array([windows[i][0] for i in chosen], dtype=np.int64),
        epoch=np.array([windows[i][2] for i in chosen], dtype=np.int64),
        values=values,
        place=chosen.index(moment) if moment >= 0 else -1,
        table=columns,
    )


def class_part(
    run: StoredRun,
    layer: str,
    split: str,
    names: Sequence[str],
    index: int,
    step: int | None,
    cache: Cache,
    order: str = "",
) -> ClassPart | None:
    """Return the classes of a layer at the moment of `step` (None: the last); None before the first window.

    The history is that of the class `index`, or of the first in an `order`, which turned around begins with a minus.
    """
    reader = run._reader
    layer_keys = dict(reader.execute("SELECT name, layer_key FROM layer WHERE run_key = ?", (run._key,)))
    layer_key = layer_keys.get(layer)
    at_classifier = layer == CLASSIFIER_INPUT
    moments = reader.execute(
        f"""SELECT window_key, step, epoch, exact, n_classes FROM window w
WHERE run_key = :run AND split = :split AND (:step IS NULL OR step <= :step) AND ({"1" if at_classifier else "0"}
  OR EXISTS (SELECT 1 FROM array a WHERE a.window_key = w.window_key AND a.layer_key = :layer))
ORDER BY step DESC, exact DESC LIMIT 1""",  # noqa: S608 fixed text
        {"run": run._key, "split": split, "step": step, "layer": layer_key},
    )
    if not moments:
        return None
    window, at_step, epoch, exact, n_classes = moments[0]
    if at_classifier:
        found = windows.class_arrays(reader, window, n_classes)
    else:
        blobs = reader.execute(
            "SELECT name, value FROM array WHERE window_key = ? AND layer_key = ?", (window, layer_key)
        )
        found = {name: array for name, blob in blobs if (array := arrays.unpack(blob)).ndim == 1}
    matrix, matrix_epoch = _matrix(run, layer_key, split, at_step, cache)
    if order.removeprefix("-") in CLASS_ORDERS:
        leading = arranged(found, n_classes, order.removeprefix("-"), turned=order.startswith("-"))
        index = leading[0] if leading else index
    history = growing.class_histories(run, names, cache.memory, split=split, index=index)
    return ClassPart(
        layer=layer,
        split=split,
        step=at_step,
        epoch=epoch,
        exact=bool(exact),
        arrays=found,
        matrix=matrix,
        matrix_epoch=matrix_epoch,
        matrix_low=cache.matrix_low if matrix is not None else np.nan,
        index=index,
        history=history,
    )


def class_array(arrays: Mapping[str, FloatArray], name: str, n_classes: int) -> FloatArray:
    """Return one array of all classes, NaN where there is none."""
    found = arrays.get(name)
    return found if found is not None and len(found) == n_classes else np.full(n_classes, np.nan)


def arranged(arrays: Mapping[str, FloatArray], n_classes: int, sort: str, *, turned: bool = False) -> list[int]:
    """Return the classes in an order: `worst`, `class`, `confused` or `accuracy`; those without a value come last."""
    intra, close = (class_array(arrays, name, n_classes) for name in ("intra_cos", "nearest_cos"))
    key = {
        "class": np.arange(n_classes, dtype=np.float64),
        # The margin: how much nearer a class is to itself than to the class it is nearest to.
        "worst": intra - close,
        "confused": -close,
        "accuracy": class_array(arrays, "class_accuracy", n_classes),
    }[sort]
    if np.isnan(key).all():
        key = np.arange(n_classes, dtype=np.float64)
    order = np.argsort(key, kind="stable")
    known = order[~np.isnan(key[order])].tolist()
    return (known[::-1] if turned else known) + np.flatnonzero(np.isnan(key)).tolist()


def pair_arrays(
    run: StoredRun, names: Sequence[str], layer: str, split: str, step: int | None
) -> dict[str, FloatArray]:
    """Return pair arrays (C, C) of the last window up to `step` that kept all of them; none where none did."""
    if not names:
        return {}
    rows = run._reader.execute(
        f"""SELECT w.window_key, l.layer_key FROM window w JOIN layer l ON l.run_key = w.run_key AND l.name = ?
WHERE w.run_key = ? AND w.split = ? AND (? IS NULL OR w.step <= ?) AND (SELECT count(*) FROM array a
  WHERE a.window_key = w.window_key AND a.layer_key = l.layer_key AND a.name IN ({", ".join("?" * len(names))})) = ?
ORDER BY w.step DESC, w.exact DESC LIMIT 1""",  # noqa: S608 placeholders
        (layer, run._key, split, step, step, *names, len(names)),
    )
    if not rows:
        return {}
    found = run._reader.execute(
        f"SELECT name, value FROM array WHERE window_key = ? AND layer_key = ? AND name IN ({', '.join('?' * len(names))})",  # noqa: S608,E501
        (*rows[0], *names),
    )
    return {name: arrays.unpack(blob) for name, blob in found}


def compared(
    runs: Sequence[StoredRun], metric: str, cache: Cache, layer: str = CLASSIFIER_INPUT
) -> tuple[Compared, ...]:
    """Return one metric of several runs, of the split that each trains on, in the order given."""
    lines = []
    for run in runs:
        # Of a deep network one name is wanted, not all.
        found = run._reader.execute(
            "SELECT name FROM layer WHERE run_key = ? ORDER BY name = ? DESC, idx DESC, layer_key DESC LIMIT 1",
            (run._key, layer),
        )
        if not found:
            continue
        splits = run.splits
        split = "train" if "train" in splits or not splits else splits[0]
        ((shown,),) = found
        columns = growing.history(run, metric, cache.memory, layer=shown, split=split)
        lines.append(Compared(run=run.run, split=split, columns=columns))
    return tuple(lines)


def _matrix(
    run: StoredRun, layer_key: int | None, split: str, step: int, cache: Cache
) -> tuple[FloatArray | None, int]:
    """Return the cosines of the last window up to `step` that kept them, and its epoch."""
    rows = run._reader.execute(
        """SELECT w.window_key, w.epoch FROM window w CROSS JOIN array a ON a.window_key = w.window_key
WHERE w.run_key = ? AND w.split = ? AND w.step <= ? AND a.layer_key = ? AND a.name = 'inter_cos'
ORDER BY w.step DESC, w.exact DESC LIMIT 1""",
        (run._key, split, step, layer_key),
    )
    if not rows:
        return None, -1
    key = (run.run_id, rows[0][0], layer_key)
    if cache.matrix_key != key:
        # A thousand classes are megabytes: read once.
        blob = run._reader.execute(
            "SELECT value FROM array WHERE window_key = ? AND layer_key = ? AND name = 'inter_cos'", key[1:]
        )
        cache.matrix_key, cache.matrix = key, arrays.unpack(blob[0][0])
        cache.matrix_low = float(np.fmin.reduce(cache.matrix, axis=None)) if cache.matrix.size else np.nan
    return cache.matrix, rows[0][1]
