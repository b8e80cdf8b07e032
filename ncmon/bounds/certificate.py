"""The certificate of one class (P): how far it has collapsed at least, from its loss and norms alone.

Everything is at frozen weights, about the n samples of one class c of a softmax classifier with logits W h + v. Nothing
is assumed about balance, normalisation layers, weight decay or the last bias. Notation and rounding:
`ncmon.bounds.inputs`; hbar = mean of h/|h| (zero vectors contribute 0), intra = |hbar|^2, htilde = mean of h.

Statement. Let X be a lower bound of E[x] over all random (n, x), n >= 0, -1 <= x <= 1, with E[n^2] <= 1 and
E[g(a b n x + dv)] <= l. If X > 0, then intra >= X^2. The same holds with E[n] <= 1 and the mean norm in the place of a.

Proof. (i) The loss of a sample is log(1 + sum over c' != c of exp(o_c' - o_c)). By Jensen over the C - 1 wrong classes
it is at least g(z), z = o_c - mean of all logits, for the mean of o_c' - o_c over c' != c is -kappa z, and
z = dw.h + dv. (ii) With n = |h|/a and x = cos(dw, h), z = a b n x + dv, so the class's samples are one of the
distributions over which X is the least. Hence mean cos(dw, h_i) >= X. (iii) That mean is dw.hbar / b <= |hbar|. []

The moment problem (ii) is solved in `ncmon.bounds.moment`, by duality: an inexact solution is looser, never wrong. In
the usual regime the answer is X = (g^-1(l) - dv) / (a b), which is attained; with d >= C a class can also have
intra = X^2 exactly, so no better bound exists that knows these numbers alone.

Where zero vectors are left out of the measured cosine, intra is larger than above and the bound holds all the more.

Alignment (P-NC3). By Jensen over samples g(dw.htilde + dv) <= l, so dw.htilde >= g^-1(l) - dv. With |htilde| at most
the mean norm n, cos(dw, htilde) >= (g^-1(l) - dv) / (n b), where the numerator is positive. It is about the
centred row, as all of the theorem is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ncmon.bounds import moment
from ncmon.bounds.inputs import LOSS_STATISTICS, PER_CLASS, PER_CLASS_FACTS, ClassInputs, class_inputs, least
from ncmon.metrics import gap
from ncmon.metrics.readings import class_array, reading
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import View
from ncmon.model import FloatArray

NO_COSINE = "vacuous: the loss does not exclude a mean cosine of zero"
NEEDS = "vacuous: needs a loss below {level:.4g}, it is {loss:.4g}"
"""Of a class, with the level at which its certificate begins to say something."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificates:
    """The certificates of the present classes, in their order."""

    cosine: FloatArray
    """(K,) X, the certified mean of cos(w_c - wbar, h); NaN where the bound says nothing."""
    reasons: tuple[str, ...]
    """(K,) empty where the class has a certificate."""

    @property
    def intra(self) -> FloatArray:
        """(K,) X^2, the certified |hbar_c|^2; NaN where the bound says nothing."""
        return np.square(self.cosine)


def kept(values: FloatArray, reasons: tuple[str, ...], otherwise: Callable[[int], str]) -> Certificates:
    """Return the positive values whose class has no reason against it; the others say what `otherwise` does of them."""
    if not any(reasons) and (values > 0).all():
        return Certificates(cosine=values, reasons=reasons)
    with np.errstate(invalid="ignore"):
        found = tuple(
            reason or ("" if value > 0 else otherwise(place))
            for place, (reason, value) in enumerate(zip(reasons, values, strict=True))
        )
    blank = np.array([bool(reason) for reason in found])
    return Certificates(cosine=np.where(blank, np.nan, values), reasons=found)


def certify(view: View) -> Certificates:
    """Return the certificates of a classifier's input; raises `Unavailable` where the bound does not apply at all."""
    inputs = view.shared(class_inputs)
    cosine = moment.least_mean_cosine(
        rms_reach=inputs.rms_reach,
        mean_reach=inputs.mean_reach,
        loss=inputs.loss,
        shift=inputs.shift,
        n_classes=view.n_classes,
    )
    return kept(cosine, inputs.reasons, lambda place: _no_cosine(view, inputs, place))


