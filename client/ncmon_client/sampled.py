"""Samples that are kept as they are, in the place of a second moment; `second` says when and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ncmon_client.pads import Pad
from ncmon_client.spread import Matrix, SecondMoment, Spread, Weighted

SAMPLE_BYTES = 4 * 2**20
LEAST_SAMPLES, MOST_SAMPLES = 256, 4096
"""Samples kept of a layer and window: as many as fit into `SAMPLE_BYTES`, within these bounds."""


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
