"""How a viewer likes to look: axes, smoothing, theme, order; kept between sessions.

The file is a convenience: one that cannot be read or written is passed over, and values that it should not hold are
left at their defaults.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ncmon.store.screens import CLASS_ORDERS

AXES = ("epoch", "step", "minutes", "log step")
SMOOTHING = (1, 5, 15)
RATES_S = (1.0, 2.0, 5.0, 0.5)
LAYER_METRICS = ("nc1_pinv", "nc1_cdnv", "intra_cos_min", "inter_cos_max", "nc2_etf_err", "ncc_acc")
COMPARE_METRICS = (
    "nc1_pinv",
    "intra_cos_min",
    "inter_cos_max",
    "cert_intra_min",
    "nc2_maxangle",
    "nc3_cos_min",
    "ce_loss",
    "ce_gap",
    "accuracy",
    "ncc_acc",
    "effective_depth",
)
CLASS_SORTS = CLASS_ORDERS


@dataclass(slots=True, kw_only=True)
class Look:
    """What the keys have set. Places are indices into the tuples above."""

    theme: str = ""
    log: bool = True
    axis: int = 0
    smooth: int = 0
    bounds: bool = True
    nc1: int = 0
    rate: int = 0
    layer_metric: int = 0
    compare_metric: int = 0
    class_sort: int = 0
    run_sort: int = 0
    run_reversed: bool = False
    alerts_open: bool = False


_LIMITS = {
    "axis": len(AXES),
    "smooth": len(SMOOTHING),
    "nc1": 3,
    "rate": len(RATES_S),
    "layer_metric": len(LAYER_METRICS),
    "compare_metric": len(COMPARE_METRICS),
    "class_sort": len(CLASS_SORTS),
    "run_sort": 16,
}


def look_file() -> Path:
    """Return where the look is kept."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(root) / "ncmon" / "look.json"


def load(path: Path | None) -> Look:
    """Return what the file says, as far as it makes sense."""
    look = Look()
    if path is None:
        return look
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return look
    for field in fields(Look) if isinstance(said, dict) else ():
        value = said.get(field.name)
        if type(value) is not type(getattr(look, field.name)):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < _LIMITS[field.name]:
            continue
        setattr(look, field.name, value)
    return look


def save(look: Look, path: Path | None) -> None:
    """Write the file, whole or not at all."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps(asdict(look), indent=2) + "\n")
        part.replace(path)
