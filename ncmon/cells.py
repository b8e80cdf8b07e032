"""Text from elsewhere in the cells of a terminal: names of runs, layers and classes may hold anything.

Nothing that moves a cursor or turns the direction of writing gets through. A Chinese letter takes two cells, a
combining mark none; whoever counts letters instead draws crooked columns.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MOST_MARKS = 2
"""Combining marks on one letter, as much as living scripts need: a tower of them is drawn over the lines above."""

_NO_CELL = ("Mn", "Me")
_ONE_EACH = re.compile("[ -~\u00a1-\u02ff\u2010-\u2027\u2030-\u205e\u2190-\u22ff\u2500-\u25fc\u2800-\u28ff\ufffd]*")
"""What screens are drawn with, all of it one cell wide: to look every letter up takes longer than to draw it."""


@lru_cache(maxsize=1024)
def printable(text: str) -> str:
    """Return a name without control characters, which could move a terminal's cursor, and without towers of marks."""
    if text.isascii() and text.isprintable():
        return text
    kept: list[str] = []
    marks = 0
    for letter in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(letter)
        if kind in _NO_CELL:
            marks += 1
            # A mark of its own would land on what stands before the name; a selector of emoji changes widths at will.
            if kept and marks <= MOST_MARKS and not 0xFE00 <= ord(letter) <= 0xFE0F:
                kept.append(letter)
            continue
        marks = 0
        kept.append(" " if kind == "Zs" else letter if letter.isprintable() else "�")
    return "".join(kept)


def width(text: str) -> int:
    """Return how many cells a text takes."""
    return len(text) if _ONE_EACH.fullmatch(text) else sum(map(_cells, text))


def cut(text: str, room: int) -> str:
    """Return as much of the text's beginning as has room."""
    if _ONE_EACH.fullmatch(text):
        return text[: max(room, 0)]
    for place, letter in enumerate(text):
        room -= _cells(letter)
        if room < 0:
            return text[:place]
    return text


def fit(text: str, room: int) -> str:
    """Cut a text to a width in cells, with a mark where something is missing, and fill it up."""
    text = printable(text)
    missing = room - width(text)
    if missing >= 0:
        return text + " " * missing
    part = cut(text, room - 1)
    return (part + "…" + " " * (room - 1 - width(part))) if room > 0 else ""


def middle(text: str, room: int) -> str:
    """Return a text that fits, what is too much cut out of its middle: runs of a sweep differ at the ends of names."""
    text = printable(text)
    if width(text) <= room:
        return text
    if room < 2:
        return "…"[: max(room, 0)]
    head = cut(text, (room - 1) // 2)
    left, place = room - 1 - width(head), len(text)
    # From the end: a name may have ten thousand letters.
    while place > len(head) and (left := left - _cells(text[place - 1])) >= 0:
        place -= 1
    while place < len(text) and not _cells(text[place]):
        place += 1  # a mark without its letter
    return f"{head}…{text[place:]}"


def lanes(text: str) -> list[str]:
    """Return what stands in each cell; the second one of a wide letter is empty."""
    found: list[str] = []
    for letter in text:
        cells = _cells(letter)
        if cells:
            found += [letter, ""][:cells]
        elif found:
            found[-1 if found[-1] else -2] += letter
    return found


def _cells(letter: str) -> int:
    if unicodedata.category(letter) in _NO_CELL:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
