"""The table: what fits, where the cursor is, and that a hundred thousand rows cost no more than a screenful."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from ncmon.tui import palette
from ncmon.tui.widgets.table import Column, Table, fitted

COLUMNS = (
    Column(title="NAME", width=6, right=False, grows=True),
    Column(title="A", width=5, rank=1),
    Column(title="B", width=8, rank=2),
)


@given(st.integers(0, 60))
def test_columns_fit_or_the_last_in_rank_go(width: int) -> None:
    shown, widths = fitted(COLUMNS, width)
    assert 0 in shown
    assert sum(w for _, w in widths) + len(widths) - 1 <= max(width, 1)
    if width >= 21:
        assert shown == {0, 1, 2}
        assert sum(w for _, w in widths) + 2 == width  # the growing one takes what is left
    if 12 <= width < 21:
        assert shown == {0, 1}


@given(st.integers(0, 120))
def test_a_column_grows_up_to_its_most_and_the_rest_stays_free(width: int) -> None:
    columns = (Column(title="NAME", width=6, grows=True, most=24), Column(title="B", width=8, grows=True))
    widths = dict(fitted(columns, width)[1])
    assert widths[0] <= 24
    if width >= 15:
        assert widths[1] == 8 + (width - 15) // 2
        assert widths[0] == min(6 + (width - 15) - (width - 15) // 2, 24)


class Stage(App[None]):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.keys = list(range(size))
        self.said: list[object] = []

    def compose(self) -> ComposeResult:
        yield Table(id="t")

    def on_mount(self) -> None:
        self.query_one(Table).focus()

    def row(self, place: int) -> list[tuple[str, object]]:
        self.asked.append(place)
        return [(f"row{self.keys[place]}", palette.NULL), ("1", palette.NULL), ("2", palette.NULL)]

    def on_table_moved(self, message: Table.Moved) -> None:
        self.said.append(message.key)

    def on_table_chosen(self, message: Table.Chosen) -> None:
        self.said.append(("chosen", message.key))


async def test_only_rows_in_sight_are_made_and_keys_move_the_cursor() -> None:
    app = Stage(100_000)
    async with app.run_test(size=(40, 11)) as pilot:
        table = app.query_one(Table)
        table.show(COLUMNS, app.keys, app.row)  # type: ignore[arg-type]
        await pilot.pause()
        assert set(app.asked) == set(range(10))
        await pilot.press("j", "j", "k")
        assert table.cursor == 1
        await pilot.press("G")
        assert table.cursor == 99_999
        await pilot.press("g", "pagedown")
        assert table.cursor == 9
        await pilot.press("enter")
        assert app.said[-1] == ("chosen", 9)
        await pilot.click(Table, offset=(3, 2))
        assert table.cursor == table._top + 1
        assert len(app.asked) < 300


async def test_the_cursor_stays_on_its_row_when_others_come() -> None:
    app = Stage(10)
    async with app.run_test(size=(40, 8)) as pilot:
        table = app.query_one(Table)
        table.show(COLUMNS, app.keys, app.row)  # type: ignore[arg-type]
        await pilot.press("j", "j")
        app.keys = [100, 101, *app.keys]
        table.show(COLUMNS, app.keys, app.row)  # type: ignore[arg-type]
        assert table.cursor == 2
        assert table.place == 4
        table.show(COLUMNS, [], app.row)  # type: ignore[arg-type]
        assert table.cursor is None
        with pytest.raises(IndexError):
            _ = table._keys[0]
