"""The moment problem of `ncmon.bounds.moment` where the mean own logit is known as well: the core of P+.

Problem. With f(t) = softplus(c - kappa t), t = P n x and rho = tbar / P,

    Xmin = min E[x]  over all distributions of (n, x), n >= 0, -1 <= x <= 1,
           subject to  E[n^2] <= 1,  E[f(t)] <= l  and  E[t] >= tbar > 0.

Weak duality. For all lambda > 0, mu >= 0, eta >= 0,  E[x] >= D = phi - lambda - mu l + eta tbar  with

    phi = inf over n >= 0, |x| <= 1 of  x + lambda n^2 + mu f(P n x) - eta P n x.

Certificate. phi is the least of three branches, with t* = P / sqrt(2 lambda):
- t <= 0: at least -1 + mu f(0), for f falls and -eta t >= 0.
- 0 < t <= t*: F = psi(t) + mu f(t) - eta t with psi = 3 lambda^(1/3) (t/2P)^(2/3). Let F'(t1) = 0 at a t1 <= t* where
  3 t f'' + f' >= eta/mu. Then F >= min(F(t1), mu f(0), F(t*)) on the branch.
  Proof: in u = t^(2/3) psi is linear, so F is convex in u where w = 3 t f'' + f' - eta/mu >= 0. Since
  f''' = -kappa f'' tanh((kappa t - c)/2), w' = f'' (4 - 3 kappa t tanh((kappa t - c)/2)), whose bracket changes its
  sign once; so w rises, then falls, and starts below zero: {w >= 0} is one interval. On it, which holds t1, F >= F(t1).
  On both sides of it F is concave in u, so its least values are at the ends: the interval's, 0, or t*. []
  eta is *defined* by F'(t1) = 0: eta = x1/t1 - mu |f'(t1)|, x1 = P^-1 t1/n1, n1^3 = t1 / (2 P lambda); and
  F(t1) = x1/2 + mu (f(t1) + |f'(t1)| t1).
- t >= t*: 1 + lambda (t/P)^2 + mu f(t) - eta t, convex; f is above its tangent at any T, and the parabola that is left
  has its minimum over t >= t* in closed form. T is where the branch is least, by Newton's method.

So a certificate takes three multipliers given as (t1, lambda, mu), and no search. Poor ones are looser, never wrong.

Where F' is not zero at a convex place the branch 0 < t <= t* is bounded on cells instead: on [s, s + h] the concave
psi - eta t is above its chord, and f at most h (f'(s+h) - f'(s)) / 4 below its own, so that
F >= min(F(s), F(s+h)) - mu h (f'(s+h) - f'(s)) / 4. Cells are small where f bends, and the same for all multipliers.

Multipliers. The optimum has at most three atoms: a share without direction (n = 0, x = -1), one at t1 (x < 1) and one
at t2 beyond t* (x = 1); complementary slackness asks for F(t1) = F(t2) = phi, and phi = -1 + mu f(0) where the first
share is not zero. With z^3 = 2 lambda, u = t1/P, s = |f'|, m = mu P s(t1) n1, sigma = s(t2)/s(t1),

    F(t1) = z (u^(2/3)/2 + m u^(-1/3) k(t1)),              k(t) = (f(t) + s(t) t) / (P s(t1))
    F(t2) = m z u^(-1/3) k(t2) + 1 - y^2 u^(-2/3) / (2 z), y = 1 - m + m sigma,  t2 = P y u^(-1/3) / z^2

so that for given (t1, m) z is the lesser root of a quadratic, and t2 follows; a few rounds of both settle them. What is
left are two numbers, t1 and m, m from where the first branch is as low as the others upwards. D is evaluated over a
small grid of both, which closes in on the best five times; it is flat there, so an inexact optimum costs little.
Without the atom at t2 the multipliers are in closed form: the share q solves q f(0) + (1-q) f(tbar/(1-q)) = l.

Without any loss (mu = 0) the problem is Lemma 2.4.5 of the thesis: E[x] >= 2 rho^2 - 1. Proof: x >= -1 + 4 r n x -
2 r^2 n^2 pointwise for every r; take expectations at r = rho. []
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ncmon.bounds.moment import ROUNDING
from ncmon.model import FloatArray, IntArray

GRIDS = ((8, 6), (7, 6), (7, 6))
"""Values of t1 and of m that are tried at once, grid after grid."""
GRIDS_OF_MANY = ((7, 6),) * 4
"""The same where numbers, not calls, are what costs."""
MANY = 32
"""Problems that are many."""
REACH_OUT = 1.5
"""Half the width of the next grid, in steps of this one: the optimum lies on a bent ridge."""
SETTLE, SETTLE_LATER = 3, 1
"""Rounds that settle z and t2, from nothing and from the last grid's."""
FIRST = 0.3
"""Share of tbar from which t1 is sought."""
NEWTON_STEPS = 5
FAR_STEPS = 3
NUDGES = ((0.0, 0.0, 0.0), (0.0, 1.2, 0.0), (0.0, 2.0, 0.0), (-0.15, 0.0, -0.1), (0.15, 0.0, 0.1))
"""Steps in (log lambda, log mu, log eta) from the multipliers of two atoms, for the bound on cells."""
CELLS = 96
"""Cells over the stretch where f bends."""
FEW_CELLS = 36
"""The same where no more than the multipliers of two atoms are tried."""
CHUNK = 128
"""Problems that are worked on at a time, so that their grids and cells stay in the cache."""
CELLS_FROM = 1e-3
"""What a certificate may miss of the value that two atoms attain before cells are tried."""
BEND = 9.0
"""Half the width of that stretch in units of 1 / kappa: outside, f is a line within 1e-4."""


