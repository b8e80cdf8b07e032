"""The last line: the screens, and the keys of the one in sight. A click does what the key does."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events

from ncmon.tui import palette
from ncmon.tui.widgets.lines import Lines, Row, Span

Hint = tuple[str, str]
"""A key as people read it, and what it does in a word. The first character of the key is the one a click presses."""

TABS: tuple[tuple[str, str, str], ...] = (
    ("1", "Over", "overview"),
    ("2", "Run", "run"),
    ("3", "Layer", "layers"),
    ("4", "Class", "classes"),
    ("5", "Bound", "bounds"),
    ("6", "Comp", "compare"),
    ("7", "Alert", "alerts"),
)
KEYS = {
    "?": "question_mark",
    "[": "left_square_bracket",
    "{": "left_curly_bracket",
    "/": "slash",
    ",": "comma",
    "+": "plus",
    "*": "asterisk",
    "↵": "enter",
    "⎵": "space",
    "space": "space",
    "enter": "enter",
}


class Foot(Lines):
    """Tabs and hints."""

    def __init__(self, here: str, hints: Sequence[Hint]) -> None:
        super().__init__(id="foot")
        self._here = here
        self._hints = (*hints, ("?", "help"))
        self._targets: list[tuple[int, int, str]] = []

    def on_mount(self) -> None:
        """Draw; nothing else ever changes it but the size."""
        self.redraw()

    def compose_rows(self, width: int, height: int) -> Sequence[Row]:
        """Return the line: hints that have no room are left out, help is the last to go."""
        spans: list[Span] = []
        targets: list[tuple[int, int, str]] = []
        at = 0

        def add(text: str, span_style: object, key: str = "") -> None:
            nonlocal at
            spans.append((text, span_style))  # type: ignore[arg-type]
            if key:
                targets.append((at, at + len(text), key))
            at += len(text)

        full = sum(len(number) + len(name) + 1 for number, name, _ in TABS)
        short = width < full + 10
        add(" ", palette.NULL)
        for number, name, screen in TABS:
            here = screen == self._here
            text = number if short and not here else f"{number}{name}"
            add(text, palette.REVERSE if here else palette.DIM, number)
            add(" ", palette.NULL)
        room = width - at - 2
        chosen: list[Hint] = []
        for hint in (self._hints[-1], *self._hints[:-1]):
            need = len(hint[0]) + len(hint[1]) + 3
            if need <= room:
                chosen.append(hint)
                room -= need
        if chosen:
            add("│ ", palette.DIM)
        for key, what in (*chosen[1:], *chosen[:1]):
            pressed = KEYS.get(key, KEYS.get(key[0], key[0]))
            add(key, palette.BOLD, pressed)
            add(f" {what}  ", palette.DIM, pressed)
        self._targets = targets
        return [tuple(spans)]

    async def on_click(self, event: events.Click) -> None:
        """Press the key that was clicked."""
        for start, end, key in self._targets:
            if start <= event.x < end:
                self.app.simulate_key(key)
                return
