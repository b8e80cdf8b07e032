"""Theorem 2.3.1 of the thesis with its constants (T): its own chain of lemmas, corrected and made explicit.

Assumes what `ncmon.bounds.sharp` assumes, C >= 3, and says nothing sharper: on real runs it is vacuous, because its
strong convexity modulus falls with e^(-kappa C alpha beta). It is here to show how far the theorem as it was proven is
from what holds (P, S). Lemmas: `ncmon.bounds.lemmas`. Notation: `ncmon.bounds.inputs`; m = g(alpha beta), eps = L - m,
zbar_c = dw_c . htilde_c.

With integers j1, j2 >= 1, delta_i = j_i / C and k = (j1 - 1) + (j2 - 1) exceptions:

    eps3    = alpha beta - g^-1(m + eps)                                      mean_c zbar_c >= alpha beta - eps3
    lambda  = least g'' on [-C alpha beta, C alpha beta]                      (`thm_`: the thesis' interval), or on
              [g^-1(C L), C alpha beta - (C-1) g^-1(C L/(C-1))]               (`thm_tight_`: what can be reached)
    Delta_i = sqrt(2 eps (1 - delta_i) / (delta_i lambda))                    Lemma 2.4.1
    rho     = (alpha beta - eps3 - Delta_1) / (alpha beta + (1/delta_2 - 1) eps3 + Delta_2)

All but k classes satisfy cos(dw_c, htilde_c) >= rho, X_c >= 2 rho^2 - 1 (Lemma 2.4.5) and intra_c >= (2 rho^2 - 1)^2.
Proof. L >= mean g(zbar_c) >= g(mean zbar) by Jensen gives eps3, and the Jensen gap is at most eps because mean zbar <=
alpha beta. If j1 classes had zbar_c < alpha beta - eps3 - Delta_1, Lemma 2.4.1 would be contradicted; likewise the sum
of P_c over j2 classes is at most C alpha beta less the zbar of the others, which gives the denominator. []

Pairs of such classes (one more lemma, 2.4.3, for the wrong logits, and a replacement of Lemma 2.4.6, whose proof drops
a first-order term): with zmin, pmax the numerator and denominator of rho, gap = C eps / (k'+1), which the loss gaps of
all but k' classes do not exceed, so that k + k' classes are left out,

    E1  = (e^gap - 1) e^(m+eps),  rad = sqrt(2 E1 e^(kappa pmax)),  y = -zmin/(C-1) + rad >= dw_e . htilde_c
    eta = sqrt(2 C eps3/(alpha beta)),  s = (-+eta + sqrt(eta^2 + 4 p))/2, p = {zmin, pmax}/(alpha beta):
          a_c b_e in alpha beta [s_lo^2, s_hi^2]
    Y   = y / (alpha beta s^2) + sqrt(2 (1 - rho)),  inter <= cos(max(0, arccos Y - arccos(2 rho^2 - 1)))

Differences from the thesis' statement: rows are centred; the convex loss is -log softmax; the modulus is taken where
the arguments are, |htilde_c| <= sqrt(C) alpha; intra is the square of the mean cosine; cos(a - b) is not bounded by
cos a + sin b beyond pi/2, where the cap lemma stands instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ncmon.bounds import lemmas
from ncmon.bounds.inputs import (
    ALLOWANCE,
    GLOBAL,
    GLOBAL_FACTS,
    LOSS_STATISTICS,
    THREE_CLASSES,
    WindowInputs,
    window_inputs,
)
from ncmon.bounds.lemmas import OVERFLOW
from ncmon.bounds.moment import inverse_loss
from ncmon.bounds.sharp import INCONSISTENT
from ncmon.geometry import EPS_DOUBLE
from ncmon.metrics.loss import least_loss
from ncmon.metrics.readings import Unavailable, reading
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import View

HALF_WAY = (1 - math.sqrt(0.5)) / (1 + math.sqrt(0.5))
"""Of alpha beta: at this deviation, above and below, rho is the root of 1/2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theorem:
    """What the theorem guarantees for all but k classes; None where it guarantees nothing."""

    nc3: float | None
    intra: float | None
    inter: float | None
    """Of pairs of the same number of classes, half of the exceptions being those of `pair_gap`."""
    gap: float
    """eps = L - m."""
    vacuous_above_log10: float
    """log10 of the gap above which intra is vacuous."""


