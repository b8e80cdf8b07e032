"""From which loss gap on the sharp certificate (S) can say nothing: what a vacuous one is to be told beside.

Notation: `ncmon.bounds.sharp`. A level is the least loss, over networks of these scales, at which what is certified may
be zero, less m. Above it no bound from (C, alpha beta, L) can say anything; the certificate itself begins a few percent
below it, where alpha beta is small later.
"""

from __future__ import annotations

import math

import numpy as np

from ncmon.bounds import pair_program
from ncmon.bounds.inputs import WindowInputs
from ncmon.metrics.gap import least
from ncmon.metrics.loss import least_loss

STEPS = np.linspace(-1.0, 1.0, 33)
ROUNDS = 4
"""Grids of two numbers, each a fifth of the one before."""
BISECTIONS = 30
"""Of the logarithm of a level that has to be tried."""

NO_CLASS = "vacuous: the loss leaves room for a class without direction"
NO_PAIR = "vacuous: the loss leaves room for a pair that is not separated"


def vacuous_above(n_classes: int, product: float, kind: str, exceptions: int = 0) -> float:
    """Return the gap L - m from which on there are networks of which `kind`, a field of `Sharp`, can say nothing.

    j = k + 1 classes without an own logit (`nc3`) cost log C each. Those whose mean cosine is zero (`cosine`) have a
    mass q without length at x = -1, and the rest at x = q/(1-q). Of pairs (`inter`) it is tried, which takes longer.
    """
    n, bad, floor = n_classes, exceptions + 1, least_loss(n_classes, product)
    if kind == "inter":
        return _tried_level(n, product, floor, exceptions)
    if kind == "nc3":
        others = (n - bad) * least_loss(n, n * product / (n - bad)) if bad < n else 0.0
        return max(0.0, (bad * math.log(n) + others) / n - floor)
    q, share, width = 0.25, 0.5, 0.5
    best = math.log(n)
    for _ in range(ROUNDS):
        masses = np.clip(q + width / 2 * STEPS, 0.0, 0.5)[:, None]
        shares = np.clip(share + width * STEPS, 0.0, 1.0)
        t = n * product * shares / bad * masses / (1 - masses) ** 2
        lost = bad * (masses * math.log(n) + (1 - masses) * least(t, n))
        rest = (n - bad) * least(n * product * (1 - shares) / max(n - bad, 1), n)
        total = (lost + rest) / n
        place = np.unravel_index(int(np.argmin(total)), total.shape)
        best = min(best, float(total[place]))
        q, share, width = float(masses[place[0], 0]), float(shares[place[1]]), 0.2 * width
    return max(0.0, best - floor)


def _tried_level(n: int, product: float, floor: float, exceptions: int) -> float:
    pairs = exceptions // 2 + 1

    def says(gap: float) -> bool:
        return n > 2 * pairs and pair_program.greatest_inter(n, product, floor + gap, pairs) is not None

    low, high = floor * 1e-6, math.log(n) - floor
    if not (0 < low < high and says(low)):
        return 0.0
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if says(middle) else (low, middle)
    return low


def nothing(inputs: WindowInputs, kind: str, exceptions: int = 0) -> str:
    """Return the reason of a vacuous certificate: what it needs and what came."""
    level = vacuous_above(inputs.n_classes, inputs.product, kind, exceptions)
    gap = inputs.loss - least_loss(inputs.n_classes, inputs.product)
    if level <= gap:
        return f"vacuous: needs a loss gap below {level:.2g}, it is {gap:.2g}"
    # No bound can say anything above the level; this one, where alpha beta is small, not at once below it either.
    return NO_PAIR if kind == "inter" else NO_CLASS
