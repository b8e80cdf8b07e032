"""Class moments of one layer: additive sums on the tensor's own device, read out once a window.

Rules of this module
- Torch in, torch out; `Drained` is the one value that leaves as numpy, in float64. It knows no module and no wire.
- Nothing here synchronises the device: no `.item()`, no boolean indexing, no shape that depends on data.
- Labels outside [0, C) and samples with a non-finite feature go to a trash row C, chosen with `where`: an index is
  never out of range, because on CUDA that is a device assert that ends the training process.

Why shifted. In single precision sum |h|^2 - n |mean|^2 loses the variance altogether once the means are large beside
the spread (off by 10 times at offset 5, 2,400 times at offset 50, for sigma 1e-3). So sums are taken of h - s_c, with
s_c the class's mean in the previous window or, for a class that was not there, its mean in the first batch that brings
it. The shift is undone in float64 when the window is read: with delta_c = mean_c - s_c,

    within_sq_c = sum |h - s_c|^2 - n_c |delta_c|^2
    S           = sum (h - s)(h - s)^T - sum_c n_c delta_c delta_c^T

Exact windows are summed in float64 throughout.

What it costs (`scripts/bench/accumulate`, times a copy of the features; one thread of a CPU). Sums by class are memory
traffic: `index_add` where there are few samples, a product with the one-hot matrix where there are many samples of few
classes, `embedding_bag` where there are many of both. `index_select` fetches the shifts 4 to 7 times faster than
indexing does. The second moment is a product, far above everything else: S is symmetric, and only blocks on and above
its diagonal are added up. Of streaming windows it is a sample: with T = sum |h - mean|^2 over all batches and S' over
one batch in k, S = S' T / tr S'. Exact windows take every batch. Where classes differ in size a second one is added
up beside it, in which every class counts once (`balance`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ncmon_client.balance import class_weights

EPS_TF32 = 2.0**-10
"""Machine epsilon of what an accelerator may take for single precision in products of matrices."""

MAX_SCATTER_FEATURES = 1024
"""Above this width the second moment costs more than the layer's own forward pass and is left out."""
WIDTH_OF_EVERY_MOMENT = 128
"""Up to this width each batch enters the second moment; above it one in d / 128, or it would outweigh all the rest."""
SCATTER_BLOCK = 128
"""Rows of the second moment that are added in one product; smaller blocks skip more of it and multiply worse."""
MANY_SAMPLES, FEW_CLASSES = 2048, 64
"""Where the kernels' costs cross on a CPU."""

Kernel = Literal["index_add", "gemm", "embedding_bag"]


def kernel_for(n_samples: int, n_classes: int, device: torch.device) -> Kernel:
    """Return the fastest way to sum by class for this shape."""
    # Elsewhere products may be rounded to ten bits (TF32), and nothing was measured.
    if device.type != "cpu" or n_samples < MANY_SAMPLES:
        return "index_add"
    return "gemm" if n_classes <= FEW_CLASSES else "embedding_bag"


