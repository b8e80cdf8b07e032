"""Effective depth: after how many layers the nearest class mean already decides (thesis, Definition 3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence

from ncmon.metrics.readings import Unavailable, reading
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View

EPSILON = 0.01
"""Share of samples that the nearest class mean may get wrong."""


@reading
def effective_depth(views: Sequence[View]) -> float:
    """Return the place, from 1, of the first layer whose error is at most `EPSILON`, else the number of layers.

    Layers stand in the order of the forward pass, the classifier's input last.
    """
    ordered = sorted(views, key=lambda view: (view.is_classifier_input, view.layer.key.index))
    if len(ordered) < 2:
        raise Unavailable("only one layer is watched")
    errors: list[float] = []
    for view in ordered:
        try:
            hits, taken = view.ncc(view.layer.ncc_hits)
        except Unavailable as missing:
            raise Unavailable(f"layer {view.layer.key.name}: {missing}") from None
        errors.append(1.0 - float(hits.sum() / taken.sum()))
    return float(next((place for place, error in enumerate(errors, 1) if error <= EPSILON), len(ordered)))


METRICS = (
    Metric(
        name="effective_depth",
        title="effective depth",
        family="depth",
        unit="layers",
        at_collapse="small",
        better="lower",
        scope="window",
        source="thesis, Definition 3.2.2",
        definition=(
            "first layer, from the input and from 1, whose nearest-class-mean error is at most 0.01,"
            " else the number of layers"
        ),
        needs=("ncc_counts", "ncc_hits"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=effective_depth,
    ),
)
