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

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncmon_client.balance import class_weights
from ncmon_client.pads import Pad

MAX_SCATTER_FEATURES = 1024
"""Above this width S is never formed: it would cost more than the layer's own forward pass, and megabytes to send."""
WIDTH_OF_EVERY_MOMENT = 128
"""Up to this width S of every batch is added up in streaming windows too."""
SCATTER_BLOCK = 128
"""Rows of S that are added in one product; smaller blocks skip more of it and multiply worse."""
SAMPLE_BYTES = 4 * 2**20
LEAST_SAMPLES, MOST_SAMPLES = 256, 4096
"""Samples kept of a layer and window: as many as fit into `SAMPLE_BYTES`, within these bounds."""

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


class Sampled:
    """Some samples of a window, as they are."""

    def __init__(self, n_features: int) -> None:
        self.room = min(max(SAMPLE_BYTES // (4 * n_features), LEAST_SAMPLES), MOST_SAMPLES)
        self._n_features = n_features
        self.every = 1
        """One batch in this many is kept."""
        self.batches = 0
        self.samples = 0
        """Samples of all batches, those that do not count among them."""
        self.kept: list[tuple[Tensor, Tensor]] = []
        """x (k, d) and rows (k,) of the batches that are kept."""
        self._n_kept = 0
        self._pads: list[Pad | None] = []
        """What the kept samples lie in, where it was lent."""
        self._last: tuple[Matrix, _Kept] | None = None

    def add(self, x: Tensor, rows: Tensor, n_classes: int, pad: Pad | None = None) -> None:
        """Keep the batch, or not; its tensors must not be written afterwards, and what they lie in (`pad`) is held."""
        wanted = self.choose(len(x))
        if wanted is None:
            return
        if wanted.step is not None:
            x, rows, pad = x[wanted].clone(), rows[wanted].clone(), None
        self.keep(x, rows, None if pad is None else pad.hold())

    def choose(self, n: int) -> slice | None:
        """Return which samples of the next batch of n are to be kept, None for no one."""
        self.batches += 1
        self.samples += n
        if (self.batches - 1) % self.every:
            return None
        if n <= self.room // 2:
            return slice(None)
        stride = math.ceil(2 * n / self.room)
        # Another place in each batch: a loader may sort its batches.
        return slice(self.batches % stride, None, stride)

    def keep(self, x: Tensor, rows: Tensor, pad: Pad | None = None) -> None:
        """Keep x (k, d) of classes rows (k,), lying in `pad`, which is dropped in the end."""
        self.kept.append((x, rows))
        self._pads.append(pad)
        self._n_kept += x.shape[0]
        while len(self.kept) > 1 and self._n_kept > self.room:
            self._thin()

    def _thin(self) -> None:
        self.every *= 2
        for pad in self._pads[1::2]:
            if pad is not None:
                pad.drop()
        self.kept, self._pads = self.kept[::2], self._pads[::2]
        self._n_kept = sum(x.shape[0] for x, _ in self.kept)

    def merge(self, other: SecondMoment, step: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Add another part's samples; the part that kept more is thinned to the other's pace."""
        assert isinstance(other, Sampled)
        own = Sampled(1)
        own.every, own.kept, own._pads = other.every, list(other.kept), [None] * len(other.kept)
        for part, pace in ((self, own.every), (own, self.every)):
            while part.every < pace:
                part._thin()
        self.kept += [(x + step[rows], rows) for x, rows in own.kept]
        self._pads += [None] * len(own.kept)
        self._n_kept = sum(x.shape[0] for x, _ in self.kept)
        self.batches, self.samples = self.batches + other.batches, self.samples + other.samples

    def read(self, delta: Matrix, counts: Matrix, within: float) -> Spread | None:
        """Return S of the kept samples, with the trace of all."""
        kept = self._read(delta)
        if kept.empty:
            return None
        trace = float(kept.squares.sum())
        return _Some(kept, np.full(len(delta), within / trace if trace > 0 else 0.0))

    def read_weighted(self, delta: Matrix, counts: Matrix, within: Matrix) -> Weighted | None:
        """Return M of the kept samples with the trace of each class over all; a_c = 1 / n_c.

        None where a class that varies has no sample among them.
        """
        traces = self._read(delta).squares
        if ((within > 0) & (traces <= 0)).any():
            return None
        weights = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
        known = np.divide(np.maximum(within, 0.0), traces, out=np.zeros(len(traces)), where=traces > 0)
        return Weighted(weights=weights, spread=_Some(self._read(delta), known * weights))

    def _read(self, delta: Matrix) -> _Kept:
        """Return the kept samples that count, worked out once a reading."""
        if self._last is None or self._last[0] is not delta:
            parts = []
            for x, rows in self.kept:
                features, classes = x.detach().cpu().numpy(), rows.cpu().numpy()
                if len(classes) and classes.max() >= len(delta):
                    counted = classes < len(delta)
                    features, classes = features[counted], classes[counted]
                parts.append((features, classes))
            self._last = delta, _Kept(parts, delta)
        return self._last[1]

    def note(self) -> str:
        """Say how many samples it is of, where not of all."""
        kept = sum(len(x) for x, _ in self.kept)
        return "" if kept == self.samples else f"second moment of {kept} of {self.samples} samples"

    @property
    def nbytes(self) -> int:
        """Return bytes of the samples."""
        return 4 * self._n_kept * self._n_features

    def release(self) -> None:
        """Give the pads back: whoever reads is done."""
        for pad in self._pads:
            if pad is not None:
                pad.drop()
        self.kept, self._pads, self._last = [], [], None


class _Kept:
    """Samples x (k, d), single precision, about their class's mean, which is at delta (C, d); parts of them at a time:
    all of them in double precision would be megabytes, and cost more than all the rest of reading a window.
    """

    def __init__(self, parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]], delta: Matrix) -> None:
        self._parts = parts
        self._delta = delta.astype(np.float32)
        self.empty = not any(len(rows) for _, rows in parts)
        self.squares: Matrix = np.zeros(len(delta))
        """(C,) sums of |x - delta|^2 by class."""
        for centred, rows in self.centred():
            self.squares += np.bincount(rows, weights=np.einsum("ij,ij->i", centred, centred), minlength=len(delta))
        self._directions: Matrix | None = None
        self._along: Matrix = self.squares

    def centred(self) -> Iterator[tuple[Matrix, NDArray[np.int64]]]:
        """Yield x - delta (k, d) of each part and its classes; each is overwritten by the next."""
        longest = max((len(rows) for _, rows in self._parts), default=0)
        single = np.empty((longest, self._delta.shape[1]), np.float32)
        double = np.empty(single.shape)
        for x, rows in self._parts:
            near, wide = single[: len(rows)], double[: len(rows)]
            np.take(self._delta, rows, axis=0, out=near, mode="clip")
            np.subtract(x, near, out=near)
            np.copyto(wide, near)
            yield wide, rows

    def along(self, directions: Matrix) -> Matrix:
        """Return sums (C, r) by class of squared products with the directions; the same ones are asked for twice."""
        if self._directions is not directions:
            found = np.zeros((len(self._delta), len(directions)))
            turned = np.ascontiguousarray(directions.T)
            for centred, rows in self.centred():
                np.add.at(found, rows, np.square(centred @ turned))
            self._directions, self._along = directions, found
        return self._along


@dataclass(frozen=True, slots=True)
class _Some:
    kept: _Kept
    weights: Matrix
    """(C,) of each class's samples."""

    def along(self, directions: Matrix) -> Matrix:
        found: Matrix = self.weights @ self.kept.along(directions)
        return found

    def matrix(self) -> Matrix:
        d = self.kept._delta.shape[1]
        found = np.zeros((d, d))
        for centred, rows in self.kept.centred():
            found += (self.weights[rows][:, None] * centred).T @ centred
        return found


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
