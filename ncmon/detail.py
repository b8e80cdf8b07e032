"""One run in full, as a viewer looks at it: what of the store makes it, and which split is meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.model import CLASSIFIER_INPUT, LayerKey, Run
from ncmon.store.growing import Memory, histories
from ncmon.store.results import Columns, WindowReadings
from ncmon.store.runs import StoredRun

CHARTED = (
    "nc1_pinv",
    "nc1_cdnv",
    "nc1_trace_ratio",
    "intra_cos_min",
    "inter_cos_max",
    "cert_intra_min",
    "nc2_equinorm",
    "nc2_maxangle",
    "nc3_cos_min",
    "ce_loss",
    "ce_bound_m",
    "ce_gap",
    "accuracy",
    "ncc_acc",
    "nc4_agree",
    "alpha",
    "beta",
    "effective_depth",
)
"""Metrics and bounds of the selected layer that a snapshot holds in full."""

_SCALAR_BOUNDS = tuple(bound for bound in BOUNDS if bound.scope in ("layer", "classifier", "window"))
BOUNDED = tuple(dict.fromkeys(name for bound in _SCALAR_BOUNDS for name in (bound.name, bound.of)))
"""What the view of bounds holds beside it: every bound that is one number, and what it bounds."""
BOUNDED_PAIRS = tuple(dict.fromkeys(name for b in BOUNDS if b.scope == "pair" for name in (b.name, b.of)))
LAGGING = ("intra_cos", "nearest_class", "cert_intra", "count")
"""Class arrays from which a line about a run says which class lags, and how many are certified."""
BOUNDED_CLASSES = tuple(dict.fromkeys(name for b in BOUNDS if b.scope == "class" for name in (b.name, b.of)))
CLASS_ARRAYS: Mapping[str, tuple[str, ...]] = {"overview": LAGGING, "bounds": BOUNDED_CLASSES}
"""What views show of the class arrays of the last windows: of a thousand classes all would be most of the reading."""
CLASS_HISTORY = ("intra_cos", "nearest_cos", "cert_intra")
"""What the view of classes holds of one class over time."""
LAYER_TABLE = ("nc1_pinv", "nc1_cdnv", "intra_cos_min", "inter_cos_max", "nc2_etf_err", "ncc_acc")
"""What the view of layers holds of every layer at one moment."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detail:
    """One run in full, of one layer."""

    run: Run
    layers: tuple[LayerKey, ...]
    layer: LayerKey | None
    """The one shown; None before the first window."""
    splits: tuple[str, ...]
    series: Mapping[str, Mapping[str, Columns]]
    """By split, then by metric."""
    latest: Mapping[str, WindowReadings]
    """The last window of every split up to the moment looked at, the exact one where there are both."""
    gaps: int

    def certified(self, split: str) -> tuple[int, int] | None:
        """Return how many classes have a certificate, and how many are present; None before the first window."""
        window = self.latest.get(split)
        found = window.layers.get(CLASSIFIER_INPUT) if window is not None else None
        if found is None or "cert_intra" not in found.class_arrays:
            return None
        present = int(np.count_nonzero(found.class_arrays["count"] > 0)) if "count" in found.class_arrays else 0
        return int(np.count_nonzero(~np.isnan(found.class_arrays["cert_intra"]))), present


def bounds_split(detail: Detail) -> str:
    """Return the split whose bounds say most: one measured at frozen weights, for there they are guarantees."""
    exact = [split for split, window in detail.latest.items() if window.exact]
    main = main_split(detail.splits)
    return next((split for split in exact if split.startswith(main)), exact[0] if exact else main)


def main_split(splits: tuple[str, ...]) -> str:
    """Return the split that a run trains on."""
    return "train" if "train" in splits or not splits else splits[0]


def read_detail(
    run: StoredRun,
    layer: str,
    memory: Memory,
    *,
    step: int | None = None,
    more: tuple[str, ...] = (),
    arrays: tuple[str, ...] = (),
) -> Detail:
    """Return one run in full, of one layer, or of its last layer where it has none of that name.

    `step` is the moment of `latest`, `arrays` the class arrays wanted of it, `more` the series wanted beside the
    charted ones; of what `memory` knows only what came since is read.
    """
    layers = run.layers
    shown = next((key for key in layers if key.name == layer), layers[-1] if layers else None)
    splits = run.splits
    wanted = tuple(dict.fromkeys((*CHARTED, *more)))
    # Of the other layers nothing is shown here: reading them all would be most of the work in a deep network.
    named = (CLASSIFIER_INPUT,) if shown is None else tuple(dict.fromkeys((CLASSIFIER_INPUT, shown.name)))
    return Detail(
        run=run.run,
        layers=layers,
        layer=shown,
        splits=splits,
        series={split: histories(run, wanted, memory, layer=shown.name, split=split) for split in splits}
        if shown
        else {},
        latest={window.split: window for window in run.latest(step, layers=named, arrays=arrays)},
        gaps=len(run.gaps()),
    )
