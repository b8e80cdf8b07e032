"""Colours and glyphs. Colour never carries meaning alone: every state has a glyph, every line a pattern and a name.

Screens name the colours of the dark theme; `inked` turns a style into its like on the theme in use when a row is sent.
"""

from __future__ import annotations

from functools import lru_cache

from rich.color import Color
from rich.style import Style
from textual.theme import BUILTIN_THEMES, Theme

from ncmon.feed import RunState, SourceState
from ncmon.tui.raster import DASHED, DOTTED, SOLID

# Okabe and Ito's colours, told apart by people with any form of colour blindness.
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
YELLOW = "#F0E442"

NULL = Style.null()
DIM = Style(dim=True)
BOLD = Style(bold=True)
REVERSE = Style(reverse=True)
GOOD = Style(color=GREEN, bold=True)
WARN = Style(color=ORANGE, bold=True)
BAD = Style(color=VERMILION, bold=True)

SERIES = tuple(Style(color=color) for color in (ORANGE, SKY, GREEN, PURPLE, YELLOW, BLUE))
PATTERNS = (SOLID, DASHED, DOTTED)
LEVEL = Style(dim=True)
BOUND = Style(color=VERMILION)
CURSOR = Style(color=SKY, dim=True)

RUN_GLYPHS = {RunState.LIVE: "●", RunState.STALE: "!", RunState.ENDED: "○", RunState.FAILED: "x"}
RUN_STYLES = {
    RunState.LIVE: GOOD,
    RunState.STALE: WARN,
    RunState.ENDED: DIM,
    RunState.FAILED: BAD,
}
SOURCE_STYLES = {
    SourceState.LIVE: GOOD,
    SourceState.REPLAY: Style(color=SKY, bold=True),
    SourceState.DOWN: BAD,
    SourceState.STALE: WARN,
}
SOURCE_GLYPHS = {SourceState.LIVE: "●", SourceState.REPLAY: "○", SourceState.DOWN: "x", SourceState.STALE: "!"}
"""Of several targets beside each other, where colour alone would have to tell them apart."""
SAMPLES = {SOLID: "⠤⠤", DASHED: "⠤ ", DOTTED: "┄┄"}

SHOWING = ("underline", "underline2", "reverse", "strike", "frame", "encircle", "overline", "blink", "blink2")
"""Attributes that show on blanks."""

HEAT_LEVELS = 24
# Nunez, Anderton and Renslow 2018: even in lightness, and the same to colour-blind eyes.
_CIVIDIS = (
    "#00224E",
    "#123570",
    "#3B496C",
    "#575D6D",
    "#707173",
    "#8A8678",
    "#A59C74",
    "#C3B369",
    "#E1CC55",
    "#FEE838",
)

DARK, LIGHT, ANSI, MONO = "dark", "light", "ansi", "mono"
THEMES = (DARK, LIGHT, ANSI, MONO)
"""Our own; Textual's are there beside them."""

# On white the same hues, darker: each has at least 4.5 to 1 against it.
_ON_LIGHT = {
    ORANGE: "#8F5F00",
    SKY: "#0A6AA1",
    GREEN: "#006B4E",
    BLUE: "#0060A0",
    VERMILION: "#A84800",
    PURPLE: "#96466F",
    YELLOW: "#6E6800",
}
_ON_ANSI = {
    ORANGE: "yellow",
    SKY: "cyan",
    GREEN: "green",
    BLUE: "blue",
    VERMILION: "red",
    PURPLE: "magenta",
    YELLOW: "bright_yellow",
}


# The same the other way round, from nearly the ground of the light theme: its yellow would shout on white.
_ON_WHITE = (
    "#F4F1E4",
    "#E0DAC0",
    "#C9C08F",
    "#A59C74",
    "#8A8678",
    "#707173",
    "#575D6D",
    "#3B496C",
    "#123570",
    "#00224E",
)


def _ramp(colors: tuple[str, ...]) -> tuple[str, ...]:
    anchors = [Color.parse(color).get_truecolor() for color in colors]
    found = []
    for level in range(HEAT_LEVELS):
        at = level / (HEAT_LEVELS - 1) * (len(anchors) - 1)
        low = min(int(at), len(anchors) - 2)
        share = at - low
        parts = [round(a + (b - a) * share) for a, b in zip(anchors[low], anchors[low + 1], strict=True)]
        found.append("#" + "".join(f"{part:02X}" for part in parts))
    return tuple(found)


HEAT = _ramp(_CIVIDIS)
HEAT_ON_LIGHT = dict(zip(HEAT, _ramp(_ON_WHITE), strict=True))


@lru_cache(maxsize=2048)
def heat(level: int, below: int | None = None) -> Style:
    """Return the style of a heat map's cell, or of a half block over another one."""
    if below is None:
        return Style(bgcolor=HEAT[level])
    return Style(color=HEAT[level], bgcolor=HEAT[below])


@lru_cache(maxsize=64)
def ink(level: int) -> Style:
    """Return the style of a half cell with nothing on its other side."""
    return Style(color=HEAT[level])


@lru_cache(maxsize=8192)
def seen_on_blanks(style: Style) -> bool:
    """Return whether a style shows where there is no letter."""
    return style.bgcolor is not None or any(getattr(style, name) for name in SHOWING)


@lru_cache(maxsize=8192)
def inked(style: Style, kind: str) -> Style:
    """Return a style's like on a kind of theme."""
    if kind == DARK or (style.color is None and style.bgcolor is None):
        return style
    if kind == MONO:
        return style.without_color
    table = _ON_ANSI if kind == ANSI else _ON_LIGHT | HEAT_ON_LIGHT
    return Style.combine(
        [
            style,
            Style(color=_mapped(style.color, table), bgcolor=_mapped(style.bgcolor, table)),
        ]
    )


def _mapped(color: Color | None, table: dict[str, str]) -> str | Color | None:
    return None if color is None else table.get(color.name.upper(), color)


def themes() -> tuple[Theme, ...]:
    """Return our own themes."""
    return (
        Theme(
            name=DARK,
            primary=SKY,
            secondary=BLUE,
            accent=ORANGE,
            success=GREEN,
            warning=ORANGE,
            error=VERMILION,
            foreground="#D8D8D8",
            background="#101214",
            surface="#16191C",
            panel="#1C2024",
            dark=True,
        ),
        Theme(
            name=LIGHT,
            primary="#0A6AA1",
            secondary="#0060A0",
            accent="#8F5F00",
            success="#006B4E",
            warning="#8F5F00",
            error="#A84800",
            foreground="#1E2226",
            background="#FBFAF7",
            surface="#F3F1EC",
            panel="#ECE9E2",
            dark=False,
        ),
        Theme(**{**vars(BUILTIN_THEMES["ansi-dark"]), "name": ANSI}),
        Theme(
            name=MONO,
            primary="#C8C8C8",
            secondary="#A0A0A0",
            accent="#E8E8E8",
            success="#C8C8C8",
            warning="#E8E8E8",
            error="#FFFFFF",
            foreground="#D8D8D8",
            background="#101010",
            surface="#181818",
            panel="#202020",
            dark=True,
        ),
    )


def kind_of(theme: Theme) -> str:
    """Return which inks a theme takes."""
    if theme.name == MONO:
        return MONO
    if theme.ansi:
        return ANSI
    return DARK if theme.dark else LIGHT
