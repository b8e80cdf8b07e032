"""What the second moment of a layer is asked for, whichever way it is kept (`second`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


class Spread(Protocol):
    """What a window says about S once it is read."""

    def along(self, directions: Matrix) -> Matrix:
        """Return v^T S v for each row v of `directions` (r, d), orthonormal."""

    def matrix(self) -> Matrix:
        """Return S (d, d)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighted:
    """M = sum_c a_c S_c."""

    weights: Matrix
    """(C,) a_c"""
    spread: Spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Second moments along the directions of the class means, (r,) each."""

    singular: Matrix
    """Singular values of the centred class means."""
    within: Matrix
    weighted: Matrix | None


class SecondMoment(Protocol):
    """Adds shifted samples up."""

    def add(self, x: Tensor, rows: Tensor, n_classes: int) -> None:
        """Add x (n, d), zero where it does not count, of classes rows (n,) in [0, C]."""

    def merge(self, other: SecondMoment, step: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Add another part, after its samples are moved by step (C + 1, d); counts and sums are the other part's."""

    def read(self, delta: Matrix, counts: Matrix, within: float) -> Spread | None:
        """Read out: delta (C, d) is mean - shift, counts (C,), `within` the trace of S over all samples."""

    def read_weighted(self, delta: Matrix, counts: Matrix, within: Matrix) -> Weighted | None:
        """Read M out; `within` (C,) is the trace of every S_c over all samples. None where nothing was weighted."""

    def note(self) -> str:
        """Return what is to be said of the reading, empty if nothing."""

    @property
    def nbytes(self) -> int:
        """Return the memory that is held."""

    def release(self) -> None:
        """Give back what was lent; nothing is read afterwards."""
