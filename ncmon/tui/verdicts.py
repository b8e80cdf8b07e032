"""What is measured beside what is guaranteed, in one word and one glyph. Pure, and made from the registry of bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich.style import Style

from ncmon.bounds import BOUNDS, Bound
from ncmon.metrics import METRICS
from ncmon.model import FloatArray, LayerReadings
from ncmon.tui import palette

ROUNDING = 1e-5
"""Slack below minus this contradicts the theorem; less is the rounding of statistics in single precision."""

HOLDS, VIOLATED, VACUOUS, INCONSISTENT, NONE = "holds", "VIOLATED", "vacuous", "inconsistent", "n/a"
GLYPHS = {HOLDS: "=", VIOLATED: "!", VACUOUS: "○", INCONSISTENT: "?", NONE: "-"}
STYLES: Mapping[str, Style] = {
    HOLDS: palette.GOOD,
    VIOLATED: palette.BAD,
    VACUOUS: palette.DIM,
    INCONSISTENT: palette.WARN,
    NONE: palette.DIM,
}
RECENT = 5
"""Windows that tell where a number is going: their median beside that of as many before, so that noise does not."""
MOST_RECENT = 20
FLAT = 1.05


def course(values: FloatArray) -> str:
    """Return how far NC1 has come, and where it is going, in a few words; empty where that is too early to say."""
    known = values[np.isfinite(values) & (values > 0)]
    if known.size < 4:
        return ""
    k = _recent(known.size)
    first, before, last = (_median(part) for part in (known[:3], known[-2 * k : -k], known[-k:]))
    fold = first / last
    now = "falling" if before / last > FLAT else "rising" if last / before > FLAT else "flat now"
    rose = f"rose {1 / fold:.1f}-fold" if fold < 1 / FLAT else "has not moved"
    return f"NC1 {f'fell {fold:.1f}-fold' if fold > FLAT else rose}, {now}"


def _recent(windows: int) -> int:
    """Return how many windows are the last ones: a tenth of them, within limits."""
    return min(max(RECENT, min(windows // 10, MOST_RECENT)), windows // 2)


def _median(values: FloatArray) -> float:
    """Return the median of some values; of a handful, numpy's takes ten times as long."""
    ordered = sorted(values.tolist())
    place = len(ordered) // 2
    return float(ordered[place]) if len(ordered) % 2 else float(ordered[place - 1] + ordered[place]) / 2


def heading(values: FloatArray) -> int:
    """Return whether a number rises (1), falls (-1) or neither, over its last windows and not only the last one."""
    known = values[np.isfinite(values)]
    if known.size < 2:
        return 0
    k = _recent(known.size)
    before, last = _median(known[-2 * k : -k]), _median(known[-k:])
    least = 0.01 * float(np.ptp(known))
    return 0 if abs(last - before) <= least else 1 if last > before else -1


TITLES = {entry.name: entry.title for entry in METRICS}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """One bound beside the number that it bounds; of an array, at the place with the least slack."""

    bound: Bound
    measured: float | None
    value: float | None
    reason: str = ""
    """Why there is no bound."""
    where: tuple[int, ...] = ()
    """The class or the pair of classes that this is about."""
    held: int = 0
    """Of an array: how many of its entries have a bound, of how many that were measured."""
    of: int = 0
    slacks: FloatArray | None = None
    """Of an array of classes: the slack of each, NaN where there is no bound."""

    @property
    def slack(self) -> float | None:
        """Distance to the bound, not negative when it holds."""
        if self.measured is None or self.value is None:
            return None
        return self.measured - self.value if self.bound.side == "lower" else self.value - self.measured

    @property
    def state(self) -> str:
        """One of the words above."""
        if self.slack is not None:
            return HOLDS if self.slack >= -ROUNDING else VIOLATED
        kind = self.reason.partition(":")[0]
        return kind if kind in (VACUOUS, INCONSISTENT) else NONE


def verdicts(
    found: LayerReadings, pairs: Mapping[str, FloatArray], *, bounds: tuple[Bound, ...] = BOUNDS
) -> list[Verdict]:
    """Return what there is to say about every bound that this layer has, in the registry's order."""
    said: list[Verdict] = []
    for bound in bounds:
        if bound.scope in ("class", "pair"):
            arrays = found.class_arrays if bound.scope == "class" else pairs
            value, measured = arrays.get(bound.name), arrays.get(bound.of)
            if value is not None and measured is not None and value.shape == measured.shape:
                said.append(_of_array(bound, measured, value))
        elif (reading := found.readings.get(bound.name)) is not None:
            measured_reading = found.readings.get(bound.of)
            said.append(
                Verdict(
                    bound=bound,
                    measured=None if measured_reading is None else measured_reading.value,
                    value=reading.value,
                    reason=reading.reason,
                    where=reading.attained_at,
                )
            )
    return said


def _of_array(bound: Bound, measured: FloatArray, value: FloatArray) -> Verdict:
    slack = measured - value if bound.side == "lower" else value - measured
    known = ~np.isnan(slack)
    count = int(np.count_nonzero(~np.isnan(measured)))
    if not known.any():
        return Verdict(
            bound=bound,
            measured=None,
            value=None,
            reason=f"vacuous: no {bound.scope} has one" if count else "no value",
            of=count,
            slacks=slack if slack.ndim == 1 else None,
        )
    worst = np.unravel_index(int(np.nanargmin(slack)), slack.shape)
    return Verdict(
        bound=bound,
        measured=float(measured[worst]),
        value=float(value[worst]),
        where=tuple(int(i) for i in worst),
        held=int(np.count_nonzero(known)),
        of=count,
        slacks=slack if slack.ndim == 1 else None,
    )
