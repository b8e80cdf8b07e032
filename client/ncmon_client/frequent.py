"""Vocabularies: of very many classes the most frequent ones are watched, as a problem of their own.

Class means of 50,000 tokens are 150 MB a layer, on the device and again in the window. So above `MAX_CLASSES` the
window has the `KEPT` classes that the first batch showed most often; samples of the others are counted as left out.
Loss and accuracy of a kept class are those over the whole vocabulary. The classifier's rows are not sent: what the
theory says of C rows does not hold for some of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_CLASSES = 4096
KEPT = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frequent:
    """The classes that are kept."""

    ids: Tensor
    """(K,) ascending."""
    places: Tensor
    """(C + 1,) place of a class among the kept ones, K for all others and for the trash row C."""

    @property
    def note(self) -> str:
        """What is said of a layer."""
        return f"the {len(self.ids)} most frequent of {len(self.places) - 1} classes"


def most_frequent(rows: Tensor, n_classes: int, *, alone: bool) -> Frequent:
    """Choose by the rows (n,) of a first batch; several ranks (not `alone`) take the first classes.

    Ranks see different batches and must not wait for one another to agree; vocabularies begin with frequent tokens.
    """
    if alone:
        counts = torch.zeros(n_classes + 1, dtype=torch.int64, device=rows.device)
        counts.index_add_(0, rows, torch.ones_like(rows))
        ids = torch.topk(counts[:-1], KEPT).indices.sort().values
    else:
        ids = torch.arange(KEPT, device=rows.device)
    places = torch.full((n_classes + 1,), KEPT, dtype=torch.int64, device=rows.device)
    places[ids] = torch.arange(KEPT, device=rows.device)
    return Frequent(ids=ids, places=places)
