"""Mixtures: samples whose label is a distribution over the classes (mixup, distillation, soft labels).

A sample h with probabilities p adds to every class, weighted: everything that is summed over the samples of a class is
summed over all samples with weights p_c. So n_c = sum p_c, mean_c = sum p_c h / n_c, and the samples of hard labels are
the case in which p is one-hot.

Sums are taken in float64 about the batch's mean b, the same for all classes, and moved to each class's shift s_c after:
with t_c = sum p_c (h - b) and u_c = b - s_c

    sum p_c (h - s_c)       = t_c + n_c u_c
    sum p_c |h - s_c|^2     = sum p_c |h - b|^2 + 2 t_c u_c + n_c |u_c|^2
    sum p_c (h - s_c) / |h| = sum p_c (h - b) / |h| + u_c sum p_c / |h|

What keeps single samples (`Sampled`) gets each under one class, drawn by its probabilities: the mean over draws is the
weighted sum. Second moments in which classes count once are not formed. On the wire counts are whole numbers: they are
rounded when the window is read, and what is summed over a class is scaled with its count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncmon_client.accumulate import Sums
from ncmon_client.decisions import Nearest
from ncmon_client.sampled import Sampled
from ncmon_client.second import Full

NOTE = "soft labels: samples weigh by their probabilities, counts are rounded"


def flat(logits: Tensor, labels: Tensor, n_classes: int | None, *, own: bool) -> tuple[Tensor, Tensor]:
    """Return logits and probabilities, both of one shape, as (n, C) of n samples or tokens.

    Of three dimensions and more the classes are the last, as a network gives them, or the second, as a criterion wants
    them. `own` says that the logits are just what the classifier gave. Where the number of classes does not tell, and
    is not yet known, the one is taken along which more of the probabilities add up to one.
    """
    logits, labels = logits.detach(), labels.detach().to(logits.device)
    if logits.ndim == 1:
        return logits[None], labels[None]
    if logits.ndim == 2:
        return logits, labels
    last = own or (n_classes == logits.shape[-1] != logits.shape[1])
    if n_classes is None and not own:
        second, third = ((labels.sum(axis) - 1).abs().lt(1e-3).double().mean() for axis in (1, -1))
        last = bool(third > second)
    if last:
        return logits.flatten(0, -2), labels.flatten(0, -2)
    turned = [each.flatten(2).transpose(1, 2).flatten(0, 1) for each in (logits, labels)]
    return turned[0], turned[1]


def probabilities(labels: Tensor) -> Tensor:
    """Return labels (n, C) as float64, what is no probability as 0."""
    return torch.nan_to_num(labels.double(), 0.0, 0.0, 0.0).clamp_(min=0)


class Mixtures:
    """Adds batches of mixtures to the sums of a window; draws from a generator of its own."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(0)

    def add(self, sums: Sums, features: Sequence[Tensor], weights: Tensor, predicted: Tensor) -> None:
        """Add features (n, d) of each layer, with weights (n, C) float64 of the classes; predicted (n,) is the
        classifier's argmax.
        """
        sums.mixed = True
        for place, h in enumerate(features):
            self._add(sums, place, h, weights, predicted)

    def _add(self, sums: Sums, place: int, h: Tensor, weights: Tensor, predicted: Tensor) -> None:
        member = sums.members[place]
        member.eps = max(member.eps, torch.finfo(h.dtype).eps)
        wide = h.double()
        # The same samples as with hard labels: those whose norm single precision can hold.
        finite = torch.isfinite(torch.linalg.vector_norm(h.to(sums.dtype), 2, 1))
        member.nonfinite[:-1] += (weights * ~finite[:, None]).sum(0)
        p = weights.masked_fill(~finite[:, None], 0)
        wide = wide.masked_fill(~finite[:, None], 0)
        counts, norms = p.sum(0), torch.linalg.vector_norm(wide, 2, 1)
        inverse = torch.where(norms > 0, 1 / norms, 0)
        base = wide.sum(0) / finite.sum().clamp(min=1)
        x = (wide - base).masked_fill_(~finite[:, None], 0)
        t, inverses = p.T @ x, p.T @ inverse
        new = sums.wanting(place) & (counts > 0)
        mean = (base + t / counts.clamp(min=torch.finfo(torch.float64).tiny)[:, None]).to(sums.dtype)
        member.shift[:-1] = torch.where(new[:, None], mean, member.shift[:-1])
        u = base - member.shift[:-1].double()
        squares = p.T @ x.square().sum(1) + 2 * (t * u).sum(1) + counts * u.square().sum(1)
        moved = t + counts[:, None] * u
        zero = (norms == 0) & finite
        member.scalars[:, :-1] += torch.stack(
            (p.T @ zero.double(), p.T @ norms, p.T @ norms.square(), squares.clamp(min=0), inverses)
        )
        member.counts[:-1] += counts
        member.sums[:-1] += moved.to(sums.dtype)
        member.unit_sums[:-1] += (p.T @ (x * inverse[:, None]) + inverses[:, None] * u).to(sums.dtype)
        self._second(sums, place, wide, x, p, t, u)
        if (decider := sums.deciders.get(place)) is not None and decider[1] is not None:
            decided = Nearest(decider[1], torch.float64).decide(wide)[0]
            own = p.gather(1, decided[:, None]).squeeze(1)
            taken, hits, agree = decider[0].counts.unbind(0)
            taken[:-1] += counts
            hits[:-1].index_add_(0, decided, own)
            agree[:-1] += p.T @ (decided == predicted).double()

    def _second(self, sums: Sums, place: int, h: Tensor, x: Tensor, p: Tensor, t: Tensor, u: Tensor) -> None:
        second = sums.members[place].second
        if isinstance(second, Full):
            second.weights = second.weighted = None
            cross = t.T @ u
            counts = p.sum(0)[:, None]
            moment = (p.sum(1)[:, None] * x).T @ x + cross + cross.T + u.T @ (counts * u)
            second.scatter += moment.to(second.scatter.dtype)
        elif isinstance(second, Sampled) and (wanted := second.choose(len(h))) is not None:
            # Nobody's: a sample without a finite feature, or without any weight.
            chances = torch.cat((p[wanted], (p[wanted].sum(1, keepdim=True) <= 0).double()), 1)
            rows = torch.multinomial(chances, 1, generator=self._generator).squeeze(1)
            kept = (h[wanted] - sums.members[place].shift.double()[rows]).to(sums.dtype)
            second.keep(kept.masked_fill_((rows == sums.n_classes)[:, None], 0), rows)
