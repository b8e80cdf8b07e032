"""Parquet: one file, or a directory that is partitioned by run.

    DIR/history/run_id=ID/data.parquet
    DIR/class_history/run_id=ID/data.parquet
    DIR/runs/run_id=ID/data.parquet

Any number of machines write into one directory; a run that is exported again replaces its own files and no others.
In DuckDB `SELECT ... FROM read_parquet('DIR/history/*/*.parquet', hive_types = {run_id: VARCHAR})` reads all of it; the
type keeps ids of digits alone from becoming numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ncmon.errors import NotInstalled
from ncmon.export.rows import TABLES, Block, Choice, class_blocks, complete, history_blocks, run_row
from ncmon.store.runs import StoredRun

if TYPE_CHECKING:
    import pyarrow as pa


def write_parquet(path: Path, runs: Sequence[StoredRun], table: str, choice: Choice) -> int:
    """Write one table of all runs as one file; return how many rows."""
    return _write(path, runs, table, choice, _schema(table))


def write_dataset(directory: Path, runs: Sequence[StoredRun], choice: Choice) -> int:
    """Write all tables, partitioned by run; return how many rows of `history`."""
    count = 0
    for run in runs:
        for table in TABLES:
            schema = _schema(table)
            # The directory says it; a column beside it would have to agree with it in type as well.
            schema = schema.remove(schema.get_field_index("run_id"))
            path = directory / table / f"run_id={quote(run.run_id, safe='')}" / "data.parquet"
            rows = _write(path, [run], table, choice, schema)
            count += rows if table == "history" else 0
    return count


def _write(path: Path, runs: Sequence[StoredRun], table: str, choice: Choice, schema: pa.Schema) -> int:
    parquet = _pyarrow()[1]
    count = 0
    with complete(path) as unfinished, parquet.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for run in runs:
            for batch in _batches(run, table, choice):
                writer.write_table(batch.select(schema.names).cast(schema))
                count += batch.num_rows
    return count


def _batches(run: StoredRun, table: str, choice: Choice) -> Iterator[pa.Table]:
    """Return a run's rows of one table as Arrow tables, one a layer."""
    arrow = _pyarrow()[0]
    if table == "runs":
        row = [json.dumps(value) if isinstance(value, (dict, list)) else value for value in run_row(run)]
        yield arrow.table([[value] for value in row], schema=_schema(table))
        return
    blocks = history_blocks(run, choice) if table == "history" else class_blocks(run, choice)
    parts: list[pa.Table] = []
    for block in blocks:
        if parts and parts[-1]["layer"][0].as_py() != block.layer:
            yield arrow.concat_tables(parts)
            parts = []
        parts.append(_block_table(run, block, table))
    if parts:
        yield arrow.concat_tables(parts)


def _block_table(run: StoredRun, block: Block, table: str) -> pa.Table:
    arrow = _pyarrow()[0]
    schema = _schema(table)
    missing = [bool(text) for text in block.reason]
    same = {
        "run_id": run.run_id,
        "run_name": run.name,
        "layer": block.layer,
        "layer_index": block.layer_index,
        "split": block.split,
        "metric": block.metric,
    }
    columns: dict[str, Any] = {
        name: arrow.repeat(arrow.scalar(value, schema.field(name).type), len(block)) for name, value in same.items()
    }
    columns |= {
        "exact": arrow.array(block.exact),
        "epoch": arrow.array(block.epoch),
        "step": arrow.array(block.step),
        "time": arrow.array(block.time),
        "value": arrow.array(block.value, mask=_mask(missing)),
        "reason": arrow.array([text or None for text in block.reason], arrow.string()),
    }
    if block.classes is not None:
        columns |= {"class": arrow.array(block.classes), "class_name": arrow.array(block.class_names, arrow.string())}
    return arrow.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def _mask(missing: list[bool]) -> Any:
    import numpy as np

    return np.array(missing, dtype=bool)


def _schema(table: str) -> pa.Schema:
    arrow = _pyarrow()[0]
    kinds = {
        "layer_index": arrow.int32(),
        "exact": arrow.bool_(),
        **dict.fromkeys(("epoch", "step"), arrow.int64()),
        **dict.fromkeys(("time", "value", "started", "ended", "last_seen"), arrow.float64()),
        **dict.fromkeys(("class", "world_size", "n_classes"), arrow.int32()),
        "pid": arrow.int64(),
    }
    return arrow.schema([(name, kinds.get(name, arrow.string())) for name in TABLES[table]])


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise NotInstalled("Parquet", "pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet
