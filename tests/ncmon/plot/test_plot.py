"""What is drawn is what is stored; what cannot be drawn is said; the same numbers are the same file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from ncmon.errors import NotFound, UsageError
from ncmon.metrics import METRICS
from ncmon.plot import epochs, layers, series, style, sweep
from ncmon.store.queries import Store


def lines(axis: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}


def test_a_curve_is_the_history(store: Store) -> None:
    run = store.run("digits-bn")
    figure = epochs.metrics([run], ["nc1_pinv", "intra_cos_min"])
    for axis, name in zip(figure.axes, ("nc1_pinv", "intra_cos_min"), strict=True):
        for split in run.splits:
            history = run.history(name, split=split)
            drawn = lines(axis)[split]
            assert drawn.get_xdata().tolist() == history.epoch.tolist()
            assert drawn.get_ydata().tolist() == history.value.tolist()
        assert name in axis.get_title()
    bound = series.tightest(run, "intra_cos_min", layer="classifier-input", split="train", by_step=False)
    drawn_ones = [list(line.get_ydata()) for line in figure.axes[1].get_lines()]
    assert any(np.array_equal(one, bound.y, equal_nan=True) for one in drawn_ones)


def test_several_runs_are_told_apart(store: Store) -> None:
    runs = [store.run("run0"), store.run("run2")]
    (axis,) = epochs.metrics(runs, ["nc1_pinv"], splits=["test"]).axes
    drawn = lines(axis)
    assert set(drawn) == {"vit-small-wd1e-4", "digits-bn"}
    assert len({line.get_color() for line in drawn.values()}) == 2
    for run in runs:
        assert drawn[run.name].get_ydata().tolist() == run.history("nc1_pinv", split="test").value.tolist()


def test_runs_of_one_name_are_told_by_their_configuration(store: Store) -> None:
    runs = list(store.runs())
    for run in runs:
        run.run = run.run.__class__(**{**{f: getattr(run.run, f) for f in run.run.__slots__}, "name": "same"})
    assert series.labels([runs[-1], runs[1]]) == ["epochs=30", "epochs=12"]
    # Where the configurations are the same too, by their ids.
    assert series.labels([runs[1], runs[2]]) == [runs[1].run_id, runs[2].run_id]


def test_logarithmic_where_the_field_draws_it_so(store: Store) -> None:
    run = store.run("vit-small-wd1e-4")
    figure = epochs.metrics([run], ["nc1_pinv", "intra_cos_min", "ncc_acc"])
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear", "linear"]
    assert epochs.metrics([run], ["nc1_pinv"], scale="linear").axes[0].get_yscale() == "linear"
    assert epochs.metrics([run], ["intra_cos_min"], scale="log").axes[0].get_yscale() == "log"


def test_perfect_collapse_is_where_the_registry_says(store: Store) -> None:
    (axis,) = epochs.metrics([store.run("digits-bn")], ["inter_cos_max"]).axes
    assert lines(axis)["perfect collapse"].get_ydata()[0] == pytest.approx(-1 / 3)  # Four classes.


def test_measured_stands_beside_guaranteed(store: Store) -> None:
    run = store.run("digits-bn")
    figure = epochs.bounds(run)
    assert "test" in figure.get_suptitle()  # The only split at frozen weights.
    drawn = lines(figure.axes[0])
    assert drawn["measured"].get_ydata().tolist() == run.history("intra_cos_min", split="test").value.tolist()
    value = run.history("cert_intra_min", split="test").value
    np.testing.assert_array_equal(drawn["guaranteed: cert_intra_min"].get_ydata(), value)
    assert "estimated: cert_intra_min" in lines(epochs.bounds(run, splits=["train"]).axes[0])
    classes = lines(figure.axes[-1])
    np.testing.assert_array_equal(classes["measured"].get_ydata(), run.classes("intra_cos", split="test").values[-1])


def test_depth_goes_over_the_layers(store: Store) -> None:
    run = store.run("digits-bn")
    (axis,) = layers.depth([run], ["nc1_pinv"], splits=["test"]).axes
    names = [key.name for key in run.layers]
    assert [label.get_text() for label in axis.get_xticklabels()] == names
    expected = [run.history("nc1_pinv", layer=name, split="test").value[-1] for name in names]
    assert lines(axis)["epoch 11"].get_ydata().tolist() == expected
    assert list(lines(layers.depth([run], ["nc1_pinv"], epoch=3).axes[0])) == ["epoch 3"]
    with pytest.raises(NotFound, match="no window of epoch 99; there are 0 to 11"):
        layers.depth([run], epoch=99)


def test_a_heat_map_has_a_row_a_layer_and_a_column_an_epoch(store: Store) -> None:
    run = store.run("digits-bn")
    figure = layers.heat(run, ["intra_cos_min"], splits=["test"])
    (mesh,) = figure.axes[0].collections
    expected = [run.history("intra_cos_min", layer=key.name, split="test").value for key in run.layers]
    np.testing.assert_array_equal(np.asarray(mesh.get_array()), expected)


def test_a_matrix_of_classes_is_the_stored_one(store: Store) -> None:
    run = store.run("digits-bn")
    figure = layers.classes(run, splits=["test"])
    drawn = np.ma.filled(figure.axes[0].collections[0].get_array(), np.nan)
    expected = run.matrix("inter_cos", split="test")
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_array_equal(drawn, expected)
    with pytest.raises(NotFound, match="epoch 999; it does of"):
        layers.classes(run, epoch=999)


def test_the_bounds_of_a_sweep_can_be_told_apart(store: Store) -> None:
    (axis,) = sweep.sweep(list(store.runs()), "epochs", ["intra_cos_min"], splits=["test"]).axes
    drawn = [line for line in axis.get_lines() if "_min" in str(line.get_label()) or "sharp" in str(line.get_label())]
    assert len(drawn) >= 2
    # Without colour too.
    assert len({line.get_marker() for line in drawn}) == len(drawn)


def test_a_sweep_of_several_splits_shows_the_tightest_bound_of_each(store: Store) -> None:
    runs = sorted(store.runs(), key=lambda run: run.config["epochs"])
    (axis,) = sweep.sweep(runs, "epochs", ["intra_cos_min"], splits=["train", "test"]).axes
    drawn = [np.asarray(line.get_ydata()) for line in axis.get_lines()]
    for split in ("train", "test"):
        limits = [
            series.tightest(run, "intra_cos_min", layer="classifier-input", split=split, by_step=True).y[-1]
            for run in runs
        ]
        assert any(np.array_equal(np.sort(one), np.sort(limits)) for one in drawn)
    assert "its tightest bound" in lines(axis)


def test_a_sweep_has_a_point_a_run(store: Store) -> None:
    runs = list(store.runs())
    figure = sweep.sweep(runs, "epochs", ["nc1_pinv"], splits=["test"])
    drawn = lines(figure.axes[0])["test"]
    expected = {(run.config["epochs"], run.history("nc1_pinv", split="test").value[-1]) for run in runs}
    assert set(zip(drawn.get_xdata().tolist(), drawn.get_ydata().tolist(), strict=True)) == expected
    with pytest.raises(NotFound, match="epochs"):
        sweep.sweep(runs, "epohcs")


@pytest.mark.parametrize("form", style.FORMATS)
def test_a_file_is_what_its_ending_says_and_always_the_same(store: Store, form: str) -> None:
    runs = [store.run("digits-bn"), store.run("run3")]  # The second has a hostile name.
    first, again = (style.render(epochs.metrics(runs), form) for _ in range(2))
    assert first == again
    if form == "png":
        assert first.startswith(b"\x89PNG")
    elif form == "pdf":
        assert first.startswith(b"%PDF-")
        assert first.rstrip().endswith(b"%%EOF")
    else:
        root = ET.fromstring(first)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert b"\x1b" not in first
        assert "\u202e".encode() not in first


def test_every_metric_can_be_drawn(store: Store) -> None:
    names = [metric.name for metric in METRICS if metric.scope in ("layer", "classifier", "window")]
    figure = epochs.metrics([store.run("digits-bn")], names)
    assert [axis.get_title().splitlines()[1].split(",")[0] for axis in figure.axes] == names
    assert style.render(figure, "png")


@pytest.mark.parametrize(
    ("name", "shown"), [("a$b$c", r"a\$b\$c"), ("x" * 40, "x" * 27 + "…"), ("a\x1b[2Jb", "a?[2Jb"), ("数字", "数字")]
)
def test_a_name_is_a_label_and_nothing_else(name: str, shown: str) -> None:
    assert style.short(name) == shown


def test_what_cannot_be_drawn_is_said(store: Store) -> None:
    run = store.run("digits-bn")
    with pytest.raises(NotFound, match="nc1_pinv"):
        epochs.metrics([run], ["nc1_pniv"])
    with pytest.raises(NotFound, match="no layer 'nosuch'"):
        epochs.metrics([run], layer="nosuch")
    with pytest.raises(NotFound, match="no such split"):
        epochs.metrics([run], splits=["tset"])
    with pytest.raises(UsageError, match="room for one"):
        layers.heat(run, splits=["train", "test"])


def test_of_several_bounds_the_tightest_is_drawn(store: Store) -> None:
    run = store.run("digits-bn")
    for metric, side in (("intra_cos_min", max), ("inter_cos_max", min)):
        found = series.tightest(run, metric, layer="classifier-input", split="test", by_step=True)
        bounds = [run.history(bound.name, split="test") for bound in series.bounds_of(metric)]
        assert len(bounds) > 1
        for step, value in zip(found.x, found.y, strict=True):
            there = [one.value[one.step == step] for one in bounds]
            finite = [float(one[0]) for one in there if one.size and np.isfinite(one[0])]
            assert value == side(finite) if finite else np.isnan(value)
        assert np.isfinite(found.y).any()
    assert len(series.tightest(run, "nc1_pinv", layer="classifier-input", split="test", by_step=True)) == 0


@pytest.mark.parametrize(
    ("name", "log"),
    [("nc1_pinv", True), ("ce_gap", True), ("nc3_cos_min", False), ("cert_nc3_min", False), ("accuracy", False)],
)
def test_only_what_tends_to_zero_is_drawn_on_a_logarithmic_axis(name: str, log: bool) -> None:
    assert series.is_log(name, [np.array([1e-4, 0.9])], "auto") is log
    assert series.is_log(name, [np.array([1e-4, 0.9])], "log")
