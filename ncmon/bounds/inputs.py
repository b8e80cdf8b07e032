"""What the certificates start from: norms, losses and rows of each class, enlarged by their rounding, with their state.

Notation of all of `ncmon.bounds`: dw_c = w_c - mean of all rows, dv = v - mean of v, b_c = |dw_c|, a_c the root mean
square norm of class c, l_c its mean cross-entropy, kappa = C/(C-1), g(z) = log(1 + (C-1) exp(-kappa z)).

Rounding. Statistics come from single precision: norms, rows and losses are enlarged by 1e-5 of their values and dv is
moved by 1e-5 of its scale. Losses are taken as log(1 + sum exp(o_e - o_c)), which keeps the digits of the smallest; a
rounding of the logits by 1e-6 of |h||w| is covered by the enlarged norms.

Statistics that contradict each other even so (g^-1(l) - dv > a b: some logit would be longer than its vectors
allow) belong to another loss, to a head that does more than W h + v, or to weights that moved within the window: what
rests on them is withheld.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ncmon import geometry
from ncmon.bounds import moment
from ncmon.bounds.linear import linear
from ncmon.metrics.readings import Unavailable
from ncmon.metrics.view import View
from ncmon.model import FloatArray

ALLOWANCE = 1e-5
"""Relative rounding of statistics that were summed in single precision."""

LOSS_FLOOR = 2.0**-126
"""Nats below which single precision has no loss left."""

COARSEST_LOGITS = 2.0**-22
"""Machine epsilon of logits that the allowance covers: single precision. Half precision moves losses by percents."""

CENTRED_BIAS = 1e-6
"""Share of the shortest row below which a centred last bias counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassInputs:
    """The statistics of the present classes (K,), enlarged where a bound needs them from above."""

    rms_reach: FloatArray
    """a_c b_c"""
    mean_reach: FloatArray
    """The same with the mean norm, which is shorter."""
    rms: FloatArray
    """a_c"""
    mean: FloatArray
    loss: FloatArray
    shift: FloatArray
    """dv_c, moved towards the looser side."""
    own_logit: FloatArray
    """g^-1(l_c) - dv_c, at most dw_c . (mean of h): what the loss says of the own logit."""
    reasons: tuple[str, ...]
    """Empty where the class can have a certificate."""


def class_inputs(view: View) -> ClassInputs:
    """Return the inputs of a classifier's input; raises `Unavailable` where no certificate applies at all."""
    layer, present = view.layer, view.present
    if present.size == 0:
        raise Unavailable("no class is present")
    _ = view.feature_weight
    head = view.head
    if head.loss_sums is None or head.label_counts is None:
        raise Unavailable("the loss was not measured")
    if head.logits_eps > COARSEST_LOGITS:
        raise Unavailable(
            f"not applicable: logits were computed in low precision (eps {head.logits_eps:.2g}), losses are off by more"
            " than the bounds allow for"
        )
    # What moved inside a streaming window differs anyway; there bounds are estimates.
    if view.window.exact and (said := view.shared(linear))[0] is False:
        raise Unavailable(f"not applicable: the logits are not W h + v of these features ({said[1]})")
    bias = view.bias
    slope = view.slopes[present]
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
        loss = loss * (1 + ALLOWANCE) + LOSS_FLOOR
        shift = shift + ALLOWANCE * shift_scale
        # Mean norms never exceed root mean squares; where rounding says so, both are the same number.
        shorter = np.minimum(mean, rms)
        long, short = rms * slope * (1 + ALLOWANCE), shorter * slope * (1 + ALLOWANCE)
        own_logit = moment.inverse_loss(loss, view.n_classes) - shift

    floor = geometry.same_floor(float(view.weight_norms.max()))
    reasons = [""] * present.size
    unequal = labelled != view.counts
    doubtful = (nonfinite > 0) | unequal | (mean > rms * (1 + ALLOWANCE)) | ~(slope > floor) | ~(own_logit <= short)
    for place in np.flatnonzero(doubtful):
        if nonfinite[place] and labelled[place] < view.counts[place]:
            reason = f"vacuous: {int(nonfinite[place])} samples have a loss that is not finite"
        elif labelled[place] != view.counts[place] and (view.window.exact or labelled[place] == 0):
            reason = f"inconsistent: losses of {labelled[place]:.0f} samples, features of {view.counts[place]:.0f}"
        elif mean[place] > rms[place] * (1 + ALLOWANCE):
            reason = "inconsistent: the mean norm exceeds the root mean square norm"
        elif slope[place] <= floor:
            reason = "vacuous: the classifier's row is the mean of all rows"
        elif own_logit[place] > short[place]:
            reason = "inconsistent: the loss is smaller than these weights and norms allow"
        else:
            reason = ""
        reasons[place] = reason
    return ClassInputs(
        rms_reach=long,
        mean_reach=short,
        rms=rms * (1 + ALLOWANCE),
        mean=shorter * (1 + ALLOWANCE),
        loss=loss,
        shift=shift,
        own_logit=own_logit,
        reasons=tuple(reasons),
    )


