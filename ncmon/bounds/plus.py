"""The certificates that also know the class means (P+): sharper, for one more measured statistic.

Notation and rounding: `ncmon.bounds.inputs`; htilde_c = mean of h, rho = |htilde_c| / a_c.

Along the row. The moment problem gains E[t] >= tbar, tbar = dw.htilde: `ncmon.bounds.known_mean`.

Along htilde itself Lemma 2.4.5 of the thesis, which needs no loss, gives E[x] >= 2 rho^2 - 1 with rho = |htilde| / a: a
certificate from features alone, about every layer's classes whatever the classifier does.

Pairs: the cap lemma of `ncmon.bounds.pairs` along the rows and along the class means, whichever says more.

Alignment: as P-NC3, with |htilde| measured in the place of the mean norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ncmon.bounds.certificate import NO_COSINE, Certificates, certify, kept, no_logit
from ncmon.bounds.inputs import (
    ALLOWANCE,
    LOSS_STATISTICS,
    PER_CLASS,
    PER_CLASS_FACTS,
    class_inputs,
    least,
)
from ncmon.bounds.known_mean import least_with_mean, most_with_mean
from ncmon.bounds.moment import ROUNDING
from ncmon.bounds.pairs import (
    MANY_CLASSES,
    MOST_CLASSES,
    Cap,
    Weighting,
    along_rows,
    blocks,
    cap_bound,
    certify_pairs,
    directions,
    gram_rounding,
    pair_shift,
)
from ncmon.metrics.readings import Unavailable, class_array, reading
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import View
from ncmon.model import FloatArray, IntArray

FEW_CLASSES = 32
"""Up to this many, the directions of pairs are tried too: two moment problems a pair."""


def mean_lengths(view: View) -> FloatArray:
    """Return |htilde_c| (K,) enlarged by the rounding of means that were summed in single precision."""
    inputs = view.shared(class_inputs)
    return np.minimum(view.mean_norms + ALLOWANCE * inputs.mean, inputs.mean)


def certify_along_rows(view: View) -> FloatArray:
    """Return the certified mean cosine to w_c - wbar (K,) that knows the class means, -1 where nothing is known."""
    inputs = view.shared(class_inputs)
    n = view.n_classes
    kappa = n / (n - 1.0)
    own = np.einsum("ij,ij->i", view.of_present(view.centred_weight), view.means)
    own = own - ALLOWANCE * inputs.mean_reach
    found = least_with_mean(
        reach=inputs.rms_reach,
        loss=inputs.loss,
        offset=np.log(n - 1.0) - kappa * inputs.shift,
        kappa=kappa,
        own=own,
    )
    plain = view.shared(certify).cosine
    sound = np.array([not reason for reason in inputs.reasons])
    return np.where(sound, np.fmax(found, plain), -1.0)


def certify_along_means(view: View) -> FloatArray:
    """Return the certified mean cosine to the class mean (K,), 2 (|htilde|/a)^2 - 1 by Lemma 2.4.5."""
    inputs = view.shared(class_inputs)
    length = view.mean_norms - ALLOWANCE * inputs.mean
    with np.errstate(all="ignore"):
        found = 2 * np.square(np.maximum(length, 0.0) / inputs.rms) - 1 - ROUNDING
    return np.where(np.isfinite(found), np.maximum(found, -1.0), -1.0)


def certify_plus(view: View) -> Certificates:
    """Return the better one of both certificates of every class."""
    inputs = view.shared(class_inputs)
    best = np.maximum(view.shared(certify_along_rows), view.shared(certify_along_means))
    return kept(best, inputs.reasons, lambda place: NO_COSINE)


def certify_plus_alignment(view: View) -> Certificates:
    """Return the certified cos(w_c - wbar, mu_c) with |mu_c| measured."""
    inputs = view.shared(class_inputs)
    with np.errstate(all="ignore"):
        slope = inputs.mean_reach / inputs.mean
        found = inputs.own_logit / (slope * view.shared(mean_lengths))
    return kept(np.minimum(found, 1.0), inputs.reasons, no_logit(view, inputs))


def along_means(view: View, cosine: FloatArray) -> Cap:
    """Return the caps along the class means with certified cosines (K,).

    Of many classes the products are those of the centred means plus what the mean of all adds, so that one Gram matrix
    serves all metrics; their rounding is in proportion to (|mu_c - mu_G| + |mu_G|) (|mu_e - mu_G| + |mu_G|).
    """
    rounding = np.full(view.present.size, np.sqrt(gram_rounding(view.layer.n_features)))
    norms = view.mean_norms
    if view.present.size <= MANY_CLASSES:
        return Cap.of(view.means @ view.means.T, norms, rounding, cosine)
    centred = view.centred
    shift, length = centred.rows @ centred.mean, float(np.linalg.norm(centred.mean))
    gram = view.mean_gram + shift[:, None]
    gram += shift + length * length
    with np.errstate(all="ignore"):
        spread = np.maximum((centred.norms + length) / norms, 1.0)
    return Cap.of(gram, norms, rounding * spread, cosine)


def greatest_pair(view: View) -> tuple[float, tuple[int, int]]:
    """Return the greatest certified upper bound of inter, 1 where a pair has none, and the places of its pair."""
    known = view.shared(certify_pairs)
    inputs = view.shared(class_inputs)
    # Means in single precision are off by an angle of about the allowance, each: it is charged to the cosines.
    along = view.shared(certify_along_means)
    caps = (
        along_rows(view, view.shared(certify_along_rows)),
        along_means(view, np.where(along > -1, along - 2 * ALLOWANCE, -1.0)),
    )
    unsound = np.array([bool(reason) for reason in inputs.reasons])
    best, pair = -np.inf, (0, 1)
    with np.errstate(all="ignore"):
        for first, second in blocks(known.shape[0]):
            bound = known[first, second].copy()
            for cap in caps:
                np.minimum(bound, cap.bound(first, second), out=bound)
            bound[unsound[first], :] = 1.0
            bound[:, unsound[second]] = 1.0
            bound[np.tri(*bound.shape) > 0] = -np.inf
            # Few classes are one block. Where one is unsound the greatest is 1, whatever directions say.
            if 2 < view.n_classes <= FEW_CLASSES and not unsound.any():
                return _greatest_along_pairs(view, bound)
            row, column = divmod(int(np.argmax(bound)), bound.shape[1])
            if bound[row, column] > best:
                best, pair = float(bound[row, column]), (first.start + row, first.start + column)
    return best, pair


def _greatest_along_pairs(view: View, bound: FloatArray) -> tuple[float, tuple[int, int]]:
    """Return the greatest of `bound` (K, K) and its pair c < e where the directions of pairs are tried as well.

    They lower bounds only, and how far at most is known without the dear part. So that part is done for those pairs
    alone that can be the greatest, often none.
    """
    first, second = np.triu_indices(bound.shape[0], 1)
    value = bound[first, second]
    pairs = _PairLogits.of(view, first, second)
    least_left = np.minimum(value, pairs.limit())
    open_ = np.flatnonzero((value >= least_left.max()) & (value > least_left))
    if open_.size:
        value[open_] = np.minimum(value[open_], pairs.take(open_).bound())
    top = int(np.argmax(value))
    return float(value[top]), (int(first[top]), int(second[top]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PairLogits:
    """The moment problems along the directions d_ce (row 0) and d_ec (row 1) of n pairs, whose mean logit is known."""

    between: FloatArray
    """(n,) cos(d_ce, d_ec)"""
    reach: FloatArray
    """(2, n), as what follows; the terms are those of `least_with_mean`."""
    loss: FloatArray
    offset: FloatArray
    own: FloatArray

    @classmethod
    def of(cls, view: View, first: IntArray, second: IntArray) -> _PairLogits:
        """Return the problems of the pairs of present classes at the places `first` and `second` (n,)."""
        inputs = view.shared(class_inputs)
        gram = view.present_gram
        square = np.diagonal(gram)
        way = Weighting.of(view.n_classes, np.array([(view.n_classes - 1.0) ** -0.25]))
        own, other = np.stack([first, second]), np.stack([second, first])
        rounding = gram_rounding(view.layer.n_features) * float(square.max())
        pair = directions(way, gram[first, second], square[first], square[second], rounding)
        reach = inputs.rms[own] * np.concatenate([pair.length[0], pair.reverse[0]]) * (1 + ALLOWANCE)
        logits = view.means @ view.of_present(view.centred_weight).T
        return cls(
            between=pair.between.ravel(),
            reach=reach,
            loss=inputs.loss[own],
            offset=(way.entropy - pair_shift(view, inputs, way))[0, own, other],
            own=(way.a * logits[own, own] - way.b * logits[own, other])[0] - ALLOWANCE * reach,
        )

    def take(self, chosen: IntArray) -> _PairLogits:
        """Return the problems of the pairs `chosen`."""
        return _PairLogits(
            between=self.between[chosen],
            reach=self.reach[:, chosen],
            loss=self.loss[:, chosen],
            offset=self.offset[:, chosen],
            own=self.own[:, chosen],
        )

    def bound(self) -> FloatArray:
        """Return the cap lemma (n,) with certified cosines."""
        return self._capped(partial(least_with_mean, thorough=False))

    def limit(self) -> FloatArray:
        """Return what `bound` is not below (n,)."""
        return self._capped(most_with_mean)

    def _capped(self, cosines: Callable[..., FloatArray]) -> FloatArray:
        found = cosines(
            reach=self.reach.ravel(),
            loss=self.loss.ravel(),
            offset=self.offset.ravel(),
            kappa=1.0,
            own=self.own.ravel(),
        ).reshape(self.reach.shape)
        return cap_bound(self.between, found[0], found[1])


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
    value, pair = greatest_pair(view)
    inputs = view.shared(class_inputs)
    if any(inputs.reasons):
        least(view, inputs.loss, inputs.reasons)
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
