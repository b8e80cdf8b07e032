"""Cross-entropy and its least value for the scales that the network has.

Theorem 2.3.1 of the thesis: with balanced classes, no last bias, root mean square feature norm alpha and
|W|_F^2 = C beta^2, the mean cross-entropy is at least m = log(1 + (C-1) exp(-C/(C-1) alpha beta)), reached only at
collapse. With a last bias the same holds for the augmented features (h, 1) and rows (w_c, b_c) (section 2.2). With
unbalanced or absent classes the pooled mean may lie below m; then the gap is a number without a theorem behind it.
"""

from __future__ import annotations

import numpy as np

from ncmon.metrics.gap import least
from ncmon.metrics.readings import Unavailable, class_array, reading, share
from ncmon.metrics.scale import augmented_beta
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View
from ncmon.model import FloatArray


@reading
def ce_loss(view: View) -> float:
    """Return the mean cross-entropy over samples, in nats."""
    return mean_loss(view)


@reading
def ce_bound_m(view: View) -> float:
    """Return m = log(1 + (C-1) exp(-C/(C-1) alpha beta))."""
    return _least_loss(view)


@reading
def ce_gap(view: View) -> float:
    """Return ce_loss - ce_bound_m."""
    return mean_loss(view) - _least_loss(view)


@reading
def objective(view: View) -> float:
    """Return L + (lambda_W C beta^2 + lambda_gamma alpha^2) / 2, the regularised objective (2.1) of the thesis.

    alpha stands for |gamma| (Proposition 2.2.1). The coefficients are those of an L2 penalty, as SGD's weight decay is;
    decoupled decay (AdamW) minimises no such sum.
    """
    weight, gamma = penalties(view)
    rows = weight * view.n_classes * view.weight_rms**2
    return mean_loss(view) + 0.5 * (rows + gamma * view.feature_rms**2)


def penalties(view: View) -> tuple[float, float]:
    """Return lambda_W and lambda_gamma, or say why (2.1) is not this run's objective."""
    head = view.head
    if head.decoupled_decay:
        raise Unavailable("not applicable: decoupled weight decay has no objective")
    if not head.batch_norm:
        raise Unavailable("not applicable: no BatchNorm feeds the classifier")
    if head.plain_loss is False:
        raise Unavailable("not applicable: the trained loss is not plain cross-entropy")
    if head.weight_decay is None or head.weight_decay_gamma is None:
        raise Unavailable("the weight decays are not known")
    return head.weight_decay, head.weight_decay_gamma


@class_array
def class_loss(view: View) -> FloatArray:
    """Return the mean cross-entropy of every class (K,)."""
    sums, counts = view.class_losses
    return share(sums, counts)[view.present]


def mean_loss(view: View) -> float:
    """Return L, the mean cross-entropy over samples."""
    sums, counts = view.class_losses
    return float(sums.sum() / counts.sum())


def _least_loss(view: View) -> float:
    view.need_classes()
    if view.bias is None:
        product = view.feature_rms * view.weight_rms
    else:
        product = np.hypot(view.feature_rms, 1.0) * augmented_beta(view)
    return least_loss(view.n_classes, float(product))


def least_loss(n_classes: int, product: float) -> float:
    """Return m = log(1 + (C-1) exp(-C/(C-1) alpha beta))."""
    return float(least(np.array(product), n_classes))


METRICS = (
    Metric(
        name="ce_loss",
        title="cross-entropy",
        family="loss",
        unit="nat",
        at_collapse="ce_bound_m",
        better="lower",
        scope="classifier",
        source="",
        definition="mean over samples of -log softmax of the own logit, plain, whatever loss is trained",
        needs=("label_counts", "loss_sums"),
        invariant_to=("rotation", "permutation"),
        compute=ce_loss,
    ),
    Metric(
        name="ce_bound_m",
        title="least cross-entropy at these scales",
        family="loss",
        unit="nat",
        at_collapse="ce_loss",
        better="lower",
        scope="classifier",
        source="thesis, Theorem 2.3.1",
        definition=(
            "m = log(1 + (C-1) exp(-C/(C-1) alpha beta)); alpha_aug and beta_aug where the bias is not zero;"
            " a bound for balanced classes"
        ),
        needs=("class_counts", "norm_sq_sums", "weight"),
        invariant_to=("rotation", "permutation"),
        compute=ce_bound_m,
    ),
    Metric(
        name="ce_gap",
        title="cross-entropy above its least value",
        family="loss",
        unit="nat",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="thesis, Theorem 2.3.1",
        definition="ce_loss - ce_bound_m",
        needs=("class_counts", "norm_sq_sums", "weight", "label_counts", "loss_sums"),
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=ce_gap,
    ),
    Metric(
        name="objective",
        title="regularised objective",
        family="loss",
        unit="nat",
        at_collapse="",
        better="lower",
        scope="classifier",
        source="thesis, (2.1) and Proposition 2.2.1",
        definition=(
            "ce_loss + (lambda_W C beta^2 + lambda_gamma alpha^2) / 2, the weight decays of classifier and BatchNorm"
        ),
        needs=("class_counts", "norm_sq_sums", "weight", "label_counts", "loss_sums"),
        invariant_to=("rotation", "permutation"),
        compute=objective,
    ),
    Metric(
        name="class_loss",
        title="cross-entropy of the class",
        family="class",
        unit="nat",
        at_collapse="ce_bound_m",
        better="lower",
        scope="class",
        source="",
        definition="mean over the class of -log softmax of the own logit",
        needs=("label_counts", "loss_sums"),
        invariant_to=("rotation", "permutation"),
        compute=class_loss,
    ),
)
