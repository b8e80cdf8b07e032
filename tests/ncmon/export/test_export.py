"""What other tools read back is what the store's views hold, bit for bit; read with those tools themselves."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncmon.errors import StoreError
from ncmon.export import npz, parquet, rows, tensorboard, text
from ncmon.export.rows import Choice
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store.queries import Store

ALL = Choice()


def bits(value: float | None) -> bytes | None:
    return None if value is None else struct.pack("<d", value)


def viewed(store: Store, view: str, ids: list[str]) -> dict[tuple[Any, ...], tuple[bytes | None, str | None]]:
    """Return the rows of a view by their place: SQL of the store, which the exports do not use."""
    more = ", class" if view == "class_history" else ""
    places = ", ".join(f"'{run_id}'" for run_id in ids)
    found = store.sql(
        f"SELECT run_id, layer, split, exact, epoch, step, time, metric{more}, value, reason FROM {view}"
        f" WHERE run_id IN ({places})",
        max_rows=10**7,
        timeout_s=60,
    )
    return {(*row[:3], bool(row[3]), *row[4:-2]): (bits(row[-2]), row[-1]) for row in found.rows}


def placed(records: list[dict[str, Any]], table: str) -> dict[tuple[Any, ...], tuple[bytes | None, str | None]]:
    keys = ["run_id", "layer", "split", "exact", "epoch", "step", "time", "metric"]
    keys += ["class"] if table == "class_history" else []
    found = {tuple(row[key] for key in keys): (bits(row["value"]), row["reason"]) for row in records}
    assert len(found) == len(records)
    return found


@pytest.mark.parametrize("table", ["history", "class_history"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_file_holds_what_the_view_holds(store: Store, tmp_path: Path, table: str, form: str) -> None:
    runs = [store.run("run1"), store.run("run2")]
    path = tmp_path / f"x.{form}"
    write = {"csv": text.write_csv, "jsonl": text.write_jsonl, "parquet": parquet.write_parquet}[form]
    count = write(path, runs, table, ALL)
    if form == "jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
    elif form == "csv":
        with path.open(newline="") as file:
            records = [
                {
                    **row,
                    **{name: int(row[name]) for name in ("epoch", "step", "layer_index")},
                    **({"class": int(row["class"])} if table == "class_history" else {}),
                    "time": float(row["time"]),
                    "exact": row["exact"] == "true",
                    "value": float(row["value"]) if row["value"] else None,
                    "reason": row["reason"] or None,
                }
                for row in csv.DictReader(file)
            ]
    else:
        import pyarrow.parquet

        read = pyarrow.parquet.read_table(path)
        assert read.schema.names == list(rows.TABLES[table])
        records = read.to_pylist()
    assert len(records) == count
    assert placed(records, table) == viewed(store, table, ["run1", "run2"])
    assert list(tmp_path.iterdir()) == [path]


def test_runs_are_a_table_of_their_own(store: Store, tmp_path: Path) -> None:
    for write, name in ((text.write_csv, "r.csv"), (text.write_jsonl, "r.jsonl"), (parquet.write_parquet, "r.parquet")):
        assert write(tmp_path / name, store.runs(), "runs", ALL) == 3
    import pyarrow.parquet

    (first, *_) = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert json.loads(first["config"]) == dict(store.run(first["run_id"]).config)
    (record, *_) = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert record["config"] == dict(store.run(record["run_id"]).config)


def test_duckdb_reads_the_directory_of_many_machines(store: Store, tmp_path: Path) -> None:
    """Two exports into one directory, as from two machines; one of them twice."""
    import duckdb

    for ref in ("run0", "run1", "run1"):
        parquet.write_dataset(tmp_path, [store.run(ref)], ALL)
    with duckdb.connect() as connection:
        for table in ("history", "class_history"):
            source = f"read_parquet('{tmp_path}/{table}/*/*.parquet', hive_partitioning = true)"
            cursor = connection.execute(f"SELECT * FROM {source}")
            names = [column[0] for column in cursor.description]
            records = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            assert placed(records, table) == viewed(store, table, ["run0", "run1"])
        answer = connection.execute(
            f"""SELECT run_id, arg_max(value, step) FROM read_parquet('{tmp_path}/history/*/*.parquet',
            hive_partitioning = true) WHERE metric = 'nc1_pinv' AND split = 'test' AND layer = 'classifier-input'
            GROUP BY run_id ORDER BY run_id"""
        ).fetchall()
        found = connection.execute(
            f"SELECT name FROM read_parquet('{tmp_path}/runs/*/*.parquet', hive_partitioning = true) ORDER BY run_id"
        ).fetchall()
    assert answer == [(ref, store.run(ref).history("nc1_pinv", split="test").value[-1]) for ref in ("run0", "run1")]
    assert found == [("vit-small-wd1e-4",), ("resnet-lr1",)]


def test_an_id_of_digits_stays_a_text_in_duckdb(store: Store, tmp_path: Path) -> None:
    import duckdb

    run = store.run("run1")
    for run_id in ("007", "a b%/é"):
        run.run = dataclasses.replace(run.run, run_id=run_id)
        parquet.write_dataset(tmp_path, [run], Choice(metrics=("alpha",)))
    found = duckdb.sql(
        f"SELECT DISTINCT run_id FROM read_parquet('{tmp_path}/history/*/*.parquet', hive_types = {{run_id: VARCHAR}})"
    ).fetchall()
    assert {run_id for (run_id,) in found} == {"007", "a b%/é"}


def test_npz_holds_every_array(store: Store, tmp_path: Path) -> None:
    run = store.run("run2")
    npz.write_npz(tmp_path / "x.npz", [run], ALL)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as loaded:
        assert json.loads(str(loaded["run"]))["config"] == dict(run.config)
        for split in run.splits:
            windows = run.window_columns(split)
            np.testing.assert_array_equal(loaded[f"{split}/step"], windows.step)
            for layer in run.layers:
                for name in run.metrics:
                    history = run.history(name, layer=layer.name, split=split)
                    if not len(history):
                        assert f"{split}/{layer.name}/{name}" not in loaded
                        continue
                    expected = np.full(len(windows), np.nan)
                    expected[np.searchsorted(windows.step, history.step)] = history.value
                    assert loaded[f"{split}/{layer.name}/{name}"].tobytes() == expected.tobytes()
            classes = run.classes("cert_intra", split=split).values
            assert loaded[f"{split}/{CLASSIFIER_INPUT}/cert_intra"].tobytes() == classes.tobytes()
            hidden = run.classes("intra_cos", split=split, layer="blocks.0")
            assert loaded[f"{split}/blocks.0/intra_cos"].tobytes() == hidden.values.tobytes()
            matrices = loaded[f"{split}/blocks.0/inter_cos"]
            for step, matrix in zip(loaded[f"{split}/blocks.0/inter_cos.step"], matrices, strict=True):
                expected = run.matrix("inter_cos", layer="blocks.0", split=split, step=int(step))
                assert matrix.tobytes() == expected.tobytes()
            assert len(matrices) > 9


def test_several_runs_share_an_npz_by_their_ids(store: Store, tmp_path: Path) -> None:
    npz.write_npz(tmp_path / "x.npz", store.runs(), Choice(metrics=("nc1_pinv",)))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as loaded:
        for run in store.runs():
            found = loaded[f"{run.run_id}/test/{CLASSIFIER_INPUT}/nc1_pinv"]
            assert found.tolist() == run.history("nc1_pinv", split="test").value.tolist()


def test_tensorboard_reads_every_scalar(store: Store, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = store.run("run2")
    count = tensorboard.write_events(tmp_path, [run], ALL)
    assert tensorboard.write_events(tmp_path, [run], ALL) == count
    seen = 0
    for split in run.splits:
        events = EventAccumulator(str(tmp_path / "digits-bn-run2" / split), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        assert '"lr": 0.1' in events.Tensors("config")[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["scalars"]:
            metric, _, layer = tag.partition("/")
            history = run.history(metric, layer=layer, split=split)
            there = ~np.isnan(history.value)
            found = events.Scalars(tag)
            assert [event.step for event in found] == history.step[there].tolist()
            assert [event.wall_time for event in found] == history.time[there].tolist()
            assert [event.value for event in found] == history.value[there].astype(np.float32).tolist()
            seen += len(found)
    assert seen == count > 500


def test_a_choice_leaves_out_the_rest(store: Store, tmp_path: Path) -> None:
    choice = Choice(metrics=("alpha", "nc1_pinv"), layers=("blocks.0",), splits=("test",))
    found = list(rows.table_rows(store.run("run2"), "history", choice))
    assert {(row[2], row[4], row[9]) for row in found} == {("blocks.0", "test", name) for name in choice.metrics}
    assert len(found) == 2 * 12


def test_a_failure_leaves_the_old_file(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), rows.complete(path) as unfinished:
        unfinished.write_text("half")
        math.fmod(1, 1 // 0)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreError, match="cannot be written"):
        text.write_csv(Path("/proc/nosuch/x.csv"), [], "history", ALL)
