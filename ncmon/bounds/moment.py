"""The least mean cosine that a class's loss and norms allow: a moment problem, answered by duality.

Problem. With f(t) = g(t + dv), g(z) = log(1 + (C-1) exp(-kappa z)), kappa = C/(C-1), and the reach P > 0 (norm of the
features times length of the row),

    Xmin = min E[x]  over all distributions of (n, x), n >= 0, -1 <= x <= 1,
           subject to  E[n^p] <= 1  and  E[f(P n x)] <= l.

p = 2 with root mean square norms, p = 1 with mean norms, which are shorter: both bounds are true, the larger counts.
In the form used below f(t) = softplus(c - kappa t), c = log(C-1) - kappa dv.

Weak duality. For all lambda > 0 and mu >= 0, E[x] >= D = phi - lambda - mu l with

    phi = inf over n >= 0, |x| <= 1 of  x + lambda n^p + mu f(P n x).

So any pair of multipliers certifies; a poor pair is looser, never wrong. phi is the smaller one of two branches.
- x <= 0, hence t = P n x <= 0 and f(t) >= f(0): at least -1 + mu f(0), the limit n -> 0, x = -1.
- t > 0: minimising over n at fixed t leaves F(t) = psi(t) + mu f(t); up to t* the best x is below 1, beyond it x = 1:
  p = 2:  psi = 3 lambda^(1/3) (t / 2P)^(2/3),  t* = P / sqrt(2 lambda),  then 1 + lambda (t/P)^2;
  p = 1:  psi = 2 sqrt(lambda t / P),           t* = P / lambda,          then 1 + lambda t / P.

Lemma. The infimum of F over t > 0 is F(0) or the value at the one sign change of F' from - to +, if there is one.
Proof: in u = t^(p/(p+1)) psi is linear on [0, t*], and f has a second derivative of the sign of
(p+1) t f'' + f' = |f'| ((p+1) kappa t (1 - sigma(c - kappa t)) - 1), increasing in t: negative up to one t1, then
positive. So F is concave in u on [0, t1], where its minimum is at an end, then convex in u up to t* and convex in t
beyond, with a continuous derivative. F(0) = mu f(0) is above the first branch. []

The root is bracketed by bisection in [left, right] with F'(left) <= 0. Convexity in u or t gives
F >= F(left) - |F'(left)| (right - left), which is what is used: an unfinished bisection only loosens.

Multipliers. The optimum has at most two atoms: mass q at n = 0, x = -1 (samples without a direction) and 1 - q at
n = (1-q)^(-1/p), on which f(t) = (l - q f(0)) / (1-q), x = t / (P n). Stationarity at the second atom gives
lambda = x / (p n^p), mu = 1 / (P n |f'(t)|).
- q = 0, the usual regime: Xmin = f^-1(l) / P = (g^-1(l) - dv) / P exactly, once the multipliers pass the two conditions
  of the lemma: -1 + mu f(0) >= (1 + 1/p) x + mu l, and t >= t1.
- otherwise q is found by a line search, and D is evaluated as above. Where x = 1 at the optimum the equality of both
  branches replaces stationarity in x: mu = 2 / (f(0) - f(t) - |f'(t)| t / p), lambda n^p = mu |f'(t)| t / p.

Rounding of float64 is subtracted from D, in proportion to the terms that it is the difference of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ncmon.geometry import EPS_DOUBLE
from ncmon.model import FloatArray

ROUNDING = 64 * EPS_DOUBLE
"""Relative error allowed for in a sum of at most ten terms of float64 functions."""

SANE = 1e-9
"""Largest excess of a certificate over an attained mean cosine that rounding of the latter can explain."""

BISECTIONS = 44
LEVEL_GRID = 257
"""Values of q from which the level of a vacuous certificate is taken: right within 1e-4 of it."""
GRID = 33
"""Values of q that bracket the best one."""
GOLDEN_STEPS = 40
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


def inverse_loss(loss: FloatArray, n_classes: int) -> FloatArray:
    """Return g^-1(l) = (log(C-1) - log(e^l - 1)) / kappa elementwise, l > 0."""
    return (np.log(n_classes - 1.0) - log_expm1(loss)) * (n_classes - 1.0) / n_classes


def least_mean_cosine(
    *, rms_reach: FloatArray, mean_reach: FloatArray, loss: FloatArray, shift: FloatArray, n_classes: int
) -> FloatArray:
    """Return a certified lower bound (K,) of the mean cosine, NaN where none above zero is certified.

    `rms_reach` and `mean_reach` are the norm of the features times the length of the row, `loss` the mean
    cross-entropy l > 0, `shift` the centred last bias dv. Elements that are not finite or not positive give NaN.
    """
    kappa = n_classes / (n_classes - 1.0)
    best = np.full(loss.shape, -1.0)
    variants: tuple[tuple[Literal[1, 2], FloatArray], ...] = ((2, rms_reach), (1, mean_reach))
    with np.errstate(all="ignore"):
        for power, reach in variants:
            usable = np.isfinite(reach) & (reach > 0) & np.isfinite(loss) & (loss > 0) & np.isfinite(shift)
            chosen = np.flatnonzero(usable)
            if chosen.size:
                offset = np.log(n_classes - 1.0) - kappa * shift[chosen]
                problem = _Problem(reach=reach[chosen], loss=loss[chosen], offset=offset, kappa=kappa, power=power)
                best[chosen] = np.maximum(best[chosen], _certified(problem))
    return np.where(best > 0, best, np.nan)


def vacuous_above(*, rms_reach: FloatArray, mean_reach: FloatArray, shift: FloatArray, n_classes: int) -> FloatArray:
    """Return the mean loss (K,) from which on a mean cosine of zero is possible; arguments as above.

    The least of q f(0) + (1-q) f(t) over distributions with E[x] = 0: mass q at n = 0, x = -1, the rest at x = q/(1-q),
    n = (1-q)^(-1/p), t = P n x.
    """
    kappa = n_classes / (n_classes - 1.0)
    offset = np.log(n_classes - 1.0) - kappa * shift
    q = np.linspace(0.0, 0.5, LEVEL_GRID)[:, None]
    at_zero = np.logaddexp(0.0, offset)
    levels = []
    with np.errstate(all="ignore"):
        for power, reach in ((2, rms_reach), (1, mean_reach)):
            t = reach * (1 - q) ** (-1.0 / power) * q / (1 - q)
            levels.append((q * at_zero + (1 - q) * np.logaddexp(0.0, offset - kappa * t)).min(axis=0))
    return np.maximum(*levels)


def least_along(*, rms_reach: FloatArray, mean_reach: FloatArray, loss: FloatArray, offset: FloatArray) -> FloatArray:
    """Return a certified lower bound of the mean cosine for f(t) = softplus(offset - t), -1 where nothing is known.

    Arrays that broadcast. Only the usual regime of one atom is tried, which takes no search.
    """
    rms_reach, mean_reach, loss, offset = np.broadcast_arrays(rms_reach, mean_reach, loss, offset)
    best = np.full(loss.shape, -1.0)
    variants: tuple[tuple[Literal[1, 2], FloatArray], ...] = ((2, rms_reach), (1, mean_reach))
    with np.errstate(all="ignore"):
        for power, reach in variants:
            problem = _Problem(reach=reach, loss=loss, offset=offset, kappa=1.0, power=power)
            found, proven = _one_atom(problem)
            usable = proven & np.isfinite(found) & (reach > 0) & (loss > 0)
            best = np.where(usable, np.maximum(best, np.minimum(found, 1.0)), best)
    return best


def least_tilted_loss(*, theta: FloatArray, omega: FloatArray, offset: float, kappa: float) -> FloatArray:
    """Return a lower bound (n,) of inf over m >= 0, |x| <= 1 of softplus(offset - kappa m x) + theta m + omega x."""
    ones = np.ones_like(theta)
    problem = _Problem(reach=ones, loss=ones, offset=offset * ones, kappa=kappa, power=1)
    with np.errstate(all="ignore"):
        good, size = _good_branch(problem, theta / omega, 1.0 / omega)
        away = -1.0 + problem.at_zero / omega
        return omega * (np.minimum(good, away) - ROUNDING * (1.0 + size))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Problem:
    """One moment problem an element; f(t) = softplus(offset - kappa t)."""

    reach: FloatArray
    loss: FloatArray
    offset: FloatArray
    kappa: float
    power: Literal[1, 2]

    def take(self, chosen: np.ndarray) -> _Problem:
        return _Problem(
            reach=self.reach[chosen],
            loss=self.loss[chosen],
            offset=self.offset[chosen],
            kappa=self.kappa,
            power=self.power,
        )

    def f(self, t: FloatArray) -> FloatArray:
        return np.logaddexp(0.0, self.offset - self.kappa * t)

    def slope(self, t: FloatArray) -> FloatArray:
        """Return |f'(t)| = kappa sigma(offset - kappa t)."""
        return self.kappa * np.exp(-np.logaddexp(0.0, self.kappa * t - self.offset))

    @property
    def at_zero(self) -> FloatArray:
        return np.logaddexp(0.0, self.offset)

    def inverse(self, loss: FloatArray) -> FloatArray:
        """Return t with f(t) = loss."""
        return (self.offset - log_expm1(loss)) / self.kappa


