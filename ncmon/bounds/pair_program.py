"""S-inter in numbers: the convex program of a pair, and the certificate from its multipliers.

Statement and notation are those of `ncmon.bounds.sharp`. With x^2 = (1 - inter)/2 the least total loss of j disjoint
pairs at that cosine, all other classes perfect, is

    V(x) = min over M, zeta > 0 of  2j G(M, zeta) + (C-2j) g((C alpha beta - 2j Pbar) / (C-2j)),
    G = log(1 + e^-M + (C-2) e^(-M/2 - C zeta/(C-2))),  Pbar = sqrt(M^2/4x^2 + zeta^2/(1-x^2)):

M is the logit gap to the partner, zeta that of the mean of both to the others. V(x) = C L gives x and the multipliers;
an inexact solution is looser, never wrong, for the certificate is evaluated from the multipliers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ncmon.bounds.moment import ROUNDING

NEWTON_STEPS = 60
ROOT_STEPS = 40
X_STEP = 1e-8
"""Step of x below which the root is found."""
BACK_OFF = (1e-7, 1e-4, 1e-2, 5e-2, -1e-2, -3e-2, -0.1)
"""Shares by which x is lowered, or raised, until the certificate is near the program's own value: at losses below 1e-20
other multipliers than the program's certify more."""
NEAR = 1e-3
"""A certificate this close to the program's own value is good enough."""


def greatest_inter(n_classes: int, product: float, loss: float, pairs: int = 1) -> float | None:
    """Return a certified upper bound of the least inter-class cosine of any `pairs` disjoint pairs of classes.

    With one pair that is every inter-class cosine; with j at most 2 (j - 1) classes have one of every pair above it.
    None where nothing below 1 is certified. C > 2 j.
    """
    n, bad = n_classes, 2 * pairs
    try:
        root = _root(n, product, loss, bad)
        if root is None:
            return None
        best = 1.0
        for share in BACK_OFF:
            solved = _solve(n, product, min(root.x * (1 - share), _top(n)), bad, near=root)
            found = _certificate(n, product, loss, bad, solved)
            best = min(best, found)
            if best < 1 - 2 * root.x * root.x + NEAR:
                break
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return max(best, -1.0 / (n - 1.0)) if best < 1.0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solution:
    """The minimum of the program at one x."""

    x: float
    value: float
    partner: float
    """M"""
    others: float
    """zeta"""
    theta: float


def _softplus(u: float) -> float:
    return u + math.log1p(math.exp(-u)) if u > 0 else math.log1p(math.exp(u))


def _top(n: int) -> float:
    """Return the x of a simplex frame, less its rounding."""
    return math.sqrt(n / (n - 1.0) / 2) * (1 - 1e-12)


def _root(n: int, product: float, loss: float, bad: int) -> _Solution | None:
    """Return the solution at V(x) = C L by Newton's method inside a bracket; V falls as x grows to a simplex frame's.

    By the envelope theorem dV/dx = 2j theta dPbar/dx; `bad` is 2j.
    """
    low, high = 1e-3, _top(n)
    target = n * loss
    found = _solve(n, product, high, bad)
    if found.value > target:
        return found
    if _solve(n, product, low, bad).value <= target:
        return None
    x = 0.8 * high
    for _ in range(ROOT_STEPS):
        found = _solve(n, product, x, bad, near=found)
        # Of its logarithm: over the range of x the loss falls by as many powers of e as alpha beta allows.
        gap = math.log(found.value / target)
        low, high = (x, high) if gap > 0 else (low, x)
        length = math.hypot(found.partner / (2 * x), found.others / math.sqrt(1 - x * x))
        rise = found.others**2 * x / (1 - x * x) ** 2 - found.partner**2 / (4 * x**3)
        slope = bad * found.theta * rise / length / found.value
        step = x - gap / slope if slope < 0 else high
        new = step if low < step < high else 0.5 * (low + high)
        if abs(new - x) < X_STEP:
            break
        x = new
    return found


