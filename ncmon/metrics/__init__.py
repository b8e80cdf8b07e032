"""All metrics: the one visible list, and how names are found in it."""

from __future__ import annotations

import difflib

from ncmon.errors import NotFound
from ncmon.metrics import cosine, depth, equilibrium, gap, loss, nc1, nc2, nc3, nc4, scale
from ncmon.metrics.spec import Bound, Metric
from ncmon.metrics.view import View

METRICS: tuple[Metric, ...] = (
    *cosine.METRICS,
    *nc1.METRICS,
    *nc2.METRICS,
    *nc3.METRICS,
    *nc4.METRICS,
    *loss.METRICS,
    *gap.METRICS,
    *equilibrium.METRICS,
    *scale.METRICS,
    *depth.METRICS,
)
"""In the order of screens and tables."""

_BY_NAME = {metric.name: metric for metric in METRICS}
_ALIASES = {alias: metric.name for metric in METRICS for alias in metric.aliases}

if len(_BY_NAME) != len(METRICS) or not _BY_NAME.keys().isdisjoint(_ALIASES):
    raise RuntimeError("two metrics share a name or an alias")


def resolve(name: str) -> str:
    """Return the name of the metric that `name` is, or is an alias of; other names come back unchanged."""
    return _ALIASES.get(name, name)


def by_name(name: str) -> Metric:
    """Return one metric by its name or an alias; `NotFound` offers near names."""
    metric = _BY_NAME.get(resolve(name))
    if metric is None:
        near = difflib.get_close_matches(name, [*_BY_NAME, *_ALIASES], n=3)
        hint = f", did you mean {' or '.join(near)}?" if near else ": `ncmon metrics` lists all"
        raise NotFound(f"no metric is named {name!r}{hint}")
    return metric


__all__ = ("METRICS", "Bound", "Metric", "View", "by_name", "resolve")