def add_by_class(sums: Tensor, unit_sums: Tensor, x: Tensor, units: Tensor, rows: Tensor, kernel: Kernel) -> None:
    """Add x (n, d) and units (n, d) to the rows (n,) of two sums (C + 1, d)."""
    if kernel == "index_add":
        sums.index_add_(0, rows, x)
        unit_sums.index_add_(0, rows, units)
    elif kernel == "gemm":
        one_hot = torch.zeros(len(sums), len(x), dtype=x.dtype, device=x.device).scatter_(0, rows[None], 1)
        sums.addmm_(one_hot, x)
        unit_sums.addmm_(one_hot, units)
    else:
        order = torch.argsort(rows)
        begins = torch.searchsorted(rows[order], torch.arange(len(sums), device=x.device))
        sums += functional.embedding_bag(order, x, begins, mode="sum")
        unit_sums += functional.embedding_bag(order, units, begins, mode="sum")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Class means of an earlier window, on the device: what sums are shifted by and nearest-class decisions use."""

    means: Tensor
    """(C, d)"""
    known: Tensor
    """(C,) bool, False for a class that the earlier window did not hold."""
    counts: Tensor | None = None
    """(C,) samples behind the means."""


class ClassMoments:
    """Additive statistics of one layer over one window."""

    def __init__(
        self,
        n_classes: int,
        n_features: int,
        device: torch.device,
        *,
        exact: bool,
        reference: Reference | None = None,
        before: Reference | None = None,
    ) -> None:
        self.n_classes = n_classes
        self.before = before
        """The window before, of the same split: what class weights and the movement of the means come from."""
        self.exact = exact
        dtype = torch.float64 if exact else torch.float32

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros(*shape, dtype=kind, device=device)

        rows = n_classes + 1
        # One row of scalars a class, added in one call: on small layers calls cost more than memory traffic does.
        self.scalars = zeros(rows, 5, kind=torch.float64)
        self.counts, self.zero, self.norms, self.norm_squares, self.squares = self.scalars.unbind(1)
        self.nonfinite = zeros(rows, kind=torch.int64)
        self.sums = zeros(rows, n_features)
        self.unit_sums = zeros(rows, n_features)
        self.scatter = zeros(n_features, n_features) if n_features <= MAX_SCATTER_FEATURES else None
        """Its upper triangle; what lies below belongs to the blocks on the diagonal and is not read."""
        # Of a streaming window the second moment is a sample: one batch in `thinning`, the first one among them.
        self.thinning = 1 if exact else max(1, math.ceil(n_features / WIDTH_OF_EVERY_MOMENT))
        self._batches = 0
        self.moment_counts = zeros(rows, kind=torch.float64) if self.thinned else self.counts
        self.moment_sums = zeros(rows, n_features) if self.thinned else self.sums
        self.weights: Tensor | None = None
        if before is not None and before.counts is not None and self.scatter is not None:
            found = class_weights(before.counts, exact=exact)
            self.weights = None if found is None else found.to(dtype)
        self.weighted = None if self.weights is None else zeros(n_features, n_features)
        self.shift = zeros(rows, n_features)
        self.eps = 0.0
        self._unknown = torch.ones(rows, dtype=torch.bool, device=device)
        # Whether any class is unknown is a question that would wait for an accelerator; there it stays open.
        self._settled = False
        if reference is not None:
            self.shift[:-1] = reference.means.to(dtype)
            self._unknown[:-1] = ~reference.known
            self._settled = device.type == "cpu" and bool(reference.known.all())

    @property
    def thinned(self) -> bool:
        """Whether the second moment is of some batches only."""
        return self.scatter is not None and self.thinning > 1

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Add a batch: features (n, d) and rows (n,) int64 in [0, C], C for samples that do not count."""
        self.eps = max(self.eps, torch.finfo(features.dtype).eps)
        h = features.to(self.sums.dtype)
        # One pass finds NaN, infinities, and norms that single precision cannot hold.
        norm = torch.linalg.vector_norm(h, dim=1)
        finite = torch.isfinite(norm)
        # On the host asking is cheap, and all samples nearly always count; an accelerator would have to be waited for.
        clean = h.device.type == "cpu" and bool(finite.all()) and bool((rows < self.n_classes).all())
        if not clean:
            self.nonfinite.index_add_(0, rows, (~finite).long())
            rows = torch.where(finite, rows, self.n_classes)
            counted = (rows < self.n_classes)[:, None]
            h = torch.where(counted, h, 0)
            norm = torch.where(finite, norm, 0)
        if not self._settled:
            self._shift_new_classes(h, rows)
        shifts = self.shift.index_select(0, rows)
        x = torch.sub(h, shifts, out=shifts)
        if not clean:
            x = torch.where(counted, x, 0)
        zero = norm == 0
        spread = torch.linalg.vector_norm(x, dim=1)
        scalars = torch.stack((torch.ones_like(norm), zero.to(norm.dtype), norm, norm * norm, spread * spread), 1)
        self.scalars.index_add_(0, rows, scalars.double())
        units = h / torch.where(zero, 1, norm)[:, None]
        add_by_class(self.sums, self.unit_sums, x, units, rows, kernel_for(len(x), self.n_classes, x.device))
        if self.scatter is not None and self._batches % self.thinning == 0:
            _add_moment(self.scatter, x, x)
            if self.weights is not None and self.weighted is not None:
                _add_moment(self.weighted, x * self.weights.index_select(0, rows)[:, None], x)
            self._count_moment(x, rows)
        self._batches += 1

    def _count_moment(self, x: Tensor, rows: Tensor) -> None:
        if self.thinned:
            self.moment_sums.index_add_(0, rows, x)
            self.moment_counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))

    def _shift_new_classes(self, h: Tensor, rows: Tensor) -> None:
        if h.device.type == "cpu":
            waiting = self._unknown & (self.counts == 0)
            waiting[-1] = False
            self._settled = not bool(waiting.any())
            if not bool(waiting[rows].any()):
                return
        batch_counts = torch.zeros_like(self.sums[:, 0]).index_add_(0, rows, torch.ones_like(h[:, 0]))
        batch_sums = torch.zeros_like(self.sums).index_add_(0, rows, h)
        new = self._unknown & (self.counts == 0) & (batch_counts > 0)
        new[-1] = False
        mean = batch_sums / batch_counts.clamp(min=1)[:, None]
        self.shift = torch.where(new[:, None], mean, self.shift)

    def reference(self) -> Reference:
        """Return this window's class means, on the device, for the next window."""
        counts = self.counts[:-1]
        means = self.shift[:-1] + self.sums[:-1] / counts.clamp(min=1).to(self.sums.dtype)[:, None]
        return Reference(means=torch.where((counts > 0)[:, None], means, 0), known=counts > 0, counts=counts.clone())

    def merge(self, other: ClassMoments) -> None:
        """Add another part of the same window (Chan's rule: its sums are moved to this part's shift first)."""
        counts = other.counts.to(self.sums.dtype)[:, None]
        # sum (h - s) = sum (h - s') + n (s' - s); likewise for squares and products.
        step = torch.where((self.counts > 0)[:, None], other.shift - self.shift, 0)
        self.shift = torch.where((self.counts > 0)[:, None], self.shift, other.shift)
        self.squares += other.squares + 2 * (other.sums * step).sum(1) + (counts * step * step).sum(1)
        if self.scatter is not None and other.scatter is not None:
            own = other.moment_counts.to(self.sums.dtype)[:, None]
            cross = step.T @ other.moment_sums
            self.scatter += other.scatter + cross + cross.T + step.T @ (own * step)
            # Of two parts of one window the classes have the same weights, or the sum means nothing.
            if self.weights is None or other.weights is None or not torch.equal(self.weights, other.weights):
                self.weights = self.weighted = None
            if self.weighted is not None and other.weighted is not None and self.weights is not None:
                scaled = self.weights[:, None] * step
                cross = scaled.T @ other.moment_sums
                self.weighted += other.weighted + cross + cross.T + scaled.T @ (own * step)
            if self.thinned:
                self.moment_sums += other.moment_sums + own * step
                self.moment_counts += other.moment_counts
        self.sums += other.sums + counts * step
        self.unit_sums += other.unit_sums
        self.nonfinite += other.nonfinite
        for name in ("counts", "zero", "norms", "norm_squares"):
            getattr(self, name).add_(getattr(other, name))

    def drain(self) -> Drained:
        """Read the window out: undo the shift in float64. Meant for the sending thread; waits for the device."""

        def host(tensor: Tensor) -> NDArray[np.float64]:
            return tensor[: self.n_classes].detach().to("cpu", torch.float64).numpy()

        counts = self.counts[:-1].cpu().numpy().astype(np.int64)
        present = counts > 0
        safe = np.maximum(counts, 1)[:, None]
        delta = host(self.sums) / safe
        means = np.where(present[:, None], host(self.shift) + delta, 0.0)
        within_sq = np.where(counts > 1, host(self.squares) - counts * np.einsum("ij,ij->i", delta, delta), 0.0)

        def moment(upper: Tensor, weights: NDArray[np.float64]) -> NDArray[np.float64]:
            triangle = np.triu(upper.detach().to("cpu", torch.float64).numpy())
            own, sums = host(self.moment_counts)[:, None], host(self.moment_sums)
            scaled = weights[:, None] * delta
            whole = triangle + np.triu(triangle, 1).T + scaled.T @ (own * delta - sums) - sums.T @ scaled
            if self.thinned and (trace := np.trace(whole)) > 0:
                # The trace is known of all samples; what the sample says is how it spreads over directions.
                whole *= float(weights @ within_sq) / trace
            return whole

        before_counts = shift_sq = None
        if self.before is not None and self.before.counts is not None:
            before_counts = self.before.counts.cpu().numpy().astype(np.int64)
            earlier = self.before.means.detach().to("cpu", torch.float64).numpy()
            both = present & (before_counts > 0)
            shift_sq = np.where(both, np.square(means - earlier).sum(axis=1), 0.0)
        return Drained(
            class_counts=counts,
            class_means=means,
            within_sq=within_sq,
            unit_sums=host(self.unit_sums),
            norm_sums=host(self.norms),
            norm_sq_sums=host(self.norm_squares),
            zero_counts=self.zero[:-1].cpu().numpy().astype(np.int64),
            nonfinite_counts=self.nonfinite[:-1].cpu().numpy().astype(np.int64),
            within_scatter=None if self.scatter is None else moment(self.scatter, np.ones(self.n_classes)),
            weighted_scatter=(
                None if self.weighted is None or self.weights is None else moment(self.weighted, host(self.weights))
            ),
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
    within_scatter: NDArray[np.float64] | None
    """(d, d) S, None above `MAX_SCATTER_FEATURES`."""
    weighted_scatter: NDArray[np.float64] | None = None
    """(d, d) the same with the samples of a class weighted by 1 / before_counts."""
    before_counts: NDArray[np.int64] | None = None
    """(C,) samples of the classes in the window before, None where there was none."""
    shift_sq: NDArray[np.float64] | None = None
    """(C,) |mean - mean before|^2 of the classes that are in both windows."""

    def span(self) -> Span | None:
        """Return the singular values of the centred class means, and both second moments along their right singular
        vectors.
        """
        present = self.class_counts > 0
        if self.within_scatter is None or present.sum() < 2:
            return None
        rows = self.class_means[present]
        rows = rows - rows.mean(axis=0)
        _, singular, right = np.linalg.svd(rows, full_matrices=False)
        rank = min(int(present.sum()) - 1, rows.shape[1])
        right = right[:rank]

        def along(scatter: NDArray[np.float64]) -> NDArray[np.float64]:
            found: NDArray[np.float64] = np.einsum("ij,ij->i", right @ scatter, right)
            return found

        weighted = None if self.weighted_scatter is None else along(self.weighted_scatter)
        return Span(singular=singular[:rank], within=along(self.within_scatter), weighted=weighted)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Second moments along the directions of the class means, (r,) each."""

    singular: NDArray[np.float64]
    within: NDArray[np.float64]
    weighted: NDArray[np.float64] | None


def _add_moment(scatter: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to the upper triangle of a symmetric sum, block by block."""
    for begin in range(0, right.shape[1], SCATTER_BLOCK):
        block = slice(begin, begin + SCATTER_BLOCK)
        scatter[block, begin:].addmm_(left[:, block].T, right[:, begin:])


class Nearest:
    """Decides for the nearest known mean; distances are centred, an offset costs digits otherwise."""

    def __init__(self, reference: Reference, dtype: torch.dtype) -> None:
        means, known = reference.means.to(dtype), reference.known
        self._centre = torch.where(known[:, None], means, 0).sum(0) / known.sum().clamp(min=1)
        means = torch.where(known[:, None], means - self._centre, 0)
        self._weight = means.T.contiguous()
        self._bias = torch.where(known, -0.5 * (means * means).sum(1), -torch.inf)

    def decide(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class (n,) of the nearest known mean, and whether (n,) the features were finite."""
        best, decided = torch.addmm(self._bias, features - self._centre, self._weight).max(1)
        return decided, torch.isfinite(best)


def nearest(features: Tensor, reference: Reference) -> Tensor:
    """Return the class (n,) of the nearest known mean."""
    return Nearest(reference, features.dtype).decide(features)[0]


class NearestCounts:
    """Nearest-class decisions of one layer over one window: (C,) taken, right, and equal to the classifier's."""

    def __init__(self, n_classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(n_classes + 1, 3, dtype=torch.int64, device=device)
        self.taken, self.hits, self.agree = self.counts.unbind(1)
        self._by: tuple[Reference, torch.dtype, Nearest] | None = None

    def update(self, features: Tensor, rows: Tensor, predicted: Tensor, reference: Reference) -> None:
        """Decide a batch: features (n, d), rows (n,) in [0, C], the classifier's argmax (n,)."""
        if self._by is None or self._by[0] is not reference or self._by[1] != features.dtype:
            self._by = reference, features.dtype, Nearest(reference, features.dtype)
        decided, finite = self._by[2].decide(features)
        rows = torch.where(finite, rows, len(self.counts) - 1)
        taken = torch.ones_like(rows)
        self.counts.index_add_(0, rows, torch.stack((taken, decided == rows, decided == predicted), 1))


class HeadCounts:
    """Loss and accuracy of the classifier over one window, per class; the loss is plain cross-entropy of the logits.

    `own_logit` and `own_loss` sum z and g(z) = log(1 + (C-1) exp(-C/(C-1) z)) over the same samples, z the own logit
    less the mean of all logits: g(z) is what the loss would be, were all wrong classes equally likely.
    """

    def __init__(self, n_classes: int, device: torch.device) -> None:
        rows = n_classes + 1
        self.labels = torch.zeros(rows, dtype=torch.int64, device=device)
        self.loss = torch.zeros(rows, dtype=torch.float64, device=device)
        self.own_logit = torch.zeros_like(self.loss)
        self.own_loss = torch.zeros_like(self.loss)
        self.correct = torch.zeros_like(self.labels)
        self.nonfinite = torch.zeros_like(self.labels)
        self.ignored = torch.zeros((), dtype=torch.int64, device=device)
        self.eps = 0.0

    def update(self, logits: Tensor, rows: Tensor, *, exact: bool) -> Tensor:
        """Add a batch of logits (n, C) and rows (n,) in [0, C]; return the argmax (n,)."""
        n_classes = logits.shape[1]
        self.eps = max(self.eps, torch.finfo(logits.dtype).eps)
        if logits.is_cuda and torch.get_float32_matmul_precision() != "highest":
            self.eps = max(self.eps, EPS_TF32)
        logits = logits.to(torch.float64 if exact else torch.float32)
        predicted = logits.argmax(1)
        target = rows.clamp(max=n_classes - 1)[:, None]
        own = logits.gather(1, target)
        # log(1 + sum of the wrong ones): a loss of 1e-9 keeps its digits, where logsumexp - own logit has none.
        loss = functional.softplus(torch.logsumexp((logits - own).scatter_(1, target, -torch.inf), 1))
        z = own.squeeze(1) - logits.mean(1)
        own_loss = functional.softplus(math.log(n_classes - 1) - n_classes / (n_classes - 1) * z)
        finite = torch.isfinite(loss)
        self.ignored += (rows == n_classes).sum()
        self.nonfinite.index_add_(0, rows, (~finite).long())
        good = torch.where(finite, rows, n_classes)
        self.labels.index_add_(0, good, torch.ones_like(rows))
        self.correct.index_add_(0, good, (predicted == rows).long())
        for total, values in ((self.loss, loss), (self.own_logit, z), (self.own_loss, own_loss)):
            # A masked logit (-inf) leaves the loss finite and z not: the sum then says so, and is not sent.
            total.index_add_(0, good, torch.where(finite, values, 0).double())
        return predicted
