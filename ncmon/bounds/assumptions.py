"""The panel: which of the theory's assumptions hold in a window, each with the fact that says so.

true, false, or unknown; never guessed. A bound names what it needs in `Bound.requires`; the others say why scales are
what they are (`wd_` metrics) or what the theorem's statement supposes. The per-class certificates need the weights to
stand still and the logits to be those of the classifier's rows, and nothing else.
"""

from __future__ import annotations

import numpy as np

from ncmon import geometry
from ncmon.bounds.inputs import CENTRED_BIAS
from ncmon.bounds.linear import linear, linear_head
from ncmon.metrics.readings import Unavailable
from ncmon.metrics.view import View
from ncmon.model import Assumption, FloatArray, Head, LayerStats, Window

TITLES = {
    "frozen_weights": "the weights stood still",
    "linear_head": "the logits are W h + v of these features",
    "no_last_bias": "no last bias",
    "all_present": "every class is present",
    "balanced": "classes of equal size",
    "three_classes": "at least three classes",
    "room_for_simplex": "as many features as classes, less one",
    "plain_loss": "plain cross-entropy is trained",
    "bn_before_classifier": "a BatchNorm feeds the classifier",
    "bn_shift_zero": "its shift is zero",
    "decay_weight": "weight decay on the classifier",
    "decay_gamma": "weight decay on the BatchNorm's scale",
    "coupled_decay": "an L2 penalty, not decoupled decay",
}
"""Every assumption by name, in the order of the panel."""


def assumptions(window: Window, view: View | None = None) -> tuple[Assumption, ...]:
    """Return the panel of a window, in the order of `TITLES`; `view` is that of its classifier's input, if known."""
    head = window.head
    try:
        straight, slopes = (linear_head(window), None) if view is None else (view.shared(linear), view.slopes)
    except Unavailable:
        straight, slopes = linear_head(window), None
    found = {
        **_of_window(window),
        "linear_head": straight,
        "no_last_bias": _bias(head, slopes),
        "plain_loss": _loss(head),
        **_of_norm(head),
        "decay_weight": _decay(head.weight_decay),
        "decay_gamma": _decay(head.weight_decay_gamma),
        "coupled_decay": _known(
            None if head.decoupled_decay is None else not head.decoupled_decay, "L2", "decoupled, as AdamW"
        ),
    }
    return tuple(Assumption(name=name, holds=found[name][0], fact=found[name][1]) for name in TITLES)


_Fact = tuple[bool | None, str]


def _of_window(window: Window) -> dict[str, _Fact]:
    still = "one pass at frozen weights" if window.exact else f"{window.steps} steps of training are in the window"
    layer = window.classifier_input
    classes = f"{window.n_classes} classes"
    return {
        "frozen_weights": (window.exact, still),
        "three_classes": (window.n_classes >= 3, classes),
        **(_of_counts(layer, window.n_classes) if layer is not None else dict.fromkeys(_COUNTED, _UNKNOWN)),
    }


_COUNTED = ("all_present", "balanced", "room_for_simplex")
_UNKNOWN: _Fact = (None, "the classifier's input was not watched")


def _of_counts(layer: LayerStats, n_classes: int) -> dict[str, _Fact]:
    present = layer.class_counts[layer.class_counts > 0]
    absent = n_classes - present.size
    low, high = (int(present.min()), int(present.max())) if present.size else (0, 0)
    return {
        "all_present": (absent == 0, f"{absent} of {n_classes} absent" if absent else f"all {n_classes}"),
        "balanced": (absent == 0 and low == high, f"{low} to {high} samples a class" if low < high else f"{low} each"),
        "room_for_simplex": (layer.n_features >= n_classes - 1, f"{layer.n_features} features, {n_classes} classes"),
    }


def _bias(head: Head, slopes: FloatArray | None) -> _Fact:
    if not head.name:
        return None, "no classifier was found"
    if not head.has_bias:
        return True, "the classifier has none"
    if head.bias is None or head.weight is None:
        return None, "the bias was not sent"
    if slopes is None:
        slopes = geometry.row_norms(head.weight - head.weight.mean(axis=0))
    largest = float(np.abs(head.bias - head.bias.mean()).max())
    return bool(largest <= CENTRED_BIAS * slopes.min()), f"|v - mean v| up to {largest:.2g}"


SAME_LOSS = 1e-3
"""Relative difference of two means of one loss that half precision and another order of the sums explain."""


def _loss(head: Head) -> _Fact:
    """Compare the loss that was trained with the cross-entropy of the same samples; else believe the criterion."""
    declared = _known(head.plain_loss, "hard labels, no smoothing, no class weights", "another loss is trained")
    if head.trained_loss is None or head.loss_sums is None or head.label_counts is None:
        return declared
    if head.label_counts.sum() == 0 or (head.loss_nonfinite is not None and head.loss_nonfinite.any()):
        return declared
    plain = float(head.loss_sums.sum() / head.label_counts.sum())
    off = abs(head.trained_loss - plain)
    fact = f"trained {head.trained_loss:.4g}, cross-entropy {plain:.4g}"
    if head.plain_loss is False:
        return False, fact
    return off <= SAME_LOSS * max(plain, head.trained_loss) + 1e-6, fact


def _of_norm(head: Head) -> dict[str, _Fact]:
    if not head.name:
        nothing: _Fact = (None, "no classifier was found")
        return {"bn_before_classifier": nothing, "bn_shift_zero": nothing}
    if not head.batch_norm:
        return {"bn_before_classifier": (False, "none"), "bn_shift_zero": (None, "no BatchNorm feeds the classifier")}
    if head.bn_beta is None:
        shift: _Fact = (None, "it has no shift, or it was not sent")
    else:
        largest = float(np.abs(head.bn_beta).max())
        shift = (largest == 0.0, f"|beta| up to {largest:.2g}")
    return {"bn_before_classifier": (True, head.batch_norm), "bn_shift_zero": shift}


def _decay(value: float | None) -> _Fact:
    return (None, "not known") if value is None else (value > 0, f"{value:g}")


def _known(holds: bool | None, yes: str, no: str) -> _Fact:
    return (None, "not known") if holds is None else (holds, yes if holds else no)
