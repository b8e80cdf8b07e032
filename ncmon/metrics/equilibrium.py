"""Where weight decay would settle: the minimum of the regularised objective (2.1) over the scales of a network.

J = L + (lambda_W |W|_F^2 + lambda_gamma |gamma|^2) / 2 with |W|_F^2 = C beta^2, |gamma| = alpha (Proposition 2.2.1).
For p = alpha beta the least penalty is lambda sqrt(C) p, lambda = sqrt(lambda_W lambda_gamma), at
lambda_gamma alpha^2 = lambda_W C beta^2. Minimising m(p) + lambda sqrt(C) p over p, with tau = lambda sqrt(C) (C-1)/C:

    p* = (C-1)/C log((C-1)(1-tau)/tau),  m* = -log(1-tau),  J* = m* + lambda sqrt(C) p*;  p* = 0 if lambda >= 1/sqrt(C).

It is about an L2 penalty (SGD's weight decay) on the classifier and on the scale of the BatchNorm before it, without a
shift there, and C - 1 <= d. Source: thesis, (2.1); ncmon theory notes, section 4.
"""

from __future__ import annotations

import math

from ncmon.metrics.loss import penalties
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import Unavailable, View, reading


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
)
