"""Numbers for pictures: what a metric is called, where its scale lies, what it was over epochs, layers and runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ncmon.bounds import BOUNDS
from ncmon.errors import NotFound, UsageError, near
from ncmon.metrics import METRICS, resolve
from ncmon.metrics.spec import Bound, Metric
from ncmon.model import CLASSIFIER_INPUT, FloatArray
from ncmon.plot import style
from ncmon.store.results import Columns
from ncmon.store.runs import StoredRun
from ncmon.store.selection import config_differences

ENTRIES: dict[str, Metric | Bound] = {**{m.name: m for m in METRICS}, **{b.name: b for b in BOUNDS}}

SPREAD = 20.0
"""Greatest over least from which positive numbers are drawn on a logarithmic axis."""
LOG_SPREAD = 3.0
"""The same for families that the field draws that way, because they go to 0."""
LOG_FAMILIES = frozenset({"nc1", "nc2", "loss"})
LINEAR_FAMILIES = frozenset({"cosine", "nc4", "depth"})
"""Cosines and shares: what they lack to 1 matters, not how often they doubled."""

MOST_KEYS = 2
"""Keys of the configuration in the label of a run."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One metric of one run, layer and split over time."""

    x: FloatArray
    y: FloatArray
    """NaN where there is a reason."""
    exact: bool
    """Whether all of it was measured at frozen weights."""

    def __len__(self) -> int:
        return len(self.x)


def curve(run: StoredRun, metric: str, *, layer: str, split: str, by_step: bool) -> Curve:
    """Return a metric over epochs, or over steps."""
    return curve_of(run.history(metric, layer=layer, split=split), by_step=by_step)


def tightest(run: StoredRun, metric: str, *, layer: str, split: str, by_step: bool) -> Curve:
    """Return the tightest bound of a metric at every window: of several guarantees the best one counts.

    Empty where the metric has no bound at this layer; NaN where every bound of a window has a reason.
    """
    several = [bound for bound in bounds_of(metric) if not bound.at_classifier or layer == CLASSIFIER_INPUT]
    if not several:
        return Curve(x=np.empty(0), y=np.empty(0), exact=False)
    found = run.histories([bound.name for bound in several], layer=layer, split=split)
    best: dict[tuple[int, bool], tuple[float, float]] = {}
    for bound in several:
        columns = found[bound.name]
        one = curve_of(columns, by_step=by_step)
        pick = np.fmax if bound.side == "lower" else np.fmin  # both pass over NaN
        keys = zip(columns.step.tolist(), columns.exact.tolist(), strict=True)
        for key, x, y in zip(keys, one.x.tolist(), one.y.tolist(), strict=True):
            best[key] = (x, float(pick(best.get(key, (x, np.nan))[1], y)))
    ordered = [best[key] for key in sorted(best)]
    return Curve(
        x=np.array([x for x, _ in ordered]),
        y=np.array([y for _, y in ordered]),
        exact=all(exact for _, exact in best),
    )


def curve_of(found: Columns, *, by_step: bool) -> Curve:
    """Return columns as a curve."""
    x = found.step if by_step else found.epoch
    return Curve(x=x.astype(np.float64), y=found.value, exact=bool(len(found) and found.exact.all()))


def has_epochs(runs: Iterable[StoredRun]) -> bool:
    """Whether all loops named their epochs."""
    return all((run.window_columns(split).epoch >= 0).all() for run in runs for split in run.splits)


def title(name: str) -> str:
    """Return the heading of a metric or bound, in two lines."""
    name = resolve(name)
    entry = ENTRIES.get(name)
    if entry is None:
        return name
    unit = getattr(entry, "unit", "")
    return f"{entry.title}\n{name}{', in ' + unit if unit else ''}"


def bounds_of(name: str) -> list[Bound]:
    """Return the bounds of a metric."""
    return [bound for bound in BOUNDS if bound.of == resolve(name)]


def target(name: str, n_classes: int) -> float | None:
    """Return the value at perfect collapse, None where there is none or it is 0 and says nothing on a log axis."""
    entry = ENTRIES.get(resolve(name))
    return entry.target(n_classes) if isinstance(entry, Metric) and entry.target is not None else None


