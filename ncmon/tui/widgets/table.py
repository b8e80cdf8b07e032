"""A table with a cursor: only the rows in sight are made, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from ncmon.tui import palette
from ncmon.tui.format import fit
from ncmon.tui.widgets.lines import Lines, Row, Span

Cell = tuple[str, Style]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column. Where there is no room for all, those of the highest rank go first."""

    title: str
    width: int
    rank: int = 0
    right: bool = True
    grows: bool = False
    """Whether it takes the room that is left; so it is cut where there is too little."""
    most: int = 1_000
    """Up to which width: names far from their numbers are hard to read across."""


class Table(Lines, can_focus=True):
    """Rows with a cursor; the cursor stays on its row's key while rows come and go."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("g,home", "edge(0)", "first", show=False),
        Binding("G,end", "edge(-1)", "last", show=False),
        Binding("enter", "choose", "choose", show=False),
    ]

    class Moved(Message):
        """The cursor is on another row."""

        def __init__(self, table: Table, key: Hashable) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> Table:
            """The table, for `on(..., "#id")`."""
            return self.table

    class Chosen(Moved):
        """A row was chosen."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.empty: Sequence[str] = ()
        self._columns: Sequence[Column] = ()
        self._keys: Sequence[Hashable] = ()
        self._row: Callable[[int], Sequence[Cell]] = lambda place: ()
        self._cursor: Hashable = None
        self._top = 0

    def show(
        self,
        columns: Sequence[Column],
        keys: Sequence[Hashable],
        row: Callable[[int], Sequence[Cell]],
        *,
        cursor: Hashable = None,
    ) -> None:
        """Show the rows of these keys; `row` makes the cells of one, by its place."""
        self._columns, self._keys, self._row = columns, keys, row
        if cursor is not None:
            self._cursor = cursor
        self.redraw()

    @property
    def place(self) -> int:
        """Where the cursor is."""
        try:
            return self._keys.index(self._cursor)
        except ValueError:
            return 0

    @property
    def cursor(self) -> Hashable:
        """The key under the cursor, None in an empty table."""
        return self._keys[self.place] if self._keys else None

    def go(self, place: int) -> None:
        """Move the cursor to a row."""
        if self._keys:
            self._cursor = self._keys[min(max(place, 0), len(self._keys) - 1)]
            self.redraw()
            self.post_message(self.Moved(self, self._cursor))

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.go(self.place + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by a page."""
        self.go(self.place + by * max(self.size.height - 2, 1))

    def action_edge(self, place: int) -> None:
        """Go to the first (0) or last (-1) row."""
        self.go(place if place >= 0 else len(self._keys) - 1)

    def action_choose(self) -> None:
        """Choose the row under the cursor."""
        if self._keys:
            self.post_message(self.Chosen(self, self.cursor))

    def on_click(self, event: events.Click) -> None:
        """Go to the row that was clicked; choose it where the cursor is there already."""
        place = self._top + event.y - 1
        if event.y >= 1 and 0 <= place < len(self._keys):
            if place == self.place and event.chain >= 2:
                self.action_choose()
            else:
                self.go(place)

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return the heading and the rows in sight."""
        shown, widths = fitted(self._columns, width - 2)
        heading = "  " + " ".join(_padded(self._columns[i].title, w, self._columns[i]) for i, w in widths)
        rows: list[Row] = [((heading[:width], palette.DIM),)]
        if not self._keys:
            return [
                *rows,
                *(((f"  {line}"[:width], palette.NULL if i else palette.BOLD),) for i, line in enumerate(self.empty)),
            ]
        visible, cursor = max(height - 1, 1), self.place
        self._top = min(max(self._top, cursor - visible + 1), cursor)
        self._top = max(0, min(self._top, len(self._keys) - visible))
        for place in range(self._top, min(self._top + visible, len(self._keys))):
            cells = self._row(place)
            here = place == cursor
            spans: list[Span] = [("▸ ", palette.BOLD) if here else ("  ", palette.NULL)]
            for number, (i, room) in enumerate(widths):
                text, style = cells[i]
                gap = "" if number == 0 else " "
                spans.append((gap + _padded(text, room, self._columns[i]), style + palette.BOLD if here else style))
            rows.append(tuple(spans))
        if not shown:
            return rows[:height]
        return rows


def fitted(columns: Sequence[Column], width: int) -> tuple[set[int], list[tuple[int, int]]]:
    """Return which columns fit into a width, and each one's place and width, in their order."""
    left = width
    chosen: set[int] = set()
    for i in sorted(range(len(columns)), key=lambda i: (columns[i].rank, i)):
        need = columns[i].width + (1 if chosen else 0)
        if left >= need or not chosen:
            chosen.add(i)
            left -= need
    growing = [i for i in sorted(chosen) if columns[i].grows]
    widths = {i: columns[i].width for i in chosen}
    for number, i in enumerate(growing):
        more = max(left, 0) // len(growing) + (1 if number < max(left, 0) % len(growing) else 0)
        widths[i] = max(min(widths[i] + more, columns[i].most), widths[i])
    return chosen, [(i, max(min(widths[i], max(width, 1)), 1)) for i in sorted(chosen)]


def _padded(text: str, width: int, column: Column) -> str:
    kept = fit(text, width)
    return kept.rstrip().rjust(width) if column.right else kept
