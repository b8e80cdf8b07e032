"""One layer of one window, as metrics see it: shared intermediates, each computed at most once.

A metric asks its view for what it needs. What the window cannot give is raised as `Unavailable` with a reason in words
and becomes a reading without a value; no metric ever sees a NaN, an absent array or an empty class.

Notation: C declared classes, K present ones (at least one finite sample), d features. Arrays named here run over the
present classes, in the order of `View.present`, unless they say (C,).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np

from ncmon import geometry
from ncmon.metrics.readings import Unavailable
from ncmon.model import CLASSIFIER_INPUT, FloatArray, Head, IntArray, LayerStats, Window

T = TypeVar("T")

SINGLE_FLOOR = 1e-7
"""Resolution of 1 - |hbar|^2 when features are single precision, as they are in training: their unit vectors are."""

HALF_FLOOR = 0.05
"""The same in units of eps^2 where features are coarser: 3e-6 for bfloat16, as measured."""

EXACT_SPREAD = 1e-9
"""Spread of class weights that is rounding."""

BALANCE_TOLERANCE = 0.1
"""The same that a streaming window is allowed, whose class sizes are known from the window before only."""

SHORT_ROW = 1e-3
"""Share of the length of the mean row below which products of rows are taken directly."""

UNIT_EXCESS = 1e-5
"""How far rounding may carry |hbar|^2 above 1; beyond it the statistics contradict each other."""


class View:
    """One layer of one window with the intermediate results that several metrics share."""

    def __init__(self, window: Window, layer: LayerStats) -> None:
        self.window = window
        self.layer = layer
        self._shared: dict[Any, Any] = {}

    def shared(self, compute: Callable[[View], T]) -> T:
        """Return `compute(self)`, called at most once in the life of this view."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return cast(T, self._shared[compute])

    @property
    def resolution_floor(self) -> float:
        """Below which 1 - |hbar|^2 is rounding of the features."""
        return max(SINGLE_FLOOR, HALF_FLOOR * self.layer.eps**2)

    # Who is here

    @property
    def n_classes(self) -> int:
        """C, the declared classes."""
        return self.window.n_classes

    @property
    def is_classifier_input(self) -> bool:
        """Whether these features enter the classifier."""
        return self.layer.key.name == CLASSIFIER_INPUT

    @cached_property
    def present(self) -> IntArray:
        """(K,) declared numbers of the classes with at least one finite sample."""
        return np.flatnonzero(self.layer.class_counts > 0).astype(np.int64)

    @cached_property
    def counts(self) -> FloatArray:
        """(K,) finite samples."""
        return self.layer.class_counts[self.present].astype(np.float64)

    @cached_property
    def n_samples(self) -> int:
        """Finite samples of all classes."""
        return int(self.layer.class_counts.sum())

    @cached_property
    def n_nonfinite(self) -> int:
        """Samples left out because a feature is infinite or NaN."""
        return int(self.layer.nonfinite_counts.sum())

    def need_classes(self) -> None:
        """Raise unless two classes are present."""
        present = self.present.size
        if present < 2:
            lost = f"; {self.n_nonfinite} samples have features that are not finite" if self.n_nonfinite else ""
            raise Unavailable(f"fewer than two present classes ({present} of {self.n_classes}{lost})")

    def need_repeats(self) -> None:
        """Raise unless two classes are present and one of them has more than one sample."""
        self.need_classes()
        if self.counts.max() < 2:
            raise Unavailable("one sample in every class: variability within classes is not measured")

    def of_present(self, rows: FloatArray) -> FloatArray:
        """Return the rows (K, ...) of the present classes of (C, ...); not copied where all are present."""
        return rows if self.present.size == self.n_classes else rows[self.present]

    def spread(self, values: FloatArray) -> FloatArray:
        """Return (C,) with the values (K,) at the present classes and NaN elsewhere."""
        full = np.full(self.n_classes, np.nan)
        full[self.present] = values
        return full

    def spread_pairs(self, values: FloatArray) -> FloatArray:
        """Return (C, C) with the values (K, K) at the present pairs and NaN elsewhere."""
        if self.present.size == self.n_classes:
            return values
        full = np.full((self.n_classes, self.n_classes), np.nan)
        full[np.ix_(self.present, self.present)] = values
        return full

    # Directions: unit-normalised features

    @cached_property
    def directed(self) -> FloatArray:
        """(K,) samples with a direction, that is |h| > 0."""
        return self.counts - self.layer.zero_counts[self.present]

    @cached_property
    def unit_means(self) -> FloatArray:
        """(K, d) hbar_c, the mean of h / |h| over the samples with a direction; zero rows where a class has none."""
        return self.of_present(self.layer.unit_sums) / np.maximum(self.directed, 1.0)[:, None]

    @cached_property
    def unit_gram(self) -> FloatArray:
        """(K, K) hbar_c . hbar_c'."""
        sums = self.of_present(self.layer.unit_sums)
        count = np.maximum(self.directed, 1.0)
        gram = sums @ sums.T
        gram /= count[:, None]
        gram /= count
        return gram

    def need_directions(self) -> None:
        """Raise unless two classes are present and every present one has a sample with a direction."""
        self.need_classes()
        without = self.present[self.directed <= 0]
        if without.size:
            raise Unavailable(f"class {without[0]} has no direction: all of its features are zero")

    @cached_property
    def intra(self) -> FloatArray:
        """(K,) |hbar_c|^2; at most 1, where rounding carried it above by less than `UNIT_EXCESS`."""
        self.need_classes()
        values = np.diagonal(self.unit_gram)
        worst = int(np.argmax(values))
        if values[worst] > 1 + UNIT_EXCESS:
            raise Unavailable(f"inconsistent: class {self.present[worst]} has |hbar|^2 = {values[worst]:.6g} above 1")
        return np.minimum(values, 1.0)

    # Class means

    @cached_property
    def means(self) -> FloatArray:
        """(K, d) mu_c."""
        return self.of_present(self.layer.class_means)

    @cached_property
    def mean_norms(self) -> FloatArray:
        """(K,) |mu_c|."""
        return geometry.row_norms(self.means)

    @cached_property
    def centred(self) -> geometry.Centred:
        """The class means about mu_G, each present class counting once."""
        self.need_classes()
        return geometry.centre(self.means, self.mean_norms)

    @cached_property
    def mean_gram(self) -> FloatArray:
        """(K, K) products of the centred class means."""
        rows = self.centred.rows
        return rows @ rows.T

    @cached_property
    def same_floor(self) -> float:
        """Length below which a difference of class means is rounding."""
        return geometry.same_floor(self.centred.largest, single=self.layer.means_f4)

    @cached_property
    def mean_cosines(self) -> FloatArray:
        """(K, K) cosines between the centred class means."""
        centred = self.centred
        lowest = int(np.argmin(centred.norms))
        if centred.norms[lowest] <= self.same_floor:
            raise Unavailable(f"class {self.present[lowest]} has its mean at the global mean: it has no direction")
        return geometry.cosines(self.mean_gram, centred.norms)

    def need_between(self) -> None:
        """Raise unless two classes have different means."""
        if self.centred.norms.max() <= self.same_floor:
            raise Unavailable("all class means are equal: there is no variability between classes")

    @cached_property
    def between_trace(self) -> float:
        """tr Sigma_B = mean over classes of |mu_c - mu_G|^2."""
        self.need_between()
        return float(np.mean(np.square(self.centred.norms)))

    @cached_property
    def within_sq(self) -> FloatArray:
        """(K,) sums |h - mu_c|^2, not negative."""
        self.need_repeats()
        values = self.layer.within_sq[self.present]
        if values.min() < 0:
            raise Unavailable("below resolution: a sum of squares within a class is negative")
        return values

    @cached_property
    def span(self) -> geometry.Span:
        """The directions kept by the rank rule and the within-class scatter along them."""
        self.need_repeats()
        layer, centred = self.layer, self.centred
        if layer.span_singular is not None and layer.span_within is not None:
            rank = geometry.kept(
                layer.span_singular,
                n_classes=self.present.size,
                n_features=layer.n_features,
                largest_mean=centred.largest,
                # The client's decomposition is of its own float64 means, whatever precision they travelled in.
                single=False,
            )
            weighted = None if layer.span_weighted is None else layer.span_weighted[:rank]
            span = geometry.Span(
                singular=layer.span_singular[:rank], within=layer.span_within[:rank], weighted=weighted
            )
        elif layer.within_scatter is not None:
            span = geometry.span_of_means(
                centred, layer.within_scatter, weighted=layer.weighted_scatter, single=layer.means_f4
            )
        else:
            raise Unavailable("the within-class scatter was not sent")
        if span.rank == 0:
            raise Unavailable("rank 0: the class means are equal within rounding, no direction is kept")
        if span.within.min() < 0:
            raise Unavailable("below resolution: the scatter along a direction of the means is negative")
        return span

    @cached_property
    def balanced_within(self) -> FloatArray:
        """(r,) v^T Sigma v along the directions of `span`, Sigma the mean of the class covariances S_c / n_c.

        What is measured is M = sum_c a_c S_c: pooled (all a_c equal), or with weights from the sizes of classes. Every
        S_c is positive semidefinite, so that M, scaled to the known trace, is off by at most the spread of a_c n_c in
        any direction: nothing where classes have the sizes that were expected, and in streaming windows, which are
        estimates, `BALANCE_TOLERANCE` at most.
        """
        span = self.span
        counts, within = self.counts, self.within_sq
        moving = within > 0
        if not moving.any():
            return np.zeros(span.rank)
        found: list[tuple[float, FloatArray, FloatArray]] = [(_spread_of(counts[moving]), span.within, within)]
        if span.weighted is not None and self.layer.moment_weights is not None:
            weights = self.layer.moment_weights[self.present]
            if (weights[moving] > 0).all():
                found.append((_spread_of((weights * counts)[moving]), span.weighted, weights * within))
        spread, along, parts = min(found, key=lambda one: one[0])
        if spread > (EXACT_SPREAD if self.window.exact else BALANCE_TOLERANCE):
            known = self.layer.before_counts is not None
            raise Unavailable(_why_unbalanced(spread, measured=span.weighted is not None, known=known))
        if along.min() < 0:
            raise Unavailable("below resolution: the scatter along a direction of the means is negative")
        scale = float(np.sum(within / counts)) / float(parts.sum())
        return along * (scale / self.present.size)

    @cached_property
    def shift_sq(self) -> FloatArray | None:
        """(K,) |mu_c - mu_c before|^2 since the window before of the same split, NaN for a class that is new in this
        one; None where no class was in it.
        """
        layer = self.layer
        if layer.shift_sq is None or layer.before_counts is None:
            return None
        known = layer.before_counts[self.present] > 0
        return np.where(known, layer.shift_sq[self.present], np.nan) if known.any() else None

    @property
    def mean_shift(self) -> float | None:
        """Root mean square over classes of |mu_c - mu_c before|, None where there is no window before."""
        return None if self.shift_sq is None else float(np.sqrt(np.nanmean(self.shift_sq)))

    @property
    def movement_share(self) -> float | None:
        """Share of the within-class sum of squares that is the means' own movement inside a streaming window, about.

        A mean that moves evenly by delta adds |delta|^2 / 12 to the variance of its class; delta is taken from the
        window before. None for an exact window, in which nothing moves.
        """
        if self.window.exact or self.shift_sq is None:
            return None
        within = float(self.layer.within_sq[self.present].sum())
        moved = float(np.nansum(self.counts * self.shift_sq)) / 12
        return moved / within if within > 0 else None

    @property
    def rank_used(self) -> int:
        """Directions that the pseudo-inverse uses, 0 where there is none."""
        try:
            return self.span.rank
        except Unavailable:
            return 0

    # The classifier

    @property
    def head(self) -> Head:
        """The classifier of the window; only the classifier's input may ask."""
        if not self.is_classifier_input:
            raise Unavailable("not applicable: these features do not enter the classifier")
        return self.window.head

    @cached_property
    def weight(self) -> FloatArray:
        """(C, d) rows w_c."""
        head = self.head
        if head.weight is None:
            raise Unavailable("the classifier's weight was not sent" if head.finite else "the weights are not finite")
        return head.weight

    @cached_property
    def weight_norms(self) -> FloatArray:
        """(C,) |w_c|."""
        return geometry.row_norms(self.weight)

    @cached_property
    def bias(self) -> FloatArray | None:
        """(C,) the last bias, None where there is none or all of it is zero."""
        head = self.head
        if not head.has_bias:
            return None
        if head.bias is None:
            raise Unavailable("the classifier's bias was not sent" if head.finite else "the bias is not finite")
        return head.bias if np.any(head.bias) else None

    @cached_property
    def feature_weight(self) -> FloatArray:
        """(C, d) the weight, checked to act on these features."""
        weight = self.weight
        if weight.shape[1] != self.layer.n_features:
            raise Unavailable(f"the classifier reads {weight.shape[1]} features, these are {self.layer.n_features}")
        return weight

    @cached_property
    def centred_weight(self) -> FloatArray:
        """(C, d) rows w_c - wbar, checked to act on these features."""
        _ = self.feature_weight
        return self._centred_rows

    @cached_property
    def _centred_rows(self) -> FloatArray:
        return self.weight - self.weight.mean(axis=0)

    @cached_property
    def slopes(self) -> FloatArray:
        """(C,) |w_c - wbar|."""
        return geometry.row_norms(self._centred_rows)

    @cached_property
    def centred_gram(self) -> FloatArray:
        """(C, C) products of the rows w_c - wbar."""
        return self._centred_rows @ self._centred_rows.T

    @cached_property
    def present_gram(self) -> FloatArray:
        """(K, K) products of the rows w_c - wbar of the present classes, checked to act on these features."""
        _ = self.centred_weight
        present = self.present
        return self.centred_gram if present.size == self.n_classes else self.centred_gram[np.ix_(present, present)]

    @cached_property
    def weight_gram(self) -> FloatArray:
        """(C, C) products of the rows w_c.

        From the centred ones, w_c . w_e = dw_c . dw_e + dw_c . wbar + dw_e . wbar + |wbar|^2, which loses no digits
        but where rows are much shorter than their mean.
        """
        weight = self.weight
        mean = weight.mean(axis=0)
        square = float(mean @ mean)
        if self.weight_norms.min() < SHORT_ROW * np.sqrt(square):
            return weight @ weight.T
        along = weight @ mean
        gram = self.centred_gram + along[:, None]
        gram += along - square
        return gram

    @cached_property
    def weight_rms(self) -> float:
        """beta = |W|_F / sqrt(C)."""
        return float(np.linalg.norm(self.weight_norms) / np.sqrt(self.n_classes))

    @cached_property
    def feature_rms(self) -> float:
        """alpha, the root mean square feature norm over all samples."""
        if self.n_samples == 0:
            raise Unavailable("no finite samples")
        return float(np.sqrt(self.layer.norm_sq_sums.sum() / self.n_samples))

    @cached_property
    def class_losses(self) -> tuple[FloatArray, FloatArray]:
        """(C,) sums of cross-entropy and (C,) samples behind them; all losses of the window are finite."""
        head = self.head
        if head.loss_sums is None or head.label_counts is None:
            raise Unavailable("the loss was not measured")
        if head.loss_nonfinite is not None and head.loss_nonfinite.sum() > 0:
            raise Unavailable(f"{int(head.loss_nonfinite.sum())} samples have a loss that is not finite")
        if head.label_counts.sum() == 0:
            raise Unavailable("the loss was not measured")
        return head.loss_sums, head.label_counts.astype(np.float64)

    def ncc(self, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        """Return (C,) `counts` of nearest-class decisions and (C,) how many were taken."""
        taken = self.layer.ncc_counts
        if counts is None or taken is None or taken.sum() == 0:
            raise Unavailable("nearest class means were not measured in this window")
        return counts.astype(np.float64), taken.astype(np.float64)


def _spread_of(values: FloatArray) -> float:
    """Return max / min - 1 of positive values."""
    return float(values.max() / values.min()) - 1.0


def _why_unbalanced(spread: float, *, measured: bool, known: bool) -> str:
    if measured:
        return f"class sizes differ from those of the window before: weights are uneven by {100 * spread:.2g} %"
    if known:
        return f"classes differ in size by {100 * spread:.2g} %, and no second moment has every class counting once"
    return "classes differ in size: every class counts once from the second window of a split on, whose sizes are known"
