"""Second moments of one layer: what exact NC1 needs beyond class sums, at the least cost that its width allows.

Only the span of the class means is ever asked for: of S = sum (h - mean)(h - mean)^T the numbers v^T S v along its
directions v. Which of the three ways is taken is chosen once, when a window begins (`second_moment`):

- `Full`: S itself is added up, for widths at which that costs no more than the sums do, and in exact windows. It is
  symmetric, and only blocks on and above its diagonal are added.
- `Sampled`: of a streaming window of a wider layer some samples are kept as they are. That costs the training nothing
  where the memory is lent (`pads`); a product of d x d costs as much as the layer's own forward pass. Kept are all,
  until they are too many; then every second batch is dropped and from there on every second one is skipped, so that
  those kept are spread evenly over the window. The trace of S is known of all samples: the sample only says how it
  spreads over directions. m samples tell a variance along one direction to sqrt(2 / m).
- `Projected`: of an exact window of a layer too wide for S, S on the span of what was known before the window: earlier
  class means and the classifier's rows. What the window's own means have beside that span gets the mean variance of
  all directions beside it: an approximation, early in training off by some percent.

All samples are x = h - s, shifted by class (`accumulate`); `read` undoes that in float64.

S is pooled: a class counts by its samples. `read_weighted` returns M = sum_c a_c S_c with the weights a_c under which
every class counts once: of kept samples 1 / n_c, which is known when they are read; of sums 1 / n_c of the window
before (`balance`), where classes differ in size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ncmon_client.balance import class_weights
from ncmon_client.sampled import Sampled
from ncmon_client.spread import Matrix, SecondMoment, Spread, Weighted

MAX_SCATTER_FEATURES = 1024
"""Above this width S is never formed: it would cost more than the layer's own forward pass, and megabytes to send."""
WIDTH_OF_EVERY_MOMENT = 128
"""Up to this width S of every batch is added up in streaming windows too."""
SCATTER_BLOCK = 128
"""Rows of S that are added in one product; smaller blocks skip more of it and multiply worse."""


def second_moment(
    n_features: int,
    device: torch.device,
    *,
    exact: bool,
    basis: Tensor | None = None,
    sizes: Tensor | None = None,
) -> SecondMoment | None:
    """Return the way that fits; None for an exact window of a wide layer of which no `basis` (d, r) is known.

    `sizes` (C,) are those of the classes in the window before, where there was one.
    """
    if not exact and n_features > WIDTH_OF_EVERY_MOMENT:
        return Sampled(n_features)
    weights = None if sizes is None else class_weights(sizes, exact=exact)
    if n_features <= MAX_SCATTER_FEATURES:
        return Full(n_features, device, torch.float64 if exact else torch.float32, weights)
    return None if basis is None else Projected(basis, weights)


def basis_of(vectors: Tensor) -> Tensor | None:
    """Return an orthonormal basis (d, r) of the span of rows (k, d), float64; None where they span nothing."""
    wide = vectors.double()
    # Directions that rounding alone gives have no place in it.
    _, singular, right = torch.linalg.svd(wide, full_matrices=False)
    keep = singular > singular.max() * max(wide.shape) * 2.0**-23
    return right[keep].T.contiguous() if bool(keep.any()) else None


