"""Sends of a row what changed, and of its styles what differs.

Textual 8.2.8 crops an update at its right end only: of a heat map whose last column changes it sends every column
again (a TODO in its `ChopsUpdate`). And it says foreground and background anew for every piece of text, forty bytes
each, be it a blank between two dots. Over ssh that is most of the traffic. This is the one place that replaces a
function of Textual's; a version that has no such function is left as it is.
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

_Codes = tuple[str, str, str, bool]
"""Attributes, foreground and background as SGR parameters, and whether a blank shows any of the first two."""

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
_SEEN_ON_BLANKS = ("underline", "underline2", "reverse", "strike", "frame", "encircle", "overline", "blink", "blink2")


def only_changes() -> None:
    """Let partial updates be sent by this module."""
    update = getattr(_compositor, "ChopsUpdate", None)
    if update is not None and hasattr(update, "render_segments") and hasattr(Strip, "crop"):
        update.render_segments = _render


def _render(update: _compositor.ChopsUpdate, console: Console) -> str:
    """Return an update as text for the terminal."""
    parts: list[str] = []
    colours = console._color_system
    for y, x1, x2 in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is None or x >= x2 or end <= x1:
                continue
            start, stop = max(x, x1), min(end, x2)
            parts.append(f"\x1b[{y + 1};{start + 1}H")
            parts.append(
                styled(list(strip) if (start, stop) == (x, end) else cropped(strip, start - x, stop - x), colours)
            )
    return "".join(parts)


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


def styled(segments: Iterable[Segment], colours: ColorSystem | None) -> str:
    """Return segments as text with escape sequences, which begins and ends with no style."""
    if colours is None:
        return "".join(segment.text for segment in segments)
    parts: list[str] = []
    now: _Codes = ("", "", "", False)
    for segment in segments:
        text, style = segment.text, segment.style
        if not text or segment.control:
            continue
        if style is not None and style.link:
            parts += ["\x1b[0m", style.render(text, color_system=colours)]
            now = ("", "", "", False)
            continue
        codes = _codes(style or Style.null(), colours)
        if text.isspace() and codes[2] == now[2] and not codes[3] and not now[3]:
            parts.append(text)
            continue
        parts.append(_switch(now, codes))
        parts.append(text)
        now = codes
    if now[:3] != ("", "", ""):
        parts.append("\x1b[0m")
    return "".join(parts)


def _switch(now: _Codes, codes: _Codes) -> str:
    """Return what leads from one style to another."""
    if now[:3] == codes[:3]:
        return ""
    if now[0] == codes[0]:
        changed = [new or "39" for old, new in ((now[1], codes[1]),) if old != new]
        changed += [new or "49" for old, new in ((now[2], codes[2]),) if old != new]
        return f"\x1b[{';'.join(changed)}m"
    return f"\x1b[{';'.join(['0', *filter(None, codes[:3])])}m"


@lru_cache(maxsize=4096)
def _codes(style: Style, colours: ColorSystem) -> _Codes:
    attributes = ";".join(code for name, code in _ATTRIBUTES if getattr(style, name))
    fore, back = style.color, style.bgcolor
    return (
        attributes,
        ";".join(fore.downgrade(colours).get_ansi_codes()) if fore is not None else "",
        ";".join(back.downgrade(colours).get_ansi_codes(foreground=False)) if back is not None else "",
        any(getattr(style, name) for name in _SEEN_ON_BLANKS),
    )