def theorem(inputs: WindowInputs, *, exceptions: int = 0, tight: bool = False) -> Theorem:
    """Return Theorem 2.3.1 for all but `exceptions` classes; raises `Unavailable` where it does not apply."""
    n, product, loss = inputs.n_classes, inputs.product, inputs.loss
    if n < 3:
        raise Unavailable("not applicable: fewer than three classes")
    if product <= 0:
        raise Unavailable("vacuous: features or rows are zero")
    kappa = n / (n - 1.0)
    least = least_loss(n, product)
    if loss < least * (1 - ALLOWANCE):
        raise Unavailable(INCONSISTENT)
    gap = max(loss - least, 0.0) + 4 * EPS_DOUBLE * loss
    loss = least + gap
    missing = product - min(_inverse(loss, n), product)
    bottom, top = -n * product, n * product
    if tight:
        bottom = max(bottom, _inverse(n * loss, n))
        top = max(min(top, n * product - (n - 1) * _inverse(n * loss / (n - 1), n)), product)
    log_modulus = lemmas.least_log_modulus(bottom, top, n)

    def ends(left_out: int) -> tuple[float, float, int]:
        """Return numerator and denominator of rho for all but so many classes, and j1."""
        first, second = left_out - left_out // 2 + 1, left_out // 2 + 1
        if max(first, second) >= n:
            first = second = n // 2
        lower = product - missing - lemmas.deviation_of_share(gap, log_modulus, points=n, share=first)
        upper = product + (n / second - 1) * missing
        upper += lemmas.deviation_of_share(gap, log_modulus, points=n, share=second)
        return lower, upper, first

    lower, upper, first = ends(exceptions)
    limit = (2 * math.log(HALF_WAY * product) + log_modulus) / math.log(10)
    limit -= math.log10(2 * (n / first - 1))
    if lower <= 0:
        return Theorem(nc3=None, intra=None, inter=None, gap=gap, vacuous_above_log10=limit)
    rho = lower / upper
    inter = None
    of_gaps = exceptions // 2
    lower, upper, _ = ends(exceptions - of_gaps)
    pair_gap = n * gap / (of_gaps + 1)
    if lower > 0 and lemmas.intra_cosine(lower / upper) is not None and pair_gap < OVERFLOW:
        inter = _pairs(n, product, loss, lower, upper, missing, pair_gap, kappa)
    return Theorem(nc3=rho, intra=lemmas.intra_cosine(rho), inter=inter, gap=gap, vacuous_above_log10=limit)


def _pairs(
    n: int, product: float, loss: float, lower: float, upper: float, missing: float, pair_gap: float, kappa: float
) -> float | None:
    rho = lower / upper
    wrong = math.expm1(pair_gap) * math.exp(loss) * math.exp(min(kappa * upper, OVERFLOW)) / (n - 1)
    radius = lemmas.excess_of_exponentials(wrong, points=n - 1)
    uneven = math.sqrt(2 * n * missing / product)
    shortest = (-uneven + math.sqrt(uneven**2 + 4 * lower / product)) / 2
    longest = (uneven + math.sqrt(uneven**2 + 4 * upper / product)) / 2
    y = -lower / (n - 1) + radius
    cosine = lemmas.cosine_of_products(y / (product * (longest if y < 0 else shortest) ** 2), rho)
    if cosine >= 1:
        return None
    angle = math.acos(max(-1.0, cosine)) - math.acos(lemmas.mean_cosine(rho))
    return math.cos(angle) if angle > 0 else None


def _inverse(loss: float, n: int) -> float:
    with np.errstate(all="ignore"):
        return float(inverse_loss(np.array([max(loss, 1e-300)]), n)[0])


def _plain(view: View) -> Theorem:
    return theorem(view.shared(window_inputs))


def _tight(view: View) -> Theorem:
    return theorem(view.shared(window_inputs), tight=True)


def nothing(found: Theorem, kind: str) -> str:
    """Return why `kind`, a field of `Theorem`, says nothing, with the level of the loss gap where that is the reason.

    Cosines need rho above the root of 1/2, alignment rho above zero. Pairs need more, of which there is no closed form.
    """
    level = found.vacuous_above_log10 - (2 * math.log10(HALF_WAY) if kind == "nc3" else 0.0)
    if found.gap >= 10.0**level:
        return f"vacuous: needs a loss gap below 1e{level:.1f}, it is {found.gap:.2g}"
    return f"vacuous: a loss gap of {found.gap:.2g} still leaves room"