def least(view: View, values: FloatArray, reasons: tuple[str, ...], *, upper: bool = False) -> tuple[float, int]:
    """Return the least (or, `upper`, the greatest) of the values (K,) and its declared class.

    One class without a value leaves none for all: raises `Unavailable` with the first reason, contradictions first, for
    they say more about the window than a loss that is still high.
    """
    for kind in ("inconsistent", "vacuous") if any(reasons) else ():
        named = [
            (int(number), reason)
            for number, reason in zip(view.present, reasons, strict=True)
            if reason.startswith(kind)
        ]
        if named:
            number, reason = named[0]
            others = and_more(len(named) - 1, "class", "classes")
            raise Unavailable(f"{kind}: class {number}{others}{reason.removeprefix(kind)}")
    place = int(np.argmax(values) if upper else np.argmin(values))
    return float(values[place]), int(view.present[place])


def and_more(count: int, one: str, many: str) -> str:
    """Return " (and `count` more ...)", nothing for none."""
    return f" (and {count} more {one if count == 1 else many})" if count else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowInputs:
    """What the bounds about all classes together start from."""

    n_classes: int
    product: float
    """alpha beta, alpha and the loss with every class counting once."""
    loss: float


def window_inputs(view: View) -> WindowInputs:
    """Return the inputs of the bounds from (C, alpha beta, L) alone; raises `Unavailable` where they do not apply.

    With classes of unequal sizes alpha^2 = mean_c a_c^2 and L = mean_c l_c: every class counts once, and all that the
    proofs sum over is per class. Where sizes are equal these are the pooled numbers.
    """
    inputs = view.shared(class_inputs)
    if view.present.size < view.n_classes:
        absent = view.n_classes - view.present.size
        raise Unavailable(f"not applicable: {absent} of {view.n_classes} classes are absent")
    bias = view.bias
    if bias is not None and np.abs(bias - bias.mean()).max() > CENTRED_BIAS * view.slopes.min():
        raise Unavailable("not applicable: the classifier has a last bias")
    doubtful = [reason for reason in inputs.reasons if reason and "mean of all rows" not in reason]
    if doubtful:
        least(view, inputs.loss, inputs.reasons)
    alpha = float(np.sqrt(np.mean(np.square(inputs.rms))))
    return WindowInputs(
        n_classes=view.n_classes,
        product=alpha * view.weight_rms * (1 + ALLOWANCE),
        loss=float(np.mean(inputs.loss)),
    )


def from_classes(rms: FloatArray, losses: FloatArray, beta: float) -> WindowInputs:
    """Return the same from stored numbers: root mean square norms (C,), mean losses (C,) and beta."""
    if np.isnan(rms).any() or np.isnan(losses).any():
        raise Unavailable("not applicable: a class is absent or its loss was not measured")
    alpha = float(np.sqrt(np.mean(np.square(rms)))) * (1 + ALLOWANCE)
    return WindowInputs(
        n_classes=len(rms),
        product=alpha * beta * (1 + ALLOWANCE),
        loss=float(np.mean(losses)) * (1 + ALLOWANCE) + LOSS_FLOOR,
    )


LINEAR_HEAD = "logits are W h + v of these features"
FROZEN = "the weights do not move inside the window (exact windows; on a streaming one the bound is an estimate)"
PLAIN_LOSS = "the loss is plain cross-entropy of the labels, of the same samples as the features"
ROUNDING = "statistics are right within single precision (1e-5)"
NO_BIAS = "the classifier has no last bias"
ALL_PRESENT = "every class is present; each counts once"
THREE_CLASSES = "at least three classes"

PER_CLASS = (FROZEN, LINEAR_HEAD, PLAIN_LOSS, ROUNDING)
"""What the certificates of single classes assume."""
GLOBAL = (*PER_CLASS, NO_BIAS, ALL_PRESENT)
"""What the bounds from (C, alpha beta, L) assume."""

PER_CLASS_FACTS = ("frozen_weights", "linear_head")
GLOBAL_FACTS = (*PER_CLASS_FACTS, "no_last_bias", "all_present")
"""The same as names in the window's panel."""

LOSS_STATISTICS = ("class_counts", "norm_sums", "norm_sq_sums", "weight", "label_counts", "loss_sums")