def is_log(name: str, values: Sequence[FloatArray], scale: str) -> bool:
    """Whether to draw on a logarithmic axis: as asked for, or where positive numbers are spread widely."""
    if scale != "auto":
        return scale == "log"
    entry = ENTRIES.get(name)
    if isinstance(entry, Bound):
        entry = ENTRIES.get(entry.of)
    family = entry.family if isinstance(entry, Metric) else ""
    ideal = entry.target(3) if isinstance(entry, Metric) and entry.target is not None else 0.0
    # What tends to a number other than 0, as a cosine does, is read by its distance from that number.
    if family in LINEAR_FAMILIES or (ideal != 0.0 and np.isfinite(ideal)):
        return False
    some = np.concatenate([np.ravel(one) for one in values]) if values else np.empty(0)
    some = some[np.isfinite(some)]
    return bool(
        some.size and some.min() > 0 and some.max() > (LOG_SPREAD if family in LOG_FAMILIES else SPREAD) * some.min()
    )


def labels(runs: Sequence[StoredRun]) -> list[str]:
    """Return what runs are called in a legend: their names, with what their configurations differ in where names are
    shared, or the beginnings of their ids.
    """
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return [style.short(name) for name in names]
    differing = config_differences([run.config for run in runs])
    told = [
        ", ".join(f"{key}={values[place]}" for key, values in list(differing.items())[:MOST_KEYS])
        for place in range(len(runs))
    ]
    if len(set(zip(names, told, strict=True))) < len(runs):
        told = [run.run_id[:8] for run in runs]
    shared = len(set(names)) == 1
    return [style.short(one if shared else f"{name} {one}", 40) for name, one in zip(names, told, strict=True)]


def heading(runs: Sequence[StoredRun]) -> str:
    """Return what stands above a picture of some runs."""
    names = list(dict.fromkeys(run.name for run in runs))
    return ", ".join(map(style.short, names[:3])) + (", ..." if len(names) > 3 else "")


def check_metric(runs: Sequence[StoredRun], name: str) -> str:
    """Return the name of a metric of one number a window; raises `NotFound`."""
    known = list(dict.fromkeys(found for run in runs for found in run.metrics))
    if resolve(name) not in known:
        raise NotFound(f"no metric is named {name!r}, of one number a window{near(name, known)}")
    return resolve(name)


def splits_of(runs: Sequence[StoredRun], asked: Sequence[str]) -> list[str]:
    """Return the splits to draw: those asked for, or all; raises `NotFound`."""
    known = list(dict.fromkeys(split for run in runs for split in run.splits))
    if not known:
        raise UsageError(f"{', '.join(run.name for run in runs)}: no window yet, nothing to draw")
    for split in asked:
        if split not in known:
            raise NotFound(f"no such split {split!r}{near(split, known)}")
    return list(asked) or known


def layer_of(runs: Sequence[StoredRun], asked: str | None) -> str:
    """Return the layer to draw, by default the classifier's input; raises `NotFound`."""
    layer = CLASSIFIER_INPUT if asked is None else asked
    known = list(dict.fromkeys(key.name for run in runs for key in run.layers))
    if layer not in known:
        raise NotFound(f"no layer {layer!r}{near(layer, known)}")
    return layer


def one_split(run: StoredRun, asked: Sequence[str]) -> str:
    """Return the one split of a picture that has room for one: train, or the first there is."""
    if len(asked) > 1:
        raise UsageError("this picture has room for one split")
    found = splits_of([run], asked)
    return "train" if not asked and "train" in found else found[0]


def over_layers(run: StoredRun, metric: str, split: str) -> tuple[list[str], FloatArray, FloatArray]:
    """Return the layers, the epochs (or steps) and one metric (layers, windows), NaN where there is none."""
    windows = run.window_columns(split)
    place = {key: number for number, key in enumerate(zip(windows.step.tolist(), windows.exact.tolist(), strict=True))}
    layers = [key.name for key in run.layers]
    values = np.full((len(layers), len(windows)), np.nan)
    for row, layer in enumerate(layers):
        found = run.history(metric, layer=layer, split=split)
        keys = zip(found.step.tolist(), found.exact.tolist(), strict=True)
        values[row, [place[key] for key in keys]] = found.value
    x = windows.epoch if (windows.epoch >= 0).all() else windows.step
    return layers, x.astype(np.float64), values