def _no_cosine(view: View, inputs: ClassInputs, place: int) -> str:
    """Return why a class has no certificate, and what it would take."""
    one = slice(place, place + 1)
    level = moment.vacuous_above(
        rms_reach=inputs.rms_reach[one],
        mean_reach=inputs.mean_reach[one],
        shift=inputs.shift[one],
        n_classes=view.n_classes,
    )
    return NEEDS.format(level=level[0], loss=inputs.loss[place])


def certify_alignment(view: View) -> Certificates:
    """Return the certified cos(w_c - wbar, mu_c) of a classifier's input."""
    inputs = view.shared(class_inputs)
    with np.errstate(all="ignore"):
        return kept(np.minimum(inputs.own_logit / inputs.mean_reach, 1.0), inputs.reasons, no_logit(view, inputs))


def no_logit(view: View, inputs: ClassInputs) -> Callable[[int], str]:
    """Return what says why a class has no certified own logit: g(dv) is the loss of an own logit of zero."""
    n = view.n_classes
    levels = gap.least(inputs.shift, n)
    return lambda place: NEEDS.format(level=levels[place], loss=inputs.loss[place])


@class_array
def cert_intra(view: View) -> FloatArray:
    """Return X_c^2 (K,), NaN where the certificate says nothing."""
    return view.shared(certify).intra


@class_array
def cert_nc3(view: View) -> FloatArray:
    """Return the certified cos(w_c - wbar, mu_c) (K,)."""
    return view.shared(certify_alignment).cosine


@reading
def cert_intra_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return min_c X_c^2 and its class; one class without a certificate leaves none for all."""
    found = view.shared(certify)
    value, number = least(view, found.intra, found.reasons)
    return value, (number,)


@reading
def cert_nc3_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return the least certified cos(w_c - wbar, mu_c) and its class."""
    found = view.shared(certify_alignment)
    value, number = least(view, found.cosine, found.reasons)
    return value, (number,)


_INTRA = "ncmon theory notes, section 1 (P-intra); thesis, Theorem 2.3.1 and Lemma 2.4.5"
_NC3 = "ncmon theory notes, section 1 (P-NC3); thesis, Theorem 2.3.1"

BOUNDS = (
    Bound(
        name="cert_intra",
        title="certified intra-class cosine",
        of="intra_cos",
        side="lower",
        scope="class",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_INTRA,
        definition=(
            "X_c^2, X_c the least mean cos(w_c - wbar, h) that the class's loss, norms and |w_c - wbar| allow;"
            " usually X_c = (g^-1(l_c) - (v_c - vbar)) / (a_c |w_c - wbar|)"
        ),
        needs=LOSS_STATISTICS,
        compute=cert_intra,
    ),
    Bound(
        name="cert_intra_min",
        title="certified least intra-class cosine",
        of="intra_cos_min",
        side="lower",
        scope="classifier",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_INTRA,
        definition="min over present classes of cert_intra; none where one of them has none",
        needs=LOSS_STATISTICS,
        compute=cert_intra_min,
    ),
    Bound(
        name="cert_nc3",
        title="certified alignment of row and mean",
        of="nc3_cos_class",
        side="lower",
        scope="class",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_NC3,
        definition="(g^-1(l_c) - (v_c - vbar)) / (n_c |w_c - wbar|), n_c the mean norm of the class",
        needs=LOSS_STATISTICS,
        compute=cert_nc3,
    ),
    Bound(
        name="cert_nc3_min",
        title="certified least alignment of row and mean",
        of="nc3_cos_min",
        side="lower",
        scope="classifier",
        assumptions=PER_CLASS,
        requires=PER_CLASS_FACTS,
        source=_NC3,
        definition="min over present classes of cert_nc3; none where one of them has none",
        needs=LOSS_STATISTICS,
        compute=cert_nc3_min,
    ),
)
