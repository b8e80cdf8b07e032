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
"""

from __future__ import annotations

import math
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
    class_inputs,
    least,
)
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import Unavailable, View, reading
from ncmon.model import FloatArray

MANY_CLASSES = 128
"""Above this many pairs one weight tau stands for all."""
MOST_CLASSES = 2_500
"""Above this many classes there are no pair certificates: a (C, C) array of a window would be 50 MB."""
WEIGHTS = (0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0)
"""tau = (C-1)^-(1-s) for these s: from near Jensen's case to the single rival."""

ANGLE_ROUNDING = 1e-9
"""Radians for the rounding of three arccos; near 1, where arccos is steep, cosines are moved instead."""
GRAM_ROUNDING = 64 * geometry.EPS_DOUBLE
"""Share of the largest squared row that an entry of the Gram matrix, or a difference of two, may be off."""


def cap_bound(between: ArrayLike, first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Return cos(max(0, angle - arccos X - arccos X')) from cos(angle), X and X' (the cap lemma), elementwise.

    Cosines of -1 say nothing and give 1.
    """
    angle = np.arccos(np.clip(between, -1.0, 1.0)) - ANGLE_ROUNDING
    rest = angle - np.arccos(np.clip(first, -1.0, 1.0)) - np.arccos(np.clip(second, -1.0, 1.0))
    return np.where(rest > 0, np.cos(np.maximum(rest, 0.0)), 1.0)


def weights_of(n_classes: int, inputs: ClassInputs) -> FloatArray:
    """Return the weights tau (n,) that are tried beside Jensen's."""
    if n_classes == 2:
        return np.ones(1)
    spread = np.array(WEIGHTS)
    if n_classes > MANY_CLASSES:
        spread = np.array([_typical(n_classes, float(np.median(inputs.rms_reach)), float(np.median(inputs.loss)))])
    return (n_classes - 1.0) ** (spread - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """The directions d_ce = A dw_c - B dw_e of every pair for some weights tau, all arrays (n, K, K) or (n, 1, 1)."""

    a: FloatArray
    b: FloatArray
    length: FloatArray
    """|d_ce|, rounded up."""
    between: FloatArray
    """cos(d_ce, d_ec), the angle rounded down."""
    entropy: FloatArray
    """H(q)"""


def directions(gram: FloatArray, *, n_classes: int, tau: FloatArray) -> Directions:
    """Return the directions from the Gram matrix (K, K) of the centred rows, for the weights tau (n,)."""
    tau = tau[:, None, None]
    rest = 1.0 - tau
    other = rest / (n_classes - 2.0) if n_classes > 2 else np.zeros_like(tau)
    a, b = 1.0 + other, tau - other
    square = np.diagonal(gram)
    both = a * a + b * b
    lengths_sq = a * a * square[:, None] + b * b * square[None, :] - 2 * a * b * gram
    inner = both * gram - a * b * (square[:, None] + square[None, :])
    # Both are differences of Gram entries: lengths are rounded up, angles down.
    rounding = GRAM_ROUNDING * both * float(square.max())
    with np.errstate(all="ignore"):
        length = np.sqrt(np.maximum(lengths_sq, 0.0) + rounding)
        product = length * length.swapaxes(1, 2)
        product = np.where(inner < 0, product, np.maximum(product - 2 * rounding, 1e-300))
        entropy = -tau * np.log(tau) - np.where(rest > 0, rest * np.log(np.where(other > 0, other, 1.0)), 0.0)
        return Directions(a=a, b=b, length=length, between=(inner + rounding) / product, entropy=entropy)


def _typical(n_classes: int, reach: float, loss: float) -> float:
    """Return the s whose weight is best for a pair of a simplex frame with a typical class's reach and loss."""
    best, found = 1.0, 1.0
    log_expm1 = loss if loss > 30 else math.log(math.expm1(loss))
    cosine = -1.0 / (n_classes - 1.0)
    for s in np.linspace(0.0, 1.0, 40):
        gram = np.array([[1.0, cosine], [cosine, 1.0]])
        ways = directions(gram, n_classes=n_classes, tau=np.array([(n_classes - 1.0) ** (s - 1.0)]))
        x = (ways.entropy.item() - log_expm1) / (reach * ways.length[0, 0, 1])
        if 0 < x <= 1:
            value = float(cap_bound(ways.between[0, 0, 1], x, x))
            if value < found:
                best, found = float(s), value
    return best


def certify_pairs(view: View) -> FloatArray:
    """Return the certified upper bounds (K, K) of inter; 1 where nothing is known, NaN on the diagonal."""
    view.need_classes()
    if view.n_classes > MOST_CLASSES:
        raise Unavailable(f"not computed above {MOST_CLASSES} classes")
    inputs = view.shared(class_inputs)
    rows = view.centred_weight[view.present]
    gram = rows @ rows.T
    ways = directions(gram, n_classes=view.n_classes, tau=weights_of(view.n_classes, inputs))
    cosine = moment.least_along(
        rms_reach=inputs.rms[:, None] * ways.length * (1 + ALLOWANCE),
        mean_reach=inputs.mean[:, None] * ways.length * (1 + ALLOWANCE),
        loss=inputs.loss[:, None],
        offset=ways.entropy - pair_shift(view, inputs, ways),
    )
    bound = cap_bound(ways.between, cosine, cosine.swapaxes(1, 2)).min(axis=0)
    # Jensen's case: one direction for all pairs of a class, and the moment problem solved in full.
    own = view.shared(certify).cosine
    return merge_along(view, bound, rows, np.where(np.isnan(own), -1.0, own))


def pair_shift(view: View, inputs: ClassInputs, ways: Directions) -> FloatArray:
    """Return A dv_c - B dv_e (n, K, K), moved towards the looser side."""
    bias = view.bias
    other = inputs.shift if bias is None else inputs.shift - 2 * ALLOWANCE * float(np.abs(bias).max())
    return ways.a * inputs.shift[:, None] - ways.b * other[None, :]


def merge_along(view: View, bound: FloatArray, rows: FloatArray, cosine: FloatArray) -> FloatArray:
    """Return the smaller one of `bound` (K, K) and the cap lemma along `rows` (K, d) with certified cosines (K,).

    1 where a class's statistics contradict each other, NaN on the diagonal.
    """
    norms = geometry.row_norms(rows)
    with np.errstate(all="ignore"):
        between = rows @ rows.T / (norms[:, None] * norms[None, :]) + GRAM_ROUNDING
    between = np.where(np.isfinite(between), between, 1.0)
    bound = np.minimum(bound, cap_bound(between, cosine[:, None], cosine[None, :]))
    unsound = np.array([bool(reason) for reason in view.shared(class_inputs).reasons])
    bound[unsound, :] = 1.0
    bound[:, unsound] = 1.0
    np.fill_diagonal(bound, np.nan)
    return bound


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
        count = int(np.count_nonzero(geometry.pair_values(found) >= 1.0))
        others = f" (and {count - 1} more pairs)" if count > 1 else ""
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
