"""Where weight decay would settle: the minimum of the regularised objective (2.1) over the scales of a network.

J = L + (lambda_W |W|_F^2 + lambda_gamma |gamma|^2) / 2 with |W|_F^2 = C beta^2, |gamma| = alpha (Proposition 2.2.1).
For p = alpha beta the least penalty is lambda sqrt(C) p, lambda = sqrt(lambda_W lambda_gamma), at
lambda_gamma alpha^2 = lambda_W C beta^2. Minimising m(p) + lambda sqrt(C) p over p, with tau = lambda sqrt(C) (C-1)/C:

    p* = (C-1)/C log((C-1)(1-tau)/tau),  m* = -log(1-tau),  J* = m* + lambda sqrt(C) p*;  p* = 0 if lambda >= 1/sqrt(C).

How far the objective is above its minimum splits exactly into three terms, none of them negative:

    J - J* = [L - m(p)]  +  [m(p) + lambda sqrt(C) p - J*]  +  [(lambda_W C beta^2 + lambda_gamma alpha^2)/2
             structure       the product alpha beta               - lambda sqrt(C) p]    the balance of alpha and beta

The first is `ce_gap` where the classifier has no bias, and needs what it needs; the second is zero at p = p*; the third
by the inequality of means, at lambda_gamma alpha^2 = lambda_W C beta^2.

It is about an L2 penalty (SGD's weight decay) on the classifier and on the scale of the BatchNorm before it, without a
shift there, and C - 1 <= d. Source: thesis, (2.1); ncmon theory notes, section 4.
"""

from __future__ import annotations

import math

from ncmon.metrics.gap import difference
from ncmon.metrics.loss import least_loss, mean_loss, penalties
from ncmon.metrics.readings import Unavailable, reading
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View


def equilibrium(n_classes: int, weight_decay: float, weight_decay_gamma: float) -> tuple[float, float, float]:
    """Return p*, m* and J*; both decays positive."""
    root = math.sqrt(n_classes)
    strength = math.sqrt(weight_decay * weight_decay_gamma)
    wrong = strength * root * (n_classes - 1.0) / n_classes
    if strength >= 1.0 / root:
        return 0.0, math.log(n_classes), math.log(n_classes)
    product = (n_classes - 1.0) / n_classes * (math.log(n_classes - 1.0) + math.log1p(-wrong) - math.log(wrong))
    loss = -math.log1p(-wrong)
    return product, loss, loss + strength * root * product


def _found(view: View) -> tuple[float, float, float]:
    weight, gamma = penalties(view)
    if not (weight > 0 and gamma > 0):
        raise Unavailable("not applicable: without weight decay on both classifier and BatchNorm scales grow for ever")
    return equilibrium(view.n_classes, weight, gamma)


@reading
def wd_alpha_beta(view: View) -> float:
    """Return p*, the product alpha beta at which (2.1) settles."""
    return view.shared(_found)[0]


@reading
def wd_loss(view: View) -> float:
    """Return m*, the cross-entropy at which (2.1) settles."""
    return view.shared(_found)[1]


@reading
def wd_objective(view: View) -> float:
    """Return J*, the least value of (2.1)."""
    return view.shared(_found)[2]


_SOURCE = "thesis, (2.1); ncmon theory notes, section 4"


def _penalty(view: View) -> tuple[float, float]:
    """Return p = alpha beta, and its least penalty lambda sqrt(C) p."""
    weight, gamma = penalties(view)
    product = view.feature_rms * view.weight_rms
    return product, math.sqrt(weight * gamma * view.n_classes) * product


@reading
def excess_structure(view: View) -> float:
    """Return L - m(alpha beta)."""
    view.shared(_found)
    if view.bias is not None:
        raise Unavailable("not applicable: the classifier has a last bias")
    product, _ = view.shared(_penalty)
    return difference(mean_loss(view), least_loss(view.n_classes, product))


@reading
def excess_norm(view: View) -> float:
    """Return m(p) + lambda sqrt(C) p - J*, p = alpha beta."""
    _, _, minimum = view.shared(_found)
    product, least = view.shared(_penalty)
    return difference(least_loss(view.n_classes, product) + least, minimum)


@reading
def excess_balance(view: View) -> float:
    """Return (lambda_W C beta^2 + lambda_gamma alpha^2) / 2 - lambda sqrt(C) alpha beta, a square."""
    view.shared(_found)
    weight, gamma = penalties(view)
    rows = math.sqrt(weight * view.n_classes) * view.weight_rms
    return 0.5 * (rows - math.sqrt(gamma) * view.feature_rms) ** 2


_OF_EXCESS = ("class_counts", "norm_sq_sums", "weight", "label_counts", "loss_sums")
_TAU = "tau = sqrt(lambda_W lambda_gamma C) (C-1)/C"

METRICS = (
    Metric(
        name="wd_alpha_beta",
        title="alpha beta at the minimum of the objective",
        family="scale",
        unit="",
        at_collapse="alpha beta",
        better="neither",
        scope="classifier",
        source=_SOURCE,
        definition=f"(C-1)/C log((C-1)(1-tau)/tau), {_TAU}",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=wd_alpha_beta,
    ),
    Metric(
        name="wd_loss",
        title="cross-entropy at the minimum of the objective",
        family="loss",
        unit="nat",
        at_collapse="ce_loss",
        better="neither",
        scope="classifier",
        source=_SOURCE,
        definition=f"-log(1-tau), {_TAU}",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=wd_loss,
    ),
    Metric(
        name="wd_objective",
        title="minimum of the objective",
        family="loss",
        unit="nat",
        at_collapse="objective",
        better="neither",
        scope="classifier",
        source=_SOURCE,
        definition=f"wd_loss + sqrt(lambda_W lambda_gamma C) wd_alpha_beta, {_TAU}",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=wd_objective,
    ),
    Metric(
        name="excess_structure",
        title="objective above its minimum, from structure",
        family="loss",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source=_SOURCE,
        definition="ce_loss - m(alpha beta), where the classifier has no bias",
        needs=_OF_EXCESS,
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=excess_structure,
    ),
    Metric(
        name="excess_norm",
        title="objective above its minimum, from alpha beta",
        family="loss",
        unit="nat",
        at_collapse="",
        better="neither",
        scope="classifier",
        source=_SOURCE,
        definition="m(alpha beta) + sqrt(lambda_W lambda_gamma C) alpha beta - wd_objective",
        needs=_OF_EXCESS,
        invariant_to=("rotation", "permutation"),
        compute=excess_norm,
    ),
    Metric(
        name="excess_balance",
        title="objective above its minimum, from unequal penalties",
        family="loss",
        unit="nat",
        at_collapse="",
        better="neither",
        scope="classifier",
        source=_SOURCE,
        definition="(sqrt(lambda_W C) beta - sqrt(lambda_gamma) alpha)^2 / 2",
        needs=_OF_EXCESS,
        invariant_to=("rotation", "permutation"),
        compute=excess_balance,
    ),
)
"""`wd_objective` and the three `excess_` sum to `objective`."""
