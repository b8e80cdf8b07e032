"""What a metric is: a frozen specification that every other room reads.

`compute` is a pure function of a `View` (one layer of one window, with the intermediate results that several metrics
share, each computed at most once). Its result depends on the scope:

    layer, classifier   a `Reading`
    class               an array (C,), NaN where a class has no value
    pair                an array (C, C), NaN where a pair has no value
    window              a `Reading` of the whole window, stored with the classifier's input; `compute` takes all views

A metric of scope `classifier` or `window`, and one that needs a statistic of the classifier, has values for the layer
named `classifier-input` only (`at_classifier`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Scope = Literal["layer", "classifier", "window", "class", "pair"]
Better = Literal["lower", "higher", "neither"]
Symmetry = Literal["rotation", "scaling", "permutation", "translation"]

HEAD_STATISTICS = frozenset({"weight", "bias", "bn_gamma", "label_counts", "loss_sums", "correct", "own_logit_sums"})
"""Statistics that belong to the classifier, not to a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of the field, with all facts about it."""

    name: str
    title: str
    """A few words for a chart's heading."""
    family: Literal["cosine", "nc1", "nc2", "nc3", "nc4", "scale", "loss", "depth", "class"]
    unit: str
    """Empty for a pure number; `nat` for losses."""
    at_collapse: str
    """The value at perfect collapse, as text for tables (K present classes, C declared ones)."""
    better: Better
    """Direction towards collapse."""
    scope: Scope
    source: str
    """Paper and equation."""
    definition: str
    """The formula as text; published curves differ by ddof, squaring and weighting, so this is part of the name."""
    version: int = 1
    """Of the definition."""
    needs: tuple[str, ...] = ()
    """Statistics of the window without which there is only a reason."""
    invariant_to: tuple[Symmetry, ...] = ()
    """Property tests are made from this. `rotation` of features and classifier together; `scaling` of the features by
    a positive number and `translation` of them by a vector, the classifier left alone; `permutation` of the classes
    (arrays are permuted with them).
    """
    target: Callable[[int], float] | None = None
    """The value at perfect collapse for K present classes, None where there is none."""
    aliases: tuple[str, ...] = ()
    compute: Callable[..., Any]

    @property
    def at_classifier(self) -> bool:
        """Whether only the classifier's input has this metric."""
        return self.scope in ("classifier", "window") or not HEAD_STATISTICS.isdisjoint(self.needs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The twin of `Metric`: what the theorem guarantees about another metric."""

    name: str
    title: str
    of: str
    """The metric, or class array, that it bounds."""
    side: Literal["lower", "upper"]
    scope: Scope
    assumptions: tuple[str, ...]
    """In words, for readers."""
    requires: tuple[str, ...] = ()
    """Names of facts in the window's panel (`ncmon.bounds.assumptions`) without which it is no guarantee."""
    source: str
    definition: str
    version: int = 1
    needs: tuple[str, ...] = ()
    compute: Callable[..., Any]

    @property
    def at_classifier(self) -> bool:
        """Whether only the classifier's input has this bound."""
        return self.scope in ("classifier", "window") or not HEAD_STATISTICS.isdisjoint(self.needs)
