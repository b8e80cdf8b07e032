"""Histories that grow: what was read before stays, and only what came since is read.

A viewer asks for the same histories every second, and all but their last point are what they were. But not always: a
training that goes on from a checkpoint moves windows away, a message that comes again takes the place of another, an
edit deletes. So the list of a split's windows, which is short beside their readings, is read every time; what is known
counts up to the first window that differs from that list, and from there on all is read anew.

The key of a window alone does not tell it: SQLite gives that of a deleted last window to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ncmon.model import CLASSIFIER_INPUT
from ncmon.store import schema
from ncmon.store.connection import Reader
from ncmon.store.results import Columns
from ncmon.store.runs import StoredRun

MOST_KEPT = 64
"""Histories of a layer and split that are remembered: two of the run that is looked at, one a run that is compared."""

Known = tuple[tuple[Any, ...], ...]
"""Windows, ascending in step: what tells each from all others, its step first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grown:
    """What was read of one layer and split, and of which windows."""

    windows: Known
    histories: Mapping[str, Columns]


@dataclass(slots=True, kw_only=True)
class Memory:
    """What was read before; belongs to one database."""

    grown: dict[tuple[Any, ...], Grown] = field(default_factory=dict)
    """The last used is the last."""


def histories(
    run: StoredRun, metrics: Sequence[str], memory: Memory, *, layer: str, split: str
) -> Mapping[str, Columns]:
    """Return what `StoredRun.histories` does, and read only what `memory` does not know."""
    stored = run._reader.columns_of("reading", schema.READING_KEYS)
    key = (run.run_id, layer, split, tuple(metrics), stored)
    return _grown(
        run, split, key, memory, lambda since: run.histories(metrics, layer=layer, split=split, since_step=since)
    )


def history(run: StoredRun, metric: str, memory: Memory, *, layer: str = CLASSIFIER_INPUT, split: str) -> Columns:
    """Return one of them."""
    return histories(run, (metric,), memory, layer=layer, split=split)[metric]


def class_histories(
    run: StoredRun, names: Sequence[str], memory: Memory, *, split: str, index: int
) -> Mapping[str, Columns]:
    """Return some class arrays of one class over all windows, those that are stored; NaN where there is no value."""
    stored = run._reader.columns_of("class_reading", schema.CLASS_FIXED)
    named = tuple(name for name in names if name in stored)
    selected = "".join(f', d."{name}"' for name in named)

    def read(since: int) -> Mapping[str, Columns]:
        rows = run._reader.execute(
            f"""SELECT w.step, w.epoch, w.time, w.exact{selected} FROM window w
JOIN class_reading d ON d.window_key = w.window_key AND d.class = ?
WHERE w.run_key = ? AND w.split = ? AND w.step > ? ORDER BY w.step, w.exact""",  # noqa: S608 names are columns
            (index, run._key, split, since),
        )
        columns = list(zip(*rows, strict=True)) or [()] * (4 + len(named))
        step, epoch = (np.array(columns[place], dtype=np.int64) for place in (0, 1))
        time, exact = np.array(columns[2], dtype=np.float64), np.array(columns[3], dtype=bool)
        return {
            name: Columns(
                step=step,
                epoch=epoch,
                time=time,
                value=np.array(columns[4 + place], dtype=np.float64),  # None becomes NaN.
                exact=exact,
                reason=("",) * len(rows),
            )
            for place, name in enumerate(named)
        }

    return _grown(run, split, (run.run_id, index, split, named), memory, read)


def _grown(
    run: StoredRun, split: str, key: tuple[Any, ...], memory: Memory, read: Callable[[int], Mapping[str, Columns]]
) -> Mapping[str, Columns]:
    """Return the histories of a key; `read` reads what follows a step."""
    # The list first: a window that comes between the two reads is then known too little, and is read again next time.
    windows = _windows(run._reader, run._key, split)
    before = memory.grown.pop(key, None)
    if before is None:
        found = read(-1)
    elif before.windows == windows:
        found = before.histories
    else:
        step = _first_difference(before.windows, windows)
        came = read(step - 1)
        found = {name: _joined(before.histories[name], came[name], step) for name in came}
    memory.grown[key] = Grown(windows=windows, histories=found)
    while len(memory.grown) > MOST_KEPT:
        del memory.grown[next(iter(memory.grown))]
    return found


def _windows(reader: Reader, run_key: int, split: str) -> Known:
    return tuple(
        reader.execute(
            "SELECT step, exact, window_key, received, time FROM window WHERE run_key = ? AND split = ?"
            " ORDER BY step, exact",
            (run_key, split),
        )
    )


def _first_difference(before: Known, now: Known) -> int:
    """Return the step from which on two lists are not the same."""
    for one, other in zip(before, now, strict=False):
        if one != other:
            return int(min(one[0], other[0]))
    longer = before if len(before) > len(now) else now
    return int(longer[min(len(before), len(now))][0])


def _joined(before: Columns, came: Columns, step: int) -> Columns:
    """Return a history up to a step, and what follows from it on."""
    upto = int(np.searchsorted(before.step, step))
    if not upto:
        return came
    return Columns(
        step=np.concatenate([before.step[:upto], came.step]),
        epoch=np.concatenate([before.epoch[:upto], came.epoch]),
        time=np.concatenate([before.time[:upto], came.time]),
        value=np.concatenate([before.value[:upto], came.value]),
        exact=np.concatenate([before.exact[:upto], came.exact]),
        reason=before.reason[:upto] + came.reason,
    )
