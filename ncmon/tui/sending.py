"""Sends of a row what changed, and of its styles what differs.

Textual 8.2.8 crops an update at its right end only: of a heat map whose last column changes it sends every column
again (a TODO in its `ChopsUpdate`). And it says foreground and background anew for every piece of text, forty bytes
each, be it a blank between two dots. Over ssh that is most of the traffic. This is the one place that replaces a
function of Textual's; a version that has no such function is left as it is.

A pen goes through an update and remembers its style from row to row. Of a row whose styles alternate, as two lines of
a chart do, it writes one style after the other: to step over some cells takes four bytes, to change the colour twenty.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual import _compositor
from textual.strip import Strip

from ncmon.cells import width as cell_width
from ncmon.tui.palette import SHOWING

_Codes = tuple[str, str, str, bool]
"""Attributes, foreground and background as SGR parameters, and whether a blank shows any of the first two."""

_Piece = tuple[int, str, _Codes, Style | None]
"""Where it begins, its text and codes, and its style where it is a link."""

_PLAIN: _Codes = ("", "", "", False)
_NULL = Style.null()

_ATTRIBUTES = (
    ("bold", "1"),
    ("dim", "2"),
    ("italic", "3"),
    ("underline", "4"),
    ("blink", "5"),
    ("blink2", "6"),
    ("reverse", "7"),
    ("conceal", "8"),
    ("strike", "9"),
    ("underline2", "21"),
    ("frame", "51"),
    ("encircle", "52"),
    ("overline", "53"),
)
_OFF = {
    "1": "22",
    "2": "22",
    "3": "23",
    "4": "24",
    "5": "25",
    "6": "25",
    "7": "27",
    "8": "28",
    "9": "29",
    "21": "24",
    "51": "54",
    "52": "54",
    "53": "55",
}
"""What ends an attribute; some end two."""


def only_changes() -> None:
    """Let partial updates be sent by this module."""
    update = getattr(_compositor, "ChopsUpdate", None)
    if update is not None and hasattr(update, "render_segments") and hasattr(Strip, "crop"):
        update.render_segments = _render


def _render(update: _compositor.ChopsUpdate, console: Console) -> str:
    """Return an update as text for the terminal."""
    pen = Pen(console._color_system)
    for y, x1, x2 in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is None or x >= x2 or end <= x1:
                continue
            start, stop = max(x, x1), min(end, x2)
            inside = list(strip) if (start, stop) == (x, end) else cropped(strip, start - x, stop - x)
            pen.write(y, start, inside)
    return pen.sent()


def cropped(strip: Strip, start: int, stop: int) -> list[Segment]:
    """Return the segments of some cells of a strip. A strip of its own would make ten caches first."""
    if any(cell_width(segment.text) != len(segment.text) for segment in strip):
        return list(strip.crop(start, stop))
    found: list[Segment] = []
    at = 0
    for segment in strip:
        text = segment.text
        end = at + len(text)
        if end > start and at < stop:
            inside = start <= at and end <= stop
            found.append(segment if inside else Segment(text[max(start - at, 0) : stop - at], segment.style))
        at = end
    return found


class Pen:
    """Writes pieces of rows, each where it belongs; begins and ends with no style."""

    def __init__(self, colours: ColorSystem | None) -> None:
        self._colours = colours
        self._now = _PLAIN
        self._parts: list[str] = []

    def sent(self) -> str:
        """Return all that was written."""
        if self._now[:3] != _PLAIN[:3]:
            self._parts.append("\x1b[0m")
            self._now = _PLAIN
        return "".join(self._parts)

    def write(self, y: int, x: int, segments: Iterable[Segment]) -> None:
        """Write segments from a cell on."""
        if self._colours is None:
            self._parts += [_at(y, x), *(segment.text for segment in segments)]
            return
        pieces: list[_Piece] = []
        end, simple = x, True
        for segment in segments:
            text, style = segment.text, segment.style or _NULL
            if not text or segment.control:
                continue
            codes, link = _codes(style, self._colours), style if style.link else None
            start, length = end, cell_width(text)
            end += length
            simple = simple and length == len(text) and link is None
            before = pieces[-1][2] if pieces else self._now
            # A blank shows no ink: it goes with what stands before it.
            unseen = codes[2] == before[2] and not (codes[3] or before[3]) and text.isspace()
            if link is None and (unseen or codes[:3] == before[:3]):
                codes = before
                if pieces and pieces[-1][3] is None:
                    start, so_far, _, _ = pieces.pop()
                    text = so_far + text
            pieces.append((start, text, codes, link))
        if simple and len(pieces) > 2:
            self._sorted(y, x, pieces)
        else:
            self._straight(y, x, pieces)

    def _straight(self, y: int, x: int, pieces: Iterable[_Piece]) -> None:
        """Write pieces from left to right."""
        self._parts.append(_at(y, x))
        for _, text, codes, link in pieces:
            if link is not None:
                self._parts += ["\x1b[0m", link.render(text, color_system=self._colours)]
                self._now = _PLAIN
                continue
            self._parts += [_switch(self._now[:3], codes[:3]), text]
            self._now = codes

    def _sorted(self, y: int, x: int, pieces: list[_Piece]) -> None:
        """Write pieces style by style, where that takes fewer bytes; the style that is there is the first."""
        groups: dict[tuple[str, str, str], list[_Piece]] = {}
        if any(piece[2][:3] == self._now[:3] for piece in pieces):
            groups[self._now[:3]] = []
        for piece in pieces:
            groups.setdefault(piece[2][:3], []).append(piece)
        if len(groups) == len(pieces):
            self._straight(y, x, pieces)
            return
        parts: list[str] = []
        now, at = self._now[:3], -1
        for codes, group in groups.items():
            parts.append(_switch(now, codes))
            now = codes
            for start, text, _, _ in group:
                if start != at:
                    parts.append(f"\x1b[{start - at}C" if start > at >= 0 else _at(y, start))
                parts.append(text)
                at = start + len(text)
        switches, before = len(_at(y, x)), self._now[:3]
        for _, text, codes_now, _ in pieces:
            switches += len(_switch(before, codes_now[:3])) + len(text)
            before = codes_now[:3]
        if sum(map(len, parts)) < switches:
            self._parts += parts
            self._now = next(reversed(groups.values()))[-1][2]
        else:
            self._straight(y, x, pieces)


def _at(y: int, x: int) -> str:
    return f"\x1b[{y + 1};{x + 1}H"


@lru_cache(maxsize=4096)
def _switch(now: tuple[str, str, str], codes: tuple[str, str, str]) -> str:
    """Return what leads from one style to another: what differs, or all of it after a reset if that is shorter."""
    if now == codes:
        return ""
    had, has = now[0].split(";") if now[0] else [], codes[0].split(";") if codes[0] else []
    off = list(dict.fromkeys(_OFF[code] for code in had if code not in has))
    # What one code ends for two attributes begins again for the one that stays.
    on = [code for code in has if code not in had or _OFF[code] in off]
    changed = [*off, *on]
    changed += [new or "39" for old, new in ((now[1], codes[1]),) if old != new]
    changed += [new or "49" for old, new in ((now[2], codes[2]),) if old != new]
    reset = ["0", *filter(None, codes)]
    return f"\x1b[{min(';'.join(changed), ';'.join(reset), key=len)}m"


@lru_cache(maxsize=4096)
def _codes(style: Style, colours: ColorSystem) -> _Codes:
    attributes = ";".join(code for name, code in _ATTRIBUTES if getattr(style, name))
    fore, back = style.color, style.bgcolor
    return (
        attributes,
        ";".join(fore.downgrade(colours).get_ansi_codes()) if fore is not None else "",
        ";".join(back.downgrade(colours).get_ansi_codes(foreground=False)) if back is not None else "",
        any(getattr(style, name) for name in SHOWING),
    )
