"""Help: the keys, and what every number means, searchable."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text as RichText
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.keys import format_key
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ncmon.alerts import RULES
from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS
from ncmon.tui.keys import NcmonKeys
from ncmon.tui.screens.alerts import AlertsScreen
from ncmon.tui.screens.bounds import BoundsScreen
from ncmon.tui.screens.classes import ClassesScreen
from ncmon.tui.screens.compare import CompareScreen
from ncmon.tui.screens.layers import LayersScreen
from ncmon.tui.screens.overview import OverviewScreen
from ncmon.tui.screens.run import RunScreen
from ncmon.tui.widgets.lines import ascii_text
from ncmon.tui.widgets.table import Table

QUESTIONS = (
    ("1", "Which runs are alive?", "● live, ! silent for too long, ○ ended, x failed"),
    ("2", "Is the network collapsing?", "NC1 falls, intra rises to 1, inter falls to the simplex, loss to its floor"),
    ("3", "In which layer does it start?", "where the map turns to the collapsed end; the effective depth is below it"),
    ("4", "Which classes lag, and with whom?", "worst first; NEAREST is whom a class is confused with"),
    ("5", "What is guaranteed?", "MEASURED beside BOUND: a guarantee at frozen weights, else an estimate"),
    ("6", "How do runs differ?", "one metric in one chart; space marks runs on 1, * is the baseline"),
    ("7", "What should I look at?", "what the rules raised; enter goes there, A acknowledges, { } from anywhere"),
)
SCREENS = (
    ("Overview", OverviewScreen),
    ("Run", RunScreen),
    ("Layers", LayersScreen),
    ("Classes", ClassesScreen),
    ("Bounds", BoundsScreen),
    ("Compare", CompareScreen),
    ("Alerts", AlertsScreen),
    ("Lists", Table),
)


def keys_of(place: type[DOMNode]) -> list[tuple[str, str]]:
    """Return the keys of a screen or widget as people read them, and what they do."""
    found: dict[str, list[str]] = {}
    for kind in place.__mro__:
        if kind is not place and kind.__module__.startswith("textual"):
            continue
        for binding in kind.__dict__.get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.description:
                shown = [format_key(key.strip()) for key in binding.key.split(",")]
                found.setdefault(binding.description, []).extend(shown)
    return [(" ".join(dict.fromkeys(keys)), what) for what, keys in found.items()]


class HelpScreen(ModalScreen[None]):
    """Keys and glossary."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1", "close", "Close"),
        Binding("down", "scroll(1)", "down", show=False),
        Binding("up", "scroll(-1)", "up", show=False),
        Binding("pagedown", "scroll(10)", "page down", show=False),
        Binding("pageup", "scroll(-10)", "page up", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with VerticalScroll(id="help"):
            yield Input(placeholder="search keys and metrics; Esc closes", id="search")
            yield Static(id="entries")

    def on_mount(self) -> None:
        """Begin with everything."""
        self.query_one("#help", VerticalScroll).can_focus = False
        self._show("")
        field = self.query_one(Input)
        field.cursor_blink = False  # Blinking sends bytes for ever.
        field.focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        """Search while typing."""
        self._show(message.value)

    def _show(self, search: str) -> None:
        ascii_only = bool(getattr(self.app, "ascii_only", False))
        self.query_one("#entries", Static).update(entries(search, ascii=ascii_only))

    def action_scroll(self, by: int) -> None:
        """Scroll by lines."""
        self.query_one("#help", VerticalScroll).scroll_relative(y=by, animate=False)

    def action_close(self) -> None:
        """Close the help."""
        self.dismiss()


def _below(text: str, style: str = "") -> RenderableType:
    """Return a text that belongs to the line above it, and stays behind its beginning where it takes several lines."""
    return Padding(RichText(text, style=style), (0, 0, 0, 6))


def entries(search: str, *, ascii: bool = False) -> Group:
    """Return the keys and the metrics that contain every word of `search`."""
    words = search.lower().split()

    def matches(*texts: str) -> bool:
        text = " ".join(texts).lower()
        return all(word in text for word in words)

    lines: list[RenderableType] = []
    if not words:
        lines.append(RichText("What to look at", style="bold"))
        for key, ask, say in QUESTIONS:
            said = ascii_text(say) if ascii else say
            lines += [RichText.assemble((f"  {key} ", "bold"), ask), _below(said, "dim")]
        lines.append(RichText(""))
    everywhere = keys_of(NcmonKeys)
    for heading, place in (("Keys", NcmonKeys), *SCREENS):
        known = everywhere if place is NcmonKeys else [pair for pair in keys_of(place) if pair not in everywhere]
        keys = [(key, what) for key, what in known if matches(key, what, heading)]
        if keys:
            lines.append(RichText(heading if place is NcmonKeys else f"Keys of {heading}", style="bold"))
            lines += [RichText.assemble((f"  {key:<16}", "bold"), what) for key, what in keys]
            lines.append(RichText(""))
    for heading, found in (
        ("What is measured", [m for m in METRICS if matches(m.name, m.title, m.definition, m.source, *m.aliases)]),
        ("What is guaranteed", [b for b in BOUNDS if matches(b.name, b.title, b.definition, b.source)]),
    ):
        if not found:
            continue
        lines.append(RichText(heading, style="bold"))
        for entry in found:
            target = getattr(entry, "at_collapse", "")
            at = f"  at collapse {target}" if target else ""
            lines.append(RichText.assemble(("  " + entry.name, "bold"), f"  {entry.title}", (at, "dim")))
            lines += [_below(entry.definition), _below(entry.source, "dim")]
        lines.append(RichText(""))
    rules = [rule for rule in RULES if matches(rule.name, rule.title, rule.meaning, rule.advice)]
    if rules:
        lines.append(RichText("What is an alert", style="bold"))
        for rule in rules:
            lines.append(
                RichText.assemble(("  " + rule.name, "bold"), f"  {rule.title}", (f"  {rule.severity}", "dim"))
            )
            lines += [_below(rule.meaning), _below(rule.advice, "dim")]
        lines.append(RichText(""))
    return Group(*(lines or [RichText(f"Nothing here says {search!r}")]))