def _certified(problem: _Problem) -> FloatArray:
    """Return a certified lower bound of Xmin elementwise, -1 where nothing is known."""
    best = np.full(problem.loss.shape, -1.0)
    # With l >= f(0) all features may be zero.
    open_ = np.flatnonzero(problem.loss < problem.at_zero)
    if not open_.size:
        return best
    part = problem.take(open_)
    found, proven = _one_atom(part)
    rest = np.flatnonzero(~proven)
    if rest.size:
        found[rest] = _two_atoms(part.take(rest))
    best[open_] = np.clip(found, -1.0, 1.0)
    return best


def _one_atom(problem: _Problem) -> tuple[FloatArray, np.ndarray]:
    """Return f^-1(l) / P and whether the two conditions of the lemma prove it."""
    p, loss = problem.power, problem.loss
    # Statistics may contradict each other within their rounding; no cosine is above 1.
    t = np.minimum(problem.inverse(loss), problem.reach)
    x = t / problem.reach
    multiplier = 1.0 / (problem.reach * problem.slope(t))
    level = problem.f(t)
    bad_branch_is_higher = -1.0 + multiplier * problem.at_zero >= (1.0 + 1.0 / p) * x + multiplier * level
    beyond_inflection = (p + 1) * problem.kappa * t * np.exp(-level) >= 1.0
    digits = 1.0 + (np.abs(problem.offset) + np.abs(log_expm1(loss))) / (problem.kappa * problem.reach)
    return x - ROUNDING * digits, (t > 0) & bad_branch_is_higher & beyond_inflection


