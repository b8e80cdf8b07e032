"""The thesis' three conjectures as checks with slack. None is a theorem: a run is consistent with one or violates it by
so much. `Q` is the cosine margin, min intra - max inter; `d(eps)` the effective depth, the first layer whose nearest
class mean errs on at most a share eps.

    3.1.1  of two runs alike but for weight decay l1 < l2, both with perfect training accuracy:
           Q(l2) - Q(l1) + e log(l2/l1) >= 0 for some small e
    3.2.1  within a run with perfect training accuracy: Q grows from layer to layer, the last two apart
    3.2.2  of two runs as in 3.1.1: d(eps) of l2 is at most that of l1

Pure functions of numbers. Source: thesis, Conjectures 3.1.1, 3.2.1, 3.2.2 and Definition 3.2.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

DEPTH_LEVELS = (0.0, 0.005, 0.01, 0.02, 0.05)
"""Shares eps at which depths are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharper:
    """Conjecture 3.2.1 in one window."""

    violation: float
    """e, the greatest fall of the margin from one layer to the next; 0 where it never falls."""
    layer: int | None
    """Place of the layer after which it falls most, None where it never does."""
    pairs: int
    """Pairs of neighbouring layers that were compared."""


def sharper_with_depth(margins: Sequence[float]) -> Sharper:
    """Compare the margins of the layers, from the input; of L layers the pairs up to (L-2, L-1) count."""
    falls = [first - second for first, second in itertools.pairwise(margins[:-1])]
    worst = max(falls, default=0.0)
    if worst <= 0:
        return Sharper(violation=0.0, layer=None, pairs=len(falls))
    return Sharper(violation=worst, layer=falls.index(worst), pairs=len(falls))


def margin_violation(decay: float, margin: float, more_decay: float, more_margin: float) -> float:
    """Return the least e >= 0 with Q(l2) - Q(l1) + e log(l2/l1) >= 0, for 0 < l1 < l2 (Conjecture 3.1.1)."""
    return max(margin - more_margin, 0.0) / math.log(more_decay / decay)


def effective_depth(errors: Sequence[float], level: float) -> int:
    """Return d(eps), counted from 1: the first layer that errs on at most a share `level`, else how many there are."""
    return next((place for place, error in enumerate(errors, 1) if error <= level), len(errors))


def depth_violations(errors: Sequence[float], more_errors: Sequence[float]) -> tuple[float, ...]:
    """Return the levels eps at which the run with more decay is deeper (Conjecture 3.2.2)."""
    return tuple(
        level for level in DEPTH_LEVELS if effective_depth(more_errors, level) > effective_depth(errors, level)
    )
