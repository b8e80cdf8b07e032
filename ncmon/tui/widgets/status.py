"""Single rows and small panels of text."""

from __future__ import annotations

from collections.abc import Sequence

from ncmon.tui.widgets.lines import Lines, Row


class Text(Lines):
    """Shows the rows that it was given last."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._given: Sequence[Row] = ()

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows."""
        self._given = tuple(rows)
        self.redraw()

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return them; the widget cuts them to its size."""
        return self._given
