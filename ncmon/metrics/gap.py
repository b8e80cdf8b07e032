"""Where the loss gap comes from: the gaps of the inequalities that bound the loss from below, which sum to it.

With z the own logit less the mean of all logits, g(z) = log(1 + (C-1) exp(-C/(C-1) z)), and means over classes in which
every class counts once:

    L - m  =  mean [L_i - g(z_i)]                 wrong classes are not equally likely           (Jensen over them)
            + mean_c [mean g(z_i) - g(zbar_c)]    samples of one class differ                     (Jensen over samples)
            + mean_c g(zbar_c) - g(zbar)          classes differ                                  (Jensen over classes)
            + g(zbar) - g(alpha beta)             norms differ, or rows and means are not aligned (Cauchy-Schwarz)

Each term is at least zero, so each says what keeps the network from collapse. With a last bias alpha beta is that of
the augmented features and rows, as in `ce_bound_m`. Where classes have equal sizes the sum is `ce_gap`.

Source: the proof of the thesis' Theorem 2.3.1; ncmon theory notes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ncmon.metrics.readings import Unavailable, class_array, reading, share
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View
from ncmon.model import FloatArray

RESOLUTION = 1e-6
"""Share of two levels that single precision leaves uncertain in their difference."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """Mean losses at each step of the proof, per class (K,), from the loss down."""

    loss: FloatArray
    """mean L_i"""
    own: FloatArray
    """mean g(z_i)"""
    mean: FloatArray
    """g(zbar_c)"""
    logit: FloatArray
    """zbar_c"""


def least(z: FloatArray, n_classes: int) -> FloatArray:
    """Return g(z) elementwise."""
    return np.logaddexp(0.0, np.log(n_classes - 1.0) - n_classes / (n_classes - 1.0) * z)


def levels(view: View) -> Levels:
    """Return the levels of the present classes; raises `Unavailable` where own logits were not measured."""
    sums, counts = view.class_losses
    head = view.head
    if head.own_logit_sums is None or head.own_loss_sums is None:
        raise Unavailable("own logits were not measured")
    view.need_classes()
    present = view.present
    counts = counts[present]
    logit = share(head.own_logit_sums[present], counts)
    return Levels(
        loss=share(sums[present], counts),
        own=share(head.own_loss_sums[present], counts),
        mean=least(logit, view.n_classes),
        logit=logit,
    )


def all_levels(view: View) -> Levels:
    """Return the levels where every class has one."""
    absent = view.n_classes - view.present.size
    if absent:
        raise Unavailable(f"not applicable: {absent} of {view.n_classes} classes are absent")
    found = view.shared(levels)
    if np.isnan(found.loss).any():
        raise Unavailable("the loss was not measured for every class")
    return found


def differences(upper: FloatArray, lower: FloatArray) -> FloatArray:
    """Return upper - lower elementwise: at least zero in theory, zero where rounding says less, NaN beyond rounding."""
    value = upper - lower
    rounding = RESOLUTION * np.maximum(np.abs(upper), np.abs(lower))
    return np.where(value >= -rounding, np.maximum(value, 0.0), np.nan)


def difference(upper: FloatArray | float, lower: FloatArray | float) -> float:
    """Return one difference; raises `Unavailable` where it is negative beyond rounding."""
    value = float(differences(np.asarray(upper, dtype=np.float64), np.asarray(lower, dtype=np.float64)))
    if np.isnan(value):
        raise Unavailable("inconsistent: negative; the weights moved within the window, or it is another loss")
    return value


@reading
def gap_wrong(view: View) -> float:
    """Return mean [L_i - g(z_i)]."""
    found = all_levels(view)
    return difference(found.loss.mean(), found.own.mean())


@reading
def gap_within(view: View) -> float:
    """Return mean_c [mean g(z_i) - g(zbar_c)]."""
    found = all_levels(view)
    return difference(found.own.mean(), found.mean.mean())


@reading
def gap_between(view: View) -> float:
    """Return mean_c g(zbar_c) - g(mean_c zbar_c)."""
    found = all_levels(view)
    return difference(found.mean.mean(), least(found.logit.mean(), view.n_classes))


@reading
def gap_align(view: View) -> float:
    """Return g(mean_c zbar_c) - g(alpha beta)."""
    found = all_levels(view)
    alpha_sq = float(np.mean(view.layer.norm_sq_sums[view.present] / view.counts))
    beta_sq = view.weight_rms**2
    bias = view.bias
    if bias is not None:
        alpha_sq, beta_sq = alpha_sq + 1.0, beta_sq + float(np.mean(np.square(bias)))
    floor = least(np.array(np.sqrt(alpha_sq * beta_sq)), view.n_classes)
    return difference(least(found.logit.mean(), view.n_classes), floor)


@class_array
def class_gap_wrong(view: View) -> FloatArray:
    """Return mean [L_i - g(z_i)] of every class (K,)."""
    found = view.shared(levels)
    return differences(found.loss, found.own)


@class_array
def class_gap_within(view: View) -> FloatArray:
    """Return mean g(z_i) - g(zbar_c) of every class (K,)."""
    found = view.shared(levels)
    return differences(found.own, found.mean)


@class_array
def class_gap_align(view: View) -> FloatArray:
    """Return g(zbar_c) - g(a_c |w_c - wbar| + v_c - vbar) of every class (K,)."""
    found = view.shared(levels)
    rms = np.sqrt(view.layer.norm_sq_sums[view.present] / view.counts)
    _ = view.centred_weight
    bias = np.zeros(view.n_classes) if view.bias is None else view.bias - view.bias.mean()
    reach = rms * view.of_present(view.slopes) + bias[view.present]
    return differences(found.mean, least(reach, view.n_classes))


_SOURCE = "thesis, proof of Theorem 2.3.1"
_NEEDS = ("label_counts", "loss_sums", "own_logit_sums", "own_loss_sums")

METRICS = (
    Metric(
        name="gap_wrong",
        title="gap from unequal wrong classes",
        family="loss",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source=_SOURCE,
        definition="mean over classes of mean [L_i - g(z_i)], z the own logit less the mean of all logits",
        needs=_NEEDS,
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=gap_wrong,
    ),
    Metric(
        name="gap_within",
        title="gap from unequal samples",
        family="loss",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source=_SOURCE,
        definition="mean over classes of mean g(z_i) - g(zbar_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=gap_within,
    ),
    Metric(
        name="gap_between",
        title="gap from unequal classes",
        family="loss",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source=_SOURCE,
        definition="mean over classes of g(zbar_c), less g(mean over classes of zbar_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=gap_between,
    ),
    Metric(
        name="gap_align",
        title="gap from norms and alignment",
        family="loss",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source=_SOURCE,
        definition="g(mean over classes of zbar_c) - g(alpha beta), every class counting once; with a bias augmented",
        needs=(*_NEEDS, "norm_sq_sums", "weight"),
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=gap_align,
    ),
    Metric(
        name="class_gap_wrong",
        title="gap of the class from unequal wrong classes",
        family="class",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="class",
        source=_SOURCE,
        definition="mean over the class of L_i - g(z_i)",
        needs=_NEEDS,
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=class_gap_wrong,
    ),
    Metric(
        name="class_gap_within",
        title="gap of the class from unequal samples",
        family="class",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="class",
        source=_SOURCE,
        definition="mean over the class of g(z_i), less g(zbar_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=class_gap_within,
    ),
    Metric(
        name="class_gap_align",
        title="gap of the class from alignment",
        family="class",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="class",
        source=_SOURCE,
        definition="g(zbar_c) - g(a_c |w_c - wbar| + v_c - vbar)",
        needs=(*_NEEDS, "norm_sq_sums", "weight"),
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=class_gap_align,
    ),
)
"""`gap_wrong + gap_within + gap_between + gap_align` is the loss gap."""
