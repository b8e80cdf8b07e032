"""Files of earlier versions, read as they are: `older/schema-N.sqlite` were made by those versions themselves."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import ncmon
from ncmon.errors import StoreError
from ncmon.store.connection import connect_reader
from ncmon.store.merge import merge
from ncmon.store.queries import Store

FILES = sorted((Path(__file__).parent / "older").glob("*.sqlite"))


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(request.param, tmp_path / "old.db"))


def in_the_file(old: Path, metric: str) -> list[float]:
    """Return what the file holds of a metric, asked of SQLite alone."""
    with closing(sqlite3.connect(old)) as connection:
        rows = connection.execute(
            f'SELECT d."{metric}" FROM reading d JOIN layer l USING (layer_key) JOIN window w USING (window_key)'
            " WHERE l.name = 'classifier-input' ORDER BY w.step"
        )
        return [value for (value,) in rows]


def test_there_are_such_files() -> None:
    assert len(FILES) >= 2


@pytest.mark.parametrize("metric", ["nc1_pinv", "intra_cos_min", "ce_gap"])
def test_what_an_earlier_version_stored_is_read_to_the_last_bit(old: Path, metric: str) -> None:
    values = in_the_file(old, metric)
    assert len(values) == 3
    assert np.isfinite(values).all()
    with ncmon.open(old) as store:
        run = store.run("latest")
        assert (run.run_id, run.name, run.status) == ("0123456789ab", "old", "finished")
        assert run.config == {"lr": 0.1, "weight_decay": 5e-4}
        history = run.history(metric, layer="classifier-input", split="train")
        np.testing.assert_array_equal(history.value, values)
        rows = store.sql(f"SELECT value FROM history WHERE metric = '{metric}' AND layer = 'classifier-input'").rows
        assert sorted(value for (value,) in rows) == sorted(values)


def test_reading_leaves_the_file_as_it_is(old: Path) -> None:
    before = hashlib.sha256(old.read_bytes()).hexdigest()
    with Store.open(old) as store:
        store.run("latest").history("nc1_pinv")
        store.summary()
        with pytest.raises(StoreError):
            store._reader.execute("DELETE FROM run")
    assert hashlib.sha256(old.read_bytes()).hexdigest() == before
    assert [path.name for path in old.parent.iterdir()] == ["old.db"]


def test_on_a_disk_that_cannot_be_written(old: Path) -> None:
    old.chmod(0o400)
    old.parent.chmod(0o500)
    try:
        with Store.open(old) as store:
            assert store.run("latest").name == "old"
    finally:
        old.parent.chmod(0o700)


def test_an_older_file_is_merged_and_says_nothing_new_the_second_time(old: Path, tmp_path: Path) -> None:
    values = in_the_file(old, "nc1_pinv")
    target = tmp_path / "all.db"
    assert [one.outcome for one in merge(old, target)] == ["new"]
    assert [one.outcome for one in merge(old, target)] == ["known"]
    with Store.open(target) as store:
        np.testing.assert_array_equal(store.run("latest").history("nc1_pinv").value, values)


def test_one_that_is_damaged_is_one_line(old: Path) -> None:
    whole = old.read_bytes()
    old.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError) as caught, Store.open(old) as store:
        store.run("latest").readings()
    assert "\n" not in str(caught.value)
    assert str(old) in str(caught.value)


def test_the_plain_reader_says_what_it_cannot_read(old: Path) -> None:
    with pytest.raises(StoreError, match=r"schema \d+, this ncmon reads"):
        connect_reader(old)
