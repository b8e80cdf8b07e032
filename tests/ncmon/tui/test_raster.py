"""From numbers to dots, without a screen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncmon.tui import raster

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def full(x: np.ndarray, y: np.ndarray, columns: int, rows: int) -> np.ndarray:
    scale_x, scale_y = raster.Scale(low=float(x[0]), high=float(x[-1])), raster.scale_of([y])
    return raster.draw_line(scale_x.place(x), scale_y.place(y), columns=columns, rows=rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(100, 3000), st.integers(0, 2**31))
def test_the_thinned_line_lights_the_pixels_of_the_full_one(n: int, seed: int) -> None:
    """M4 differs from the full raster at most where a segment crosses the border between two pixel columns."""
    rng = np.random.default_rng(seed)
    x, y = np.arange(n, dtype=float), np.cumsum(rng.normal(size=n))
    y[rng.integers(0, n, 3)] += 50  # spikes must survive
    columns, rows = 20, 8
    kept = raster.m4(x, y, low=0.0, high=float(n - 1), columns=2 * columns)
    assert {0, n - 1} <= set(kept.tolist())
    assert y[kept].min() == y.min()
    assert y[kept].max() == y.max()
    assert len(kept) <= 4 * 2 * columns
    scale_x, scale_y = raster.Scale(low=0.0, high=float(n - 1)), raster.scale_of([y])
    thinned = raster.draw_line(scale_x.place(x[kept]), scale_y.place(y[kept]), columns=columns, rows=rows)
    whole = full(x, y, columns, rows)
    different = np.unpackbits(thinned ^ whole).sum()
    assert different <= 0.08 * np.unpackbits(whole).sum() + 2


def test_few_points_are_all_kept() -> None:
    x = np.arange(10.0)
    assert raster.m4(x, x, low=0, high=9, columns=40).tolist() == list(range(10))


def test_a_gap_survives_the_thinning() -> None:
    x, y = np.arange(1000.0), np.ones(1000)
    y[300:600] = np.nan
    kept = raster.m4(x, y, low=0, high=999, columns=20)
    assert np.isnan(y[kept]).any()
    bits = raster.draw_line(x[kept] / 999, np.where(np.isnan(y[kept]), np.nan, 0.5), columns=10, rows=3)
    assert not bits[:, 4].any()
    assert bits[:, 0].any()
    assert bits[:, 9].any()


@pytest.mark.parametrize("style", [raster.SOLID, raster.DASHED, raster.DOTTED])
def test_a_lone_point_is_one_dot_in_every_pattern(style: str) -> None:
    for place in np.linspace(0, 1, 7):
        bits = raster.draw_line(np.array([place]), np.array([0.5]), columns=8, rows=4, style=style)
        assert np.unpackbits(bits).sum() == 1


@given(
    st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf, 0.0])), min_size=1, max_size=30),
    st.lists(st.integers(1, 4), max_size=12),
    st.sampled_from([raster.SOLID, raster.DASHED, raster.DOTTED]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_line_that_goes_on_is_the_one_drawn_at_once(
    values: list[float], pieces: list[int], style: str, log: bool
) -> None:
    x, y = np.arange(float(len(values))), np.array(values)
    across, up = raster.Scale(low=0.0, high=30.0), raster.scale_of([y], log=log)
    frame = {"across": across, "up": up, "columns": 9, "rows": 4, "style": style}
    whole = raster.draw_line(across.place(x), up.place(y), columns=9, rows=4, style=style)
    trace, upto = None, 0
    for piece in [*pieces, len(values)]:
        upto = min(upto + piece, len(values))
        trace = raster.traced(x[:upto], y[:upto], before=trace, **frame)
        at_once = raster.traced(x[:upto], y[:upto], **frame)
        assert (trace.bits == at_once.bits).all()
        assert trace.points == at_once.points
    assert trace is not None
    assert (trace.bits == whole).all()
    assert raster.traced(x, y, before=trace, **frame) is trace


def test_a_line_in_another_frame_or_with_another_past_is_drawn_anew() -> None:
    x, y = np.arange(9.0), np.linspace(0.1, 0.9, 9)
    frame = {"across": raster.Scale(low=0.0, high=8.0), "up": raster.Scale(low=0.0, high=1.0)}
    size = {"columns": 8, "rows": 3}
    before = raster.traced(x, y, **frame, **size)
    others: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]] = [
        (x, np.where(x == 2, 0.9, y), {**frame, **size}),
        (x[:5], y[:5], {**frame, **size}),
        (x, y, {**frame, "columns": 9, "rows": 3}),
        (x, y, {**frame, **size, "style": raster.DOTTED}),
        (x, y, {**frame, **size, "up": raster.Scale(low=0.0, high=2.0)}),
        (x, y, {**frame, **size, "across": raster.Scale(low=0.0, high=16.0)}),
    ]
    for other_x, other_y, options in others:
        found = raster.traced(other_x, other_y, before=before, **options)
        assert (found.bits == raster.traced(other_x, other_y, **options).bits).all()
        assert found.bits.shape != before.bits.shape or (found.bits != before.bits).any()


@given(st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf, 0.0])), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_no_value_breaks_a_scale_or_a_line(values: list[float]) -> None:
    y = np.array(values)
    for log in (False, True):
        scale = raster.scale_of([y], log=log)
        assert scale.low < scale.high
        place = scale.place(y)
        shown = np.isfinite(y) & ((y > raster.SMALLEST) if log else True)
        assert np.isfinite(place[shown]).all()
        assert (place[shown] >= 0).all()
        assert (place[shown] <= 1).all()
        assert np.isnan(place[~shown]).all()
        bits = raster.draw_line(np.linspace(0, 1, y.size), place, columns=7, rows=3)
        assert bool(bits.any()) == bool(shown.any())


def test_a_diagonal_is_a_diagonal() -> None:
    bits = raster.draw_line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), columns=2, rows=1)
    assert [raster.braille(int(cell)) for cell in bits[0]] == ["⡠", "⠊"]


@given(FINITE, st.floats(1e-3, 1e6), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_linear_ticks_are_round_ascending_and_inside(low: float, span: float, most: int) -> None:
    scale = raster.Scale(low=low, high=low + span)
    found = raster.ticks(scale, most)
    assert len(found) <= most
    assert found == sorted(found)
    tolerance = 1e-6 * (abs(low) + span)
    assert all(scale.low - tolerance <= tick <= scale.high + tolerance for tick in found)


@given(st.floats(1e-9, 1.0), st.floats(1.5, 1e9), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_log_ticks_are_decades_or_parts_of_one(low: float, ratio: float, most: int) -> None:
    scale = raster.Scale(low=low, high=low * ratio, log=True)
    found = raster.ticks(scale, most)
    assert len(found) <= most
    assert all(scale.low * (1 - 1e-9) <= tick <= scale.high * (1 + 1e-9) for tick in found)
    mantissas = {float(f"{tick:.6e}".partition("e")[0]) for tick in found}
    assert mantissas <= {1.0, 2.0, 5.0}


def test_a_sparkline_shows_the_whole_course_and_has_an_ascii_twin() -> None:
    values = np.array([1e-3, 1e-2, 1e-1, 1.0])
    assert raster.sparkline(values, 4) == "▁▃▆█"
    assert raster.sparkline(values, 2) == "▁█"
    assert raster.sparkline(values, 4, ascii=True).isascii()
    assert raster.sparkline(np.array([np.nan, 1.0]), 2)[0] == " "
    assert raster.sparkline(values, 0) == ""
    # Of a thousand windows the first and the last are there; what hardly moves looks flat.
    long = raster.sparkline(np.geomspace(1.0, 1e-3, 1000), 8)
    assert (long[0], long[-1]) == ("█", "▁")
    assert len(set(raster.sparkline(np.array([1.0, 1.02, 1.01, 1.03]), 4))) == 1
