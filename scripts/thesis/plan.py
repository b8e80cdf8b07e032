"""Which runs there are: the thesis' experiments as frozen lists, and how a run says what it is.

    3.1     6 layers; BatchNorm affine, plain and none; seven weight decays; samples labelled by a random network
    3.3     15 layers with affine BatchNorm; seven weight decays; the same samples
    cones   both of them, affine, on conic hull data
    digits  both of them, affine, on handwritten digits; shorter

The thesis states learning rate, momentum, decays, batch, epochs, depths and weight decays. What it leaves open (width,
inputs, classes, hyperplanes) are fields of `Spec` with this project's choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

DECAYS_31 = (1e-4, 3e-4, 5e-4, 1e-3, 3e-3, 7e-3, 1e-2)
DECAYS_33 = (1e-4, 3e-4, 5e-4, 1e-3, 3e-3, 5e-3, 1e-2)
SHALLOW, DEEP = 6, 15
NORMS = ("affine", "plain", "none")
"""BatchNorm with a learned scale and shift, BatchNorm without them, no normalisation."""
EXPERIMENTS = ("3.1", "3.3", "cones", "digits")
HEADLINE = (5e-4, 1e-3, 3e-3)
"""Weight decays of the points that several seeds repeat; of the shallow networks on conic data they repeat all."""
MEASURED = (0.0, 0.02, 0.06, 0.13, 0.25, 0.38, 0.5, 0.63, 0.75, 0.88, 1.0)
"""Where in a training the whole training set is measured: early often, before every change of the learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One run, completely: two runs of one spec are the same run, bit for bit."""

    data: str
    n_layers: int
    norm: str
    weight_decay: float
    seed: int = 0
    n_samples: int = 10_000
    n_inputs: int = 256
    n_classes: int = 4
    n_planes: int = 4
    width: int = 64
    epochs: int = 300
    batch: int = 128
    lr: float = 0.0679
    momentum: float = 0.9

    @property
    def name(self) -> str:
        """What the run is called: short, so that listings have room for it; affine and seed 0 go without saying."""
        digits, exponent = f"{self.weight_decay:e}".split("e")
        decay = f"{float(digits):g}e{int(exponent)}" if self.weight_decay else "0"
        norm = "" if self.norm == "affine" else f"-{self.norm}"
        return f"{self.data}{self.n_layers}{norm}-{decay}" + (f"-s{self.seed}" if self.seed else "")

    @property
    def measured(self) -> tuple[int, ...]:
        """The epochs, from 0, after which the training set is measured; the first and the last are among them."""
        return tuple(sorted({max(round(share * self.epochs), 1) - 1 for share in MEASURED}))

    @property
    def milestones(self) -> tuple[int, ...]:
        """The epochs before which the learning rate falls to a tenth: three, evenly."""
        return tuple(sorted({round(self.epochs * quarter / 4) for quarter in (1, 2, 3)} - {0}))

    @property
    def cost(self) -> float:
        """What it takes, in layers x samples x epochs: only to foretell how long others will take."""
        samples = 1797 if self.data == "digits" else self.n_samples
        return samples * self.epochs * (self.n_layers + 2.0) * (0.6 if self.norm == "none" else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the experiments are."""

    width: int = 64
    n_inputs: int = 256
    n_classes: int = 4
    n_samples: int = 10_000
    epochs: int = 300
    cone_samples: int = 2_000
    digits_epochs: int = 200
    n_shallow: int = SHALLOW
    n_deep: int = DEEP
    seeds: int = 3
    decays_31: tuple[float, ...] = DECAYS_31
    decays_33: tuple[float, ...] = DECAYS_33


QUICK = Scale(
    n_inputs=64,
    n_samples=1_000,
    cone_samples=1_000,
    epochs=200,
    digits_epochs=120,
    seeds=1,
    decays_31=(5e-4, 3e-3, 1e-2),
    decays_33=(5e-4, 3e-3, 1e-2),
)
"""Minutes instead of hours: shows every figure, proves nothing."""


def plan(scale: Scale, experiments: Sequence[str] = EXPERIMENTS) -> list[Spec]:
    """Return all runs, each once: the first seed of every experiment, then what repeats it.

    Later seeds repeat the headline points, and every point of the shallow networks on conic data: the conjectures are
    about pairs of them. Digits are one real data set, once.
    """
    chosen = [one for one in ("3.1", "3.3", "cones", "digits") if one in experiments]
    found = dict.fromkeys(spec for one in chosen for spec in _experiment(scale, one, 0))
    for one in sorted(set(chosen) - {"digits"}, key=("cones", "3.1", "3.3").index):
        for seed in range(1, scale.seeds):
            found |= dict.fromkeys(
                spec
                for spec in _experiment(scale, one, seed)
                if spec.weight_decay in HEADLINE or (one == "cones" and spec.n_layers == scale.n_shallow)
            )
    return list(found)


def _experiment(scale: Scale, experiment: str, seed: int) -> Iterator[Spec]:
    base = Spec(
        data="normal",
        n_layers=scale.n_shallow,
        norm="affine",
        weight_decay=0.0,
        seed=seed,
        n_samples=scale.n_samples,
        n_inputs=scale.n_inputs,
        n_classes=scale.n_classes,
        width=scale.width,
        epochs=scale.epochs,
    )
    deep = replace(base, n_layers=scale.n_deep)
    if experiment == "3.1":
        for norm in NORMS:
            yield from (replace(base, norm=norm, weight_decay=decay) for decay in scale.decays_31)
    elif experiment == "3.3":
        yield from (replace(deep, weight_decay=decay) for decay in scale.decays_33)
    elif experiment in ("cones", "digits"):
        own: dict[str, Any] = {"data": experiment, "n_samples": scale.cone_samples}
        if experiment == "digits":
            # All images there are: fixed by the data, not by us.
            own |= {"n_samples": 1797, "n_inputs": 64, "n_classes": 10, "epochs": scale.digits_epochs}
        yield from (replace(base, weight_decay=decay, **own) for decay in scale.decays_31)
        yield from (replace(deep, weight_decay=decay, **own) for decay in scale.decays_33)
    else:
        raise ValueError(f"expected an experiment among {', '.join(EXPERIMENTS)}, got {experiment!r}")
