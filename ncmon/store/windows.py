"""Windows as they are read back: layers with their readings, reasons and quality, and the class arrays.

What is read is said by keys: of a deep network with many classes all of it is much.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS
from ncmon.model import CLASSIFIER_INPUT, Assumption, FloatArray, LayerKey, LayerReadings, Reading
from ncmon.store import schema
from ncmon.store.connection import Reader
from ncmon.store.results import WindowReadings

_ORDER = {name: place for place, name in enumerate([*(m.name for m in METRICS), *(b.name for b in BOUNDS)])}

COLUMNS = (
    "window_key, split, exact, epoch, time, duration_s, steps, sampled_steps, ncc_source, ranks, world_size, n_classes,"
    " overhead, ignored_labels, skipped, assumptions"
)
"""What `WindowReadings` is made of, but for the step."""


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return stored metrics in the registry's order, whenever a column came into this file; unknown ones last."""
    return tuple(sorted(names, key=lambda name: _ORDER.get(name, len(_ORDER))))


def read(
    reader: Reader, row: Mapping[str, Any], layers: Sequence[int] | None, arrays: Sequence[str] | None = None
) -> WindowReadings:
    """Return a window: of layers by key, None for all, and of its class arrays those that are wanted."""
    only = "" if layers is None else f" AND d.layer_key IN ({', '.join(map(str, layers))})"
    rows = reader.named(
        f"""SELECT l.name AS layer_name, l.idx, l.module, l.reduction, l.note, l.n_features, d.*
FROM reading d JOIN layer l ON l.layer_key = d.layer_key
WHERE d.window_key = ?{only} ORDER BY l.idx, l.layer_key""",  # noqa: S608 keys are integers
        (row["window_key"],),
    )
    columns = in_order(reader.columns_of("reading", schema.READING_FIXED))
    reasons: dict[int, dict[str, str]] = {}
    for layer_key, name, text in reader.execute(
        f"SELECT layer_key, name, text FROM reason d WHERE window_key = ?{only}",  # noqa: S608 keys are integers
        (row["window_key"],),
    ):
        reasons.setdefault(layer_key, {})[name] = text
    made = {}
    for found in rows:
        at_classifier = found["layer_name"] == CLASSIFIER_INPUT
        made[found["layer_name"]] = LayerReadings(
            key=LayerKey(name=found["layer_name"], index=found["idx"]),
            module=found["module"],
            reduction=found["reduction"],
            note=found["note"],
            n_features=found["n_features"],
            readings=_readings(found, columns, reasons.get(found["layer_key"], {})),
            class_arrays=class_arrays(reader, row["window_key"], row["n_classes"], arrays) if at_classifier else {},
            pair_arrays={},
            quality={name: found[name] for name in schema.QUALITY if found.get(name) is not None},
        )
    return WindowReadings(
        split=row["split"],
        epoch=row["epoch"],
        step=row["step"],
        time=row["time"],
        duration_s=row["duration_s"],
        steps=row["steps"],
        sampled_steps=row["sampled_steps"],
        exact=bool(row["exact"]),
        ncc_source=row["ncc_source"],
        ranks=tuple(json.loads(row["ranks"])),
        world_size=row["world_size"],
        overhead=row["overhead"],
        ignored_labels=row["ignored_labels"],
        skipped_batches=json.loads(row["skipped"]) if row["skipped"] else {},
        assumptions=tuple(
            Assumption(name=name, holds=holds, fact=fact)
            for name, (holds, fact) in json.loads(row["assumptions"] or "{}").items()
        ),
        layers=made,
    )


def class_arrays(
    reader: Reader, window_key: int, n_classes: int, wanted: Sequence[str] | None = None
) -> dict[str, FloatArray]:
    """Return the class arrays of a window that are wanted and stored (None: all that are stored)."""
    if wanted is not None and not wanted:
        return {}
    names: Sequence[str] = reader.columns_of("class_reading", schema.CLASS_FIXED)
    names = [name for name in names if wanted is None or name in wanted]
    selected = "".join(f', "{name}"' for name in names)
    rows = reader.execute(
        f"SELECT class{selected} FROM class_reading WHERE window_key = ?",  # noqa: S608 names are columns
        (window_key,),
    )
    table = np.full((n_classes, len(names)), np.nan)
    if rows:
        read = np.array(rows, dtype=np.float64)  # None becomes NaN.
        table[read[:, 0].astype(np.int64)] = read[:, 1:]
    return {name: table[:, place].copy() for place, name in enumerate(names)}


def _readings(row: Mapping[str, Any], columns: Sequence[str], reasons: Mapping[str, str]) -> dict[str, Reading]:
    attained = json.loads(row["attained"]) if row["attained"] else {}
    found = {}
    for name in columns:
        value = row[name]
        if value is not None:
            found[name] = Reading(value=value, attained_at=tuple(attained.get(name, ())))
        elif name in reasons:
            found[name] = Reading(value=None, reason=reasons[name])
    return found
