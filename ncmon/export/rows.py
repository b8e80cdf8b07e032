"""Long rows of a run, one block of columns a metric: the tables `history`, `class_history` and `runs`.

The columns are those of the store's views of the same names. Blocks keep the numbers in numpy; formats decide how a
missing number looks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.errors import StoreError
from ncmon.metrics import METRICS
from ncmon.metrics.spec import Bound, Metric
from ncmon.model import CLASSIFIER_INPUT, FloatArray, IntArray
from ncmon.store.results import BoolArray
from ncmon.store.runs import StoredRun

HISTORY = (
    *("run_id", "run_name", "layer", "layer_index", "split", "exact", "epoch", "step", "time"),
    *("metric", "value", "reason"),
)
CLASS_HISTORY = (*HISTORY, "class", "class_name")
RUNS = (
    *("run_id", "name", "status", "started", "ended", "last_seen", "host", "pid", "world_size"),
    *("n_classes", "class_names", "config", "tags", "note", "client"),
)
TABLES = {"history": HISTORY, "class_history": CLASS_HISTORY, "runs": RUNS}

ENTRIES: tuple[Metric | Bound, ...] = (*METRICS, *BOUNDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a run is exported; empty means all."""

    metrics: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def wants_metric(self, name: str) -> bool:
        """Whether a metric is to be exported."""
        return not self.metrics or name in self.metrics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """One metric of one layer and split: n rows that share everything but these columns."""

    layer: str
    layer_index: int
    split: str
    metric: str
    exact: BoolArray
    epoch: IntArray
    step: IntArray
    time: FloatArray
    value: FloatArray
    """NaN where there is a reason."""
    reason: tuple[str, ...]
    """Empty where there is a value."""
    classes: IntArray | None = None
    """Of `class_history`: the class of every row."""
    class_names: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.step)


def history_blocks(run: StoredRun, choice: Choice, *, since: Mapping[str, int] | None = None) -> Iterator[Block]:
    """Return the blocks of `history`, layer by layer, split by split, metric by metric in the registry's order.

    `since` has, by split, the first step that is wanted.
    """
    names = [name for name in run.metrics if choice.wants_metric(name)]
    for layer, index, split in _places(run, choice):
        after = (since or {}).get(split, 0) - 1
        for name, found in run.histories(names, layer=layer, split=split, since_step=after).items():
            if len(found):
                yield Block(
                    layer=layer,
                    layer_index=index,
                    split=split,
                    metric=name,
                    exact=found.exact,
                    epoch=found.epoch,
                    step=found.step,
                    time=found.time,
                    value=found.value,
                    reason=found.reason,
                )


def class_blocks(run: StoredRun, choice: Choice) -> Iterator[Block]:
    """Return the blocks of `class_history`: class arrays of the classifier's input, a row a window and class."""
    for layer, index, split in _places(run, choice):
        if layer != CLASSIFIER_INPUT:
            continue
        for name in (entry.name for entry in ENTRIES if entry.scope == "class" and choice.wants_metric(entry.name)):
            found = run.classes(name, layer=layer, split=split)
            place, number = np.nonzero(~np.isnan(found.values))
            if not place.size:
                continue
            yield Block(
                layer=layer,
                layer_index=index,
                split=split,
                metric=name,
                exact=found.exact[place],
                epoch=found.epoch[place],
                step=found.step[place],
                time=found.time[place],
                value=found.values[place, number],
                reason=("",) * place.size,
                classes=number,
                class_names=tuple(run.run.class_name(c) for c in number.tolist()),
            )


def run_row(run: StoredRun) -> tuple[Any, ...]:
    """Return the row of `runs`; names of classes, configuration and tags are values of JSON."""
    one = run.run
    return (
        *(one.run_id, one.name, one.status, one.started, one.ended, one.last_seen, one.host, one.pid),
        *(one.world_size, one.n_classes, list(one.class_names), dict(one.config), list(one.tags), one.note, one.client),
    )


def table_rows(run: StoredRun, table: str, choice: Choice) -> Iterator[tuple[Any, ...]]:
    """Return the rows of one of `TABLES`, None where there is no number."""
    if table == "runs":
        yield run_row(run)
        return
    blocks = history_blocks(run, choice) if table == "history" else class_blocks(run, choice)
    for block in blocks:
        head = (run.run_id, run.name, block.layer, block.layer_index, block.split)
        columns: list[Sequence[Any]] = [block.exact.tolist(), block.epoch.tolist(), block.step.tolist()]
        columns += [block.time.tolist(), block.value.tolist(), block.reason]
        tails: Sequence[tuple[Any, ...]] = [()] * len(block)
        if block.classes is not None:
            tails = list(zip(block.classes.tolist(), block.class_names, strict=True))
        for exact, epoch, step, time, value, reason, tail in zip(*columns, tails, strict=True):
            number = None if reason else value
            yield (*head, exact, epoch, step, time, block.metric, number, reason or None, *tail)


def _places(run: StoredRun, choice: Choice) -> Iterator[tuple[str, int, str]]:
    for key in run.layers:
        if not choice.layers or key.name in choice.layers:
            for split in run.splits:
                if not choice.splits or split in choice.splits:
                    yield key.name, key.index, split


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Give a name to write to; the file takes its own when everything is in it, and goes when something fails."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
