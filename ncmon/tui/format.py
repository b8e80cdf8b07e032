"""Numbers, ages and names as text. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from ncmon.cells import cut, fit, middle, printable, width

__all__ = (
    "age",
    "ago",
    "clock",
    "cosine",
    "cut",
    "day_clock",
    "delivery",
    "fit",
    "middle",
    "moment",
    "number",
    "percent",
    "printable",
    "tick",
    "width",
)


def number(value: float | None, width: int = 8) -> str:
    """Return a number in at most `width` characters: fixed where that reads well, else an exponent; `-` for none."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    if size == 0:
        return "0"
    if 1e-2 <= size < 1e5:
        digits = max(0, min(4, 3 - math.floor(math.log10(size))))
        text = f"{value:.{digits}f}"
        if len(text) <= width:
            return text
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def cosine(value: float | None) -> str:
    """Return a cosine with three decimals; 1 only when it is."""
    if value is None or not math.isfinite(value):
        return "-"
    shown = f"{value:.3f}"
    return "0.999+" if shown == "1.000" and value < 1 else shown


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal; 100 only when it is all."""
    if share is None or not math.isfinite(share):
        return "-"
    if share == 1:
        return "100"
    return f"{min(math.floor(share * 1000) / 10, 99.9):.1f}"


def tick(value: float, *, log: bool = False, digits: int = 3) -> str:
    """Return the label of a tick."""
    if log:
        exponent = math.floor(math.log10(value) + 1e-9)
        mantissa = value / 10.0**exponent
        return f"{mantissa:.0f}e{exponent}"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return number(value)


def age(seconds: float) -> str:
    """Return a span of time in one unit: 42 s, 13 m, 5 h, 3 d."""
    seconds = max(seconds, 0.0)
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size or (unit != "m" and seconds >= size):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(seconds: float) -> str:
    """Return how long ago something was in whole minutes, hours or days: text that changes once a minute at most."""
    minutes = int(max(seconds, 0.0) // 60)
    if minutes < 60:
        return f"{minutes} m ago" if minutes else "less than a minute ago"
    return f"{minutes // 60} h ago" if minutes < 1_440 else f"{minutes // 1_440} d ago"


def clock(at: float) -> str:
    """Return the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def day_clock(at: float, now: float) -> str:
    """Return the local hour and minute; of another day than `now`, its date."""
    there = time.localtime(at)
    return time.strftime("%H:%M" if there[:3] == time.localtime(now)[:3] else "%d %b", there)


def moment(at: float, now: float) -> str:
    """Return the local time of day; of another day than `now`, with its date."""
    there = time.localtime(at)
    return time.strftime("%H:%M:%S" if there[:3] == time.localtime(now)[:3] else "%d %b %H:%M:%S", there)


def delivery(counters: Mapping[str, int]) -> str:
    """Return what became of the messages that a daemon accepted; empty where it does not tell."""
    if "accepted" not in counters:
        return ""
    parts = [
        f"{counters[name]:,} {name}" for name in ("stored", "rejected", "waiting", "deleted") if counters.get(name)
    ]
    return f"{counters['accepted']:,} accepted = {' + '.join(parts) or '0 stored'}"
