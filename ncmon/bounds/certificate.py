"""The certificate of one class: how far it has collapsed at least, from its loss and norms alone.

Everything is at frozen weights, about the n samples of one class c of a softmax classifier with logits W h + v. Nothing
is assumed about balance, normalisation layers, weight decay or the last bias.

Notation: dw = w_c - mean of all rows, dv = v_c - mean of v, kappa = C/(C-1), g(z) = log(1 + (C-1) exp(-kappa z)),
a = root mean square norm, b = |dw|, l = mean cross-entropy of the class, hbar = mean of h/|h| (zero vectors contribute
0), intra = |hbar|^2.

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

Rounding. Statistics come from single precision: a, b and l are enlarged by 1e-5 of their values, dv is moved by 1e-5 of
its scale, and l by 2^-22 more, because log-softmax in single precision does not resolve losses below about 1e-7.
Statistics that contradict each other even so (g^-1(l) - dv > a b cannot be: some logit would be longer than its vectors
allow) are of a wrong loss, a head that does more than W h + v, or of weights that moved within the window: the bound is
withheld.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ncmon import geometry
from ncmon.bounds import moment
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import Unavailable, View, class_array, reading
from ncmon.model import FloatArray

ALLOWANCE = 1e-5
"""Relative rounding of statistics that were summed in single precision."""

LOSS_RESOLUTION = 2.0**-22
"""Nats that log-softmax in single precision may be off, whatever the loss."""


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


def certify(view: View) -> Certificates:
    """Return the certificates of a classifier's input; raises `Unavailable` where the bound does not apply at all."""
    layer, present = view.layer, view.present
    if present.size == 0:
        raise Unavailable("no class is present")
    weight = view.feature_weight
    head = view.head
    if head.loss_sums is None or head.label_counts is None:
        raise Unavailable("the loss was not measured")
    bias = view.bias
    slope = geometry.row_norms(view.centred_weight[present])
    if bias is None:
        shift, shift_scale = np.zeros(present.size), 0.0
    else:
        shift, shift_scale = (bias - bias.mean())[present], float(np.abs(bias).max())
    labelled = head.label_counts[present].astype(np.float64)
    nonfinite = np.zeros(present.size) if head.loss_nonfinite is None else head.loss_nonfinite[present]

    rms = np.sqrt(layer.norm_sq_sums[present] / view.counts)
    mean = layer.norm_sums[present] / view.counts
    with np.errstate(all="ignore"):
        loss = head.loss_sums[present] / labelled
        loss = loss * (1 + ALLOWANCE) + LOSS_RESOLUTION
        shift = shift + ALLOWANCE * shift_scale
        # Mean norms never exceed root mean squares; where rounding says so, both are the same number.
        long, short = rms * slope * (1 + ALLOWANCE), np.minimum(mean, rms) * slope * (1 + ALLOWANCE)
        needed = moment.inverse_loss(loss, view.n_classes) - shift
        cosine = moment.least_mean_cosine(
            rms_reach=long, mean_reach=short, loss=loss, shift=shift, n_classes=view.n_classes
        )

    floor = geometry.same_floor(float(geometry.row_norms(weight).max()))
    reasons: list[str] = []
    for place in range(present.size):
        if nonfinite[place] and labelled[place] < view.counts[place]:
            reason = f"vacuous: {int(nonfinite[place])} samples have a loss that is not finite"
        elif labelled[place] != view.counts[place] and (view.window.exact or labelled[place] == 0):
            reason = f"inconsistent: losses of {labelled[place]:.0f} samples, features of {view.counts[place]:.0f}"
        elif mean[place] > rms[place] * (1 + ALLOWANCE):
            reason = "inconsistent: the mean norm exceeds the root mean square norm"
        elif slope[place] <= floor:
            reason = "vacuous: the classifier's row is the mean of all rows"
        elif needed[place] > short[place]:
            reason = "inconsistent: the loss is smaller than these weights and norms allow"
        elif not cosine[place] > 0:
            reason = "vacuous: the loss does not exclude a mean cosine of zero"
        else:
            reason = ""
        reasons.append(reason)
    blank = np.array([bool(reason) for reason in reasons])
    return Certificates(cosine=np.where(blank, np.nan, cosine), reasons=tuple(reasons))


@class_array
def cert_intra(view: View) -> FloatArray:
    """Return X_c^2 (K,), NaN where the certificate says nothing."""
    return view.shared(certify).intra


@reading
def cert_intra_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return min_c X_c^2 and its class; one class without a certificate leaves none for all."""
    found = view.shared(certify)
    # Contradictions first: they say more about the window than a loss that is still high.
    for kind in ("inconsistent", "vacuous"):
        named = [
            (int(number), reason)
            for number, reason in zip(view.present, found.reasons, strict=True)
            if reason.startswith(kind)
        ]
        if named:
            number, reason = named[0]
            others = f" (and {len(named) - 1} more classes)" if len(named) > 1 else ""
            raise Unavailable(f"{kind}: class {number}{others}{reason.removeprefix(kind)}")
    values = found.intra
    lowest = int(np.argmin(values))
    return float(values[lowest]), (int(view.present[lowest]),)


_ASSUMPTIONS = (
    "the weights do not move inside the window (exact windows; on a streaming one the bound is an estimate)",
    "logits are W h + v of these features",
    "the loss is plain cross-entropy of the labels, of the same samples as the features",
    "statistics are right within single precision (1e-5)",
)
_NEEDS = ("class_counts", "norm_sums", "norm_sq_sums", "weight", "label_counts", "loss_sums")

BOUNDS = (
    Bound(
        name="cert_intra",
        title="certified intra-class cosine",
        of="intra_cos",
        side="lower",
        scope="class",
        assumptions=_ASSUMPTIONS,
        source="ncmon theory notes, section 1 (P-intra); thesis, Theorem 2.3.1 and Lemma 2.4.5",
        definition=(
            "X_c^2, X_c the least mean cos(w_c - wbar, h) that the class's loss, norms and |w_c - wbar| allow;"
            " usually X_c = (g^-1(l_c) - (v_c - vbar)) / (a_c |w_c - wbar|)"
        ),
        needs=_NEEDS,
        compute=cert_intra,
    ),
    Bound(
        name="cert_intra_min",
        title="certified least intra-class cosine",
        of="intra_cos_min",
        side="lower",
        scope="classifier",
        assumptions=_ASSUMPTIONS,
        source="ncmon theory notes, section 1 (P-intra); thesis, Theorem 2.3.1 and Lemma 2.4.5",
        definition="min over present classes of cert_intra; none where one of them has none",
        needs=_NEEDS,
        compute=cert_intra_min,
    ),
)
