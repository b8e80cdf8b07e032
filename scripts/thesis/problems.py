"""What the networks learn: samples labelled by a random network, samples in cones, and handwritten digits.

Every problem is made from its seed alone, has classes of equal size (the theorem supposes it; digits come as they are)
and no test set: the thesis is about the training set. Samples are drawn from a normal distribution until every class
has its share; those beyond it are dropped.

    normal  labelled by a random network of three layers (thesis, chapter 3)
    cones   conic hull data (thesis, Conjectures 3.1.1 to 3.2.2): a class is a union of cones {x : x.b_i >= 0 for all i}
    digits  scikit-learn's 1,797 images of 8x8 pixels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from networks import mlp
from torch import Tensor

TEACHER_LAYERS = 3
POOL = 4096
"""Samples drawn at once."""
MOST_POOLS = 1000
"""A class that is still short of samples after so many is a region that hardly exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Samples (n, d) in single precision and their classes (n,)."""

    x: Tensor
    y: Tensor
    n_classes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cones:
    """A partition of space into classes, each a union of cones around 0.

    `bases[j]` (k, d) holds the b_i of cone j, `owners` (cones,) the class that each cone belongs to. The cones are the
    2^k sign patterns of k random hyperplanes, so that they meet in their faces alone and leave no gap.
    """

    bases: Tensor
    owners: Tensor
    n_classes: int

    def within(self, x: Tensor) -> Tensor:
        """Return which cones (n, cones) hold which samples: x.b_i >= 0 for all i of a cone."""
        return (torch.einsum("nd,jkd->njk", x, self.bases) >= 0).all(dim=2)

    def classes(self, x: Tensor) -> Tensor:
        """Return the class (n,) of every sample: the owner of the (first) cone that holds it."""
        return self.owners[self.within(x).float().argmax(dim=1)]


def cones(n_inputs: int, n_classes: int, n_planes: int, generator: torch.Generator) -> Cones:
    """Draw hyperplanes and deal their 2^n_planes cones to the classes, each class as many as the others or one more."""
    if n_planes > n_inputs:
        raise ValueError(f"{n_planes} hyperplanes in {n_inputs} dimensions leave some of their cones empty")
    if 2**n_planes < n_classes:
        raise ValueError(f"{n_planes} hyperplanes make {2**n_planes} cones, too few for {n_classes} classes")
    planes = torch.randn(n_planes, n_inputs, generator=generator)
    planes = planes / planes.norm(dim=1, keepdim=True)
    patterns = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * n_planes).reshape(-1, n_planes)
    owners = torch.arange(len(patterns)) % n_classes
    return Cones(
        bases=patterns[:, :, None] * planes[None],
        owners=owners[torch.randperm(len(owners), generator=generator)],
        n_classes=n_classes,
    )


def conic(*, n_samples: int, n_inputs: int, n_classes: int, n_planes: int, seed: int) -> Problem:
    """Return conic hull data."""
    generator = torch.Generator().manual_seed(seed)
    partition = cones(n_inputs, n_classes, n_planes, generator)
    return _balanced(partition.classes, n_samples, n_inputs, n_classes, generator)


def labelled(*, n_samples: int, n_inputs: int, n_classes: int, width: int, seed: int) -> Problem:
    """Return samples labelled by a random network of three layers of the same architecture.

    Its BatchNorm is what balances the classes, roughly: without it one logit is the largest nearly everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = mlp(TEACHER_LAYERS, n_inputs=n_inputs, width=width, n_classes=n_classes, norm="affine")
    with torch.no_grad():
        # One pass in training mode: the running statistics become those of this sample.
        for module in teacher.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.momentum = None
        teacher.train()(torch.randn(8 * POOL, n_inputs, generator=generator))
        teacher.eval()
        return _balanced(lambda x: teacher(x).argmax(1), n_samples, n_inputs, n_classes, generator)


def digits() -> Problem:
    """Return all of scikit-learn's digits, pixels in [0, 1]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Problem(x=torch.tensor(x / 16.0, dtype=torch.float32), y=torch.tensor(y), n_classes=10)


def _balanced(
    label: Callable[[Tensor], Tensor], n_samples: int, n_inputs: int, n_classes: int, generator: torch.Generator
) -> Problem:
    """Draw until every class has n_samples / n_classes; the order stays the one in which they were drawn."""
    if n_samples % n_classes:
        raise ValueError(f"{n_samples} samples cannot be shared equally by {n_classes} classes")
    share = n_samples // n_classes
    have = torch.zeros(n_classes, dtype=torch.int64)
    parts: list[tuple[Tensor, Tensor]] = []
    for _ in range(MOST_POOLS):
        x = torch.randn(POOL, n_inputs, generator=generator)
        y = label(x)
        kept = torch.zeros(POOL, dtype=torch.bool)
        for one in range(n_classes):
            wanted = torch.nonzero(y == one).squeeze(1)[: share - int(have[one])]
            kept[wanted] = True
            have[one] += len(wanted)
        parts.append((x[kept], y[kept]))
        if int(have.sum()) == n_samples:
            return Problem(
                x=torch.cat([part[0] for part in parts]), y=torch.cat([part[1] for part in parts]), n_classes=n_classes
            )
    raise ValueError(f"class {int(have.argmin())} has hardly any samples: draw another problem with another seed")
