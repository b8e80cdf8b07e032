"""Help: the keys, and what every number means, searchable."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Group
from rich.text import Text as RichText
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS

KEYS = (
    ("? F1", "this help; type to search in it"),
    ("1 2", "Overview, Run"),
    ("j k g G, arrows", "move in lists"),
    ("enter", "open the run under the cursor"),
    ("q Esc", "back; on the overview quit (training and daemon go on)"),
    ("/", "filter runs by name, tag or status; Esc clears it"),
    ("s S", "sort by the next column; reverse"),
    ("[ ]", "previous, next layer"),
    ("L", "logarithmic or linear axis"),
    ("x", "x-axis: epoch, step, minutes"),
    ("b", "show or hide what is guaranteed"),
    ("m", "the next way to measure NC1"),
    ("tab, S-tab", "the next, the previous chart"),
    ("z", "the focused chart alone, and back"),
    ("p", "freeze the picture; data goes on being stored"),
    ("f", "follow again: newest run, last layer, not frozen"),
    ("y", "copy the line of values to the clipboard"),
    ("T", "next theme"),
    (": ^p", "command palette"),
)


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
        self.query_one("#entries", Static).update(entries(""))
        self.query_one(Input).focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        """Search while typing."""
        self.query_one("#entries", Static).update(entries(message.value))

    def action_scroll(self, by: int) -> None:
        """Scroll by lines."""
        self.query_one("#help", VerticalScroll).scroll_relative(y=by, animate=False)

    def action_close(self) -> None:
        """Close the help."""
        self.dismiss()


def entries(search: str) -> Group:
    """Return the keys and the metrics that contain every word of `search`."""
    words = search.lower().split()

    def matches(*texts: str) -> bool:
        text = " ".join(texts).lower()
        return all(word in text for word in words)

    lines: list[RichText] = []
    keys = [(key, what) for key, what in KEYS if matches(key, what)]
    if keys:
        lines.append(RichText("Keys", style="bold"))
        lines += [RichText.assemble((f"  {key:<16}", "bold"), what) for key, what in keys]
    for heading, found in (
        ("What is measured", [m for m in METRICS if matches(m.name, m.title, m.definition, m.source, *m.aliases)]),
        ("What is guaranteed", [b for b in BOUNDS if matches(b.name, b.title, b.definition, b.source)]),
    ):
        if not found:
            continue
        lines += [RichText(""), RichText(heading, style="bold")]
        for entry in found:
            target = getattr(entry, "at_collapse", "")
            at = f"  at collapse {target}" if target else ""
            lines.append(RichText.assemble(("  " + entry.name, "bold"), f"  {entry.title}", (at, "dim")))
            lines.append(RichText(f"      {entry.definition}"))
            lines.append(RichText(f"      {entry.source}", style="dim"))
    return Group(*(lines or [RichText(f"Nothing here says {search!r}")]))
