"""The numbers at which rules raise and clear. Options with defaults, and rules that can be switched off.

Where a rule has two numbers, the first raises and the second, on the safe side of it, clears: in between nothing
changes, so that a value that trembles around a limit is one alert and not a hundred.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ncmon.errors import UsageError, near


def _limit(default: float, text: str) -> Any:
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What counts as too much."""

    stalled_s: float = _limit(
        300.0, "seconds of silence of a live run, or five times its usual pause if that is longer"
    )
    stalled_first_s: float = _limit(3600.0, "the same before a run's third window, when no pause is usual yet")
    overhead_share: float = _limit(0.05, "share of the training's time that watching may take")
    nonfinite_share: float = _limit(0.0, "share of the samples of a window that may be NaN or infinite")
    nc1_rise: float = _limit(2.0, "times the least NC1 so far, that NC1 may rise to")
    nc1_fell: float = _limit(0.5, "share of the first NC1 that NC1 must have fallen to before a rise counts")
    nc1_least: float = _limit(1e-3, "NC1 below which a rise does not count")
    dead_accuracy: float = _limit(0.5, "accuracy over all classes from which a class with none right is dead")
    minority_share: float = _limit(0.2, "share of the largest class' samples up to which a class is a minority")
    minority_cos: float = _limit(0.9, "cosine between the classifier's rows of two minorities that is collapse")
    collapse_intra: float = _limit(0.95, "least cosine within a class that is collapse")
    collapse_inter: float = _limit(0.15, "what the largest cosine between classes may exceed -1/(K-1) by")
    slack: float = _limit(1e-5, "rounding: what a measurement may be past its bound")
    off: frozenset[str] = frozenset()
    """Rules that are not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One number that can be set."""

    name: str
    """As it is typed: `nc1-rise`."""
    default: float
    text: str


LIMITS: tuple[Limit, ...] = tuple(
    Limit(name=one.name.replace("_", "-"), default=float(one.default), text=one.metadata["text"])  # type: ignore[arg-type]
    for one in fields(Limits)
    if one.name != "off"
)


def parse_limits(said: Iterable[str], rules: Iterable[str]) -> Limits:
    """Return the limits after `NAME=NUMBER` and `RULE=off`; `UsageError` for anything else."""
    known = {limit.name: limit.name.replace("-", "_") for limit in LIMITS}
    names = set(rules)
    limits = Limits()
    for text in said:
        name, equals, value = (part.strip() for part in text.partition("="))
        if name in names:
            if value not in ("on", "off"):
                raise UsageError(f"--alert: expected {name}=off, got {text!r}")
            limits = replace(limits, off=limits.off - {name} if value == "on" else limits.off | {name})
            continue
        if name not in known:
            raise UsageError(f"--alert: no limit or rule is named {name!r}{near(name, [*known, *names])}")
        try:
            number = float(value) if equals else float("nan")
        except ValueError:
            number = float("nan")
        if not 0 <= number < float("inf"):
            raise UsageError(f"--alert: expected {name}=NUMBER, not negative, got {text!r}")
        limits = replace(limits, **{known[name]: number})  # type: ignore[arg-type]
    return limits
