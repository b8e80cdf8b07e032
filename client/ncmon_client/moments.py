"""One layer of one window: its share of the sums, merged with others and read out in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncmon_client.rows import Reference, Rows
from ncmon_client.spread import SecondMoment, Span, Spread, Weighted

if TYPE_CHECKING:
    from ncmon_client.accumulate import Sums


class ClassMoments:
    """One layer of one window: a view of its sums that merges and reads out."""

    def __init__(self, sums: Sums, place: int, second: SecondMoment | None, *, before: Reference | None = None) -> None:
        self.before = before
        self.n_classes, self.exact = sums.n_classes, sums.exact
        self._all = sums
        self._place = place
        self.counts, self.nonfinite = sums.counts[place], sums.nonfinite[place]
        self.scalars = sums.scalars[:, place]
        self.zero, self.norms, self.norm_squares, self.squares, self.inverses = self.scalars.unbind(0)
        self.sums, self.unit_sums = sums.sums[:, place].unbind(0)
        self.shift = sums.shift[place]
        self.second = second
        self.eps = 0.0

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Add a batch of a layer that stands alone: features (n, d), rows (n,) int64 in [0, C]."""
        self._all.update([features], Rows(rows, self.n_classes))

    def reference(self) -> Reference:
        """Return this window's class means, on the device, for the next window."""
        return self._all.references()[self._place]

    def merge(self, other: ClassMoments) -> None:
        """Add another part of the same window (Chan's rule: its sums are moved to this part's shift first)."""
        counts = other.counts.to(self.sums.dtype)
        # sum (h - s) = sum (h - s') + n (s' - s); likewise for squares, products and sums weighted by 1 / |h|.
        own = (self.counts > 0)[:, None]
        step = torch.where(own, other.shift - self.shift, 0)
        self.shift.copy_(torch.where(own, self.shift, other.shift))
        self.squares += 2 * (other.sums * step).sum(1) + counts * (step * step).sum(1)
        if self.second is not None and other.second is not None:
            self.second.merge(other.second, step, counts, other.sums)
        self.sums += other.sums + counts[:, None] * step
        self.unit_sums += other.unit_sums + other.inverses.to(step.dtype)[:, None] * step
        self.scalars += other.scalars
        self.counts += other.counts
        self.nonfinite += other.nonfinite

    def drain(self) -> Drained:
        """Read the window out: undo the shift in float64. Meant for the sending thread; waits for the device."""

        def host(tensor: Tensor) -> NDArray[np.float64]:
            return tensor.detach().to("cpu", torch.float64).numpy()

        # Few large copies: each call costs more than the numbers of a small layer.
        shift, (sums, unit_sums) = host(self.shift)[:-1], host(self._all.sums[:, self._place, :-1])
        zero, norms, norm_squares, squares, inverses = host(self.scalars[:, :-1])
        counts, nonfinite = host(self.counts)[:-1], host(self.nonfinite)[:-1]
        divided = np.where(counts > 0, counts, 1)
        delta = sums / divided[:, None]
        within_sq = np.where(
            counts > (0 if self._all.mixed else 1), squares - counts * np.einsum("ij,ij->i", delta, delta), 0.0
        )
        means = np.where(counts[:, None] > 0, shift + delta, 0.0)
        before_counts = shift_sq = None
        if self.before is not None and self.before.counts is not None:
            before_counts = self.before.counts.cpu().numpy().astype(np.int64)
            both = (counts > 0.5) & (before_counts > 0)
            moved = means - self.before.means.detach().to("cpu", torch.float64).numpy()
            shift_sq = np.where(both, np.square(moved).sum(axis=1), 0.0)
        unit_sums = unit_sums + inverses[:, None] * shift
        spread = None if self.second is None else self.second.read(delta, counts, float(within_sq.sum()))
        weighted = (
            None if self.second is None or self._all.mixed else self.second.read_weighted(delta, counts, within_sq)
        )
        if self._all.mixed:
            nonfinite = whole(nonfinite)
            scale = whole(counts) / divided
            zero = whole(np.minimum(zero, counts))
            within_sq, norms, norm_squares = scale * np.maximum(within_sq, 0), scale * norms, scale * norm_squares
            means, unit_sums = np.where(scale[:, None] > 0, means, 0.0), scale[:, None] * unit_sums
            counts = whole(counts)
        return Drained(
            class_counts=counts.astype(np.int64),
            class_means=means,
            within_sq=within_sq,
            unit_sums=unit_sums,
            norm_sums=norms,
            norm_sq_sums=norm_squares,
            zero_counts=zero.astype(np.int64),
            nonfinite_counts=nonfinite.astype(np.int64),
            spread=spread,
            weighted=weighted,
            before_counts=before_counts,
            shift_sq=shift_sq,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drained:
    """One layer of one window in float64; the fields are those of `wire.LAYER_ARRAYS`."""

    class_counts: NDArray[np.int64]
    class_means: NDArray[np.float64]
    within_sq: NDArray[np.float64]
    unit_sums: NDArray[np.float64]
    norm_sums: NDArray[np.float64]
    norm_sq_sums: NDArray[np.float64]
    zero_counts: NDArray[np.int64]
    nonfinite_counts: NDArray[np.int64]
    spread: Spread | None
    """What is known of S."""
    weighted: Weighted | None = None
    """What is known of M, in which classes have weights."""
    before_counts: NDArray[np.int64] | None = None
    """(C,) samples of the classes in the window before, None where there was none."""
    shift_sq: NDArray[np.float64] | None = None
    """(C,) |mean - mean before|^2 of the classes that are in both windows."""

    def span(self) -> Span | None:
        """Return the singular values of the centred class means, and both second moments along their right singular
        vectors.
        """
        present = self.class_counts > 0
        if self.spread is None or present.sum() < 2:
            return None
        rows = self.class_means[present]
        rows = rows - rows.mean(axis=0)
        _, singular, right = np.linalg.svd(rows, full_matrices=False)
        rank = min(int(present.sum()) - 1, rows.shape[1])
        right = right[:rank]
        weighted = None if self.weighted is None else self.weighted.spread.along(right)
        return Span(singular=singular[:rank], within=self.spread.along(right), weighted=weighted)


def whole(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return counts of weighted samples as whole numbers; equal ones stay equal, however they were summed."""
    found: NDArray[np.float64] = np.rint(np.round(counts, 6))
    return found
