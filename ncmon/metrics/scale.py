"""Scales: how long features and rows of the classifier are. alpha beta is what the loss bound is about."""

from __future__ import annotations

import numpy as np

from ncmon.metrics.readings import Unavailable, class_array, reading
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View
from ncmon.model import FloatArray


@reading
def alpha(view: View) -> float:
    """Return the root mean square feature norm."""
    return view.feature_rms


@reading
def beta(view: View) -> float:
    """Return |W|_F / sqrt(C)."""
    return view.weight_rms


@reading
def alpha_aug(view: View) -> float:
    """Return alpha of the features with a constant 1 appended: sqrt(alpha^2 + 1)."""
    augmented_beta(view)
    return float(np.hypot(view.feature_rms, 1.0))


@reading
def beta_aug(view: View) -> float:
    """Return beta of the rows with the bias appended: sqrt((|W|_F^2 + |b|^2) / C)."""
    return augmented_beta(view)


def augmented_beta(view: View) -> float:
    """Return beta_aug, or say that nothing has to be appended."""
    bias = view.bias
    if bias is None:
        raise Unavailable("not applicable: the classifier has no bias, or all of it is zero")
    return float(np.hypot(view.weight_rms, np.linalg.norm(bias) / np.sqrt(view.n_classes)))


@reading
def alpha_bn(view: View) -> float:
    """Return |gamma|, gamma (d,) the scale of the BatchNorm that feeds the classifier."""
    head = view.head
    if not head.batch_norm:
        raise Unavailable("not applicable: no BatchNorm feeds the classifier")
    if head.bn_gamma is None:
        raise Unavailable("the BatchNorm's scale was not sent" if head.finite else "a parameter is not finite")
    return float(np.linalg.norm(head.bn_gamma))


@class_array
def count(view: View) -> FloatArray:
    """Return the finite samples of every class (K,)."""
    return view.counts


@class_array
def mean_norm(view: View) -> FloatArray:
    """Return mean |h| of every class (K,)."""
    return view.layer.norm_sums[view.present] / view.counts


@class_array
def rms_norm(view: View) -> FloatArray:
    """Return sqrt(mean |h|^2) of every class (K,)."""
    return np.sqrt(view.layer.norm_sq_sums[view.present] / view.counts)


METRICS = (
    Metric(
        name="alpha",
        title="root mean square feature norm",
        family="scale",
        unit="",
        at_collapse="",
        better="neither",
        scope="layer",
        source="thesis, Theorem 2.3.1",
        definition="sqrt(mean over samples of |h|^2)",
        needs=("class_counts", "norm_sq_sums"),
        invariant_to=("rotation", "permutation"),
        compute=alpha,
    ),
    Metric(
        name="beta",
        title="root mean square row norm of the classifier",
        family="scale",
        unit="",
        at_collapse="",
        better="neither",
        scope="classifier",
        source="thesis, Theorem 2.3.1",
        definition="|W|_F / sqrt(C)",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=beta,
    ),
    Metric(
        name="alpha_aug",
        title="alpha with the constant of the bias",
        family="scale",
        unit="",
        at_collapse="",
        better="neither",
        scope="classifier",
        source="thesis, section 2.2",
        definition="sqrt(alpha^2 + 1), where the classifier has a bias that is not zero",
        needs=("class_counts", "norm_sq_sums", "weight", "bias"),
        invariant_to=("rotation", "permutation"),
        compute=alpha_aug,
    ),
    Metric(
        name="beta_aug",
        title="beta with the bias",
        family="scale",
        unit="",
        at_collapse="",
        better="neither",
        scope="classifier",
        source="thesis, section 2.2",
        definition="sqrt((|W|_F^2 + |b|^2) / C), where the classifier has a bias that is not zero",
        needs=("weight", "bias"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=beta_aug,
    ),
    Metric(
        name="alpha_bn",
        title="norm of the BatchNorm scale",
        family="scale",
        unit="",
        at_collapse="",
        better="neither",
        scope="classifier",
        source="thesis, Proposition 2.2.1",
        definition="|gamma| of the BatchNorm that feeds the classifier; in training mode alpha, where its shift is 0",
        needs=("bn_gamma",),
        invariant_to=("rotation", "permutation"),
        compute=alpha_bn,
    ),
    Metric(
        name="count",
        title="samples",
        family="class",
        unit="",
        at_collapse="",
        better="neither",
        scope="class",
        source="",
        definition="finite samples of the class in the window",
        needs=("class_counts",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=count,
    ),
    Metric(
        name="mean_norm",
        title="mean feature norm",
        family="class",
        unit="",
        at_collapse="",
        better="neither",
        scope="class",
        source="",
        definition="mean over the class of |h|",
        needs=("class_counts", "norm_sums"),
        invariant_to=("rotation", "permutation"),
        compute=mean_norm,
    ),
    Metric(
        name="rms_norm",
        title="root mean square feature norm of the class",
        family="class",
        unit="",
        at_collapse="",
        better="neither",
        scope="class",
        source="",
        definition="sqrt(mean over the class of |h|^2)",
        needs=("class_counts", "norm_sq_sums"),
        invariant_to=("rotation", "permutation"),
        compute=rms_norm,
    ),
)
