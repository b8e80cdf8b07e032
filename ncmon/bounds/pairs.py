"""Certificates of pairs (P-inter): how far two classes have separated at least, from their losses and norms alone.

Notation and rounding: `ncmon.bounds.inputs`; hbar_c = mean of h/|h|, inter = hbar_c . hbar_e.

Cap lemma. Let u, u' be unit vectors with u.hbar_c >= X and u'.hbar_e >= X'. Then
inter <= cos(max(0, angle(u, u') - arccos X - arccos X')).
Proof. hbar_c lies in {|h| <= 1, u.h >= X}, hbar_e in its twin: compact, convex, with extreme points of norm 1. A
bilinear form over a product of compact convex sets is greatest at extreme points: unit vectors at angles of at most
arccos X from u and arccos X' from u'. The triangle inequality on the sphere gives the rest. []

Weighted losses. For any probabilities q over the wrong classes, with entropy H(q) and d(q) = w_c - sum_k q_k w_k, the
variational form of log-sum-exp gives for every sample

    L >= softplus(H(q) - d(q).h - (v_c - sum_k q_k v_k)),                                                      (A_q)

uniform q being Jensen's case. So the moment problem with direction d(q) and f(t) = softplus(offset - t) certifies a
mean cosine to d(q): in the usual regime (H(q) - dv - log(e^l - 1)) / (a |d(q)|).

Directions. For the pair (c, e): q = tau on e and (1 - tau)/(C - 2) on each other class. With the sum of all dw zero,
d = A dw_c - B dw_e, A = 1 + (1-tau)/(C-2), B = tau - (1-tau)/(C-2), so lengths and angles come from the Gram matrix of
the centred rows. tau = 1/(C-1) is Jensen's case, tau = 1 compares w_c - w_e with its negative. Every tau certifies; the
least over a few is the bound.

In the usual regime the moment problem's answer is X = t / P, t = offset - log(e^l - 1), with |f'(t)| = 1 - e^-l, proven
where f(0) - l >= (1 + X (p+1)/p) P |f'(t)| and (p+1) t e^-l >= 1 (the conditions of `ncmon.bounds.moment` with kappa
1, times P |f'|). Mean norms (p = 1) give the larger X, as they are shorter; root mean squares are left where p = 1 is
not proven. All is symmetric in the pair, so only pairs c < e are computed, in blocks that stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ncmon import geometry
from ncmon.bounds import moment
from ncmon.bounds.certificate import certify
from ncmon.bounds.inputs import (
    ALLOWANCE,
    LOSS_STATISTICS,
    PER_CLASS,
    PER_CLASS_FACTS,
    ClassInputs,
    and_more,
    class_inputs,
    least,
)
from ncmon.bounds.moment import ROUNDING
from ncmon.metrics.readings import Unavailable, reading
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import View
from ncmon.model import FloatArray

MANY_CLASSES = 128
"""Above this many pairs one weight tau stands for all."""
MOST_CLASSES = 2_500
"""Above this many classes there are no pair certificates: a (C, C) array of a window would be 50 MB."""
WEIGHTS = (0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0)
"""tau = (C-1)^-(1-s) for these s: from near Jensen's case to the single rival."""

CAP_ROUNDING = 32 * geometry.EPS_DOUBLE
"""Of cos(angle - a - b) from the cosines of the three: four products of numbers up to 1 and three roots."""
BLOCK = 48
"""Classes whose pairs with all later ones are computed at a time; a number of them for each weight."""


def gram_rounding(n_features: int) -> float:
    """Return the share of the largest squared row by which a Gram entry, or a difference of two, may be off."""
    # A sum of d products is off by at most d/2 machine epsilons of the product of the lengths.
    return max(64.0, n_features / 2 + 8) * geometry.EPS_DOUBLE


