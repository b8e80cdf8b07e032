"""Metadata for Datasette: what every table and column of the database means, and questions to begin with.

Made from the registry, as the columns are: a metric that is added is explained here with no other edit.
"""

from __future__ import annotations

from typing import Any

from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS
from ncmon.metrics.spec import Bound, Metric

TABLES = {
    "runs": "One row a run.",
    "history": "One row a window, layer and metric or bound: a value, or the reason why there is none.",
    "class_history": "As history, of the classifier's input, one row a class.",
    "run": "Runs with everything that is stored of them; the view runs is what outside tools may rely on.",
    "layer": "Layers of runs, in the order of the forward pass (idx).",
    "window": "Stretches of training steps (streaming) or passes at frozen weights (exact).",
    "reading": "One row a layer and window, a column for every metric and bound.",
    "class_reading": "One row a window and class of the classifier's input.",
    "reason": "Why a reading has no value.",
    "definition": "What each number means, by version.",
    "gap": "Windows that were announced and never came.",
    "rejected": "Messages that could never become a window.",
    "alert": "What rules raised, and when it was over or acknowledged.",
    "alert_memory": "What rules remember of a run.",
    "aliases": "Other names of metrics: select their values from history by the name beside them.",
    "inbox": "Messages that are acknowledged and wait to be evaluated.",
    "array": "Class and pair arrays as BLOBs; read them with ncmon.open.",
    "origin": "Every message that is in the database.",
    "stream": "Sending processes, and what they may send next.",
    "class_label": "Names of classes.",
    "meta": "The revision that viewers compare.",
    "migration": "What was done to this file.",
}
HIDDEN = ("origin", "stream", "meta", "migration", "class_label", "array", "alert_memory", "inbox")

COLUMNS = {
    "exact": "1 where the window was measured at frozen weights",
    "epoch": "-1 where the loop named none",
    "step": "Optimiser steps since the run began",
    "time": "Unix seconds, by the trainer's clock",
    "value": "Empty where there is a reason",
    "run_id": "What a run is told by",
    "layer": "Qualified name of the module; classifier-input is what enters the classifier",
}

QUERIES = {
    "last_values": {
        "title": "Last values of a run",
        "sql": "SELECT metric, value, reason, epoch FROM history WHERE run_id = :run_id AND split = :split"
        " AND layer = 'classifier-input' AND step = (SELECT max(w.step) FROM window w JOIN run r USING (run_key)"
        " WHERE r.run_id = :run_id AND w.split = :split)",
    },
    "history_of_a_metric": {
        "title": "One metric of a run over time",
        "sql": "SELECT epoch, step, value, reason FROM history WHERE run_id = :run_id AND metric = :metric"
        " AND layer = :layer AND split = :split ORDER BY step",
    },
    "runs_by_config": {
        "title": "Runs with a key of their configuration",
        "sql": "SELECT run_id, name, status, json_extract(config, '$.' || :key) AS value FROM runs ORDER BY value",
    },
}


def metadata(database: str) -> dict[str, Any]:
    """Return what Datasette takes with `--metadata`, for a database file of this name without its ending."""
    entries: list[Metric | Bound] = [*METRICS, *BOUNDS]
    tables: dict[str, Any] = {}
    for name, text in TABLES.items():
        tables[name] = {"description": text, "columns": dict(COLUMNS)}
        if name in HIDDEN:
            tables[name]["hidden"] = True
    for table, scopes in (("reading", ("layer", "classifier", "window")), ("class_reading", ("class",))):
        tables[table]["columns"] = {entry.name: entry.definition for entry in entries if entry.scope in scopes}
    return {
        "title": "ncmon",
        "description": "Neural collapse while networks trained: what was measured, and what is guaranteed.",
        "databases": {database: {"tables": tables, "queries": QUERIES}},
    }
