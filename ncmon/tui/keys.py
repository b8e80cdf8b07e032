"""Keys of one's own: `keys.toml` in the configuration directory, one line an action.

    freeze = "space"
    next-layer = "right_square_bracket,n"

The names are the actions' own; a name or a key that cannot be is a usage error that lists what there is.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textual.binding import Binding
from textual.dom import DOMNode

from ncmon.errors import UsageError, near


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
