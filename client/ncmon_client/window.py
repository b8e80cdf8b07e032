"""An open window: adds batches up on the device, and is handed over.

That is all that the training thread does. Everything in float64, and everything that waits for the device, happens in
`closed.ClosedWindow.seal`, which the sending thread calls once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ncmon_client.accumulate import Sums
from ncmon_client.capture import Batch
from ncmon_client.closed import ClosedWindow, Ending
from ncmon_client.compiled import Build
from ncmon_client.decisions import HeadCounts, NearestCounts
from ncmon_client.frequent import Frequent
from ncmon_client.layers import CLASSIFIER_INPUT, Layer
from ncmon_client.mixtures import Mixtures, probabilities
from ncmon_client.moments import ClassMoments
from ncmon_client.pads import Pads
from ncmon_client.rows import Reference, Rows
from ncmon_client.second import MAX_SCATTER_FEATURES, basis_of

LOGITS_AT_ONCE = 2**24
"""Logits whose loss is taken in one go."""
MIXED_AT_ONCE = 2**20
"""Of tokens with soft labels: in double precision, and several times."""


class _Means(Mapping[str, Reference]):
    """Class means by layer, worked out when the next window asks: closing one must not hold the loop up."""

    def __init__(self, sums: Iterable[tuple[tuple[str, ...], Sums]], names: Collection[str]) -> None:
        self._sums = sums
        self._names = names
        self._found: dict[str, Reference] = {}

    def __getitem__(self, name: str) -> Reference:
        if name not in self._names:
            raise KeyError(name)
        if not self._found:
            with torch.no_grad():
                for names, sums in self._sums:
                    self._found.update(zip(names, sums.references(), strict=True))
            # The sums themselves are to be let go of.
            self._sums, self._names = (), self._found
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class OpenWindow:
    """Adds batches up. `references` are the class means of an earlier window, by layer, that decide for the nearest;
    `before` those of the window before of the same split.

    `classifier` (C, d) are the rows of the classifier, near the span of its input's class means; `pads` lends the
    memory for features, `build` has a compiled kernel or will have.
    """

    # Of a window without a batch. One is made whenever another closes, while the loop waits: these cost it nothing.
    steps = 0
    sampled_steps = 0
    _layers: tuple[Layer, ...] = ()
    _head: HeadCounts | None = None
    _n_classes = 0
    _frequent: Frequent | None = None
    _mixtures: Mixtures | None = None
    _trained: Tensor | None = None
    """Sum over samples of the loss that was trained."""
    _trained_samples = 0
    _unheard = False

    def __init__(
        self,
        *,
        exact: bool,
        references: Mapping[str, Reference],
        before: Mapping[str, Reference] | None = None,
        classifier: Tensor | None = None,
        pads: Pads | None = None,
        build: Build | None = None,
    ) -> None:
        self.exact = exact
        self._pads = pads or Pads()
        self._build = build
        self._before = references if before is None else before
        self.given = references
        self._classifier = classifier
        self.began = time.time()
        self.skipped: defaultdict[str, int] = defaultdict(int)
        """Batches that could not be used, by reason."""

    def heard(self, loss: Tensor | None, n_samples: int) -> None:
        """Add the loss that was trained on a batch just added, a mean over its samples; None where it is not known."""
        if loss is None or self._head is None:
            self._unheard = True
            return
        if self._trained is None:
            self._trained = torch.zeros((), dtype=torch.float64, device=loss.device)
        self._trained.add_(loss, alpha=n_samples)
        self._trained_samples += n_samples

    def take_back(self, why: str) -> None:
        """One batch that was skipped was used after all; the window that counted it may have closed."""
        left = self.skipped.pop(why, 0) - 1
        if left > 0:
            self.skipped[why] = left

    @property
    def empty(self) -> bool:
        """Whether no batch was added."""
        return self._head is None

    def add(self, batch: Batch, layers: tuple[Layer, ...]) -> None:
        """Add one batch. Call under `no_grad`, with autocast off."""
        self.sampled_steps += 1
        if self._head is None:
            self._begin(batch, layers)
        assert self._head is not None
        if batch.weights is not None:
            self._mixtures = self._mixtures or Mixtures(batch.logits.device)
            size = max(1, MIXED_AT_ONCE // batch.logits.shape[1])
            for begin in range(0, len(batch.logits), size):
                part = slice(begin, begin + size)
                weights = probabilities(batch.weights[part])
                decided = self._head.update_mixed(batch.logits[part], weights)
                for names, sums in self._sums:
                    self._mixtures.add(sums, [batch.features[name][part] for name in names], weights, decided)
            return
        # A vocabulary's logits in parts: a copy of all of them in single precision may be most of the memory left.
        size = max(1, LOGITS_AT_ONCE // batch.logits.shape[1])
        if len(batch.rows) <= size:
            decided = self._head.update(batch.logits, batch.rows, exact=self.exact)
        else:
            parts = zip(torch.split(batch.logits, size), torch.split(batch.rows, size), strict=True)
            decided = torch.cat([self._head.update(logits, rows, exact=self.exact) for logits, rows in parts])
        predicted = batch.places(decided)
        rows = Rows(batch.places(batch.rows), self._n_classes)
        for names, sums in self._sums:
            sums.update([batch.features[name] for name in names], rows, predicted)

    def decide_again(self, batch: Batch, references: Mapping[str, Reference]) -> None:
        """Second pass of an exact window: only the nearest-class decisions, by the window's own means."""
        predicted, rows = batch.places(batch.logits.argmax(1)), batch.places(batch.rows)
        for name in self._moments:
            counts = self._nearest.setdefault(name, NearestCounts(self._n_classes, batch.logits.device))
            counts.update(self._precise(batch.features[name]), rows, predicted, references[name])

    def references(self) -> Mapping[str, Reference]:
        """Return the class means of this window, by layer, on the device; nothing is added to it afterwards."""
        return _Means(self._sums, self._moments)

    def forget_decisions(self) -> None:
        """Drop the nearest-class decisions: they are taken again by the window's own means."""
        self._nearest.clear()

    def _precise(self, features: Tensor) -> Tensor:
        return features.double() if self.exact else features.float()

    def _begin(self, batch: Batch, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        self._sums: list[tuple[tuple[str, ...], Sums]] = []
        """The layers of one width, and what is added up of them."""
        self._moments: dict[str, ClassMoments] = {}
        self._nearest: dict[str, NearestCounts] = {}
        self._frequent = batch.frequent
        self._n_classes = batch.logits.shape[1] if batch.frequent is None else len(batch.frequent.ids)
        device = batch.logits.device
        self._head = HeadCounts(batch.logits.shape[1], device)
        by_width: dict[int, list[str]] = {}
        for layer in layers:
            by_width.setdefault(layer.n_features, []).append(layer.name)
        self._widest = max(by_width)
        for width, names in by_width.items():
            references = [self.given.get(name) for name in names]
            # A product of n x d x C: always for the classifier's input, elsewhere where C is the small side.
            cheap = self._n_classes <= width
            sums = Sums(
                self._n_classes,
                width,
                device,
                exact=self.exact,
                references=references,
                nearest=[name == CLASSIFIER_INPUT or cheap for name in names],
                bases=[self._basis(name, width) for name in names],
                before=[self._before.get(name) for name in names],
                pads=self._pads,
                build=self._build,
            )
            self._sums.append((tuple(names), sums))
            self._moments.update(zip(names, sums.members, strict=True))
            self._nearest.update({names[place]: counts for place, (counts, _) in sums.deciders.items()})
        self._moments = {layer.name: self._moments[layer.name] for layer in layers}

    def _basis(self, name: str, width: int) -> Tensor | None:
        """Return directions near which the window's class means will be, for exact windows of wide layers."""
        if not self.exact or width <= MAX_SCATTER_FEATURES:
            return None
        vectors: list[Tensor] = []
        if (reference := self.given.get(name)) is not None:
            means = reference.means[reference.known]
            vectors.append(means - means.mean(0))
        if name == CLASSIFIER_INPUT and self._classifier is not None and self._classifier.shape[1] == width:
            vectors.append(self._classifier)
        return basis_of(torch.cat([part.double() for part in vectors])) if vectors else None

    def close(self, ending: Ending) -> ClosedWindow:
        """End the window; nothing is added afterwards. What has to be worked out is, when it is sealed."""
        assert self._head is not None
        return ClosedWindow(
            ending=ending,
            began=self.began,
            steps=self.steps,
            sampled_steps=self.sampled_steps,
            skipped=self.skipped,
            exact=self.exact,
            n_classes=self._n_classes,
            layers=self._layers,
            widest=self._widest,
            sums=[sums for _, sums in self._sums],
            moments=self._moments,
            nearest=self._nearest,
            counts=self._head,
            frequent=self._frequent,
            trained=None if self._unheard or self._trained is None else (self._trained, self._trained_samples),
        )
