"""Windows in the order in which they were stored: what a script that follows a store reads.

A window's place is its key, which only grows: a late window of a spool arrives when it is stored, not when it was
measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store import schema
from ncmon.store.queries import Store

READINGS = tuple(entry.name for entry in schema.reading_entries((*METRICS, *BOUNDS)))
"""What an arrival holds, as far as the store has a column for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One window, with every number of the features that enter the classifier."""

    place: int
    run_id: str
    name: str
    split: str
    epoch: int
    """-1 where the loop named none."""
    step: int
    time: float
    exact: bool
    values: Mapping[str, float]
    """By metric or bound; NaN where there is a reason instead."""


def last_arrival(store: Store) -> int:
    """Return the place of the window that was stored last, 0 before the first."""
    return int(store._reader.execute("SELECT coalesce(max(window_key), 0) FROM window")[0][0])


def arrivals(store: Store, since: int, *, limit: int) -> tuple[Arrival, ...]:
    """Return the first `limit` windows that were stored after the place `since`."""
    stored = store._reader.columns_of("reading", schema.READING_FIXED)
    names = [name for name in READINGS if name in stored]
    selected = "".join(f', d."{name}"' for name in names)
    rows = store._reader.execute(
        f"""SELECT w.window_key, r.run_id, r.name, w.split, w.epoch, w.step, w.time, w.exact{selected}
FROM window w JOIN run r ON r.run_key = w.run_key
  LEFT JOIN layer l ON l.run_key = w.run_key AND l.name = ?
  LEFT JOIN reading d ON d.layer_key = l.layer_key AND d.window_key = w.window_key
WHERE w.window_key > ? ORDER BY w.window_key LIMIT ?""",  # noqa: S608 names are columns
        (CLASSIFIER_INPUT, since, limit),
    )
    return tuple(
        Arrival(
            place=row[0],
            run_id=row[1],
            name=row[2],
            split=row[3],
            epoch=row[4],
            step=row[5],
            time=row[6],
            exact=bool(row[7]),
            values={
                name: np.nan if value is None else float(value) for name, value in zip(names, row[8:], strict=True)
            },
        )
        for row in rows
    )