def least_with_mean(
    *, reach: FloatArray, loss: FloatArray, offset: FloatArray, kappa: float, own: FloatArray, thorough: bool = True
) -> FloatArray:
    """Return a certified lower bound (n,) of the mean cosine that also knows E[t] >= own; -1 where nothing is known.

    f(t) = softplus(offset - kappa t). Includes Lemma 2.4.5, which needs no loss. `thorough` False tries the multipliers
    of two atoms only.
    """
    with np.errstate(all="ignore"):
        own = np.minimum(own, reach)
        measured = np.isfinite(own) & (own > 0) & np.isfinite(reach)
        best = np.where(measured, 2 * np.square(own / reach) - 1 - ROUNDING, -1.0)
        problem, usable = MeanProblem.usable(reach=reach, loss=loss, offset=offset, kappa=kappa, own=own)
        for start in range(0, usable.size, CHUNK):
            chosen = usable[start : start + CHUNK]
            some = problem.take(chosen)
            pair = some.two_atoms()
            found = _known(some.certified(pair))
            if thorough:
                found = np.maximum(found, _known(some.certified(some.three_atoms())))
            # No certificate is above what two atoms attain: where little is missing, cells cannot add it.
            missing = some.attained(pair) - np.maximum(found, best[chosen])
            open_ = np.flatnonzero(~(missing <= CELLS_FROM))
            if open_.size:
                part, prices = some.take(open_), pair.take(open_)
                nudges, cells = (NUDGES, CELLS) if thorough else (NUDGES[:1], FEW_CELLS)
                on_cells = _known(part.certified_on_cells(prices, nudges, cells))
                found[open_] = np.maximum(found[open_], on_cells)
            best[chosen] = np.maximum(best[chosen], found)
        return np.clip(best, -1.0, 1.0)


def most_with_mean(
    *, reach: FloatArray, loss: FloatArray, offset: FloatArray, kappa: float, own: FloatArray
) -> FloatArray:
    """Return what no certificate (n,) of `least_with_mean` is above, 1 where that is not known: two atoms attain it."""
    with np.errstate(all="ignore"):
        own = np.minimum(own, reach)
        problem, usable = MeanProblem.usable(reach=reach, loss=loss, offset=offset, kappa=kappa, own=own)
        some = problem.take(usable)
        most = np.ones(own.size)
        attained = some.attained(some.two_atoms())
        # A loss below f(own) is that of a greater mean: by Jensen's inequality no distribution has both.
        both = some.loss >= some.f(some.own)[0]
        most[usable] = np.where(both & np.isfinite(attained), np.minimum(attained, 1.0), 1.0)
        return most


