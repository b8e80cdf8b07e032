"""One stored run: histories, windows, class and pair arrays, as numpy columns.

Every method is one short read; what it returns no longer needs the database. Absent is not wrong: a run without
windows has empty histories. What cannot be (an unknown metric, a layer that the run does not have) is `NotFound`, with
near names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.errors import NotFound, near
from ncmon.metrics import METRICS, resolve
from ncmon.metrics.spec import Bound, Metric
from ncmon.model import CLASSIFIER_INPUT, FloatArray, Gap, LayerKey, Run
from ncmon.store import arrays, schema, windows
from ncmon.store.connection import Reader
from ncmon.store.results import ClassColumns, Columns, StoredGap, Superseded, WindowColumns, WindowReadings

NOT_STORED = "not stored: the ncmon that wrote this database did not have it"

_REGISTRY: Mapping[str, Metric | Bound] = {**{m.name: m for m in METRICS}, **{b.name: b for b in BOUNDS}}
_ALIASES = {alias: metric.name for metric in METRICS for alias in metric.aliases}

RUN_COLUMNS = (
    "run_key, run_id, name, status, started, ended, host, pid, world_size, n_classes, class_names, config, tags,"
    " client, last_seen, note, attempt, attempt_of"
)


class StoredRun:
    """One run, as it was when it was looked up; its windows are read as they are now."""

    def __init__(self, reader: Reader, run_key: int, run: Run) -> None:
        self._reader = reader
        self._key = run_key
        self.run = run

    def __repr__(self) -> str:
        return f"<StoredRun {self.run.run_id} ({self.run.name})>"

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.run.run_id

    @property
    def name(self) -> str:
        """The run's name, which several runs may share."""
        return self.run.name

    @property
    def config(self) -> Mapping[str, Any]:
        """What the trainer said of itself."""
        return self.run.config

    @property
    def status(self) -> str:
        """How it stands: `live`, `finished` or `failed`, as it was when the run was looked up."""
        return self.run.status

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, the trainer's or those that the user gave."""
        return self.run.tags

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        """The layers seen so far, in the order of the forward pass."""
        rows = self._reader.execute(
            "SELECT name, idx FROM layer WHERE run_key = ? ORDER BY idx, layer_key", (self._key,)
        )
        return tuple(LayerKey(name=name, index=index) for name, index in rows)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits seen so far: `train` first, then by name."""
        rows = self._reader.execute("SELECT DISTINCT split FROM window WHERE run_key = ?", (self._key,))
        return tuple(sorted((split for (split,) in rows), key=lambda split: (split != "train", split)))

    def windows(self, split: str | None = None) -> int:
        """Return how many windows are stored, of one split or of all."""
        rows = self._reader.execute(
            "SELECT count(*) FROM window WHERE run_key = ? AND (? IS NULL OR split = ?)", (self._key, split, split)
        )
        return int(rows[0][0])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics and bounds of one number a window that this database has, in the registry's order."""
        stored = self._reader.columns_of("reading", schema.READING_FIXED)
        return windows.in_order(stored)

    def window_columns(self, split: str = "train") -> WindowColumns:
        """Return where the windows of a split stand in the run, ascending in step."""
        rows = self._reader.execute(
            "SELECT step, epoch, time, exact FROM window WHERE run_key = ? AND split = ? ORDER BY step, exact",
            (self._key, split),
        )
        return WindowColumns(
            step=np.array([row[0] for row in rows], dtype=np.int64),
            epoch=np.array([row[1] for row in rows], dtype=np.int64),
            time=np.array([row[2] for row in rows], dtype=np.float64),
            exact=np.array([row[3] for row in rows], dtype=bool),
        )

    def superseded(self) -> tuple[Superseded, ...]:
        """Return what earlier attempts had beyond the checkpoint from which a later one went on, in their order."""
        rows = self._reader.execute(
            """SELECT t.run_id, t.attempt, count(w.window_key), min(w.step), max(w.step)
FROM run t JOIN window w ON w.run_key = t.run_key WHERE t.attempt_of = ? GROUP BY t.run_key ORDER BY t.attempt""",
            (self.run.run_id,),
        )
        return tuple(Superseded(run_id=row[0], attempt=row[1], windows=row[2], steps=(row[3], row[4])) for row in rows)

    def gaps(self) -> tuple[StoredGap, ...]:
        """Return the windows that were announced and never came, in the order of the daemon learning of them."""
        rows = self._reader.execute(
            "SELECT split, epoch, step, time, reason, received FROM gap WHERE run_id = ? ORDER BY gap_key",
            (self.run.run_id,),
        )
        return tuple(
            StoredGap(
                gap=Gap(run_id=self.run.run_id, split=split, epoch=epoch, step=step, time=time, reason=reason),
                received=received,
            )
            for split, epoch, step, time, reason, received in rows
        )

    def history(
        self, metric: str, *, layer: str = CLASSIFIER_INPUT, split: str = "train", since_step: int = -1
    ) -> Columns:
        """Return one metric or bound over the windows after `since_step`, ascending in step.

        Windows that have neither a value nor a reason (a metric that does not apply to the layer) are left out.
        """
        return self.histories([metric], layer=layer, split=split, since_step=since_step)[metric]

    def histories(
        self, metrics: Sequence[str], *, layer: str = CLASSIFIER_INPUT, split: str = "train", since_step: int = -1
    ) -> Mapping[str, Columns]:
        """Return several metrics in one read, by the names that were asked for; see `history`."""
        # Quality figures have a history, too.
        stored = self._reader.columns_of("reading", schema.READING_KEYS)
        names = {asked: self._entry(asked, stored, ("layer", "classifier", "window")) for asked in metrics}
        layer_key = self._layer_key(layer)
        selected = "".join(f', d."{name}"' if name in stored else ", NULL" for name in names.values())
        with self._reader.snapshot():
            rows = self._reader.execute(
                f"""SELECT w.window_key, w.step, w.epoch, w.time, w.exact{selected}
FROM reading d JOIN window w ON w.window_key = d.window_key
WHERE d.layer_key = ? AND w.split = ? AND w.step > ? ORDER BY w.step, w.exact""",  # noqa: S608 names are columns
                (layer_key, split, since_step),
            )
            reasons: dict[str, dict[int, str]] = {}
            for window_key, name, text in self._reader.execute(
                f"""SELECT d.window_key, d.name, d.text FROM reason d JOIN window w ON w.window_key = d.window_key
WHERE d.layer_key = ? AND w.split = ? AND w.step > ? AND d.name IN ({", ".join("?" * len(names))})""",  # noqa: S608
                (layer_key, split, since_step, *names.values()),
            ):
                reasons.setdefault(name, {})[window_key] = text
        columns = list(zip(*rows, strict=True)) or [()] * (5 + len(names))
        step, epoch = (np.array(columns[place], dtype=np.int64) for place in (1, 2))
        time, exact = np.array(columns[3], dtype=np.float64), np.array(columns[4], dtype=bool)
        found = {}
        for place, (asked, name) in enumerate(names.items()):
            value = np.array(columns[5 + place], dtype=np.float64)  # None becomes NaN.
            kept = ~np.isnan(value)
            reason: tuple[str, ...]
            if name not in stored:
                kept[:] = True
                reason = (NOT_STORED,) * len(value)
            elif name in reasons:
                texts = [reasons[name].get(window_key, "") for window_key in columns[0]]
                kept |= np.array([bool(text) for text in texts], dtype=bool)
                reason = tuple(text for text, stays in zip(texts, kept, strict=True) if stays)
            else:
                reason = ("",) * int(kept.sum())
            found[asked] = Columns(
                step=step[kept],
                epoch=epoch[kept],
                time=time[kept],
                value=value[kept],
                exact=exact[kept],
                reason=reason,
            )
        return found

    def readings(
        self, *, epoch: int | None = None, step: int | None = None, split: str | None = None, layer: str | None = None
    ) -> tuple[WindowReadings, ...]:
        """Return the last window of every split and kind (exact or streaming), of one epoch or step where named.

        `train` comes first. Empty when there is no such window.
        """
        only = None if layer is None else (self._layer_key(layer),)
        with self._reader.snapshot():
            return tuple(windows.read(self._reader, row, only) for row in self._last_windows(epoch, step, split))

    def latest(
        self, step: int | None = None, *, layers: Sequence[str] | None = None, arrays: Sequence[str] | None = None
    ) -> tuple[WindowReadings, ...]:
        """Return the last window of every split up to `step` (None: of all), the exact one of a step that has both.

        Only of these layers and class arrays, where they are named: a deep network with many classes is much to read.
        """
        keys = None
        with self._reader.snapshot():
            if layers is not None:
                known = dict(self._reader.execute("SELECT name, layer_key FROM layer WHERE run_key = ?", (self._key,)))
                keys = tuple(known[name] for name in layers if name in known)
            found = [
                row
                for split in self.splits
                for row in self._reader.named(
                    f"""SELECT {windows.COLUMNS}, step FROM window
WHERE run_key = :run AND split = :split AND (:step IS NULL OR step <= :step)
ORDER BY step DESC, exact DESC LIMIT 1""",  # noqa: S608 fixed columns
                    {"run": self._key, "split": split, "step": step},
                )
            ]
            return tuple(windows.read(self._reader, row, keys, arrays) for row in found)

    def classes(
        self, name: str, *, layer: str = CLASSIFIER_INPUT, split: str = "train", step: int | None = None
    ) -> ClassColumns:
        """Return one class array over windows (n, C), or of the window at one step.

        Of layers other than the classifier's input the store keeps the last windows and some epochs' only.
        """
        stored = self._reader.columns_of("class_reading", schema.CLASS_FIXED)
        name = self._entry(name, stored, ("class",))
        layer_key = self._layer_key(layer)
        where = "w.run_key = :run AND w.split = :split AND (:step IS NULL OR w.step = :step)"
        key = {"run": self._key, "split": split, "step": step, "layer": layer_key, "name": name}
        windows: list[tuple[Any, ...]]
        if layer == CLASSIFIER_INPUT:
            selected = f'd."{name}"' if name in stored else "NULL"
            rows = self._reader.execute(
                f"""SELECT w.window_key, w.step, w.epoch, w.time, w.exact, w.n_classes, d.class, {selected}
FROM window w LEFT JOIN class_reading d ON d.window_key = w.window_key
WHERE {where} ORDER BY w.step, w.exact""",  # noqa: S608 the name is a column
                key,
            )
            windows = list({row[0]: row[1:6] for row in rows}.values())
            place = {window_key: number for number, window_key in enumerate(dict.fromkeys(row[0] for row in rows))}
            width = max((row[5] for row in rows), default=self.run.n_classes)
            values = np.full((len(windows), width), np.nan)
            for row in rows:
                if row[6] is not None and row[7] is not None:
                    values[place[row[0]], row[6]] = row[7]
        else:
            rows = self._reader.execute(
                f"""SELECT w.step, w.epoch, w.time, w.exact, w.n_classes, a.value
FROM window w JOIN array a ON a.window_key = w.window_key
WHERE {where} AND a.layer_key = :layer AND a.name = :name ORDER BY w.step, w.exact""",  # noqa: S608 fixed text
                key,
            )
            windows = [row[:5] for row in rows]
            found = [arrays.unpack(row[5]) for row in rows]
            width = max((array.size for array in found), default=self.run.n_classes)
            values = np.full((len(found), width), np.nan)
            for number, array in enumerate(found):
                values[number, : array.size] = array
        return ClassColumns(
            step=np.array([row[0] for row in windows], dtype=np.int64),
            epoch=np.array([row[1] for row in windows], dtype=np.int64),
            time=np.array([row[2] for row in windows], dtype=np.float64),
            exact=np.array([row[3] for row in windows], dtype=bool),
            values=values,
        )

    def matrix(
        self, name: str, *, layer: str = CLASSIFIER_INPUT, split: str = "train", step: int | None = None
    ) -> FloatArray:
        """Return one pair array (C, C) of the last window that has it, or of the window at one step.

        Raises `NotFound` where none is kept: the store keeps the last windows' and some epochs'.
        """
        name = self._entry(name, (), ("pair",))
        rows = self._reader.execute(
            """SELECT a.value FROM window w CROSS JOIN array a ON a.window_key = w.window_key
WHERE w.run_key = ? AND w.split = ? AND (? IS NULL OR w.step = ?) AND a.layer_key = ? AND a.name = ?
ORDER BY w.step DESC, w.exact DESC LIMIT 1""",
            (self._key, split, step, step, self._layer_key(layer), name),
        )
        if not rows:
            at = "" if step is None else f" at step {step}"
            raise NotFound(
                f"run {self.name} keeps no {name} of layer {layer!r}, split {split!r}{at}:"
                " matrices stay for the last ten windows and the end of every tenth epoch"
            )
        return arrays.unpack(rows[0][0])

    def matrices(self, name: str, *, layer: str = CLASSIFIER_INPUT, split: str = "train") -> ClassColumns:
        """Return one pair array of every window that keeps it: `values` is (n, C, C), NaN where a class is new."""
        name = self._entry(name, (), ("pair",))
        rows = self._reader.execute(
            """SELECT w.step, w.epoch, w.time, w.exact, a.value
FROM window w JOIN array a ON a.window_key = w.window_key
WHERE w.run_key = ? AND w.split = ? AND a.layer_key = ? AND a.name = ? ORDER BY w.step, w.exact""",
            (self._key, split, self._layer_key(layer), name),
        )
        found = [arrays.unpack(row[4]) for row in rows]
        width = max((len(array) for array in found), default=self.run.n_classes)
        values = np.full((len(found), width, width), np.nan)
        for number, array in enumerate(found):
            values[number, : len(array), : len(array)] = array
        return ClassColumns(
            step=np.array([row[0] for row in rows], dtype=np.int64),
            epoch=np.array([row[1] for row in rows], dtype=np.int64),
            time=np.array([row[2] for row in rows], dtype=np.float64),
            exact=np.array([row[3] for row in rows], dtype=bool),
            values=values,
        )

    def _last_windows(self, epoch: int | None, step: int | None, split: str | None) -> list[dict[str, Any]]:
        return self._reader.named(
            f"""SELECT {windows.COLUMNS}, max(step) AS step FROM window
WHERE run_key = :run AND (:epoch IS NULL OR epoch = :epoch) AND (:step IS NULL OR step = :step)
  AND (:split IS NULL OR split = :split) GROUP BY split, exact ORDER BY split <> 'train', split, exact""",  # noqa: S608 fixed columns
            {"run": self._key, "epoch": epoch, "step": step, "split": split},
        )

    def _layer_key(self, layer: str) -> int:
        rows = self._reader.execute("SELECT name, layer_key FROM layer WHERE run_key = ?", (self._key,))
        keys = dict(rows)
        if layer in keys:
            return int(keys[layer])
        if not keys:
            return -1  # Nothing has come yet: every history is empty.
        raise NotFound(f"run {self.name} has no layer {layer!r}{near(layer, keys)}")

    def _entry(self, asked: str, stored: Sequence[str], scopes: Sequence[str]) -> str:
        """Return the name in the store of what was asked for, which has to be of one of the scopes."""
        name = resolve(asked)
        entry = _REGISTRY.get(name)
        if entry is None:
            if name in stored:
                return name  # Written by another version of ncmon: still a column with numbers in it.
            known = [entry.name for entry in _REGISTRY.values() if entry.scope in scopes]
            raise NotFound(f"no metric is named {asked!r}{near(asked, [*known, *_ALIASES])}")
        if entry.scope not in scopes:
            shape = {"class": "one number a class", "pair": "one number a pair of classes"}.get(
                entry.scope, "one number a window"
            )
            raise NotFound(f"{name} has {shape}: read it with {_METHOD.get(entry.scope, 'history')}")
        return name


_METHOD = {"class": "classes", "pair": "matrix"}


def run_of(row: Sequence[Any]) -> Run:
    """Return the run of a row of `RUN_COLUMNS`."""
    return Run(
        run_id=row[1],
        name=row[2],
        status=row[3],
        started=row[4],
        ended=row[5],
        host=row[6],
        pid=row[7],
        world_size=row[8],
        n_classes=row[9],
        class_names=tuple(json.loads(row[10])),
        config=json.loads(row[11]),
        tags=tuple(json.loads(row[12])),
        client=row[13],
        last_seen=row[14],
        note=row[15],
        attempt=row[16],
        attempt_of=row[17] or "",
    )
