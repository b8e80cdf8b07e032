"""What is sent shows the same cells as what Textual would send, in fewer bytes."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ncmon.tui.sending import styled

STYLES = st.builds(
    Style,
    color=st.sampled_from([None, "red", "#102030", "color(7)", "default"]),
    bgcolor=st.sampled_from([None, "blue", "#304050", "default"]),
    bold=st.booleans(),
    dim=st.booleans(),
    reverse=st.booleans(),
    underline=st.booleans(),
)
STRIPS = st.lists(st.tuples(st.sampled_from(["a", " ", "   ", "⠤⠤", "  x "]), STYLES), max_size=8).map(
    lambda parts: Strip([Segment(text, style) for text, style in parts])
)


def cells(sent: str) -> list[tuple[Any, ...]]:
    """Return each letter with what a terminal shows of its style: a small terminal of our own."""
    found: list[tuple[Any, ...]] = []
    attributes: set[str] = set()
    colours: dict[str, str] = {"fore": "", "back": ""}
    for sequence, letter in re.findall(r"\x1b\[([\d;]*)m|([^\x1b])", sent):
        if letter:
            seen = attributes & {"4", "7"} if letter == " " else attributes
            fore = colours["fore"] if letter != " " or seen else ""
            found.append((letter, frozenset(seen), fore, colours["back"]))
            continue
        codes = (sequence or "0").split(";")
        while codes:
            code = codes.pop(0)
            if code == "0":
                attributes, colours = set(), {"fore": "", "back": ""}
            elif code in ("38", "48"):
                take = 4 if codes[0] == "2" else 2
                colours["fore" if code == "38" else "back"] = ";".join([code, *codes[:take]])
                codes = codes[take:]
            elif code in ("39", "49"):
                colours["fore" if code == "39" else "back"] = ""
            elif len(code) == 2:
                colours["fore" if code[0] in "39" else "back"] = code
            else:
                attributes.add(code)
    assert not attributes
    assert not any(colours.values())
    return found


@given(STRIPS, st.sampled_from([ColorSystem.TRUECOLOR, ColorSystem.EIGHT_BIT, ColorSystem.STANDARD]))
def test_the_cells_are_the_same(strip: Strip, colours: ColorSystem) -> None:
    parts = [(segment.style or Style.null()).render(segment.text, color_system=colours) for segment in strip]
    ours, theirs = styled(strip, colours), "".join(parts)
    assert cells(ours) == cells(theirs)
    assert len(ours) <= len(theirs) + 4


def test_without_colours_it_is_the_text() -> None:
    assert styled(Strip([Segment("a", Style(color="red")), Segment(" b", Style())]), None) == "a b"


def test_a_blank_between_two_dots_costs_one_byte() -> None:
    dots, dim = Style(color="#E69F00", bgcolor="#101214"), Style(dim=False, color="#949494", bgcolor="#101214")
    strip = Strip([Segment("⠤", dots), Segment(" ", dim), Segment("⠤", dots)])
    assert styled(strip, ColorSystem.TRUECOLOR) == "\x1b[38;2;230;159;0;48;2;16;18;20m⠤ ⠤\x1b[0m"
