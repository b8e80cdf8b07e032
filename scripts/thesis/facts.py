"""What stored runs came to: of each the last window of the training set, as frozen facts.

Read with ncmon's Python interface and nothing else; figures, claims and tables are made from these facts alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plan import Spec
from sweep import spec_of

import ncmon
from ncmon.bounds import BOUNDS
from ncmon.bounds.conjectures import effective_depth
from ncmon.model import Reading

SPLIT = "train"
ROUNDING = 1e-5
"""Slack below minus this contradicts a theorem; less is the rounding of statistics in single precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run after its last epoch."""

    spec: Spec
    run_id: str
    seconds: float
    values: Mapping[str, float]
    """Metrics and bounds of the features that enter the classifier; what has a reason instead is in `reasons`."""
    reasons: Mapping[str, str]
    depth: Mapping[str, tuple[float, ...]]
    """`ncc_acc`, `intra_cos_min`, `inter_cos_max` and `cos_margin` of every layer, from the input."""

    @property
    def perfect(self) -> bool:
        """Whether every sample of the training set is classified rightly."""
        return self.values["accuracy"] == 1.0

    @property
    def margin(self) -> float:
        """Q of the last layer: least intra-class less greatest inter-class cosine."""
        return self.values["intra_cos_min"] - self.values["inter_cos_max"]

    @property
    def errors(self) -> tuple[float, ...]:
        """Share of samples that the nearest class mean gets wrong, layer by layer."""
        return tuple(1.0 - share for share in self.depth["ncc_acc"])

    def effective_depth(self, level: float) -> int:
        """Return d(eps), the first layer from 1 whose nearest class means err on at most a share `level`."""
        return effective_depth(self.errors, level)

    def slack(self, name: str) -> float | None:
        """Return the distance to a bound, None where there is none; negative when it is broken."""
        bound = next(bound for bound in BOUNDS if bound.name == name)
        value, measured = self.values.get(name), self.values.get(bound.of)
        if value is None or measured is None:
            return None
        return measured - value if bound.side == "lower" else value - measured


LAYERWISE = ("ncc_acc", "intra_cos_min", "inter_cos_max", "cos_margin")


def outcomes(database: Path) -> list[Outcome]:
    """Return all finished runs of ours, in the order of their specs."""
    with ncmon.open(database) as store:
        found = []
        for run in store:
            spec = spec_of(run)
            if spec is None or run.run.status != "finished":
                continue
            window = run.readings(split=SPLIT)[0]
            readings = window.layers["classifier-input"].readings
            found.append(
                Outcome(
                    spec=spec,
                    run_id=run.run_id,
                    seconds=(run.run.ended or run.run.started) - run.run.started,
                    values={name: one.value for name, one in readings.items() if one.value is not None},
                    reasons={name: one.reason for name, one in readings.items() if one.value is None},
                    depth={
                        name: tuple(_number(layer.readings, name) for layer in window.layers.values())
                        for name in LAYERWISE
                    },
                )
            )
    return sorted(found, key=lambda one: (one.spec.data, one.spec.n_layers, one.spec.norm, one.spec.seed, _decay(one)))


def chosen(
    found: Iterable[Outcome], *, data: str, n_layers: int, norm: str = "affine", seed: int | None = None
) -> list[Outcome]:
    """Return the runs of one network on one problem, by weight decay."""
    kept = [
        one
        for one in found
        if (one.spec.data, one.spec.n_layers, one.spec.norm) == (data, n_layers, norm)
        and (seed is None or one.spec.seed == seed)
    ]
    return sorted(kept, key=_decay)


def depths_of(found: Sequence[Outcome]) -> tuple[int, int]:
    """Return the layers of the shallow and of the deep networks."""
    layers = sorted({one.spec.n_layers for one in found})
    return layers[0], layers[-1]


def _decay(one: Outcome) -> float:
    return one.spec.weight_decay


def _number(readings: Mapping[str, Reading], name: str) -> float:
    found = readings.get(name)
    return float("nan") if found is None or found.value is None else found.value