def _value(found: Theorem, kind: str) -> float:
    value: float | None = getattr(found, kind)
    if value is None:
        raise Unavailable(nothing(found, kind))
    return value


@reading
def thm_intra(view: View) -> float:
    """Return the theorem's |hbar_c|^2 of every class."""
    found = view.shared(_plain)
    return _value(found, "intra")


@reading
def thm_nc3(view: View) -> float:
    """Return the theorem's cos(w_c - wbar, mu_c) of every class."""
    found = view.shared(_plain)
    return _value(found, "nc3")


@reading
def thm_inter(view: View) -> float:
    """Return the theorem's upper bound of every pair's cosine."""
    found = view.shared(_plain)
    return _value(found, "inter")


@reading
def thm_tight_intra(view: View) -> float:
    """Return the same as `thm_intra` with the modulus on the interval that can be reached."""
    found = view.shared(_tight)
    return _value(found, "intra")


@reading
def thm_tight_inter(view: View) -> float:
    """Return the same as `thm_inter` with the modulus on the interval that can be reached."""
    found = view.shared(_tight)
    return _value(found, "inter")


_ASSUMPTIONS = (*GLOBAL, THREE_CLASSES)
_REQUIRES = (*GLOBAL_FACTS, "three_classes")
_SOURCE = "thesis, Theorem 2.3.1, with the corrections of the ncmon theory notes, section 3"
_RHO = "rho = (alpha beta - eps3 - Delta) / (alpha beta + (C-1) eps3 + Delta), Delta = sqrt(2 (C-1) (L - m) / lambda)"
_THESIS = "lambda the least g'' on [-C alpha beta, C alpha beta]"
_REACHED = "lambda the least g'' on the interval that the loss leaves"

BOUNDS = (
    Bound(
        name="thm_intra",
        title="Theorem 2.3.1, intra-class cosine",
        of="intra_cos_min",
        side="lower",
        scope="classifier",
        assumptions=_ASSUMPTIONS,
        requires=_REQUIRES,
        source=_SOURCE,
        definition=f"(2 rho^2 - 1)^2, {_RHO}, {_THESIS}",
        needs=LOSS_STATISTICS,
        compute=thm_intra,
    ),
    Bound(
        name="thm_nc3",
        title="Theorem 2.3.1, alignment of row and mean",
        of="nc3_cos_min",
        side="lower",
        scope="classifier",
        assumptions=_ASSUMPTIONS,
        requires=_REQUIRES,
        source=_SOURCE,
        definition=f"{_RHO}, {_THESIS}",
        needs=LOSS_STATISTICS,
        compute=thm_nc3,
    ),
    Bound(
        name="thm_inter",
        title="Theorem 2.3.1, inter-class cosine",
        of="inter_cos_max",
        side="upper",
        scope="classifier",
        assumptions=_ASSUMPTIONS,
        requires=_REQUIRES,
        source=_SOURCE,
        definition=f"cos(arccos Y - arccos(2 rho^2 - 1)), Y from the wrong logits, {_RHO}, {_THESIS}",
        needs=LOSS_STATISTICS,
        compute=thm_inter,
    ),
    Bound(
        name="thm_tight_intra",
        title="Theorem 2.3.1 on the reachable interval, intra-class cosine",
        of="intra_cos_min",
        side="lower",
        scope="classifier",
        assumptions=_ASSUMPTIONS,
        requires=_REQUIRES,
        source=_SOURCE,
        definition=f"(2 rho^2 - 1)^2, {_RHO}, {_REACHED}",
        needs=LOSS_STATISTICS,
        compute=thm_tight_intra,
    ),
    Bound(
        name="thm_tight_inter",
        title="Theorem 2.3.1 on the reachable interval, inter-class cosine",
        of="inter_cos_max",
        side="upper",
        scope="classifier",
        assumptions=_ASSUMPTIONS,
        requires=_REQUIRES,
        source=_SOURCE,
        definition=f"cos(arccos Y - arccos(2 rho^2 - 1)), {_RHO}, {_REACHED}",
        needs=LOSS_STATISTICS,
        compute=thm_tight_inter,
    ),
)
