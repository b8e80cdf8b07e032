"""Colours and glyphs. Colour never carries meaning alone: every state has a glyph, every line a pattern and a name."""

from __future__ import annotations

from rich.style import Style

from ncmon.feed import RunState, SourceState
from ncmon.tui.raster import DASHED, DOTTED, SOLID

# Okabe and Ito's colours, told apart by people with any form of colour blindness, on light and on dark.
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"

NULL = Style.null()
DIM = Style(dim=True)
BOLD = Style(bold=True)
REVERSE = Style(reverse=True)

SERIES = (Style(color=ORANGE), Style(color=SKY), Style(color=GREEN), Style(color=PURPLE))
PATTERNS = (SOLID, DASHED, DOTTED)
LEVEL = Style(dim=True)
BOUND = Style(color=VERMILION)

RUN_GLYPHS = {RunState.LIVE: "●", RunState.STALE: "!", RunState.ENDED: "○", RunState.FAILED: "x"}
RUN_STYLES = {
    RunState.LIVE: Style(color=GREEN, bold=True),
    RunState.STALE: Style(color=ORANGE, bold=True),
    RunState.ENDED: DIM,
    RunState.FAILED: Style(color=VERMILION, bold=True),
}
SOURCE_STYLES = {
    SourceState.LIVE: Style(color=GREEN, bold=True),
    SourceState.REPLAY: Style(color=SKY, bold=True),
    SourceState.DOWN: Style(color=VERMILION, bold=True),
}
SAMPLES = {SOLID: "⠤⠤", DASHED: "⠤ ", DOTTED: "┄┄"}
