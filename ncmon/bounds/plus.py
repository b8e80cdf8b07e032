"""The certificates that also know the class means (P+): sharper, for one more measured statistic.

Notation and rounding: `ncmon.bounds.inputs`; htilde_c = mean of h, rho = |htilde_c| / a_c.

Along the row. With tbar = dw.htilde known, the moment problem of `ncmon.bounds.moment` gains E[t] >= tbar, t = a b n x,
and its dual one multiplier eta >= 0: E[x] >= phi - lambda - mu l + eta tbar with

    phi = inf over n >= 0, |x| <= 1 of  x + lambda n^2 + mu f(P n x) - eta P n x.

- t <= 0: at least -1 + mu f(0), as before, since -eta t >= 0.
- 0 < t <= t* = P / sqrt(2 lambda): F = psi(t) + mu f(t) - eta t, psi = 3 lambda^(1/3) (t/2P)^(2/3) concave, f convex.
  On a cell [s, s + h] the concave part is above its chord and f at most h (f'(s+h) - f'(s)) / 4 below its own, so
  F >= min(F(s), F(s+h)) - mu h (f'(s+h) - f'(s)) / 4. Cells are small where f bends.
- t >= t*: 1 + lambda (t/P)^2 + mu f(t) - eta t. f is above its tangent at any T, so that for every T the branch is at
  least  1 + mu (f(T) + |f'(T)| T) - s^2 P^2 / (4 lambda),  s = eta + mu |f'(T)|. T = eta P^2 / (2 lambda) is used.

Multipliers from the primal with two atoms, mass q at n = 0, x = -1 and 1 - q at t = tbar / (1 - q), where
q f(0) + (1-q) f(t) = l:  x = t sqrt(1-q) / P,  lambda = x (1-q) / 2,  mu = (1 + x/2) / (f(0) - f(t) - |f'(t)| t),
eta = x / t - mu |f'(t)|, and a few around them. Any multipliers certify.

Without any loss (mu = 0) this is Lemma 2.4.5 of the thesis: E[x] >= 2 rho^2 - 1 along any direction, with rho the mean
own component over a. Proof: x >= -1 + 4 r n x - 2 r^2 n^2 pointwise for every r; take expectations. Along htilde itself
rho = |htilde| / a: a certificate from features alone, about every layer's classes whatever the classifier does.

Pairs: the cap lemma of `ncmon.bounds.pairs` along the rows and along the class means, whichever says more.

Alignment: as P-NC3, with |htilde| measured in the place of the mean norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ncmon import geometry
from ncmon.bounds.certificate import NO_COSINE, NO_LOGIT, Certificates, certify, kept
from ncmon.bounds.inputs import (
    ALLOWANCE,
    LOSS_STATISTICS,
    PER_CLASS,
    PER_CLASS_FACTS,
    class_inputs,
    least,
)
from ncmon.bounds.moment import ROUNDING
from ncmon.bounds.pairs import MOST_CLASSES, cap_bound, certify_pairs, directions, merge_along, pair_shift
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import Unavailable, View, class_array, reading
from ncmon.model import FloatArray

FEW_CLASSES = 32
"""Up to this many, the directions of pairs are tried too: one moment problem a pair."""
BISECTIONS = 26
CELLS = 96
"""Cells over the stretch where f bends."""
PAIR_CELLS = 36
"""The same for pairs, of which there are many."""
BEND = 9.0
"""Half the width of that stretch in units of 1 / kappa: outside, f is a line within 1e-4."""
TRIES = ((0.0, 0.0, 0.0), (0.0, 1.2, 0.0), (0.0, 2.0, 0.0), (-0.15, 0.0, -0.1), (0.15, 0.0, 0.1))
"""Steps in (log lambda, log mu, log eta) from the multipliers of two atoms."""


def with_mean(
    *,
    reach: FloatArray,
    loss: FloatArray,
    offset: FloatArray,
    kappa: float,
    own: FloatArray,
    tries: tuple[tuple[float, float, float], ...],
    cells: int = CELLS,
) -> FloatArray:
    """Return a certified lower bound (K,) of the mean cosine that also knows E[t] >= own; -1 where nothing is known.

    f(t) = softplus(offset - kappa t). Includes Lemma 2.4.5, which needs no loss.
    """
    with np.errstate(all="ignore"):
        own = np.minimum(own, reach)
        known = np.isfinite(own) & (own > 0) & np.isfinite(reach) & (reach > 0) & (loss < np.logaddexp(0.0, offset))
        best = np.where(own > 0, 2 * np.square(own / reach) - 1 - ROUNDING, -1.0)
        problem = MeanProblem(reach=reach, loss=loss, offset=offset, kappa=kappa, own=own, cells=cells)
        prices = problem.prices()
        for step in tries:
            value = problem.dual_value(*(price * np.exp(size) for price, size in zip(prices, step, strict=True)))
            best = np.where(known & np.isfinite(value), np.fmax(best, value), best)
        return np.clip(np.where(np.isfinite(best), best, -1.0), -1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanProblem:
    """One moment problem with a known mean an element; f(t) = softplus(offset - kappa t)."""

    reach: FloatArray
    loss: FloatArray
    offset: FloatArray
    kappa: float
    own: FloatArray
    cells: int

    def f(self, t: FloatArray) -> FloatArray:
        """Return f(t)."""
        return np.logaddexp(0.0, self.offset - self.kappa * t)

    def slope(self, t: FloatArray) -> FloatArray:
        """Return |f'(t)|."""
        return self.kappa * np.exp(-np.logaddexp(0.0, self.kappa * t - self.offset))

    def prices(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return lambda, mu and eta of the primal with two atoms."""
        at_zero = np.logaddexp(0.0, self.offset)
        # The mass q: q f(0) + (1-q) f(own/(1-q)) grows with q; x <= 1 ends it at 1 - rho^2.
        low, high = np.zeros_like(self.own), (1 - np.square(self.own / self.reach)) * (1 - 1e-12)
        for _ in range(BISECTIONS):
            q = 0.5 * (low + high)
            less = q * at_zero + (1 - q) * self.f(self.own / (1 - q)) < self.loss
            low, high = np.where(less, q, low), np.where(less, high, q)
        q = np.maximum(high, 1e-14)
        t = self.own / (1 - q)
        x = np.minimum(t * np.sqrt(1 - q) / self.reach, 1.0)
        steep = self.slope(t)
        loss_price = (1 + x / 2) / (at_zero - self.f(t) - steep * t)
        return x * (1 - q) / 2, loss_price, np.maximum(x / t - loss_price * steep, 0.0)

    def dual_value(self, norm_price: FloatArray, loss_price: FloatArray, own_price: FloatArray) -> FloatArray:
        """Return phi - lambda - mu l + eta own less its rounding; NaN or -inf for prices out of range."""
        at_zero = np.logaddexp(0.0, self.offset)
        knee = self.reach / np.sqrt(2 * norm_price)
        cells = np.minimum(self._cells(), knee)
        level, slope = self.f(cells), self.slope(cells)
        whole = 1.5 * np.cbrt(2 * norm_price * np.square(cells / self.reach)) + loss_price * level - own_price * cells
        bend = loss_price * np.diff(cells, axis=0) * (slope[:-1] - slope[1:]) / 4
        inside = (np.minimum(whole[:-1], whole[1:]) - bend).min(axis=0)
        # Between the last cell and the knee f is taken as 0, which it is above; the rest is concave.
        flat = np.minimum(whole[-1] - loss_price * level[-1], 1.5 - own_price * knee)
        inside = np.where(cells[-1] < knee, np.minimum(inside, flat), inside)
        far = own_price * np.square(self.reach) / (2 * norm_price)
        pull = own_price + loss_price * self.slope(far)
        beyond = (
            1 + loss_price * (self.f(far) + self.slope(far) * far) - np.square(pull * self.reach) / (4 * norm_price)
        )
        away = -1 + loss_price * at_zero
        phi = np.minimum(np.minimum(inside, beyond), away)
        value = phi - norm_price - loss_price * self.loss + own_price * self.own
        size = 3 + norm_price + loss_price * (self.loss + at_zero) + own_price * (self.own + far) + np.abs(beyond)
        sound = (norm_price > 0) & (loss_price >= 0) & (own_price >= 0)
        return np.where(sound, value - ROUNDING * size, -np.inf)

    def _cells(self) -> FloatArray:
        """Return the ends (n, K) of the cells, ascending: from 0 over the stretch where f bends to where it is flat."""
        start = np.maximum(self.offset - BEND, 0.0) / self.kappa
        stop = (np.maximum(self.offset, 0.0) + BEND) / self.kappa
        before = start * np.linspace(0.0, 1.0, 4)[:-1, None]
        within = start + (stop - start) * np.linspace(0.0, 1.0, self.cells + 1)[:, None]
        after = stop * np.array([1.5, 3.0, 10.0, 100.0])[:, None]
        return np.concatenate([before, within, after])


def mean_lengths(view: View) -> FloatArray:
    """Return |htilde_c| (K,) enlarged by the rounding of means that were summed in single precision."""
    inputs = view.shared(class_inputs)
    return np.minimum(geometry.row_norms(view.means) + ALLOWANCE * inputs.mean, inputs.mean)


def certify_along_rows(view: View) -> FloatArray:
    """Return the certified mean cosine to w_c - wbar (K,) that knows the class means, -1 where nothing is known."""
    inputs = view.shared(class_inputs)
    n = view.n_classes
    kappa = n / (n - 1.0)
    own = np.einsum("ij,ij->i", view.centred_weight[view.present], view.means)
    own = own - ALLOWANCE * inputs.mean_reach
    found = with_mean(
        reach=inputs.rms_reach,
        loss=inputs.loss,
        offset=np.log(n - 1.0) - kappa * inputs.shift,
        kappa=kappa,
        own=own,
        tries=TRIES,
    )
    plain = view.shared(certify).cosine
    sound = np.array([not reason for reason in inputs.reasons])
    return np.where(sound, np.fmax(found, plain), -1.0)


def certify_along_means(view: View) -> FloatArray:
    """Return the certified mean cosine to the class mean (K,), 2 (|htilde|/a)^2 - 1 by Lemma 2.4.5."""
    inputs = view.shared(class_inputs)
    length = geometry.row_norms(view.means) - ALLOWANCE * inputs.mean
    with np.errstate(all="ignore"):
        found = 2 * np.square(np.maximum(length, 0.0) / inputs.rms) - 1 - ROUNDING
    return np.where(np.isfinite(found), np.maximum(found, -1.0), -1.0)


def certify_plus(view: View) -> Certificates:
    """Return the better one of both certificates of every class."""
    inputs = view.shared(class_inputs)
    best = np.maximum(view.shared(certify_along_rows), view.shared(certify_along_means))
    return kept(best, inputs.reasons, NO_COSINE)


def certify_plus_alignment(view: View) -> Certificates:
    """Return the certified cos(w_c - wbar, mu_c) with |mu_c| measured."""
    inputs = view.shared(class_inputs)
    with np.errstate(all="ignore"):
        slope = inputs.mean_reach / inputs.mean
        found = inputs.own_logit / (slope * view.shared(mean_lengths))
    return kept(np.minimum(found, 1.0), inputs.reasons, NO_LOGIT)


def certify_plus_pairs(view: View) -> FloatArray:
    """Return the certified upper bounds (K, K) of inter, NaN on the diagonal, 1 where nothing is known."""
    bound = view.shared(certify_pairs)
    rows = view.centred_weight[view.present]
    bound = merge_along(view, bound, rows, view.shared(certify_along_rows))
    # Means in single precision are off by an angle of about the allowance, each: it is charged to the cosines.
    along = view.shared(certify_along_means)
    bound = merge_along(view, bound, view.means, np.where(along > -1, along - 2 * ALLOWANCE, -1.0))
    if 2 < view.n_classes <= FEW_CLASSES:
        bound = np.fmin(bound, _along_pairs(view))
    return bound


def _along_pairs(view: View) -> FloatArray:
    """Return the cap lemma (K, K) along the directions of pairs, whose own mean logit is known as well."""
    inputs = view.shared(class_inputs)
    rows = view.centred_weight[view.present]
    ways = directions(rows @ rows.T, n_classes=view.n_classes, tau=np.array([(view.n_classes - 1.0) ** -0.25]))
    means = view.means @ rows.T
    own = ways.a * np.diagonal(means)[:, None] - ways.b * means
    reach = inputs.rms[:, None] * ways.length * (1 + ALLOWANCE)
    shape = reach.shape
    cosine = with_mean(
        reach=reach.ravel(),
        loss=np.broadcast_to(inputs.loss[:, None], shape).ravel(),
        offset=(ways.entropy - pair_shift(view, inputs, ways)).ravel(),
        kappa=1.0,
        own=(own - ALLOWANCE * reach).ravel(),
        tries=TRIES[:1],
        cells=PAIR_CELLS,
    ).reshape(shape)
    found = cap_bound(ways.between, cosine, cosine.swapaxes(1, 2))[0]
    unsound = np.array([bool(reason) for reason in inputs.reasons])
    found[unsound, :] = 1.0
    found[:, unsound] = 1.0
    np.fill_diagonal(found, np.nan)
    return found


@class_array
def cert_plus_intra(view: View) -> FloatArray:
    """Return the certified |hbar_c|^2 (K,) that knows the class means."""
    return view.shared(certify_plus).intra


@reading
def cert_plus_intra_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return the least certified |hbar_c|^2 and its class."""
    found = view.shared(certify_plus)
    value, number = least(view, found.intra, found.reasons)
    return value, (number,)


@reading
def cert_plus_nc3_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return the least certified cos(w_c - wbar, mu_c) and its class."""
    found = view.shared(certify_plus_alignment)
    value, number = least(view, found.cosine, found.reasons)
    return value, (number,)


@reading
def cert_plus_inter_max(view: View) -> tuple[float, tuple[int, ...]]:
    """Return the greatest certified upper bound over pairs and its pair."""
    if view.n_classes > MOST_CLASSES:
        raise Unavailable(f"not computed above {MOST_CLASSES} classes")
    found = view.shared(certify_plus_pairs)
    inputs = view.shared(class_inputs)
    if any(inputs.reasons):
        least(view, inputs.loss, inputs.reasons)
    value, pair = geometry.pair_maximum(found)
    first, second = (int(view.present[place]) for place in pair)
    if value >= 1.0:
        raise Unavailable(f"vacuous: classes {first} and {second}: losses and means do not separate them")
    return value, (first, second)


_SOURCE = "ncmon theory notes, section 1 (P+); thesis, Theorem 2.3.1 and Lemma 2.4.5"
_NEEDS = (*LOSS_STATISTICS, "class_means")

BOUNDS = (
    Bound(
        name="cert_plus_intra",
        title="certified intra-class cosine, class means known",
        of="intra_cos",
        side="lower",
        scope="class",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_SOURCE,
        definition=(
            "X_c^2, X_c the greater one of: the least mean cos(w_c - wbar, h) that loss, norms and"
            " (w_c - wbar).mu_c allow; 2 (|mu_c|/a_c)^2 - 1"
        ),
        needs=_NEEDS,
        compute=cert_plus_intra,
    ),
    Bound(
        name="cert_plus_intra_min",
        title="certified least intra-class cosine, class means known",
        of="intra_cos_min",
        side="lower",
        scope="classifier",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_SOURCE,
        definition="min over present classes of cert_plus_intra; none where one of them has none",
        needs=_NEEDS,
        compute=cert_plus_intra_min,
    ),
    Bound(
        name="cert_plus_nc3_min",
        title="certified least alignment of row and mean, length of the mean known",
        of="nc3_cos_min",
        side="lower",
        scope="classifier",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source="ncmon theory notes, section 1 (P-NC3); thesis, Theorem 2.3.1",
        definition="min over present classes of (g^-1(l_c) - (v_c - vbar)) / (|mu_c| |w_c - wbar|)",
        needs=_NEEDS,
        compute=cert_plus_nc3_min,
    ),
    Bound(
        name="cert_plus_inter_max",
        title="certified greatest inter-class cosine, class means known",
        of="inter_cos_max",
        side="upper",
        scope="classifier",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source="ncmon theory notes, section 1b (P-inter); thesis, Theorem 2.3.1 and Lemma 2.4.5",
        definition="cert_inter_max with the certificates of cert_plus_intra, along rows and along class means",
        needs=_NEEDS,
        compute=cert_plus_inter_max,
    ),
)
