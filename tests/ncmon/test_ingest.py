"""What may become a window, and the code and the one line of everything that may not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncmon import ingest
from ncmon.errors import Rejected
from ncmon.evaluate import evaluate
from ncmon.model import CLASSIFIER_INPUT, Window
from ncmon_client import wire
from tests.factories import make_window
from tests.messages import STREAM, make_gap, make_info, to_wire, window_frames

C, D = 4, 6


def valid(**window: Any) -> Window:
    return make_window(n_classes=C, n_features=D, layers=2, **window)


def part_of(window: Window, **fields: Any) -> Any:
    return ingest.to_part(wire.decode(window_frames(window, seq=3, **fields)), received=5.0)


def with_layer(window: Window, **fields: Any) -> Window:
    *others, last = window.layers
    return dataclasses.replace(window, layers=(*others, dataclasses.replace(last, **fields)))


def with_head(window: Window, **fields: Any) -> Window:
    return dataclasses.replace(window, head=dataclasses.replace(window.head, **fields))


def rejected(act: Callable[[], Any]) -> Rejected:
    with pytest.raises(Rejected) as caught:
        act()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return caught.value


@pytest.mark.parametrize("window", [valid(), valid(scatter=True), valid(single=True), valid(per_class=[3, 0, 1, 9])])
def test_a_valid_window_comes_through_whole(window: Window) -> None:
    part = part_of(window)
    assert (part.origin.stream, part.origin.seq, part.rank) == (STREAM, 3, 0)
    for field in dataclasses.fields(Window):
        if field.name not in ("layers", "head"):
            assert getattr(part.window, field.name) == getattr(window, field.name), field.name
    for found, expected in zip((*part.window.layers, part.window.head), (*window.layers, window.head), strict=True):
        for field in dataclasses.fields(expected):
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            if isinstance(theirs, np.ndarray):
                assert ours.dtype == (np.int64 if theirs.dtype.kind == "i" else np.float64), field.name
                assert np.array_equal(ours, theirs), field.name
            else:
                assert ours == theirs, field.name


def test_arrays_are_its_own_and_not_views_of_the_message() -> None:
    for layer in part_of(valid()).window.layers:
        assert layer.class_means.flags.writeable
        assert layer.class_counts.flags.owndata


LAYER_FLOATS = [name for name, (dtypes, _) in wire.LAYER_ARRAYS.items() if dtypes != ("i8",)]
HEAD_FLOATS = [name for name, (dtypes, _) in wire.HEAD_ARRAYS.items() if dtypes != ("i8",)]


def spoil(array: Any, value: float) -> Any:
    spoiled = np.array(array, copy=True)
    spoiled.flat[-1] = value
    return spoiled


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LAYER_FLOATS)
def test_no_layer_array_may_hold_what_is_not_finite(name: str, value: float) -> None:
    window = valid(scatter=name.endswith("_scatter"))
    array = spoil(getattr(window.layers[-1], name), value)
    error = rejected(lambda: part_of(with_layer(window, **{name: array})))
    assert error.code == "nonfinite"
    assert name in str(error)
    assert CLASSIFIER_INPUT in str(error)


@pytest.mark.parametrize("name", HEAD_FLOATS)
def test_no_head_array_may_hold_what_is_not_finite(name: str) -> None:
    gamma = np.ones(D)
    window = with_head(valid(), bn_gamma=gamma, bn_beta=gamma)
    error = rejected(lambda: part_of(with_head(window, **{name: spoil(getattr(window.head, name), math.nan)})))
    assert error.code == "nonfinite"
    assert name in str(error)


@pytest.mark.parametrize("name", sorted({*wire.LAYER_ARRAYS} - {*LAYER_FLOATS}))
@pytest.mark.parametrize("value", [-1, 2**53, -(2**63), 2**63 - 1])
def test_a_count_is_a_count(name: str, value: int) -> None:
    window = valid()
    error = rejected(lambda: part_of(with_layer(window, **{name: spoil(getattr(window.layers[-1], name), value)})))
    assert error.code == "counts"


def test_minus_zero_is_zero_and_rounding_below_it_is_forgiven() -> None:
    window = valid()
    array = np.array(window.layers[-1].within_sq)
    array[0], array[1] = -0.0, -1e-9 * array.max()
    found = part_of(with_layer(window, within_sq=array)).window.layers[-1].within_sq
    assert not np.signbit(found).any()
    assert found[1] == 0.0
    assert np.array_equal(found[2:], array[2:])


@pytest.mark.parametrize(
    "name", ["within_sq", "norm_sums", "norm_sq_sums", "span_singular", "span_within", "span_weighted", "shift_sq"]
)
def test_a_sum_of_squares_is_not_negative(name: str) -> None:
    window = valid()
    array = getattr(window.layers[-1], name)
    error = rejected(lambda: part_of(with_layer(window, **{name: spoil(array, -array.max())})))
    assert error.code == "negative"


def test_rounding_of_large_sums_that_leaves_a_negative_one_is_kept_for_metrics_to_say() -> None:
    """Collapsed features far from the origin: all variances may come out below zero, which no window is lost for."""
    window = valid()
    squares = float(window.layers[-1].norm_sq_sums.sum())
    found = part_of(with_layer(window, within_sq=np.full(C, -1e-9 * squares))).window
    assert (found.layers[-1].within_sq < 0).all()
    readings = evaluate(found).layers[-1].readings
    for name in ("nc1_trace_ratio", "nc1_balanced", "nc1_cdnv", "snr"):
        assert readings[name].reason.startswith("below resolution"), name


@pytest.mark.parametrize(
    ("scatter", "lacking", "left"),
    [
        (False, "span_singular", "span_within"),
        (False, "before_counts", "shift_sq"),
        (False, "shift_sq", "before_counts"),
        (True, "within_scatter", "weighted_scatter"),
        (True, "moment_weights", "weighted_scatter"),
        (False, "moment_weights", "span_weighted"),
    ],
)
def test_arrays_that_belong_together_come_together(scatter: bool, lacking: str, left: str) -> None:
    error = rejected(lambda: part_of(with_layer(valid(scatter=scatter), **{lacking: None})))
    assert error.code == "missing"
    assert left in str(error)
    assert lacking in str(error)


def test_a_scatter_has_no_negative_diagonal() -> None:
    window = valid(scatter=True)
    scatter = np.array(window.layers[-1].within_scatter)
    scatter[0, 0] = -scatter.max()
    assert rejected(lambda: part_of(with_layer(window, within_scatter=scatter))).code == "negative"


many = np.full(C, 10**6)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda w: with_layer(w, zero_counts=many), "counts"),
        (lambda w: with_layer(w, ncc_hits=many), "counts"),
        (lambda w: with_layer(w, ncc_agree=many), "counts"),
        (lambda w: with_head(w, correct=many), "counts"),
        (lambda w: with_head(w, label_counts=None), "missing"),
        (lambda w: with_head(w, bn_gamma=np.ones(D), bn_beta=None), "missing"),
        (lambda w: with_head(w, weight=np.ones((C, D + 1)), bn_gamma=None, bn_beta=None), "shape"),
        (lambda w: with_layer(w, ncc_counts=None, ncc_hits=None), "missing"),
        (lambda w: with_layer(w, ncc_hits=None), "missing"),
        (lambda w: with_layer(w, span_within=None), "missing"),
        (lambda w: with_layer(w, span_within=np.ones(2)), "span"),
        (lambda w: with_layer(w, span_singular=np.ones(C + 1), span_within=np.ones(C + 1)), "span"),
        (lambda w: with_layer(w, span_singular=np.array([1.0, 2.0]), span_within=np.ones(2)), "span"),
        (lambda w: dataclasses.replace(w, layers=(w.layers[0], w.layers[0])), "layers"),
        (lambda w: dataclasses.replace(w, time=math.nan), "nonfinite"),
        (lambda w: dataclasses.replace(w, duration_s=math.inf), "nonfinite"),
        (lambda w: dataclasses.replace(w, duration_s=-1.0), "negative"),
        (lambda w: dataclasses.replace(w, overhead=math.nan), "nonfinite"),
        (lambda w: dataclasses.replace(w, sampled_steps=w.steps + 1), "counts"),
        (lambda w: dataclasses.replace(w, ranks=(2,), world_size=2), "rank"),
        (lambda w: with_head(w, batch_norm_eps=math.nan), "nonfinite"),
        (lambda w: with_head(w, weight_decay=math.inf), "nonfinite"),
    ],
)
def test_what_contradicts_itself_is_named(change: Callable[[Window], Window], code: str) -> None:
    assert rejected(lambda: part_of(change(valid()))).code == code


@pytest.mark.parametrize("name", ingest._REQUIRED)
def test_a_layer_without_a_required_array_is_named(name: str) -> None:
    error = rejected(lambda: part_of(with_layer(valid(), **{name: None})))
    assert error.code == "missing"
    assert name in str(error)


def test_a_second_pass_may_decide_other_samples_but_a_running_one_may_not() -> None:
    window = with_layer(valid(), ncc_counts=many)
    assert part_of(dataclasses.replace(window, ncc_source="own")).window.layers[-1].ncc_counts is not None
    assert rejected(lambda: part_of(dataclasses.replace(window, ncc_source="previous"))).code == "counts"


def test_arrays_that_do_not_match_their_bytes_keep_the_code_of_the_wire() -> None:
    meta, blob = to_wire(valid())
    message = wire.decode(wire.encode(meta, stream=STREAM, blob=blob[:-8]))
    assert rejected(lambda: ingest.to_part(message, received=0.0)).code == "length"


def test_a_clock_that_was_never_set_is_replaced_by_the_daemons() -> None:
    assert part_of(dataclasses.replace(valid(), time=0.0)).window.time == 5.0


def test_messages_of_another_kind_are_no_windows() -> None:
    gap = wire.decode(wire.encode(make_gap(), stream=STREAM))
    end = wire.decode(wire.encode(wire.End(run_id="r", status="failed", text="oom", time=2.0), stream=STREAM))
    assert rejected(lambda: ingest.to_part(gap, received=0.0)).code == "kind"
    assert rejected(lambda: ingest.to_gap(end)).code == "kind"
    assert rejected(lambda: ingest.to_end(gap)).code == "kind"
    assert ingest.to_gap(gap).step == 100
    assert (ingest.to_end(end).status, ingest.to_end(end).text) == ("failed", "oom")


def test_times_of_gaps_and_ends_are_finite() -> None:
    gap = wire.decode(wire.encode(make_gap(time=math.nan), stream=STREAM))
    end = wire.decode(wire.encode(wire.End(run_id="r", status="failed", text="", time=math.inf), stream=STREAM))
    assert rejected(lambda: ingest.to_gap(gap)).code == "nonfinite"
    assert rejected(lambda: ingest.to_end(end)).code == "nonfinite"


def test_a_run_comes_through_whole() -> None:
    run = ingest.to_run(make_info(class_names=["a", "b", "c", "d"], tags=["t"], world_size=2, rank=1))
    assert (run.run_id, run.name, run.status, run.config) == ("run", "digits", "live", {"lr": 0.1})
    assert (run.class_names, run.tags, run.world_size) == (("a", "b", "c", "d"), ("t",), 2)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"config": "{"}, "config"),
        ({"config": "[]"}, "config"),
        ({"config": '{"a": "\\ud800"}'}, "config"),
        ({"config": "[" * 60_000}, "config"),
        ({"config": '{"a": ' + "9" * 5000 + "}"}, "config"),
        ({"class_names": ["a"]}, "class-names"),
        ({"rank": 1}, "rank"),
        ({"started": math.nan}, "nonfinite"),
    ],
)
def test_a_run_that_cannot_be_is_named(fields: dict[str, Any], code: str) -> None:
    assert rejected(lambda: ingest.to_run(make_info(**fields))).code == code


def test_a_config_with_nan_is_kept_as_text() -> None:
    config = ingest.to_run(make_info(config='{"momentum": NaN, "top": -Infinity}')).config
    assert config == {"momentum": "NaN", "top": "-Infinity"}
    json.dumps(config, allow_nan=False)


@given(st.lists(st.binary(max_size=9000), max_size=3), st.text(max_size=3000))
@settings(max_examples=50, deadline=None)
def test_a_rejection_is_small_and_storable(frames: list[bytes], text: str) -> None:
    why = Rejected("code", text + "\ud800")
    rejection = ingest.to_rejection(frames, stream=STREAM, seq=1, run_id="run", error=why, now=2.0)
    assert rejection.head == b"".join(frames)[: ingest.REJECTION_HEAD_BYTES]
    rejection.reason.encode("utf-8")
    assert len(rejection.reason) <= ingest.MAX_REASON_CHARS
    assert (rejection.code, rejection.seq, rejection.run_id, rejection.time) == ("code", 1, "run", 2.0)


def test_an_address_is_read_where_the_rest_is_not() -> None:
    header, *rest = window_frames(valid(), seq=9)
    future = header[:4] + b"\x63\x00" + header[6:]
    found = ingest.address([future, *rest])
    assert found == ingest.Address(kind=wire.Kind.WINDOW, stream=STREAM, seq=9)
    for frames in ([], [b""], [header[:-1]], [b"HTTP" + header[4:]], [header[:6] + b"\x63" + header[7:]]):
        assert ingest.address(frames) is None


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_random_values_in_a_well_formed_window_never_raise_anything_else(data: st.DataObject) -> None:
    meta, blob = to_wire(valid())
    place = data.draw(st.integers(0, len(blob) // 8 - 1))
    value = data.draw(st.binary(min_size=8, max_size=8))
    message = wire.decode(wire.encode(meta, stream=STREAM, blob=blob[: 8 * place] + value + blob[8 * place + 8 :]))
    try:
        window = ingest.to_part(message, received=0.0).window
    except Rejected:
        return
    for layer in window.layers:
        assert np.isfinite(layer.class_means).all()
        assert (layer.class_counts >= 0).all()
