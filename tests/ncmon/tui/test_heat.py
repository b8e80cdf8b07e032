"""Heat maps without a screen: pooling keeps what matters, every size has room, shades say what colours say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncmon.tui import heat, palette
from ncmon.tui.raster import Scale
from ncmon.tui.widgets.heatmap import HeatPicture, Ink, drawn, heat_rows, layout

SIZES = [(80, 24), (36, 12), (200, 50), (20, 5), (8, 2), (7, 2), (1, 1), (300, 80)]


def picture(values: np.ndarray, **options: object) -> HeatPicture:
    names = [f"l{i}" for i in range(values.shape[0])]
    fields = {"title": "t", "scale": Scale(low=0.0, high=1.0), "row_names": names} | options
    return HeatPicture(values=values, **fields)  # type: ignore[arg-type]


def text(rows: list) -> list[str]:
    return ["".join(part for part, _ in row) for row in rows]


@given(st.integers(1, 60), st.integers(1, 70), st.sampled_from(["max", "min", "mean"]), st.integers(0, 1))
def test_pooling_is_the_reduction_of_every_part(size: int, cells: int, pool: heat.Pool, axis: int) -> None:
    rng = np.random.default_rng(size * 100 + cells)
    values = rng.normal(size=(size, 3) if axis == 0 else (3, size))
    values[rng.random(values.shape) < 0.3] = np.nan
    found = heat.pooled(values, cells, pool, axis)
    assert found.shape[axis] == min(size, cells)
    if size <= cells:
        np.testing.assert_array_equal(found, values)
        return
    bounds = [size * i // cells for i in range(cells + 1)]
    reduce = {"max": max, "min": min, "mean": lambda part: math.fsum(part) / len(part)}[pool]
    for cell in range(cells):
        for other in range(3):
            index = slice(bounds[cell], bounds[cell + 1])
            part = values[index, other] if axis == 0 else values[other, index]
            known = [float(value) for value in part if not np.isnan(value)]
            got = found[cell, other] if axis == 0 else found[other, cell]
            assert np.isnan(got) if not known else got == pytest.approx(reduce(known))


def test_one_confused_pair_among_a_thousand_classes_still_lights_its_cell() -> None:
    values = np.full((1000, 1000), 0.1)
    values[371, 902] = 1.0
    shown = heat.pooled(heat.pooled(values, 60, "max", 1), 40, "max", 0)
    assert np.argwhere(shown == 1.0).tolist() == [[371 * 40 // 1000, 902 * 60 // 1000]]


def test_levels_run_from_the_first_to_the_last_and_leave_gaps_out() -> None:
    values = np.array([0.0, 0.5, 1.0, np.nan, -3.0, 7.0])
    assert heat.levels(values, Scale(low=0, high=1), 10).tolist() == [0, 5, 9, -1, 0, 9]
    assert heat.levels(values, Scale(low=0, high=1), 10, flip=True).tolist() == [9, 5, 0, -1, 9, 0]
    logs = heat.levels(np.array([1e-3, 1e-2, 1e-1, 0.0]), Scale(low=1e-3, high=1e-1, log=True), 4)
    assert logs.tolist() == [0, 2, 3, -1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ink", ["colour", "blocks", "digits"])
@pytest.mark.parametrize("shape", [(4, 60), (200, 500), (1, 1), (0, 0)])
def test_a_map_fits_its_size(size: tuple[int, int], ink: str, shape: tuple[int, int]) -> None:
    values = np.linspace(0, 1, shape[0] * shape[1]).reshape(shape)
    rows = text(heat_rows(picture(values, ticks=[(0, "epoch 1")], row=0, column=0), *size, ink=ink))  # type: ignore[arg-type]
    assert len(rows) <= max(size[1], 1)
    if size[0] >= 8:
        assert all(len(row) <= size[0] for row in rows[1:])


def test_a_square_map_has_a_column_for_every_class_while_there_is_room() -> None:
    values = np.eye(10)
    names = [f"c{i}" for i in range(10)]
    shown = picture(values, row_names=names, column_names=names, cell=4, tall=2, row=3, column=5)
    rows = text(heat_rows(shown, 40, 14, ink="digits"))
    assert rows[1].split() == names
    assert rows[5].startswith("▸c3")
    body = [row[4:] for row in rows[2:12]]
    for i, row in enumerate(body):
        cells = [row[3 * j : 3 * j + 3] for j in range(10)]
        assert [cell[0] for cell in cells] == ["9" if i == j else "0" for j in range(10)]


def test_without_colour_shades_say_the_same_as_the_levels() -> None:
    rows = text(heat_rows(picture(np.array([[0.0, 0.3, 0.5, 0.7, 1.0]]), cell=1), 40, 6, ink="blocks"))
    assert rows[1][4:9] == " ░▒▓█"


def test_many_rows_share_a_line_by_halves_and_the_cursor_is_found_again() -> None:
    values = np.repeat(np.linspace(0, 1, 40)[:, None], 30, axis=1)
    shown = picture(values, row=39)
    grid = layout(shown, 60, 21, half=True)
    assert grid.half
    assert grid.lines == 20
    rows = heat_rows(shown, 60, 21)
    assert rows[-1][0][0].startswith("▸l39")
    assert any(style == palette.heat(23, 23) or style.color is not None for _, style in rows[-1][1:])


@given(
    st.lists(
        st.tuples(st.sampled_from(["grows", "changes", "cursor", "the same", "scale"]), st.integers(0, 2**31)),
        max_size=6,
    ),
    st.integers(1, 50),
    st.integers(1, 90),
    st.sampled_from(["max", "min", "mean"]),
    st.booleans(),
    st.sampled_from(["colour", "blocks", "digits"]),
)
@settings(max_examples=60, deadline=None)
def test_a_map_that_goes_on_is_the_one_drawn_at_once(
    acts: list[tuple[str, int]], n_rows: int, n_columns: int, pool: heat.Pool, log: bool, ink: Ink
) -> None:
    rng = np.random.default_rng(n_rows * 100 + n_columns)
    values = rng.random((n_rows, n_columns))
    values[rng.random(values.shape) < 0.1] = np.nan
    scale, row, before = Scale(low=0.01, high=1.0, log=log), 0, None
    for act, seed in [("the same", 0), *acts]:
        rng = np.random.default_rng(seed)
        if act == "grows":
            values = np.concatenate([values, rng.random((n_rows, int(rng.integers(1, 4))))], axis=1)
        elif act == "changes":
            values = values.copy()
            values[int(rng.integers(n_rows)), int(rng.integers(values.shape[1]))] = rng.choice([np.nan, rng.random()])
        elif act == "cursor":
            row = int(rng.integers(n_rows))
        elif act == "scale":
            scale = Scale(low=0.02, high=2.0, log=log)
        capacity = -(-values.shape[1] // 10) * 10
        fields = {"scale": scale, "row": row, "row_pool": "max", "column_pool": pool, "capacity": capacity}
        shown = picture(values, flip=True, ticks=[(0, "epoch 1")], **fields)
        found, before = drawn(shown, 50, 20, ink=ink, before=before)
        assert found == heat_rows(shown, 50, 20, ink=ink)


def test_of_a_matrix_that_is_the_same_only_the_line_of_the_cursor_is_made_again() -> None:
    values = np.linspace(0, 1, 300 * 300).reshape(300, 300)
    first, before = drawn(picture(values, row=3), 80, 24)
    again, _ = drawn(picture(values, row=200), 80, 24, before=before)
    assert sum(a is not b for a, b in zip(first[1:], again[1:], strict=True)) == 2
    # A moment more: of the pooled columns the last one alone.
    later = np.concatenate([values, np.full((300, 1), 0.5)], axis=1)
    _, before = drawn(picture(values, capacity=600), 80, 24)
    _, after = drawn(picture(later, capacity=600), 80, 24, before=before)
    assert before is not None
    assert after is not None
    asked: list[int] = []
    reduced = heat.reduced
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heat, "reduced", lambda found, *rest: asked.append(found.shape[1]) or reduced(found, *rest))
        drawn(picture(later, capacity=600), 80, 24, before=before)
    assert max(asked[:1]) <= 12
