"""numpy's `.npz`: every array of a run under a name that says where it belongs.

    SPLIT/step, epoch, time, exact      (n,) the windows of a split
    SPLIT/LAYER/METRIC                  (n,) one number a window, NaN where there is none
    SPLIT/classifier-input/CLASS_ARRAY  (n, C)
    SPLIT/LAYER/CLASS_ARRAY             (m, C) of other layers, in the windows that keep arrays
    SPLIT/LAYER/PAIR_ARRAY              (m, C, C) likewise
    SPLIT/LAYER/ARRAY.step              (m,) which windows these are
    run                                 the row of `runs` as JSON text

With several runs every name begins with RUN_ID/. Nothing in it is pickled: `np.load` reads it as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ncmon.export.rows import ENTRIES, RUNS, Choice, complete, run_row
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store.runs import StoredRun


def write_npz(path: Path, runs: Sequence[StoredRun], choice: Choice) -> int:
    """Write all arrays of some runs; return how many there are."""
    found = {}
    for run in runs:
        prefix = f"{run.run_id}/" if len(runs) > 1 else ""
        found.update({prefix + name: array for name, array in _arrays(run, choice)})
    with complete(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **found)
    return len(found)


def _arrays(run: StoredRun, choice: Choice) -> Iterator[tuple[str, Any]]:
    yield "run", np.array(json.dumps(dict(zip(RUNS, run_row(run), strict=True))))
    names = [name for name in run.metrics if choice.wants_metric(name)]
    layers = [key.name for key in run.layers if not choice.layers or key.name in choice.layers]
    for split in run.splits:
        if choice.splits and split not in choice.splits:
            continue
        windows = run.window_columns(split)
        for column in ("step", "epoch", "time", "exact"):
            yield f"{split}/{column}", getattr(windows, column)
        place = {
            key: number for number, key in enumerate(zip(windows.step.tolist(), windows.exact.tolist(), strict=True))
        }
        for layer in layers:
            for name, history in run.histories(names, layer=layer, split=split).items():
                if len(history):
                    values = np.full(len(windows), np.nan)
                    keys = zip(history.step.tolist(), history.exact.tolist(), strict=True)
                    values[[place[key] for key in keys]] = history.value
                    yield f"{split}/{layer}/{name}", values
            for entry in ENTRIES:
                if not choice.wants_metric(entry.name):
                    continue
                name = f"{split}/{layer}/{entry.name}"
                if entry.scope == "class" and layer == CLASSIFIER_INPUT:
                    yield name, run.classes(entry.name, layer=layer, split=split).values
                elif entry.scope in ("class", "pair"):
                    read = run.classes if entry.scope == "class" else run.matrices
                    kept = read(entry.name, layer=layer, split=split)
                    if len(kept):
                        yield name, kept.values
                        yield f"{name}.step", kept.step