class Full:
    """S of every sample, as its upper triangle; what lies below belongs to blocks on the diagonal and is not read.

    With `weights` (C + 1,) M beside it.
    """

    def __init__(
        self, n_features: int, device: torch.device, dtype: torch.dtype, weights: Tensor | None = None
    ) -> None:
        self.scatter = torch.zeros(n_features, n_features, dtype=dtype, device=device)
        self.weights = None if weights is None else weights.to(dtype)
        self.weighted = None if weights is None else torch.zeros_like(self.scatter)
        self._scatter_nbytes = self.scatter.nbytes

    def add(self, x: Tensor, rows: Tensor, n_classes: int) -> None:
        """Add x (n, d)."""
        _add_upper(self.scatter, x, x)
        if self.weights is not None and self.weighted is not None:
            _add_upper(self.weighted, x * self.weights.index_select(0, rows)[:, None], x)

    def merge(self, other: SecondMoment, step: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Add another part: sum (x + t)(x + t)^T with t its class's step."""
        assert isinstance(other, Full)
        cross = step.T @ sums
        self.scatter += other.scatter + cross + cross.T + step.T @ (counts[:, None] * step)
        if not same_weights(self.weights, other.weights):
            self.weights = self.weighted = None
        elif self.weights is not None and self.weighted is not None and other.weighted is not None:
            scaled = self.weights[:, None] * step
            cross = scaled.T @ sums
            self.weighted += other.weighted + cross + cross.T + scaled.T @ (counts[:, None] * step)

    def read(self, delta: Matrix, counts: Matrix, within: float) -> Spread:
        """Return S: the shift costs sum_c n_c delta_c delta_c^T."""
        return _Whole(_symmetric(self.scatter) - delta.T @ (counts[:, None] * delta))

    def read_weighted(self, delta: Matrix, counts: Matrix, within: Matrix) -> Weighted | None:
        """Return M, likewise."""
        if self.weights is None or self.weighted is None:
            return None
        weights = _host(self.weights)[:-1]
        scatter = _symmetric(self.weighted) - delta.T @ ((weights * counts)[:, None] * delta)
        return Weighted(weights=weights, spread=_Whole(scatter))

    def note(self) -> str:
        """Nothing: it is exact."""
        return ""

    @property
    def nbytes(self) -> int:
        """Return bytes of S and M."""
        return self._scatter_nbytes * (1 if self.weighted is None else 2)

    def release(self) -> None:
        """Nothing is lent."""


def _add_upper(scatter: Tensor, left: Tensor, right: Tensor) -> None:
    for begin in range(0, right.shape[1], SCATTER_BLOCK):
        block = slice(begin, begin + SCATTER_BLOCK)
        scatter[block, begin:].addmm_(left[:, block].T, right[:, begin:])


def _host(tensor: Tensor) -> Matrix:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _symmetric(scatter: Tensor) -> Matrix:
    upper = np.triu(_host(scatter))
    return upper + np.triu(upper, 1).T


def same_weights(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two parts of a window weigh classes alike: else the sum of their M means nothing."""
    return first is second or (first is not None and second is not None and torch.equal(first, second))


@dataclass(frozen=True, slots=True)
class _Whole:
    scatter: Matrix

    def along(self, directions: Matrix) -> Matrix:
        return np.einsum("ij,ij->i", directions @ self.scatter, directions)

    def matrix(self) -> Matrix:
        return self.scatter


class Projected:
    """S on the span of an orthonormal basis (d, r); with `weights` (C + 1,) M beside it."""

    def __init__(self, basis: Tensor, weights: Tensor | None = None) -> None:
        self.basis = basis
        self.scatter = basis.new_zeros(basis.shape[1], basis.shape[1])
        self.weights = None if weights is None else weights.to(basis.dtype)
        self.weighted = None if weights is None else torch.zeros_like(self.scatter)

    def add(self, x: Tensor, rows: Tensor, n_classes: int) -> None:
        """Add x (n, d)."""
        seen = x @ self.basis.to(x.dtype)
        self.scatter += (seen.T @ seen).to(self.scatter.dtype)
        if self.weights is not None and self.weighted is not None:
            scaled = seen * self.weights.index_select(0, rows)[:, None].to(seen.dtype)
            self.weighted += (scaled.T @ seen).to(self.scatter.dtype)

    def merge(self, other: SecondMoment, step: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Add another part on the same basis."""
        assert isinstance(other, Projected)
        moved = step.to(self.basis.dtype) @ self.basis
        cross = moved.T @ (sums.to(self.basis.dtype) @ self.basis)
        own = counts.to(self.basis.dtype)[:, None] * moved
        self.scatter += other.scatter + cross + cross.T + moved.T @ own
        # Parts of such a window are never merged in earnest.
        self.weights = self.weighted = None

    def read(self, delta: Matrix, counts: Matrix, within: float) -> Spread:
        """Return S on the basis, and beside it what is left of the trace, spread evenly."""
        return self._inside(self.scatter, delta, counts, within)

    def read_weighted(self, delta: Matrix, counts: Matrix, within: Matrix) -> Weighted | None:
        """Return M, likewise."""
        if self.weights is None or self.weighted is None:
            return None
        weights = _host(self.weights)[:-1]
        spread = self._inside(self.weighted, delta, weights * counts, float(weights @ within))
        return Weighted(weights=weights, spread=spread)

    def _inside(self, scatter: Tensor, delta: Matrix, counts: Matrix, trace: float) -> Spread:
        basis = _host(self.basis)
        moved = delta @ basis
        inside = _host(scatter) - moved.T @ (counts[:, None] * moved)
        rest = max(trace - float(np.trace(inside)), 0.0) / max(basis.shape[0] - basis.shape[1], 1)
        return _Inside(basis, inside, rest)

    def note(self) -> str:
        """Say that it is approximate."""
        return "NC1 approximate: second moment on the span of earlier class means and the classifier's rows"

    @property
    def nbytes(self) -> int:
        """Return bytes of S on the basis, and of the basis."""
        return self.scatter.nbytes + self.basis.nbytes

    def release(self) -> None:
        """Nothing is lent."""


@dataclass(frozen=True, slots=True)
class _Inside:
    basis: Matrix
    inside: Matrix
    rest: float

    def along(self, directions: Matrix) -> Matrix:
        seen = directions @ self.basis
        beside = np.maximum(np.square(directions).sum(axis=1) - np.square(seen).sum(axis=1), 0.0)
        return np.einsum("ij,ij->i", seen @ self.inside, seen) + self.rest * beside

    def matrix(self) -> Matrix:
        raise ValueError("S of a layer this wide is never formed")
