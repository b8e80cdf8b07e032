"""Single rows and small panels of text."""

from __future__ import annotations

from collections.abc import Sequence

from ncmon.tui import palette
from ncmon.tui.widgets.lines import Lines, Row


class Text(Lines):
    """Shows the rows that it was given last."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._given: Sequence[Row] = ()
        self._more = ""

    def show(self, rows: Sequence[Row], *, more: str = "") -> None:
        """Show these rows; `more` stands in the last line where not all of them have room."""
        self._given, self._more = tuple(rows), more
        self.redraw()

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return them; the widget cuts them to its size."""
        if self._more and len(self._given) > height > 1:
            return (*self._given[: height - 1], ((self._more, palette.DIM),))
        return self._given