def _solve(n: int, product: float, x: float, bad: int, *, near: _Solution | None = None) -> _Solution:
    """Minimise the program by Newton's method with back-tracking, from the solution at an x that is `near`."""
    kappa, spread = n / (n - 1.0), n / (n - 2.0)
    log_rest, log_wrong = math.log(n - 2.0), math.log(n - 1.0)
    a1, a2 = 1.0 / (4 * x * x), 1.0 / max(1 - x * x, 1e-14)

    def terms(m: float, z: float) -> tuple[float, float, float, float, float, float]:
        length = math.sqrt(a1 * m * m + a2 * z * z)
        rest = (n * product - bad * length) / (n - bad)
        e1, e2 = -m, log_rest - 0.5 * m - spread * z
        top = max(e1, e2)
        wrong = top + math.log(math.exp(e1 - top) + math.exp(e2 - top))
        value = bad * _softplus(wrong) + (n - bad) * _softplus(log_wrong - kappa * rest)
        return value, length, rest, e1, e2, wrong

    m, z = 2 * product * x * x, product / a2
    value, length, rest, e1, e2, wrong = terms(m, z)
    if near is not None and near.partner > 0 and near.others > 0:
        moved_m, moved_z = near.partner * (x / near.x) ** 2, near.others / a2 / max(1 - near.x * near.x, 1e-14)
        if (tried := terms(moved_m, moved_z))[0] < value:
            m, z = moved_m, moved_z
            value, length, rest, e1, e2, wrong = tried
    for _ in range(NEWTON_STEPS):
        q1, q2 = math.exp(e1 - _softplus(wrong)), math.exp(e2 - _softplus(wrong))
        gm, gz = -q1 - 0.5 * q2, -spread * q2
        tau = math.exp(-_softplus(kappa * rest - log_wrong))
        theta = kappa * tau
        length = max(length, 1e-300)
        pm, pz = a1 * m / length, a2 * z / length
        curve = bad * bad * kappa * kappa * tau * (1 - tau) / (n - bad)
        f1, f2 = bad * (gm + theta * pm), bad * (gz + theta * pz)
        h11 = bad * (q1 + 0.25 * q2 - gm * gm) + bad * theta * (a1 / length - pm * pm / length) + curve * pm * pm
        h12 = bad * (0.5 * spread * q2 - gm * gz) - bad * theta * pm * pz / length + curve * pm * pz
        h22 = bad * (spread * spread * q2 - gz * gz) + bad * theta * (a2 / length - pz * pz / length) + curve * pz * pz
        determinant = h11 * h22 - h12 * h12
        if not determinant > 0:
            h11, h22 = h11 * (1 + 1e-6), h22 * (1 + 1e-6)
            determinant = h11 * h22 - h12 * h12
        step_m, step_z = -(h22 * f1 - h12 * f2) / determinant, -(h11 * f2 - h12 * f1) / determinant
        descent = f1 * step_m + f2 * step_z
        if not descent < 0:
            break
        share, moved = 1.0, False
        while share > 1e-10 and not moved:
            new_m, new_z = m + share * step_m, z + share * step_z
            if new_m > 0 and new_z > 0:
                tried = terms(new_m, new_z)
                if tried[0] <= value + 1e-4 * share * descent:
                    moved = True
                    continue
            share *= 0.5
        if not moved:
            break
        gain = value - tried[0]
        m, z = new_m, new_z
        value, length, rest, e1, e2, wrong = tried
        if gain <= 1e-15 * abs(value):
            break
    tau = math.exp(-_softplus(kappa * rest - log_wrong))
    return _Solution(x=x, value=value, partner=m, others=z, theta=kappa * tau)


def _certificate(n: int, product: float, loss: float, bad: int, found: _Solution) -> float:
    """Return the bound that the multipliers certify, 1 where they certify nothing."""
    kappa, theta = n / (n - 1.0), found.theta
    tau = theta / kappa
    if not 0 < tau < (n - 1.0) / n:
        return 1.0
    own = (math.log(n - 1.0) + math.log1p(-tau) - math.log(tau)) / kappa
    good = -math.log1p(-tau) + theta * own
    need = (n * loss + theta * n * product - (n - bad) * good) / bad
    e1, e2 = -found.partner, math.log(n - 2.0) - 0.5 * found.partner - n / (n - 2.0) * found.others
    top = max(e1, e2, 0.0)
    total = top + math.log(math.exp(e1 - top) + math.exp(e2 - top) + math.exp(-top))
    q1, q2 = math.exp(e1 - total), math.exp(e2 - total)
    u, v, q = 2 * q1 + q2, n / (n - 2.0) * q2, q1 + q2
    c1 = -q1 * math.log(q1) - q2 * math.log(q2) + q2 * math.log(n - 2.0)

    def level(rho: float) -> float:
        return -(1 - rho * q) * math.log1p(-rho * q) - rho * q * math.log(rho) + rho * c1

    def convexity(rho: float) -> float:
        return -q / (1 - rho * q) + 2 * q * (math.log1p(-rho * q) - math.log(rho)) + 2 * c1

    slope = q * math.log1p(-q) + c1  # E'(1) = s theta
    if not (slope > 0 and u > v * (1 + 1e-12) and convexity(1.0) > 0):
        return 1.0
    low, high = 1.0, (1 - 1e-12) / q
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if convexity(middle) > 0 else (low, middle)
    farthest = math.hypot(u, v) / theta
    peak = 1.0 / (q + math.exp(-c1 / q))
    # k(r) + s r on r <= 0, up to theta/peak, up to theta/rho_c, and on the convex rest, whose tangent is at r = theta.
    floor = min(level(1.0) + slope, level(peak) - slope * farthest, level(low) + slope / peak)
    rounding = 8 * ROUNDING * (n * loss + 2 * theta * n * product + (n - 2) * abs(good) + slope + abs(c1))
    reach = (floor - need - rounding) / slope
    if reach <= 0:
        return 1.0
    u2, v2 = (u / theta) ** 2, (v / theta) ** 2
    return (u2 + v2 - 2 * reach * reach) / (u2 - v2) + 1e-9
