"""Decisions and losses: the nearest class mean of every layer, the classifier's argmax, plain cross-entropy by class.

Rules of this module
- Nothing here synchronises an accelerator; row C of every sum is the trash row for samples that do not count.
- Losses are recomputed from the logits, whatever the training minimises.
- Nearest-class decisions of a window are taken by an earlier window's means, for its own are not known before its end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ncmon_client.rows import Reference, eps_of

EPS_TF32 = 2.0**-10
"""Machine epsilon of what an accelerator may take for single precision in products of matrices."""
WAITING_LOGITS = 2**15
"""Logits that wait before their losses are taken."""
PADDED = 16
"""Columns of a product of few classes: on a CPU one of 16 takes a third of the time of one of 10."""


class Nearest:
    """Decides for the nearest known mean; distances are centred, an offset costs digits otherwise.

    Of shifted samples x = h - s_y, s_y near the mean of their class, the scores (h - centre) w_c + b_c are those of x
    and of a table (C + 1, C) of the shifts: the samples need not be centred first.
    """

    def __init__(self, reference: Reference, dtype: torch.dtype) -> None:
        means, known = reference.means.to(dtype), reference.known
        self._centre = torch.where(known[:, None], means, 0).sum(0) / known.sum().clamp(min=1)
        means = torch.where(known[:, None], means - self._centre, 0)
        # Columns that are no class never win.
        pad = (0, -len(means) % PADDED if len(means) < 4 * PADDED else 0)
        self.weight = functional.pad(means.T, pad).contiguous()
        """(d, C')"""
        self.bias = functional.pad(torch.where(known, -0.5 * (means * means).sum(1), -torch.inf), pad, value=-torch.inf)
        """(C',)"""

    def decide(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class (n,) of the nearest known mean, and whether (n,) the features were finite."""
        best, decided = torch.addmm(self.bias, features - self._centre, self.weight).max(1)
        return decided, torch.isfinite(best)

    def table(self, shift: Tensor) -> Tensor:
        """Return the scores (C + 1, C') of the shifts (C + 1, d) themselves."""
        return torch.addmm(self.bias, shift - self._centre, self.weight)


def nearest(features: Tensor, reference: Reference) -> Tensor:
    """Return the class (n,) of the nearest known mean."""
    return Nearest(reference, features.dtype).decide(features)[0]


class NearestCounts:
    """Nearest-class decisions of one layer over one window: (C,) taken, right, and equal to the classifier's."""

    def __init__(self, n_classes: int, device: torch.device, room: Tensor | None = None) -> None:
        """`room` (3, C + 1) float64 is where to count."""
        self.counts = torch.zeros(3, n_classes + 1, dtype=torch.float64, device=device) if room is None else room
        self.taken, self.hits, self.agree = self.counts.unbind(0)
        self._by: tuple[Reference, torch.dtype, Nearest] | None = None

    def update(self, features: Tensor, rows: Tensor, predicted: Tensor, reference: Reference) -> None:
        """Decide a batch: features (n, d), rows (n,) in [0, C], the classifier's argmax (n,)."""
        if self._by is None or self._by[0] is not reference or self._by[1] != features.dtype:
            self._by = reference, features.dtype, Nearest(reference, features.dtype)
        decided, finite = self._by[2].decide(features)
        rows = torch.where(finite, rows, self.counts.shape[1] - 1)
        taken = torch.ones_like(rows)
        flags = torch.stack((taken, decided == rows, decided == predicted)).double()
        self.counts.index_add_(1, rows, flags)


class HeadCounts:
    """Loss and accuracy of the classifier over one window, per class; the loss is plain cross-entropy of the logits.

    `own_logit` and `own_loss` sum z and g(z) = log(1 + (C-1) exp(-C/(C-1) z)) over the same samples, z the own logit
    less the mean of all logits: g(z) is what the loss would be, were all wrong classes equally likely.
    """

    def __init__(self, n_classes: int, device: torch.device) -> None:
        self._n_classes = n_classes
        # One tensor, added to in one call; counts are exact in float64 up to 2^53.
        self._totals = torch.zeros(6, n_classes + 1, dtype=torch.float64, device=device)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._n_waiting = 0
        self.eps = 0.0
        self.mixed = False
        """Whether samples had weights."""

    @property
    def totals(self) -> Tensor:
        """Return all sums (6, C + 1), those of the batches that wait among them."""
        self._settle()
        return self._totals

    @property
    def labels(self) -> Tensor:
        """Samples (C + 1,) whose loss is finite."""
        return self.totals[0]

    @property
    def nonfinite(self) -> Tensor:
        """Samples (C + 1,) whose loss is not."""
        return self.totals[1]

    @property
    def correct(self) -> Tensor:
        """Samples (C + 1,) whose argmax is their class."""
        return self.totals[2]

    @property
    def loss(self) -> Tensor:
        """Sums (C + 1,) of the loss."""
        return self.totals[3]

    @property
    def own_logit(self) -> Tensor:
        """Sums (C + 1,) of z."""
        return self.totals[4]

    @property
    def own_loss(self) -> Tensor:
        """Sums (C + 1,) of g(z)."""
        return self.totals[5]

    @property
    def ignored(self) -> Tensor:
        """Samples in the trash row, as a tensor without dimensions."""
        return self.labels[-1] + self.nonfinite[-1]

    def update(self, logits: Tensor, rows: Tensor, *, exact: bool) -> Tensor:
        """Add a batch of logits (n, C) and rows (n,) in [0, C]; return the argmax (n,).

        Logits of a small batch are copied and wait for more: thirty calls on a few numbers cost more than the numbers
        do. What still waits at the end of the window is added in the sending thread.
        """
        self.eps = max(self.eps, eps_of(logits.dtype))
        if logits.is_cuda and torch.get_float32_matmul_precision() != "highest":
            self.eps = max(self.eps, EPS_TF32)
        logits = logits.to(torch.float64 if exact else torch.float32, copy=True)
        self._waiting.append((logits, rows))
        self._n_waiting += logits.numel()
        if self._n_waiting >= WAITING_LOGITS:
            self._settle()
        return logits.argmax(1)

    def update_mixed(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Add logits (n, C) of samples with weights (n, C) float64 of the classes; return the argmax (n,)."""
        self.eps = max(self.eps, torch.finfo(logits.dtype).eps)
        self.mixed = True
        n_classes, z = self._n_classes, logits.double()
        predicted = z.argmax(1)
        losses = torch.where(weights > 0, -weights * z.log_softmax(1), 0)
        finite = torch.isfinite(losses.sum(1))[:, None]
        p = weights * finite
        own = z - z.mean(1, keepdim=True)
        least = functional.softplus(math.log(n_classes - 1) - n_classes / (n_classes - 1) * own)
        values = torch.zeros_like(self._totals)
        values[0, :-1], values[1, :-1] = p.sum(0), (weights * ~finite).sum(0)
        values[2, :-1] = values.new_zeros(n_classes).index_add(0, predicted, p.gather(1, predicted[:, None]).squeeze(1))
        for place, parts in ((3, losses), (4, p * own), (5, p * least)):
            # A masked logit (-inf) leaves the loss finite and its own one not: the sum then says so, and is not sent.
            values[place, :-1] = torch.where(finite & (weights > 0), parts, 0).sum(0)
        self._totals = self._totals + values
        return predicted

    @torch.no_grad()
    def _settle(self) -> None:
        if not self._waiting:
            return
        logits = torch.cat([part for part, _ in self._waiting])
        rows = torch.cat([part for _, part in self._waiting])
        self._waiting, self._n_waiting = [], 0
        n_classes = self._n_classes
        predicted = logits.argmax(1)
        target = rows.clamp(max=n_classes - 1)[:, None]
        own = logits.gather(1, target)
        values = torch.empty(6, len(rows), dtype=torch.float64, device=logits.device)
        # log(1 + sum of the wrong ones): a loss of 1e-9 keeps its digits, where logsumexp - own logit has none.
        loss = functional.softplus(torch.logsumexp((logits - own).scatter_(1, target, -torch.inf), 1))
        z = own.squeeze(1) - logits.mean(1)
        finite = torch.isfinite(loss)
        values[0] = finite
        values[1] = ~finite
        values[2] = finite & (predicted == rows)
        values[3] = loss
        values[4] = z
        values[5] = functional.softplus(math.log(n_classes - 1) - n_classes / (n_classes - 1) * z)
        # A masked logit (-inf) leaves the loss finite and z not: the sum then says so, and is not sent.
        values[3:].masked_fill_(~finite, 0)
        # Not in place: what began in inference mode may be settled outside it.
        self._totals = self._totals.index_add(1, rows, values)
