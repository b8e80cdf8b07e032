"""NC4 and accuracies: decisions of the classifier and of the nearest class mean, as counted by the client."""

from __future__ import annotations

from ncmon.metrics.readings import Unavailable, class_array, reading, share
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View
from ncmon.model import FloatArray

_NCC = ("ncc_counts", "ncc_hits")


@reading
def ncc_acc(view: View) -> float:
    """Return the share of samples whose nearest class mean is their own."""
    hits, taken = view.ncc(view.layer.ncc_hits)
    return float(hits.sum() / taken.sum())


@reading
def nc4_agree(view: View) -> float:
    """Return the share of samples whose nearest class mean is the classifier's argmax, bias included."""
    agreed, taken = view.ncc(view.layer.ncc_agree)
    return float(agreed.sum() / taken.sum())


def _decisions(view: View) -> tuple[FloatArray, FloatArray]:
    """Return (C,) samples that the classifier got right and (C,) samples that it saw, infinite losses included."""
    head = view.head
    if head.correct is None or head.label_counts is None:
        raise Unavailable("the classifier's decisions were not measured")
    seen = head.label_counts if head.loss_nonfinite is None else head.label_counts + head.loss_nonfinite
    if seen.sum() == 0:
        raise Unavailable("no sample reached the classifier")
    return head.correct.astype(float), seen.astype(float)


@reading
def accuracy(view: View) -> float:
    """Return the share of samples that the classifier got right."""
    right, seen = _decisions(view)
    return float(right.sum() / seen.sum())


@class_array
def class_accuracy(view: View) -> FloatArray:
    """Return the classifier's share correct in every class (K,)."""
    right, seen = _decisions(view)
    return share(right, seen)[view.present]


@class_array
def class_ncc_acc(view: View) -> FloatArray:
    """Return the share correct by the nearest class mean in every class (K,)."""
    hits, taken = view.ncc(view.layer.ncc_hits)
    return share(hits, taken)[view.present]


METRICS = (
    Metric(
        name="ncc_acc",
        title="accuracy of the nearest class mean",
        family="nc4",
        unit="",
        at_collapse="1",
        better="higher",
        scope="layer",
        source="thesis, section 3.2",
        definition="share of samples with argmin over c of |h - mu_c| equal to their class",
        needs=_NCC,
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 1.0,
        compute=ncc_acc,
    ),
    Metric(
        name="nc4_agree",
        title="agreement with the nearest class mean",
        family="nc4",
        unit="",
        at_collapse="1",
        better="higher",
        scope="classifier",
        source="Papyan 2020, NC4",
        definition="share of samples whose nearest class mean equals the argmax of the logits, bias included",
        needs=("ncc_counts", "ncc_agree"),
        invariant_to=("rotation", "permutation"),
        target=lambda k: 1.0,
        aliases=("nc4",),
        compute=nc4_agree,
    ),
    Metric(
        name="accuracy",
        title="accuracy",
        family="nc4",
        unit="",
        at_collapse="1",
        better="higher",
        scope="classifier",
        source="",
        definition="share of samples whose largest logit is that of their class",
        needs=("correct", "label_counts"),
        invariant_to=("rotation", "permutation"),
        target=lambda k: 1.0,
        aliases=("acc",),
        compute=accuracy,
    ),
    Metric(
        name="class_accuracy",
        title="accuracy of the class",
        family="class",
        unit="",
        at_collapse="1",
        better="higher",
        scope="class",
        source="",
        definition="share of the class whose largest logit is that of the class",
        needs=("correct", "label_counts"),
        invariant_to=("rotation", "permutation"),
        target=lambda k: 1.0,
        compute=class_accuracy,
    ),
    Metric(
        name="class_ncc_acc",
        title="accuracy of the class by the nearest mean",
        family="class",
        unit="",
        at_collapse="1",
        better="higher",
        scope="class",
        source="thesis, section 3.2",
        definition="share of the class whose nearest class mean is its own",
        needs=_NCC,
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 1.0,
        compute=class_ncc_acc,
    ),
)
