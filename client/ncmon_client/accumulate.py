"""Class moments: additive sums of the watched layers on the tensors' own device, read out once a window.

Rules of this module
- Torch in, torch out; `Drained` is the one value that leaves as numpy, in float64. It knows no module and no wire.
- Nothing here synchronises the device: no `.item()`, no boolean indexing, no shape that depends on data. On the host,
  where asking is cheap, a batch is asked whether all of it counts; then nothing has to be masked.
- Samples without a class and samples with a non-finite feature go to a trash row C (`rows`), never out of range.

Why shifted. In single precision sum |h|^2 - n |mean|^2 loses the variance altogether once the means are large beside
the spread (off by 10 times at offset 5, 2,400 times at offset 50, for sigma 1e-3). So sums are taken of x = h - s_c,
with s_c the class's mean in the previous window or, for a class that was not there, its mean in the first batch that
brings it. The shift is undone in float64 when the window is read: with delta_c = mean_c - s_c,

    within_sq_c = sum |h - s_c|^2 - n_c |delta_c|^2
    unit_sum_c  = sum x / |h| + s_c sum 1 / |h|

Exact windows are summed in float64 throughout.

What it costs (`scripts/bench/accumulate`, times a copy of the features; one thread of a CPU). On small batches calls
cost more than memory traffic does: layers of one width are laid one below the other (`Sums`) and share every call but
two. Large batches are memory traffic, and are added a part at a time that stays in the cache. Memory that is new costs
more than all of that (`pads`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ncmon_client.compiled import Build, Kernel, Target, target_of
from ncmon_client.decisions import Nearest, NearestCounts
from ncmon_client.kernels import Room, add_by_class, kernel_for
from ncmon_client.moments import ClassMoments
from ncmon_client.pads import Pad, Pads
from ncmon_client.rows import Reference, Rows, eps_of
from ncmon_client.sampled import Sampled
from ncmon_client.second import second_moment

CACHED_BYTES = 2**20
"""Of features that are worked on at once."""
LEAST_AT_ONCE, SAMPLES_A_CLASS = 512, 4
"""Fewer samples than that are not worth their calls, and not worth going over the sums of every class."""
ORDINARY = 1e-30, 1e15
"""Between these norms neither their squares nor their inverses leave single precision."""


class Sums:
    """Additive statistics of L layers of one width over one window; `members` are the single layers' views of it.

    Of every tensor the last axis but features is (C + 1,) rows, the trash row being the last.
    """

    def __init__(
        self,
        n_classes: int,
        n_features: int,
        device: torch.device,
        *,
        exact: bool,
        references: Sequence[Reference | None] = (None,),
        nearest: Sequence[bool] | None = None,
        bases: Sequence[Tensor | None] | None = None,
        before: Sequence[Reference | None] | None = None,
        pads: Pads | None = None,
        build: Build | None = None,
    ) -> None:
        """For each layer: class means of an earlier window, whether they decide samples, a basis for `second`, and the
        window before of the same split, from which class sizes are known and the movement of the means. `pads` lends
        the memory that it works in; `build` has a compiled kernel, or will have.
        """
        self.n_classes, self.n_features, self.exact = n_classes, n_features, exact
        self.dtype = torch.float64 if exact else torch.float32
        n_layers, rows = len(references), n_classes + 1
        # A window without a single mean decides nothing; on an accelerator the scores say so (-inf).
        deciding = [
            place
            for place, (decides, reference) in enumerate(zip(nearest or [False] * n_layers, references, strict=True))
            if decides and reference is not None and (device.type != "cpu" or bool(reference.known.any()))
        ]

        def zeros(*shape: int, kind: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=kind, device=device)

        self.scalars = zeros(5, n_layers, rows, kind=torch.float64)
        """Zero vectors, |h|, |h|^2, |x|^2, 1 / |h|."""
        self.counts = zeros(n_layers, rows, kind=torch.float64)
        self.nonfinite = zeros(n_layers, rows, kind=torch.float64)
        self.decided = zeros(3, len(deciding), rows, kind=torch.float64)
        self.sums = zeros(2, n_layers, rows, n_features)
        """Of x, and of x / |h|."""
        self.shift = zeros(n_layers, rows, n_features)
        self._unknown = torch.ones(n_layers, rows, dtype=torch.bool, device=device)
        self._unknown[:, -1] = False
        known = [reference for reference in references if reference is not None]
        if len(known) == n_layers:
            self.shift[:, :-1] = torch.stack([reference.means for reference in known])
            self._unknown[:, :-1] = ~torch.stack([reference.known for reference in known])
        else:
            for place, reference in enumerate(references):
                if reference is not None:
                    self.shift[place, :-1] = reference.means
                    self._unknown[place, :-1] = ~reference.known
        # Whether any class is unknown is a question that would wait for an accelerator; there it stays open.
        self._settled = device.type == "cpu" and not bool(self._unknown.any())
        earlier = list(before or [None] * n_layers)
        self.members = tuple(
            ClassMoments(
                self,
                place,
                second_moment(
                    n_features, device, exact=exact, basis=basis, sizes=None if known is None else known.counts
                ),
                before=known,
            )
            for place, (basis, known) in enumerate(zip(bases or [None] * n_layers, earlier, strict=True))
        )
        self.deciders = {
            place: (NearestCounts(n_classes, device, self.decided[:, number]), references[place])
            for number, place in enumerate(deciding)
        }
        self._room: Room | None = None
        self._weights: Tensor | None = None
        self._tables: Tensor | None = None
        self._pads = pads or Pads()
        self._build = None if exact or device.type != "cpu" else build
        self._taken: Tensor | None = None
        """(L, n) room for the rows that the compiled kernel takes."""
        self._targets: list[Target] = []
        self._own_nbytes = self.scalars.nbytes + self.sums.nbytes + self.shift.nbytes
        self.mixed = False
        """Whether samples had weights (`mixtures`): then counts are no whole numbers before they are read."""

    def wanting(self, place: int) -> Tensor:
        """Return whether (C,) a class of a layer still has no shift, for a caller who then gives it one."""
        self._tables = None  # they are of the shifts
        return (self._unknown[place] & (self.counts[place] == 0))[:-1]

    @property
    def nbytes(self) -> int:
        """Return about the memory that is held."""
        if not self.exact and (second := self.members[0].second) is not None:
            # The layers of one width keep the same samples.
            return self._own_nbytes + second.nbytes * len(self.members)
        return self._own_nbytes + sum(member.second.nbytes for member in self.members if member.second is not None)

    def update(self, features: Sequence[Tensor], batch: Rows, predicted: Tensor | None = None) -> None:
        """Add a batch: features (n, d) of each layer; `predicted` (n,) is the classifier's argmax."""
        n = len(batch)
        for member, h in zip(self.members, features, strict=True):
            eps = eps_of(h.dtype)
            if eps > member.eps:
                member.eps = eps
        size = -(-n // max(n // self._at_once(batch), 1))
        if n <= size:
            self._add(features, batch, predicted, whole=True)
            return
        for begin in range(0, n, size):
            part = slice(begin, begin + size)
            some = None if predicted is None else predicted[part]
            self._add([h[part] for h in features], batch.part(part), some, whole=False)
        self._keep(features, batch)

    def _at_once(self, batch: Rows) -> int:
        """Return how many samples are worked on at once: as many as stay in the cache from one pass to the next.

        Where classes are many, sums by class would be read and written for every part.
        """
        if not batch.on_host:
            return max(len(batch), 1)
        fitting = CACHED_BYTES // (self.n_features * self.sums.element_size() * len(self.members))
        return max(fitting, LEAST_AT_ONCE, SAMPLES_A_CLASS * self.n_classes)

    def _keep(self, features: Sequence[Tensor], batch: Rows) -> None:
        """Keep samples of a batch that was added in parts."""
        for place, (member, h) in enumerate(zip(self.members, features, strict=True)):
            if not isinstance(member.second, Sampled) or (wanted := member.second.choose(len(batch))) is None:
                continue
            rows, some = batch.rows[wanted], h[wanted].to(self.dtype)
            pad = self._pads.take(len(rows), self.n_features, dtype=self.dtype, device=rows.device)
            x = torch.index_select(self.shift[place], 0, rows, out=pad.tensor)
            torch.sub(some, x, out=x)
            # The same test as for the sums: what they left out is left out here.
            rows = torch.where(torch.isfinite(torch.linalg.vector_norm(some, 2, 1)), rows, self.n_classes)
            x.masked_fill_((rows == self.n_classes)[:, None], 0)
            member.second.keep(x, rows, pad)

    def _add(self, features: Sequence[Tensor], batch: Rows, predicted: Tensor | None, *, whole: bool) -> None:
        n_layers, n, d = len(features), len(batch), self.n_features
        wide = [h if h.dtype == self.dtype else h.to(self.dtype) for h in features]
        kernel = None if self._build is None else self._build.kernel
        if kernel is not None and self._add_compiled(kernel, wide, batch, predicted, whole=whole):
            return
        if self._room is None or self._room.n != n:
            self._room = Room(n_layers, n, self.dtype, batch.rows.device)
        values = self._room.values
        zero, norm, norm_squares, squares, inverse = self._room.parts
        for h, out in zip(wide, norm.unbind(0), strict=True):
            torch.linalg.vector_norm(h, 2, 1, out=out)
        ordinary = batch.on_host and _ordinary(norm)
        clean = ordinary and batch.all_count
        index, counted = batch.stacked(n_layers), None
        if not clean:
            # One pass found NaN, infinities, and norms that single precision cannot hold.
            finite = torch.isfinite(norm)
            self.nonfinite.view(-1).index_add_(0, index, (~finite).double().view(-1))
            rows = torch.where(finite, batch.rows, self.n_classes)
            counted = rows < self.n_classes
            index = (rows + batch.begins(n_layers)).view(-1)
            norm.masked_fill_(~counted, 0)
        if not self._settled:
            self._shift_new_classes(wide, batch, index, counted)
        pad = self._pads.take(n_layers * n, d, dtype=self.dtype, device=index.device)
        x, shift = pad.tensor, self.shift.view(-1, d)
        size = max(CACHED_BYTES // (d * x.element_size()), 1) if batch.on_host and n_layers == 1 else n_layers * n
        for begin in range(0, n_layers * n, size):
            # What is written is read again while it is in the cache.
            part = slice(begin, begin + size)
            torch.index_select(shift, 0, index[part], out=x[part])
            for h, shifted in zip(wide, x[part].view(n_layers, -1, d).unbind(0), strict=True):
                torch.sub(h[part] if n_layers == 1 else h, shifted, out=shifted)
            if counted is not None:
                x[part].masked_fill_(~counted.view(-1, 1)[part], 0)
            torch.linalg.vector_norm(x[part], 2, 1, out=squares.view(-1)[part])
        squares.square_()
        torch.mul(norm, norm, out=norm_squares)
        torch.reciprocal(norm, out=inverse)
        if clean:
            zero.zero_()
        else:
            none = norm == 0
            zero.copy_(none)
            inverse.masked_fill_(none, 0)
        self._add_scalars(values, batch, index, clean=clean)
        # What does not count is zero by now, and adds nothing to whatever row its label names.
        add_by_class(self.sums, x, self._room, batch, index, kernel_for(n, self.n_classes, x.device), self._pads)
        taken = None if clean else index.view(n_layers, n) - batch.begins(n_layers)
        self._look_on(wide, pad, batch, taken, predicted, whole=whole)

    def _add_compiled(
        self, kernel: Kernel, wide: Sequence[Tensor], batch: Rows, predicted: Tensor | None, *, whole: bool
    ) -> bool:
        """Add a batch by the compiled kernel; return False where torch has to."""
        for h in wide:
            if type(h) is not Tensor:
                return False  # a subclass may have no memory of its own
        if not self._settled:
            # Classes that have no shift yet get one there.
            new = self._unknown.numpy() & (batch.sizes > 0)
            if new.any() and (new & (self.counts.numpy() == 0)).any():
                return False
        n_layers, n, d = len(wide), len(batch), self.n_features
        pad = self._pads.take(n_layers * n, d, dtype=self.dtype, device=batch.rows.device)
        if self._taken is None or self._taken.shape[1] != n:
            self._taken = torch.empty(n_layers, n, dtype=torch.int64, device="cpu")
        if not self._targets:
            self._targets = [
                target_of(each.shift, each.sums, each.unit_sums, each.scalars, each.counts, each.nonfinite)
                for each in self.members
            ]
        taken, odd, rows = self._taken, 0, batch.rows.contiguous()
        for place, (h, target) in enumerate(zip(wide, self._targets, strict=True)):
            odd += kernel.add(h if h.stride(1) == 1 else h.contiguous(), rows, target, pad.tensor, taken, place)
        if odd:
            self._taken = None  # whoever keeps samples keeps it too
        self._look_on(wide, pad, batch, taken if odd else None, predicted, whole=whole)
        return True

    def _look_on(
        self,
        wide: Sequence[Tensor],
        pad: Pad,
        batch: Rows,
        taken: Tensor | None,
        predicted: Tensor | None,
        *,
        whole: bool,
    ) -> None:
        """Give shifted samples, which lie in `pad`, to second moments and nearest means; `taken` (L, n) are the rows of
        each layer, where not all samples are ordinary ones that count.
        """
        parts = pad.tensor.view(len(wide), len(batch), self.n_features)
        for place, member in enumerate(self.members):
            rows = batch.rows if taken is None else taken[place]
            if not isinstance(member.second, Sampled):
                if member.second is not None:
                    member.second.add(parts[place], rows, self.n_classes)
            elif whole:
                member.second.add(parts[place], rows, self.n_classes, pad)
        if predicted is not None and self.deciders:
            self._decide(wide, parts, batch, taken, predicted)
        pad.drop()

    def references(self) -> list[Reference]:
        """Return this window's class means of each layer, on the device, for the next window."""
        counts = self.counts[:, :-1, None]
        known = counts > 0
        means = self.sums[0, :, :-1] / counts.clamp(min=1).to(self.dtype)
        means += self.shift[:, :-1]
        means.masked_fill_(~known, 0)
        parts = zip(means.unbind(0), known.squeeze(2).unbind(0), counts.squeeze(2).clone().unbind(0), strict=True)
        return [Reference(means=own, known=seen, counts=sizes) for own, seen, sizes in parts]

    def _add_scalars(self, values: Tensor, batch: Rows, index: Tensor, *, clean: bool) -> None:
        n = values.shape[2]
        if clean:
            self.scalars.view(-1, batch.n_rows).index_add_(1, batch.rows, values.view(-1, n).double())
            self.counts += batch.counts
        else:
            self.scalars.view(5, -1).index_add_(1, index, values.view(5, -1).double())
            self.counts.view(-1).index_add_(0, index, torch.ones_like(index, dtype=torch.float64))

    def _decide(
        self, wide: Sequence[Tensor], stacked: Tensor, batch: Rows, taken: Tensor | None, predicted: Tensor
    ) -> None:
        """Count nearest-class decisions; those of shifted samples (L, n, d) in one product where that pays."""
        places = list(self.deciders)
        n = len(batch)
        if n <= self.n_classes:
            # A table of C x C scores would cost more than centring the samples does.
            for place, (counts, reference) in self.deciders.items():
                assert reference is not None
                counts.update(wide[place], batch.rows if taken is None else taken[place], predicted, reference)
            return
        if self._weights is None:
            ways = [Nearest(reference, self.dtype) for _, reference in self.deciders.values() if reference is not None]
            self._weights = torch.stack([way.weight for way in ways])
            self._ways = ways
        if self._tables is None:
            self._tables = torch.stack([w.table(self.shift[p]) for w, p in zip(self._ways, places, strict=True)])
        if len(places) < len(stacked):
            stacked = stacked[places]
        tables, begins = self._tables, batch.begins(len(places))
        own = batch.rows if taken is None else taken[places]
        rows = batch.stacked(len(places)) if taken is None else (own + begins).view(-1)
        scores = tables.view(-1, tables.shape[2]).index_select(0, rows).view(len(places), n, -1)
        best, decided = torch.baddbmm(scores, stacked, self._weights).max(2)
        if taken is None:
            # Only on the host.
            totals, found = self.decided.numpy(), decided.numpy()
            totals[0] += batch.sizes
            for total, other in zip(totals[1:], (own, predicted), strict=True):
                same = (found == other.numpy()).ravel()
                total += np.bincount(rows.numpy(), weights=same, minlength=total.size).reshape(total.shape)
        else:
            flags = torch.stack((decided == own, decided == predicted)).double()
            own = torch.where(torch.isfinite(best), own, self.n_classes)
            flags = torch.cat((torch.ones_like(flags[:1]), flags))
            self.decided.view(3, -1).index_add_(1, (own + begins).view(-1), flags.view(3, -1))

    def _shift_new_classes(self, wide: Sequence[Tensor], batch: Rows, index: Tensor, counted: Tensor | None) -> None:
        waiting = self._unknown & (self.counts == 0)
        if batch.on_host:
            self._settled = not bool(waiting.any())
            if not bool(waiting.view(-1)[index].any()):
                return
        h = torch.cat(list(wide)) if len(wide) > 1 else wide[0]
        if counted is not None:
            h = h.masked_fill(~counted.view(-1, 1), 0)
        counts = torch.zeros_like(self.shift[..., 0]).view(-1).index_add_(0, index, torch.ones_like(h[:, 0]))
        sums = torch.zeros_like(self.shift).view(-1, self.n_features).index_add_(0, index, h)
        new = waiting.view(-1) & (counts > 0)
        mean = sums / counts.clamp(min=1)[:, None]
        torch.where(new[:, None], mean, self.shift.view(-1, self.n_features), out=self.shift.view(-1, self.n_features))
        self._tables = None


def _ordinary(norms: Tensor) -> bool:
    """Whether no sample's norm is zero, infinite or NaN, or so small or large that its square or inverse is."""
    low, high = torch.aminmax(norms)
    return float(low) > ORDINARY[0] and float(high) < ORDINARY[1]


def alone(
    n_classes: int,
    n_features: int,
    device: torch.device,
    *,
    exact: bool,
    reference: Reference | None = None,
    before: Reference | None = None,
) -> ClassMoments:
    """Return the moments of a single layer."""
    return Sums(n_classes, n_features, device, exact=exact, references=(reference,), before=(before,)).members[0]