def cap_bound(between: ArrayLike, first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Return cos(max(0, angle - arccos X - arccos X')) from cos(angle), X and X' (the cap lemma), elementwise.

    Cosines of -1 say nothing and give 1. With a = arccos X, b = arccos X' the angle is larger than a + b exactly where
    a + b <= pi, that is X + X' >= 0, and cos(angle) < cos(a + b). Cosines of sums take no arccos, whose rounding would
    be the root of that of its argument.
    """
    between = np.clip(between, -1.0, 1.0)
    first, second = np.clip(first, -1.0, 1.0), np.clip(second, -1.0, 1.0)
    return _cap(between, first, second, _sine(first), _sine(second))


def _sine(cosine: FloatArray) -> FloatArray:
    return np.sqrt((1.0 - cosine) * (1.0 + cosine))


def _cap(
    between: FloatArray, first: FloatArray, second: FloatArray, first_sine: FloatArray, second_sine: FloatArray
) -> FloatArray:
    """Return `cap_bound` of cosines within [-1, 1] whose sines are known."""
    cosine = first * second - first_sine * second_sine
    value = between * cosine + _sine(between) * (first * second_sine + second * first_sine) + CAP_ROUNDING
    return np.where((between < cosine) & (first + second >= 0), np.minimum(value, 1.0), 1.0)


def weights_of(n_classes: int, inputs: ClassInputs) -> FloatArray:
    """Return the weights tau (w,) that are tried beside Jensen's."""
    if n_classes == 2:
        return np.ones(1)
    spread = np.array(WEIGHTS)
    if n_classes > MANY_CLASSES:
        spread = np.array([_typical(n_classes, float(np.median(inputs.rms_reach)), float(np.median(inputs.loss)))])
    return (n_classes - 1.0) ** (spread - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighting:
    """What weights tau make of the rows, all (w, 1, 1): d_ce = a dw_c - b dw_e, and H(q)."""

    a: FloatArray
    b: FloatArray
    entropy: FloatArray

    @classmethod
    def of(cls, n_classes: int, tau: FloatArray) -> Weighting:
        """Return the weighting of every tau (w,), 0 < tau <= 1."""
        tau = tau[:, None, None]
        rest = 1.0 - tau
        other = rest / (n_classes - 2.0) if n_classes > 2 else np.zeros_like(tau)
        entropy = -tau * np.log(tau) - np.where(rest > 0, rest * np.log(np.where(other > 0, other, 1.0)), 0.0)
        return cls(a=1.0 + other, b=tau - other, entropy=entropy)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """The directions of pairs of classes, all (w, m, n) of a block, (w, 1, n) of some pairs."""

    length: FloatArray
    """|d_ce|, rounded up."""
    reverse: FloatArray
    """|d_ec|, rounded up."""
    between: FloatArray
    """cos(d_ce, d_ec), the angle rounded down."""


def directions(
    way: Weighting, gram: FloatArray, first_sq: FloatArray, second_sq: FloatArray, rounding: float
) -> Directions:
    """Return the directions from entries of the Gram matrix of centred rows and both rows' squares.

    Entries are a block (m, n), with squares (m, 1) and (1, n), or those of some pairs (n,). `rounding` is that of an
    entry.
    """
    a, b = way.a, way.b
    both, mixed = a * a + b * b, a * b
    off = both * rounding
    cross = 2 * mixed * gram
    # Both are differences of Gram entries: lengths are rounded up, angles down.
    length = np.sqrt(np.maximum(a * a * first_sq + (b * b * second_sq + off) - cross, off))
    reverse = np.sqrt(np.maximum(b * b * first_sq + (a * a * second_sq + off) - cross, off))
    inner = both * gram - mixed * (first_sq + second_sq)
    product = length * reverse
    product = np.where(inner < 0, product, np.maximum(product - 2 * off, 1e-300))
    # At tau = 1 they are w_c - w_e and its negative, whatever rounding says.
    between = np.where(a == b, -1.0, (inner + off) / product)
    return Directions(length=length, reverse=reverse, between=between)


def _typical(n_classes: int, reach: float, loss: float) -> float:
    """Return the s whose weight is best for a pair of a simplex frame with a typical class's reach and loss."""
    log_expm1 = loss if loss > 30 else math.log(math.expm1(loss))
    one = np.ones(1)
    spread = np.linspace(0.0, 1.0, 40)
    way = Weighting.of(n_classes, (n_classes - 1.0) ** (spread - 1.0))
    pair = directions(way, np.full(1, -1.0 / (n_classes - 1.0)), one, one, 0.0)
    x = (way.entropy - log_expm1) / (reach * pair.length)
    value = np.where((x > 0) & (x <= 1), cap_bound(pair.between, x, x), 1.0).ravel()
    return float(spread[np.argmin(value)]) if value.min() < 1.0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """What one class of each pair brings along, columns (m, 1) or rows (1, n)."""

    rms: FloatArray
    mean: FloatArray
    loss: FloatArray
    log_expm1: FloatArray
    slope: FloatArray
    """1 - e^-l"""
    shift: FloatArray
    """dv, moved towards the looser side where it is subtracted."""
    other: FloatArray
    """dv, moved the other way."""

    @classmethod
    def of(cls, view: View, inputs: ClassInputs) -> _Side:
        bias = view.bias
        return cls(
            rms=inputs.rms * (1 + ALLOWANCE),
            mean=inputs.mean * (1 + ALLOWANCE),
            loss=inputs.loss,
            log_expm1=moment.log_expm1(inputs.loss),
            slope=-np.expm1(-inputs.loss),
            shift=inputs.shift,
            other=inputs.shift if bias is None else inputs.shift - 2 * ALLOWANCE * float(np.abs(bias).max()),
        )

    def part(self, chosen: slice, *, column: bool) -> _Side:
        """Return the classes `chosen` as a column or as a row."""
        axes = (slice(None), None) if column else (None, slice(None))
        names = ("rms", "mean", "loss", "log_expm1", "slope", "shift", "other")
        return _Side(**{name: getattr(self, name)[chosen][axes] for name in names})


def _along(own: _Side, other: _Side, length: FloatArray, way: Weighting, *, biased: bool) -> FloatArray:
    """Return the certified mean cosine of the own class to its direction (w, m, n), -1 where nothing is proven."""
    # Without a last bias f(0) is one number for all pairs.
    offset = way.entropy - (way.a * own.shift - way.b * other.other) if biased else way.entropy
    room = np.logaddexp(0.0, offset) - own.loss
    t = offset - own.log_expm1
    fall, bend = own.slope, t * np.exp(-own.loss)
    rounding = ROUNDING * (np.abs(offset) + np.abs(own.log_expm1))
    reach = own.mean * length
    x = t / reach
    proven = room >= (1 + 2 * x) * (reach * fall)
    proven &= (2 * bend >= 1) & (t > 0)
    if proven.all():
        x -= ROUNDING + rounding / reach
    else:
        longer = own.rms * length
        y = t / longer
        second = (room >= (1 + 1.5 * y) * (longer * fall)) & (3 * bend >= 1) & (t > 0)
        x = np.where(second, y - (ROUNDING + rounding / longer), -1.0)
        x = np.where(proven, t / reach - (ROUNDING + rounding / reach), x)
    # Statistics may contradict each other within their rounding: no cosine is above 1.
    beyond = np.nonzero(t > reach)
    if beyond[0].size:
        values = (own.rms * length, reach, own.loss, offset)
        parts = [np.broadcast_to(value, x.shape)[beyond] for value in values]
        x[beyond] = moment.least_along(rms_reach=parts[0], mean_reach=parts[1], loss=parts[2], offset=parts[3])
    return np.where(np.isfinite(x), np.clip(x, -1.0, 1.0), -1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cap:
    """The cap lemma along one direction a class, with certified cosines."""

    gram: FloatArray
    """(K, K) products of the directions."""
    norms: FloatArray
    rounding: FloatArray
    """(K,) whose products bound the rounding of a cosine between two directions."""
    cosine: FloatArray
    """(K,) certified, -1 where nothing is known."""
    sine: FloatArray

    @classmethod
    def of(cls, gram: FloatArray, norms: FloatArray, rounding: FloatArray, cosine: FloatArray) -> Cap:
        """Return the caps of directions with these products, lengths and certified cosines."""
        cosine = np.clip(cosine, -1.0, 1.0)
        return cls(gram=gram, norms=norms, rounding=rounding, cosine=cosine, sine=_sine(cosine))

    def bound(self, first: slice, second: slice) -> FloatArray:
        """Return the upper bound of inter for the pairs of a block (m, n)."""
        scale = self.norms[first, None] * self.norms[second]
        between = self.gram[first, second] / scale + self.rounding[first, None] * self.rounding[second]
        between = np.where(np.isfinite(between), np.clip(between, -1.0, 1.0), 1.0)
        return _cap(between, self.cosine[first, None], self.cosine[second], self.sine[first, None], self.sine[second])


def along_rows(view: View, cosine: FloatArray) -> Cap:
    """Return the caps along w_c - wbar with certified cosines (K,)."""
    gram = view.present_gram
    norms = np.sqrt(np.diagonal(gram))
    rounding = np.full(norms.size, math.sqrt(gram_rounding(view.layer.n_features)))
    return Cap.of(gram, norms, rounding, cosine)


def pair_shift(view: View, inputs: ClassInputs, way: Weighting) -> FloatArray:
    """Return a dv_c - b dv_e (w, K, K), moved towards the looser side."""
    side = _Side.of(view, inputs)
    return way.a * side.shift[:, None] - way.b * side.other[None, :]


def blocks(count: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks that cover all pairs of `count` classes: some classes, and all from the first of them on."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count)), slice(start, count)


def certify_pairs(view: View) -> FloatArray:
    """Return the certified upper bounds (K, K) of inter; 1 where nothing is known, NaN on the diagonal."""
    view.need_classes()
    if view.n_classes > MOST_CLASSES:
        raise Unavailable(f"not computed above {MOST_CLASSES} classes")
    inputs = view.shared(class_inputs)
    gram = view.present_gram
    square = np.diagonal(gram)
    rounding = gram_rounding(view.layer.n_features) * float(square.max())
    way = Weighting.of(view.n_classes, weights_of(view.n_classes, inputs))
    biased = view.bias is not None
    # Jensen's case: one direction for all pairs of a class, and the moment problem solved in full.
    own = view.shared(certify).cosine
    rows = along_rows(view, np.where(np.isnan(own), -1.0, own))
    side = _Side.of(view, inputs)
    count = square.size
    found = np.empty((count, count))
    with np.errstate(all="ignore"):
        for first, second in blocks(count):
            bound = rows.bound(first, second)
            one, other = side.part(first, column=True), side.part(second, column=False)
            block = gram[first, second].copy()
            # No pair, and no direction: any number does.
            np.fill_diagonal(block, 0.0)
            pair = directions(way, block, square[first, None], square[second], rounding)
            x = _along(one, other, pair.length, way, biased=biased)
            y = _along(other, one, pair.reverse, way, biased=biased)
            between = np.clip(pair.between, -1.0, 1.0)
            bound = np.minimum(bound, _cap(between, x, y, _sine(x), _sine(y)).min(axis=0))
            found[first, second] = bound
            found[second, first] = bound.T
    blank_unsound(found, inputs)
    np.fill_diagonal(found, np.nan)
    return found


def blank_unsound(bound: FloatArray, inputs: ClassInputs) -> None:
    """Set the bounds (K, K) of classes whose statistics contradict each other to 1."""
    unsound = np.array([bool(reason) for reason in inputs.reasons])
    bound[unsound, :] = 1.0
    bound[:, unsound] = 1.0


def cert_inter(view: View) -> FloatArray:
    """Return the certified upper bound of inter for every pair (C, C), NaN where it says nothing."""
    try:
        found = view.shared(certify_pairs)
    except Unavailable:
        return np.full((view.n_classes, view.n_classes), np.nan)
    return view.spread_pairs(np.where(found < 1.0, found, np.nan))


@reading
def cert_inter_max(view: View) -> tuple[float, tuple[int, ...]]:
    """Return the greatest certified upper bound over pairs and its pair; one vacuous pair leaves none for all."""
    found = view.shared(certify_pairs)
    inputs = view.shared(class_inputs)
    if any(inputs.reasons):
        least(view, inputs.loss, inputs.reasons)
    value, pair = geometry.pair_maximum(found)
    first, second = (int(view.present[place]) for place in pair)
    if value >= 1.0:
        count = int(np.count_nonzero(found >= 1.0)) // 2
        others = and_more(count - 1, "pair", "pairs")
        raise Unavailable(f"vacuous: classes {first} and {second}{others}: the losses do not separate them")
    return value, (first, second)


_SOURCE = "ncmon theory notes, section 1b (P-inter); thesis, Theorem 2.3.1"

BOUNDS = (
    Bound(
        name="cert_inter",
        title="certified inter-class cosines",
        of="inter_cos",
        side="upper",
        scope="pair",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_SOURCE,
        definition=(
            "least over directions d, d' of cos(angle(d, d') - arccos X - arccos X'), X the certified mean cosine of"
            " each class to its direction; directions between w_c - wbar and w_c - w_e"
        ),
        needs=LOSS_STATISTICS,
        compute=cert_inter,
    ),
    Bound(
        name="cert_inter_max",
        title="certified greatest inter-class cosine",
        of="inter_cos_max",
        side="upper",
        scope="classifier",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_SOURCE,
        definition="max over pairs of present classes of cert_inter; none where one of them has none",
        needs=LOSS_STATISTICS,
        compute=cert_inter_max,
    ),
)