def _known(values: FloatArray) -> FloatArray:
    """Return certificates, -1 where there is none."""
    return np.where(np.isfinite(values), values, -1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """Multipliers of the dual: lambda, mu, and eta by the place where it makes F stationary."""

    norm: FloatArray
    """lambda"""
    loss: FloatArray
    """mu"""
    place: FloatArray
    """t1"""

    def take(self, chosen: np.ndarray) -> Prices:
        """Return the multipliers of the problems `chosen`."""
        return Prices(norm=self.norm[chosen], loss=self.loss[chosen], place=self.place[chosen])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanProblem:
    """One moment problem with a known mean an element; f(t) = softplus(offset - kappa t)."""

    reach: FloatArray
    loss: FloatArray
    offset: FloatArray
    kappa: float
    own: FloatArray
    at_zero: FloatArray
    """f(0)"""

    @classmethod
    def usable(
        cls, *, reach: FloatArray, loss: FloatArray, offset: FloatArray, kappa: float, own: FloatArray
    ) -> tuple[MeanProblem, IntArray]:
        """Return the problems (n,) and the places of those in which both the loss and the mean say something."""
        at_zero = np.logaddexp(0.0, offset)
        told = np.isfinite(own) & (own > 0) & np.isfinite(reach) & (loss > 0) & (loss < at_zero)
        problem = cls(reach=reach, loss=loss, offset=offset, kappa=kappa, own=own, at_zero=at_zero)
        return problem, np.flatnonzero(told)

    def take(self, chosen: np.ndarray) -> MeanProblem:
        """Return the problems `chosen`."""
        return MeanProblem(
            reach=self.reach[chosen],
            loss=self.loss[chosen],
            offset=self.offset[chosen],
            kappa=self.kappa,
            own=self.own[chosen],
            at_zero=self.at_zero[chosen],
        )

    def attained(self, pair: Prices) -> FloatArray:
        """Return E[x] of the distribution of two atoms whose multipliers `pair` are: no bound is above it."""
        rest = self.own / pair.place
        return rest - 1.0 + rest * np.minimum(pair.place * np.sqrt(rest) / self.reach, 1.0)

    def f(self, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return f(t) and |f'(t)|."""
        level = np.logaddexp(0.0, self.offset - self.kappa * t)
        return level, -self.kappa * np.expm1(-level)

    def certified(self, prices: Prices) -> FloatArray:
        """Return D less its rounding; -inf or NaN where the conditions of the certificate do not hold."""
        norm, price, place = prices.norm, prices.loss, prices.place
        level, slope = self.f(place)
        cosine = np.cbrt(2 * norm * np.square(place / self.reach))
        own_price = cosine / place - price * slope
        inside = cosine / 2 + price * (level + slope * place)
        convex = 3 * place * self.kappa * price * slope * np.exp(-level) >= cosine / place * (1 + 1e-9)
        within = (place > 0) & (place <= self.reach / np.sqrt(2 * norm))
        value = self._dual_value(norm, price, own_price, inside, price * slope * place + own_price * place)
        return np.where(convex & within, value, -np.inf)

    def certified_on_cells(
        self, prices: Prices, nudges: tuple[tuple[float, float, float], ...], cells: int
    ) -> FloatArray:
        """Return the best D of multipliers around `prices`, less its rounding; -inf or NaN where there is none."""
        _, slope = self.f(prices.place)
        cosine = np.cbrt(2 * prices.norm * np.square(prices.place / self.reach))
        own_price = np.maximum(cosine / prices.place - prices.loss * slope, 0.0)
        norm, price, own_price = (
            one * np.exp(step)[:, None]
            for one, step in zip((prices.norm, prices.loss, own_price), np.transpose(nudges), strict=True)
        )
        ends = self._cells(cells)
        level = np.log1p(np.exp(self.offset - self.kappa * ends))
        slope = -self.kappa * np.expm1(-level)
        bend = np.diff(ends, axis=0) * (slope[:-1] - slope[1:]) / 4
        root = np.cbrt(np.square(ends / self.reach))

        knee = self.reach / np.sqrt(2 * norm)
        rise = 1.5 * np.cbrt(2 * norm)
        whole = rise[:, None] * root + price[:, None] * level - own_price[:, None] * ends
        cell = np.minimum(whole[:, :-1], whole[:, 1:]) - price[:, None] * bend
        inside = np.where(ends[1:] <= knee[:, None], cell, np.inf).min(axis=1)
        # The cell that the knee cuts.
        at = np.count_nonzero(ends <= knee[:, None], axis=1) - 1
        everyone = np.arange(self.reach.size)
        start, knee_level, knee_slope = ends[at, everyone], *self.f(knee)
        lowest = np.minimum(
            np.take_along_axis(whole, at[:, None], axis=1)[:, 0], 1.5 + price * knee_level - own_price * knee
        )
        last = lowest - price * (knee - start) * (slope[at, everyone] - knee_slope) / 4
        return self._dual_value(norm, price, own_price, np.minimum(inside, last), own_price * knee).max(axis=0)

    def _dual_value(
        self, norm: FloatArray, price: FloatArray, own_price: FloatArray, inside: FloatArray, terms: FloatArray
    ) -> FloatArray:
        """Return D less its rounding, `inside` the least F up to t*, `terms` the size of what it is a difference of."""
        reach, curve = self.reach, 2 * norm / np.square(self.reach)
        knee = reach / np.sqrt(2 * norm)
        far = np.maximum(own_price / curve, knee)
        for _ in range(FAR_STEPS):
            level, slope = self.f(far)
            excess = curve * far - price * slope - own_price
            far = np.maximum(far - excess / (curve + price * self.kappa * slope * np.exp(-level)), knee)
        level, slope = self.f(far)
        lowest = np.maximum((own_price + price * slope) / curve, knee)
        beyond = 1 + curve / 2 * np.square(lowest) + price * (level + slope * (far - lowest)) - own_price * lowest
        away = -1 + price * self.at_zero
        phi = np.minimum(np.minimum(inside, beyond), away)
        value = phi - norm - price * self.loss + own_price * self.own
        size = 3 + norm + curve * np.square(lowest) + own_price * (self.own + lowest) + terms
        size += price * (self.loss + self.at_zero + level + slope * (far + lowest))
        sound = (norm > 0) & (price >= 0) & (own_price >= 0)
        return np.where(sound & np.isfinite(value), value - ROUNDING * size, -np.inf)

    def _cells(self, count: int) -> FloatArray:
        """Return the ends (m, n) of the cells, ascending, `count` of them on the stretch where f bends."""
        start = np.maximum(self.offset - BEND, 0.0) / self.kappa
        stop = (np.maximum(self.offset, 0.0) + BEND) / self.kappa
        before = start * np.linspace(0.0, 1.0, 4)[:-1, None]
        within = start + (stop - start) * np.linspace(0.0, 1.0, count + 1)[:, None]
        after = stop * np.array([1.5, 3.0, 10.0, 100.0])[:, None]
        return np.concatenate([before, within, after])

    def two_atoms(self) -> Prices:
        """Return the multipliers of the optimum without an atom beyond t*."""
        own, loss = self.own, self.loss
        # q f(0) + (1-q) f(own/(1-q)) is convex and grows with q: Newton's method from above. x <= 1 ends it.
        most = (1 - np.square(own / self.reach)) * (1 - 1e-12)
        q = np.minimum(loss / self.at_zero, most)
        for _ in range(NEWTON_STEPS):
            t = own / (1 - q)
            level, slope = self.f(t)
            excess = q * self.at_zero + (1 - q) * level - loss
            q = np.minimum(q - excess / (self.at_zero - level - slope * t), most)
        q = np.maximum(q, 1e-14)
        t = own / (1 - q)
        level, slope = self.f(t)
        x = np.minimum(t * np.sqrt(1 - q) / self.reach, 1.0)
        return Prices(norm=x * (1 - q) / 2, loss=(1 + x / 2) / (self.at_zero - level - slope * t), place=t)

    def three_atoms(self) -> Prices:
        """Return the best multipliers of the grids that balance an atom at t1 with one beyond t*."""
        n = self.reach.size
        everyone = np.arange(n)
        low, high = self._ends()
        low, high = np.stack([low, np.zeros(n)]), np.stack([high, np.ones(n)])
        top = high
        z = np.full(n, 0.97)
        far: FloatArray | None = None
        for turn, grid in enumerate(GRIDS_OF_MANY if n > MANY else GRIDS):
            step = (high - low) / (np.array(grid)[:, None] - 1)
            place = low[0] + step[0] * np.arange(grid[0])[:, None, None]
            weight = low[1] + step[1] * np.arange(grid[1])[:, None]
            tried = self._balanced(place, weight, z, far, SETTLE if turn == 0 else SETTLE_LATER)
            best = np.argmax(tried.value.reshape(-1, n), axis=0)
            z, far = tried.z.reshape(-1, n)[best, everyone], tried.far.reshape(-1, n)[best, everyone]
            middle = low + step * np.stack(np.divmod(best, grid[1]))
            low, high = np.maximum(middle - REACH_OUT * step, 0.0), np.minimum(middle + REACH_OUT * step, top)
        return self._balanced(middle[0], middle[1], z, far, SETTLE).prices

    def _ends(self) -> tuple[FloatArray, FloatArray]:
        """Return between which ends (n,) t1 is sought."""
        # Below 1/(3 kappa) F is concave; an atom with a loss above 20 l has less than a twentieth of the mass.
        loss = np.minimum(self.loss, self.at_zero / 40)
        low = np.maximum((self.offset - np.log(np.expm1(20 * loss))) / self.kappa, 1 / (3 * self.kappa))
        # Beyond where f has not a curvature left that matters, unless the loss is yet smaller.
        flat = np.maximum(self.offset, 0.0) + np.log(20 * np.square(self.kappa * self.reach))
        high = np.maximum(self.offset - np.log(np.expm1(self.loss)), flat) / self.kappa
        return np.minimum(low, FIRST * self.own), np.minimum(high, 0.999 * self.own)

    def _balanced(
        self, place: FloatArray, weight: FloatArray, z: FloatArray, far: FloatArray | None, settle: int
    ) -> _Balanced:
        """Return the multipliers with F(t1) = F(t2) for t1 = `place` and m by its `weight`, 0 to 1, above the least."""
        reach, kappa, offset = self.reach, self.kappa, self.offset
        # Sigmoids by exp: these are candidates, and what overflows is not chosen.
        odds = np.exp(offset - kappa * place)
        slope = kappa * odds / (1 + odds)
        support = np.log1p(odds) + slope * place
        root = np.cbrt(place / reach)
        half = np.square(root) / 2
        scale = root * reach * slope
        share = 1 / scale
        near = support * share
        lift = scale / (self.at_zero - support)
        least = 1 / (3 * kappa * place)
        weight = np.square(weight)
        rest, lifted, quarter = 1 - weight, half * lift, 1 / half
        steeper, beyond = kappa / slope, reach / root
        if far is None:
            far = 2 * self.own - place
        for _ in range(settle):
            odds = np.exp(offset - kappa * far)
            ratio = odds / (1 + odds)
            m = np.maximum(least, lift / z + lifted) * rest + weight
            a = half + m * (near - (np.log1p(odds) + kappa * ratio * far) * share)
            y = 1 + m * (ratio * steeper - 1)
            z = (0.5 - 0.5 * np.sqrt(np.maximum(1 - a * y * y * quarter, 0.0))) / a
            far = beyond * y / (z * z)
        price = m * z * share
        phi = np.minimum(z * (half + m * near), price * self.at_zero - 1)
        norm = z**3 / 2
        value = phi - norm - price * self.loss + (1 - m) * z / (root * reach) * self.own
        sound = (far > place) & (m >= least) & (m < 1) & (2 * norm * np.square(far) >= np.square(reach))
        place = place + np.zeros_like(norm)
        return _Balanced(
            value=np.where(sound & np.isfinite(value), value, -np.inf),
            z=z,
            far=far,
            prices=Prices(norm=norm, loss=price, place=place),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Balanced:
    value: FloatArray
    """D as these multipliers would have it; certified elsewhere."""
    z: FloatArray
    far: FloatArray
    prices: Prices
