"""What is drawn again: no more than what changed, and never less."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style

from ncmon.tui.widgets.lines import LONG_BLANK, Row, ascii_text, changed_part, changed_parts, joined

STYLES = (Style(color="red"), Style(bold=True), Style.null())
SHOWN = (*STYLES, Style(bgcolor="blue"), Style(reverse=True))
WIDTH = 12
rows = st.lists(st.tuples(st.text(alphabet="ab ▀", min_size=1, max_size=4), st.sampled_from(STYLES)), max_size=5).map(
    lambda spans: joined(tuple(spans))
)


def cells(row: Row) -> list[tuple[str, Style]]:
    found = [(character, style) for text, style in row for character in text]
    return (found + [(" ", Style.null())] * WIDTH)[:WIDTH]


@given(rows, rows)
def test_what_lies_outside_the_changed_part_is_the_same(old: Row, new: Row) -> None:
    start, end = changed_part(old, new, WIDTH)
    before, after = cells(old), cells(new)
    assert before[:start] == after[:start]
    assert before[end:] == after[end:]


@given(rows, rows, st.lists(st.tuples(st.sampled_from([" " * LONG_BLANK, " " * 30, "b"]), st.sampled_from(SHOWN))))
def test_what_lies_outside_the_changed_parts_looks_the_same(old: Row, new: Row, end: list[tuple[str, Style]]) -> None:
    room = 2 * WIDTH + sum(len(text) for text, _ in end)
    old, new = joined((*old, *end), room), joined((*new, *end), room)
    parts = changed_parts(old, new, room)
    assert parts == sorted(parts)
    inside = {x for low, high in parts for x in range(low, high)}
    for x, (one, other) in enumerate(zip(looks(old), looks(new), strict=True)):
        assert x in inside or one == other


def looks(row: Row) -> list[tuple[str, Style | None]]:
    """Return each letter with what is seen of its style."""
    bare = (Style(color="red"), Style(bold=True), Style.null())
    return [(letter, None if letter == " " and style in bare else style) for text, style in row for letter in text]


def test_long_blanks_that_stay_are_not_sent() -> None:
    plain, blue = Style.null(), Style(bgcolor="blue")
    old: Row = (("a" + " " * 30 + "b", plain),)
    assert changed_parts(old, (("c" + " " * 30 + "d", plain),), 32) == [(0, 1), (31, 32)]
    assert changed_parts(old, (("c" + " " * 15 + "x" + " " * 14 + "d", plain),), 32) == [(0, 32)]
    assert changed_parts(old, (("c", plain), (" " * 30, blue), ("d", plain)), 32) == [(0, 32)]
    assert changed_parts(None, old, 32) == [(0, 32)]
    assert changed_parts(old, old, 32) == []


def test_the_changed_part_is_small() -> None:
    plain, red = Style.null(), Style(color="red")
    old: Row = (("abc", plain), ("def", red), ("ghi", plain))
    assert changed_part(old, (("abc", plain), ("dXf", red), ("ghi", plain)), 9) == (4, 5)
    assert changed_part(old, (("abc", plain), ("def", plain), ("ghi", plain)), 9) == (3, 6)
    assert changed_part(old, old, 9) == (0, 0)
    assert changed_part(None, old, 9) == (0, 9)
    assert changed_part((("a日b", plain),), (("a日c", plain),), 9) == (0, 9)  # wide characters: the whole row


def test_neighbours_of_one_style_become_one() -> None:
    plain, red = Style.null(), Style(color="red")
    assert joined((("a", plain), ("", red), ("b", Style.null()), ("c", red))) == (("ab", plain), ("c", red))
    # Filled up, so that a row that grows differs where it grows.
    short, longer = joined((("a", plain),), 6), joined((("a", plain), ("b", red)), 6)
    assert "".join(text for text, _ in longer) == "ab    "
    assert changed_part(short, longer, 6) == (1, 2)


def test_every_glyph_has_a_letter() -> None:
    said = "●○▸◂▲▼…─│└┄┃·⠤▁▂▃▄▅▆▇█▌≥≤−"
    assert "?" not in ascii_text(said)
    assert len(ascii_text(said)) == len(said)
    assert ascii_text("日") == "??"
