"""Keys of every screen, and of one's own: `keys.toml` in the configuration directory, one line an action.

    freeze = "space"
    next-layer = "right_square_bracket,n"

The names are the actions' own; a name or a key that cannot be is a usage error that lists what there is.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.dom import DOMNode

from ncmon.errors import UsageError, near


class NcmonKeys(DOMNode):
    """The keys of every screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "screen('overview')", "Overview: all runs", id="overview"),
        Binding("2", "screen('run')", "Run: four charts of one layer", id="run"),
        Binding("3", "screen('layers')", "Layers: where collapse begins", id="layers"),
        Binding("4", "screen('classes')", "Classes: which lag, and with whom they are confused", id="classes"),
        Binding("5", "screen('bounds')", "Bounds: measured beside guaranteed", id="bounds"),
        Binding("6", "screen('compare')", "Compare: runs side by side", id="compare"),
        Binding("7", "screen('alerts')", "Alerts: what somebody should look at", id="alerts"),
        Binding("left_curly_bracket", "alert(-1)", "go to the alert before", id="previous-alert"),
        Binding("right_curly_bracket", "alert(1)", "go to the next alert", id="next-alert"),
        Binding("A", "acknowledge", "acknowledge the alert: it no longer presses", id="acknowledge"),
        Binding("p,space", "freeze", "freeze the picture, or let it go on", id="freeze"),
        Binding("f", "follow", "follow live: last window, not frozen", id="follow"),
        Binding("i", "crosshair", "crosshair: look at one moment, on and off", id="crosshair"),
        Binding("comma", "travel(-1)", "one window back in time", id="back-in-time"),
        Binding("full_stop", "travel(1)", "one window forward", id="forward-in-time"),
        Binding("less_than_sign", "travel(-10)", "ten windows back", id="far-back"),
        Binding("greater_than_sign", "travel(10)", "ten windows forward", id="far-forward"),
        Binding("plus,equals_sign", "zoom(1)", "zoom in on the end, or on the crosshair", id="zoom-in"),
        Binding("minus", "zoom(-1)", "zoom out", id="zoom-out"),
        Binding("0", "zoom(0)", "all of time", id="zoom-all"),
        Binding("w", "smooth", "smooth over more windows", id="smooth"),
        Binding("y", "copy", "copy what is shown (OSC 52)", id="copy"),
        Binding("e", "export", "export what is shown to a CSV file", id="export"),
        Binding("T", "next_theme", "next theme: dark, light, ansi, mono", id="theme"),
        Binding("R", "rate", "how often to look", id="rate"),
        Binding("colon", "command_palette", "command palette", id="palette"),
        Binding("question_mark,f1", "help", "help", id="help"),
        Binding("q,escape", "screen('overview')", "back", id="back", show=False),
    ]


def keys_file() -> Path:
    """Return where keys of one's own stand."""
    root = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(root) / "ncmon" / "keys.toml"


def known(*places: type[DOMNode]) -> dict[str, str]:
    """Return the actions that have keys, each with its keys."""
    found: dict[str, str] = {}
    for place in places:
        for kind in place.__mro__:
            for binding in kind.__dict__.get("BINDINGS", ()):
                if isinstance(binding, Binding) and binding.id:
                    found.setdefault(binding.id, binding.key)
    return found


def load(path: Path, actions: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of the file by action, nothing where there is no file."""
    try:
        said: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    for name, keys in said.items():
        if name not in actions:
            raise UsageError(f"{path}: no action is named {name!r}{near(name, actions)}; there is {', '.join(actions)}")
        if not isinstance(keys, str) or not all(part.strip() for part in keys.split(",")):
            raise UsageError(f"{path}: expected the keys of {name} as text such as {actions[name]!r}, found {keys!r}")
    return said
