"""Weights under which every class counts once in the second moment, from the sizes of the classes a window before.

The pooled second moment counts a class by its samples. Where classes differ in size, a second one is added up beside
it, with weights 1 / n_c. A window's own n_c are known when it ends, which is too late for a sum that does not keep the
classes apart; those of the window before are known when it begins. An exact pass over one data set has the same sizes
each time, and the sum is exact; where the sizes moved, whoever reads it knows by how much.

A product costs as much as all the rest, so that it is added only where the pooled moment would not do: not where
classes are of equal size, and in streaming windows not where they differ by the chance of sampling alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOTABLE = 1.1
"""In a streaming window, an estimate anyway, classes whose sizes differ by less count as equal."""
CHANCE = 5.0
"""Standard deviations of chi-square above which unequal sizes are the data's, not sampling's."""


def class_weights(counts: Tensor, *, exact: bool) -> Tensor | None:
    """Return 1 / n_c as (C + 1,) with zeros for classes without samples and for the trash row; None where the pooled
    moment says the same. `counts` (C,) are those of the window before, on the device.
    """
    # An accelerator would have to be waited for; there a product more is cheap.
    if counts.device.type == "cpu" and not _unequal(counts, exact=exact):
        return None
    weights = torch.where(counts > 0, 1.0 / counts.clamp(min=1), 0.0)
    return torch.cat((weights, weights.new_zeros(1)))


def _unequal(counts: Tensor, *, exact: bool) -> bool:
    present = counts[counts > 0].double()
    if len(present) < 2:
        return False
    low, high = float(present.min()), float(present.max())
    if exact:
        return low < high
    mean = float(present.mean())
    excess = float(((present - mean) ** 2).sum()) / mean
    freedom = len(present) - 1
    return high > NOTABLE * low and excess > freedom + CHANCE * (2 * freedom) ** 0.5
