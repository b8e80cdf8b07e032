"""The rows of a chart, without a screen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncmon.tui import palette
from ncmon.tui.widgets.chart import Level, Line, Picture, chart_rows, drawn


def picture(**options: object) -> Picture:
    x = np.arange(50.0)
    lines = (
        Line(name="train", x=x, y=10.0 ** (-x / 10), style=palette.SERIES[0]),
        Line(name="test", x=x, y=10.0 ** (-x / 15), style=palette.SERIES[1], pattern="dashed"),
    )
    return Picture(title="NC1", lines=lines, **options)  # type: ignore[arg-type]


def text(rows: list[tuple[tuple[str, object], ...]]) -> list[str]:
    return ["".join(part for part, _ in row) for row in rows]


@pytest.mark.parametrize(("width", "height"), [(80, 20), (40, 10), (12, 3), (11, 2), (1, 1), (200, 50)])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_chart_fits_its_size(width: int, height: int, ascii_only: bool) -> None:
    rows = text(chart_rows(picture(log=True), width, height, ascii=ascii_only))
    assert len(rows) <= height
    if width >= 12:
        assert all(len(row) <= width for row in rows[1:])
    if ascii_only:
        assert all(row.isascii() for row in rows)


def test_a_log_axis_is_labelled_by_decades_and_says_log() -> None:
    rows = text(chart_rows(picture(log=True), 60, 16))
    assert "log" in rows[0]
    labels = [row[:7].strip() for row in rows[1:-1] if row[:7].strip()]
    assert labels
    assert all(label.startswith("1e") for label in labels)


def test_exponential_decay_is_a_straight_line_on_a_log_axis() -> None:
    x = np.arange(40.0)
    line = Line(name="a", x=x, y=10.0 ** (-x / 8), style=palette.SERIES[0])
    rows = text(chart_rows(Picture(title="t", lines=(line,), log=True), 48, 22))[1:-1]
    columns = [min((c for c in range(8, len(row)) if row[c].strip()), default=None) for row in rows]
    found = [c for c in columns if c is not None]
    steps = np.diff(found)
    assert len(found) >= 18
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 2


def test_every_line_and_level_is_named_where_there_is_room() -> None:
    rows = text(chart_rows(picture(levels=(Level(name="simplex", value=0.05),)), 60, 14))
    assert "train" in rows[0]
    assert "test" in rows[0]
    flat = Line(name="flat", x=np.arange(5.0), y=np.ones(5), style=palette.SERIES[0])
    rows = text(chart_rows(Picture(title="t", lines=(flat,), levels=(Level(name="simplex", value=-0.1),)), 60, 14))
    assert any(row.endswith(" simplex") for row in rows)


def test_nothing_to_show_says_so() -> None:
    nothing = Line(name="a", x=np.arange(3.0), y=np.full(3, np.nan), style=palette.SERIES[0])
    for lines in ((), (nothing,)):
        rows = text(chart_rows(Picture(title="t", lines=lines), 40, 8))
        assert any("no window yet" in row for row in rows)


def test_a_log_axis_leaves_out_what_is_not_positive() -> None:
    line = Line(name="a", x=np.arange(4.0), y=np.array([1.0, 0.0, -2.0, 0.01]), style=palette.SERIES[0])
    rows = chart_rows(Picture(title="t", lines=(line,), log=True), 40, 8)
    assert len(rows) == 8


def test_a_new_point_changes_few_rows() -> None:
    def drawn(n: int) -> list[object]:
        x = np.arange(float(n))
        line = Line(name="a", x=x, y=10.0 ** (-x / 30), style=palette.SERIES[0])
        return list(chart_rows(Picture(title="t", lines=(line,), log=True, span=None), 60, 16))

    before, after = drawn(63), drawn(64)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 4


@given(st.lists(st.integers(0, 6), min_size=2, max_size=6), st.booleans())
def test_rows_that_stay_are_those_very_rows_and_a_chart_drawn_on_is_one_drawn_anew(
    kinds: list[int], ascii_only: bool
) -> None:
    before, columns = None, 60
    for kind in kinds:
        x = np.arange(40.0 + (kind == 6))
        changed = np.where(x == 20, 10.0 ** -(kind / 3), 10.0 ** (-x / 20))
        shown = Picture(
            title="NC1",
            lines=(Line(name="train", x=x, y=changed, style=palette.SERIES[kind == 1]),),
            levels=(Level(name="floor" if kind != 2 else "bound", value=0.5),),
            cursor=7.0 if kind == 3 else None,
            span=(0.0, 1.0 + (kind == 4)),
            log=kind == 5,
        )
        rows, plot = drawn(shown, columns, 14, ascii=ascii_only, before=before)
        assert rows == chart_rows(shown, columns, 14, ascii=ascii_only)
        again, _ = drawn(shown, columns, 14, ascii=ascii_only, before=(plot, rows) if plot is not None else None)
        assert all(one is other for one, other in zip(rows[1:-1], again[1:-1], strict=True))
        before = (plot, rows) if plot is not None else None
