"""What is sent shows the same cells as what Textual would send, in fewer bytes."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ncmon.tui.sending import Pen

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


OFF = {"22": "12", "23": "3", "24": "4", "25": "56", "27": "7", "29": "9"}


def cells(sent: str) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Return each cell with what a terminal shows there: a small terminal of our own."""
    found: dict[tuple[int, int], tuple[Any, ...]] = {}
    attributes: set[str] = set()
    colours: dict[str, str] = {"fore": "", "back": ""}
    y = x = 1
    for sequence, end, letter in re.findall(r"\x1b\[([\d;]*)([mCH])|([^\x1b])", sent):
        if letter:
            seen = attributes & {"4", "7"} if letter == " " else attributes
            fore = colours["fore"] if letter != " " or seen else ""
            found[y, x] = (letter, frozenset(seen), fore, colours["back"])
            x += 1
            continue
        codes = (sequence or "0").split(";")
        if end == "C":
            x += int(codes[0])
        elif end == "H":
            y, x = map(int, codes)
        while codes and end == "m":
            code = codes.pop(0)
            if code == "0":
                attributes, colours = set(), {"fore": "", "back": ""}
            elif code in ("38", "48"):
                take = 4 if codes[0] == "2" else 2
                colours["fore" if code == "38" else "back"] = ";".join([code, *codes[:take]])
                codes = codes[take:]
            elif code in ("39", "49"):
                colours["fore" if code == "39" else "back"] = ""
            elif code in OFF:
                attributes -= set(OFF[code])
            elif len(code) >= 2:
                colours["fore" if code[0] in "39" else "back"] = code  # 3x and 9x, 4x and 10x
            else:
                attributes.add(code)
    assert not attributes
    assert not any(colours.values())
    return found


def written(colours: ColorSystem | None, *strips: Strip) -> str:
    """Return strips as they are sent, one a row."""
    pen = Pen(colours)
    for y, strip in enumerate(strips):
        pen.write(y, 3, strip)
    return pen.sent()


@settings(max_examples=60)
@given(
    st.lists(STRIPS, min_size=1, max_size=3),
    st.sampled_from([ColorSystem.TRUECOLOR, ColorSystem.EIGHT_BIT, ColorSystem.STANDARD]),
)
def test_the_cells_are_the_same(strips: list[Strip], colours: ColorSystem) -> None:
    theirs = ""
    for y, strip in enumerate(strips):
        parts = [(segment.style or Style.null()).render(segment.text, color_system=colours) for segment in strip]
        theirs += f"\x1b[{y + 1};4H" + "".join(parts)
    ours = written(colours, *strips)
    assert cells(ours) == cells(theirs)
    assert len(ours) <= len(theirs) + 4


def test_without_colours_it_is_the_text() -> None:
    strip = Strip([Segment("a", Style(color="red")), Segment(" b", Style())])
    assert written(None, strip) == "\x1b[1;4Ha b"


def test_a_blank_between_two_dots_costs_one_byte() -> None:
    dots, dim = Style(color="#E69F00", bgcolor="#101214"), Style(dim=False, color="#949494", bgcolor="#101214")
    strip = Strip([Segment("⠤", dots), Segment(" ", dim), Segment("⠤", dots)])
    assert written(ColorSystem.TRUECOLOR, strip) == "\x1b[1;4H\x1b[38;2;230;159;0;48;2;16;18;20m⠤ ⠤\x1b[0m"


def test_a_style_is_said_once_for_rows_that_share_it() -> None:
    one, other = Style(color="#102030", bold=True), Style(color="#405060")
    strip = Strip([Segment("a", one), Segment("b", other), Segment("c", one), Segment("d", other)])
    sent = written(ColorSystem.TRUECOLOR, strip, strip)
    # Each style once, one after the other, and the second row begins with the one that is there.
    first, second = "\x1b[1;38;2;16;32;48m", "\x1b[0;38;2;64;80;96m"
    assert sent == (
        f"{first}\x1b[1;4Ha\x1b[1Cc{second}\x1b[1;5Hb\x1b[1Cd\x1b[2;5Hb\x1b[1Cd{first}\x1b[2;4Ha\x1b[1Cc\x1b[0m"
    )


def test_wide_letters_and_links_are_written_from_left_to_right() -> None:
    one, other = Style(color="red"), Style(color="blue")
    strip = Strip([Segment("日", one), Segment("b", other), Segment("語", one), Segment("d", other)])
    sent = re.sub(r"\x1b\[[\d;]*m", "", written(ColorSystem.STANDARD, strip))
    assert sent == "\x1b[1;4H日b語d"
    linked = Strip([Segment("a", one), Segment("b", Style(link="https://x.org")), Segment("c", one)])
    sent = written(ColorSystem.STANDARD, linked)
    assert "https://x.org" in sent
    assert re.sub(r"\x1b(\[[\d;]*m|\]8;[^\x1b]*\x1b\\)", "", sent) == "\x1b[1;4Habc"
