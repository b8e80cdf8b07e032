"""Where a viewer was when the session broke off: screen, run, layer, marks, filter; gone back to at the next start.

Kept by what was watched, so that two sessions on two daemons do not get into each other's way. Who quits is done: then
nothing is kept, and the next start begins at the overview. A file that cannot be read or written is passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

MOST_KEPT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where somebody is."""

    screen: str = "overview"
    run_id: str | None = None
    layer: str | None = None
    split: str | None = None
    index: int = 0
    step: int | None = None
    marked: tuple[str, ...] = ()
    baseline: str | None = None
    filter: str = ""
    zoom: int = 0
    large: str | None = None
    """The panel that is shown alone."""


def places_file() -> Path:
    """Return where places are kept."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(root) / "ncmon" / "places.json"


def recall(path: Path, targets: Sequence[str]) -> Place | None:
    """Return where the last session on these targets broke off, None where it was ended."""
    try:
        return msgspec.convert(_read(path).get(_key(targets)), Place)
    except msgspec.ValidationError:
        return None


def keep(path: Path, targets: Sequence[str], place: Place | None) -> None:
    """Keep a place, or forget it (None)."""
    known = _read(path)
    if known.pop(_key(targets), None) is None and place is None:
        return
    if place is not None:
        known[_key(targets)] = msgspec.to_builtins(place)
    while len(known) > MOST_KEPT:
        del known[next(iter(known))]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps(known, indent=2) + "\n")
        part.replace(path)


def _key(targets: Sequence[str]) -> str:
    return " ".join(target if "://" in target else str(Path(target).expanduser().absolute()) for target in targets)


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