def _two_atoms(problem: _Problem) -> FloatArray:
    """Return the best dual value over the multipliers of the primal's two-atom optimum."""
    best = np.full(problem.loss.shape, -1.0)
    attained = np.full(problem.loss.shape, np.inf)
    for q in (_best_mass(problem), np.zeros(problem.loss.shape)):
        t, n, x = _atom(problem, q)
        p, slope = problem.power, problem.slope(t)
        attained = np.where(x <= 1.0, np.minimum(attained, -q + (1.0 - q) * x), attained)
        scale = n**p
        inner = (x / (p * scale), 1.0 / (problem.reach * n * slope))
        gain = 2.0 / (problem.at_zero - problem.f(t) - slope * t / p)
        saturated = (gain * slope * t / (p * scale), gain)
        for norm_price, loss_price in (inner, saturated):
            value = dual_value(problem, norm_price, loss_price)
            best = np.maximum(best, np.where(np.isfinite(value), value, -1.0))
    # No dual value is above a primal one but by overflow: such a value certifies nothing.
    return np.where(best <= attained + SANE, best, -1.0)


def _atom(problem: _Problem, q: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return t, n and x of the atom with mass 1 - q; the shapes broadcast."""
    t = problem.inverse((problem.loss - q * problem.at_zero) / (1.0 - q))
    n = (1.0 - q) ** (-1.0 / problem.power)
    return t, n, t / (problem.reach * n)


def _best_mass(problem: _Problem) -> FloatArray:
    """Return the mass q that minimises E[x] = -q + (1-q) x(q), by a grid and a golden section."""

    def mean_cosine(q: FloatArray) -> FloatArray:
        _, _, x = _atom(problem, q)
        return np.where(x <= 1.0 + 1e-12, -q + (1.0 - q) * x, np.inf)

    top = np.minimum(problem.loss / problem.at_zero, 1.0) * (1.0 - 1e-12)
    grid = np.linspace(0.0, 1.0, GRID)[:, None] * top
    place = np.argmin(mean_cosine(grid), axis=0)
    step = top / (GRID - 1)
    low, high = np.maximum(step * (place - 1), 0.0), np.minimum(step * (place + 1), top)
    for _ in range(GOLDEN_STEPS):
        width = _GOLDEN * (high - low)
        left, right = high - width, low + width
        shrink_right = mean_cosine(left) <= mean_cosine(right)
        low, high = np.where(shrink_right, low, left), np.where(shrink_right, right, high)
    # Larger q is where x reaches 1; the lower end stays on the side that is allowed.
    return low


def dual_value(problem: _Problem, norm_price: FloatArray, loss_price: FloatArray) -> FloatArray:
    """Return D(lambda, mu) less its rounding, elementwise; NaN or -inf for prices that are not positive."""
    zero = problem.at_zero
    good, size = _good_branch(problem, norm_price, loss_price)
    phi = np.minimum(-1.0 + loss_price * zero, good)
    terms = 2.0 + norm_price + loss_price * problem.loss + np.abs(phi) + size
    value = phi - norm_price - loss_price * problem.loss - ROUNDING * terms
    return np.where((norm_price > 0) & (loss_price >= 0), value, -np.inf)


def _good_branch(problem: _Problem, norm_price: FloatArray, loss_price: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a lower bound of the interior minimum of F over t > 0, inf where there is none, and its rounding scale."""
    p, reach, kappa, offset = problem.power, problem.reach, problem.kappa, problem.offset
    if p == 2:
        knee = reach / np.sqrt(2.0 * norm_price)
        slope_at_knee = np.sqrt(2.0 * norm_price) / reach
    else:
        knee = reach / norm_price
        slope_at_knee = norm_price / reach

    def psi(t: FloatArray) -> FloatArray:
        ratio = t / reach
        if p == 2:
            curved = 1.5 * np.cbrt(2.0 * norm_price * np.square(ratio))
            return np.where(t <= knee, curved, 1.0 + norm_price * np.square(ratio))
        return np.where(t <= knee, 2.0 * np.sqrt(norm_price * ratio), 1.0 + norm_price * ratio)

    def derivative(t: FloatArray) -> FloatArray:
        ratio = t / reach
        if p == 2:
            rise = np.where(t <= knee, np.cbrt(2.0 * norm_price / ratio), 2.0 * norm_price * ratio)
        else:
            rise = np.where(t <= knee, np.sqrt(norm_price / ratio), norm_price)
        return rise / reach - loss_price * problem.slope(t)

    # t1: (p+1) kappa t sigma(kappa t - offset) = 1, between 1/((p+1) kappa) and (max(offset, 0) + 1)/kappa.
    low = np.full_like(knee, 1.0 / ((p + 1) * kappa)) * (1.0 - 1e-9)
    high = (np.maximum(offset, 0.0) + 1.0) / kappa + np.zeros_like(knee)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        concave = (p + 1) * kappa * middle * np.exp(-np.logaddexp(0.0, offset - kappa * middle)) < 1.0
        low, high = np.where(concave, middle, low), np.where(concave, high, middle)
    before, after = np.minimum(low, knee), np.minimum(high, knee)

    # F' <= 0 somewhere in [before, after] or there is no interior minimum: F(0) is then the infimum.
    start = np.where(derivative(before) <= 0, before, after)
    exists = derivative(start) <= 0
    beyond = (offset + np.log(np.maximum(loss_price * kappa / slope_at_knee, 1e-300)) + 1.0) / kappa
    left, right = start, np.maximum(np.maximum(knee, beyond), start)
    for _ in range(BISECTIONS):
        middle = 0.5 * (left + right)
        falling = derivative(middle) <= 0
        left, right = np.where(falling, middle, left), np.where(falling, right, middle)
    level = loss_price * problem.f(left)
    value = psi(left) + level - np.abs(derivative(left)) * (right - left)
    size = psi(left) + level * (1.0 + np.abs(offset) + kappa * left)
    return np.where(exists, value, np.inf), np.where(exists, size, loss_price * problem.at_zero)


def log_expm1(value: FloatArray) -> FloatArray:
    """Return log(e^v - 1) for v > 0 without overflow; NaN below zero."""
    small = np.log(np.expm1(np.minimum(value, 31.0)))
    return np.where(value > 30.0, value + np.log1p(-np.exp(-np.maximum(value, 1.0))), small)
