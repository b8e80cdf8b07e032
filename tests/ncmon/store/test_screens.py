"""The parts that screens read, against the readings that were stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ncmon.model import StreamSeq
from ncmon.store import screens
from ncmon.store.queries import Store
from ncmon.store.screens import Cache, class_part, compared, layer_part, pair_arrays
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_run, make_window

EPOCHS = 23


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screens") / "runs.db"
    with Writer.open(path) as writer:
        writer.put_run(make_run(), b"s" * 16, now=1.0)
        batch = []
        for epoch in range(EPOCHS):
            for split in ("train", "test"):
                window = make_window(epoch=epoch, collapse=0.3 + 0.02 * epoch, layers=3)
                item = make_evaluation(dataclasses.replace(window, split=split, exact=split == "test"))
                batch.append(Stored(origins=(StreamSeq(stream=b"s" * 16, seq=len(batch)),), item=item))
        writer.commit(batch, now=2.0)
    return path


def test_layers_over_time_are_the_histories_of_the_layers(database: Path) -> None:
    with Store.open(database) as store:
        run = store.run("run")
        part = layer_part(run, "nc1_pinv", "train", ("intra_cos_min", "ncc_acc"), None, Cache())
        for row, layer in enumerate(part.layers):
            history = run.history("nc1_pinv", layer=layer)
            np.testing.assert_array_equal(part.values[row], history.value)
            np.testing.assert_array_equal(part.step, history.step)
            np.testing.assert_array_equal(part.epoch, history.epoch)
            assert part.table["intra_cos_min"][row] == run.history("intra_cos_min", layer=layer).value[-1]
        assert part.place == EPOCHS - 1


def test_a_long_history_is_thinned_and_windows_read_before_are_not_read_again(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "MOST_WINDOWS", 8)
    with Store.open(database) as store:
        run, cache = store.run("run"), Cache()
        full = run.history("nc1_pinv").value
        part = layer_part(run, "nc1_pinv", "train", (), 750, cache)
        at = [0, 4, 6, 8, 12, 16, 20, 22]  # every fourth, the moment looked at (epoch 7 is step 700), and the last
        assert part.epoch.tolist() == [0, 4, 6, 8, 12, 16, 20, 22]
        assert part.epoch[part.place] == 6
        np.testing.assert_array_equal(part.values[-1], full[at])
        asked: list[str] = []
        execute = run._reader.execute
        monkeypatch.setattr(run._reader, "execute", lambda sql, *a: asked.append(sql) or execute(sql, *a))
        again = layer_part(run, "nc1_pinv", "train", (), 750, cache)
        np.testing.assert_array_equal(again.values, part.values)
        assert not any("d.window_key IN" in sql for sql in asked)
        layer_part(run, "nc1_cdnv", "train", (), 750, cache)  # another metric is read
        assert any("d.window_key IN" in sql for sql in asked)


@pytest.mark.parametrize("layer", ["classifier-input", "blocks.1"])
def test_classes_at_a_moment_are_those_of_that_window(database: Path, layer: str) -> None:
    with Store.open(database) as store:
        run = store.run("run")
        for step in (None, 2000):
            part = class_part(run, layer, "train", ("intra_cos", "nearest_cos"), 2, step, Cache())
            assert part is not None
            assert part.step == (2300 if step is None else step)
            expected = run.classes("intra_cos", layer=layer, step=part.step).values[-1]
            np.testing.assert_array_equal(part.arrays["intra_cos"], expected)
            assert part.matrix is not None
            np.testing.assert_array_equal(
                part.matrix, run.matrix("inter_cos", layer=layer, step=(part.matrix_epoch + 1) * 100)
            )
            assert part.matrix_epoch + 1 <= part.step / 100
            history = run.classes("intra_cos")
            np.testing.assert_array_equal(part.history["intra_cos"].value, history.values[:, 2])
            np.testing.assert_array_equal(part.history["intra_cos"].step, history.step)


@pytest.mark.parametrize("order", ["worst", "-worst", "class", "-class", "confused", "accuracy"])
def test_the_history_is_that_of_the_class_that_leads_an_order(database: Path, order: str) -> None:
    with Store.open(database) as store:
        run = store.run("run")
        part = class_part(run, "classifier-input", "train", ("intra_cos",), 2, None, Cache(), order=order)
        assert part is not None
        values = {name: run.classes(name).values[-1] for name in ("intra_cos", "nearest_cos", "class_accuracy")}
        key = {
            "worst": values["intra_cos"] - values["nearest_cos"],
            "class": np.arange(4.0),
            "confused": -values["nearest_cos"],
            "accuracy": values["class_accuracy"],
        }[order.removeprefix("-")]
        assert key[part.index] == (key.max() if order.startswith("-") else key.min())
        np.testing.assert_array_equal(part.history["intra_cos"].value, run.classes("intra_cos").values[:, part.index])


def test_before_the_first_window_there_is_nothing(database: Path) -> None:
    with Store.open(database) as store:
        run = store.run("run")
        assert class_part(run, "classifier-input", "train", (), 0, 50, Cache()) is None
        assert class_part(run, "classifier-input", "nothing", (), 0, None, Cache()) is None
        assert layer_part(run, "nc1_pinv", "nothing", ("ncc_acc",), None, Cache()).place == -1
        assert run.latest(50) == ()
        assert pair_arrays(run, ("inter_cos",), "classifier-input", "train", 50) == {}


def test_the_latest_windows_are_the_last_up_to_a_moment(database: Path) -> None:
    with Store.open(database) as store:
        run = store.run("run")
        found = {window.split: window for window in run.latest(1_250, layers=("classifier-input",))}
        assert {split: window.step for split, window in found.items()} == {"train": 1_200, "test": 1_200}
        value = run.history("nc1_pinv").value[11]
        assert found["train"].layers["classifier-input"].readings["nc1_pinv"].value == value
        assert set(found["train"].layers) == {"classifier-input"}
        everything = {window.split: window for window in run.latest()}
        assert list(everything["train"].layers) == ["blocks.0", "blocks.1", "classifier-input"]
        assert everything["train"].step == 2_300


def test_of_the_latest_windows_only_the_class_arrays_are_read_that_are_wanted(database: Path) -> None:
    with Store.open(database) as store:
        run = store.run("run")
        (window, _) = run.latest(arrays=("intra_cos", "no such"))
        arrays = window.layers["classifier-input"].class_arrays
        assert list(arrays) == ["intra_cos"]
        np.testing.assert_array_equal(arrays["intra_cos"], run.classes("intra_cos").values[-1])
        asked: list[str] = []
        execute = run._reader.execute
        run._reader.execute = lambda sql, *a: asked.append(sql) or execute(sql, *a)  # type: ignore[func-returns-value,method-assign,assignment]
        assert not any(layer.class_arrays for window in run.latest(arrays=()) for layer in window.layers.values())
        assert asked
        assert not any("class_reading" in sql for sql in asked)


def test_of_a_step_with_both_kinds_of_window_the_exact_one_is_the_latest(tmp_path: Path) -> None:
    path = tmp_path / "both.db"
    kinds = [(1, False), (1, True), (2, True), (3, True), (3, False), (4, False)]
    with Writer.open(path) as writer:
        writer.put_run(make_run(), b"s" * 16, now=1.0)
        for seq, (epoch, exact) in enumerate(kinds):
            item = make_evaluation(dataclasses.replace(make_window(epoch=epoch, step=100 * epoch), exact=exact))
            writer.commit([Stored(origins=(StreamSeq(stream=b"s" * 16, seq=seq),), item=item)], now=2.0)
    with Store.open(path) as store:
        run = store.run("run")
        latest = {at: run.latest(at)[0] for at in (100, 250, 300, None)}
        said = {at: (window.step, window.exact) for at, window in latest.items()}
        assert said == {100: (100, True), 250: (200, True), 300: (300, True), None: (400, False)}


def test_pairs_and_runs_side_by_side(database: Path) -> None:
    with Store.open(database) as store:
        run = store.run("run")
        found = pair_arrays(run, ("inter_cos",), "classifier-input", "train", None)
        np.testing.assert_array_equal(found["inter_cos"], run.matrix("inter_cos"))
        assert pair_arrays(run, ("inter_cos", "no_such"), "classifier-input", "train", None) == {}
        assert pair_arrays(run, (), "classifier-input", "train", None) == {}
        (one,) = compared([run], "nc1_pinv", Cache())
        np.testing.assert_array_equal(one.columns.value, run.history("nc1_pinv").value)
