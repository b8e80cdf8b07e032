"""Tables of pandas hold the same numbers; the journal stays small beside readers."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from ncmon.errors import NotInstalled
from ncmon.store.queries import Store
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run
from tests.ncmon.store.batches import STREAM, stored


@pytest.fixture
def filled(path: Path, writer: Writer) -> Path:
    writer.put_run(make_run(), STREAM, now=1.0)
    for epoch in range(5):
        writer.commit([stored(epoch, make_evaluation(epoch=epoch, seed=epoch))], now=2.0)
    return path


def test_histories_become_tables(filled: Path) -> None:
    with Store.open(filled) as store:
        history = store.run("run").history("cert_intra_min")
        table = history.to_pandas()
        assert list(table) == ["step", "epoch", "time", "exact", "value", "reason"]
        assert table["value"].to_numpy().tobytes() == history.value.tobytes()
        assert table["step"].tolist() == history.step.tolist()
        assert table["reason"].tolist() == list(history.reason)
        empty = store.run("run").history("nc1_pinv", since_step=10**6).to_pandas()
        assert len(empty) == 0


def test_class_arrays_become_long_tables(filled: Path) -> None:
    with Store.open(filled) as store:
        classes = store.run("run").classes("intra_cos")
        table = classes.to_pandas()
        assert len(table) == np.isfinite(classes.values).sum()
        wide = table.pivot(index="step", columns="class", values="value")
        np.testing.assert_array_equal(wide.to_numpy(), classes.values)
        matrices = store.run("run").matrices("inter_cos")
        pairs = matrices.to_pandas()
        assert list(pairs)[-3:] == ["class", "other", "value"]
        row = pairs[(pairs["step"] == 300) & (pairs["class"] == 1) & (pairs["other"] == 2)]
        assert row["value"].item() == matrices.values[2, 1, 2]


def test_rows_of_sql_become_a_table(filled: Path) -> None:
    with Store.open(filled) as store:
        rows = store.sql("SELECT epoch, value FROM history WHERE metric = 'alpha' ORDER BY epoch")
        table = rows.to_pandas()
        assert list(table) == ["epoch", "value"]
        assert [tuple(row) for row in table.itertuples(index=False)] == list(rows.rows)
        assert [run.run_id for run in store] == ["run"]


def test_matrices_are_the_kept_ones(filled: Path) -> None:
    with Store.open(filled) as store:
        run = store.run("run")
        found = run.matrices("inter_cos", layer="blocks.0")
        for step, matrix in zip(found.step.tolist(), found.values, strict=True):
            np.testing.assert_array_equal(matrix, run.matrix("inter_cos", layer="blocks.0", step=step))
        assert found.epoch.tolist() == list(range(5))


def test_without_pandas_the_way_to_it_is_named(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with Store.open(filled) as store, pytest.raises(NotInstalled, match=r"pip install 'ncmon\[pandas\]'"):
        store.run("run").history("nc1_pinv").to_pandas()


def test_the_journal_does_not_grow_beside_readers(path: Path, writer: Writer) -> None:
    """Readers that stay open and ask again and again hold no transaction: the journal is folded back all the time."""
    writer.put_run(make_run(), STREAM, now=1.0)
    evaluation = make_evaluation(n_classes=40, n_features=64)
    largest = 0
    with Store.open(path) as first, Store.open(path) as second:
        for seq in range(150):
            window = dataclasses.replace(evaluation.window, step=seq, epoch=seq)
            item = dataclasses.replace(evaluation, window=window)
            writer.commit([stored(seq, item)], now=2.0)
            first.summary()
            second.run("run").history("nc1_pinv")
            largest = max(largest, path.with_name(path.name + "-wal").stat().st_size)
    # SQLite folds back at a thousand pages; without that 150 windows would write three times as much.
    assert 4096 < largest < 8e6
    assert path.stat().st_size > 0
