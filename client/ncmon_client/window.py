"""A window: open, it adds batches up on the device; closed, it seals itself into a message in the sending thread.

The training thread only adds and hands over. Everything in float64, and everything that waits for the device, happens
in `ClosedWindow.seal`, which the sending thread calls once.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncmon_client import wire
from ncmon_client.accumulate import ClassMoments, Sums, whole
from ncmon_client.capture import Batch
from ncmon_client.decisions import HeadCounts, NearestCounts
from ncmon_client.frequent import Frequent
from ncmon_client.head import HeadParameters
from ncmon_client.layers import CLASSIFIER_INPUT, Layer
from ncmon_client.mixtures import NOTE as MIXED
from ncmon_client.mixtures import Mixtures
from ncmon_client.pads import Pads
from ncmon_client.payload import reduction
from ncmon_client.rows import Reference, Rows
from ncmon_client.second import MAX_SCATTER_FEATURES, basis_of

EPS_SINGLE = 2.0**-23
PAYLOAD_BUDGET_BYTES = 8 * 1024 * 1024
"""Above this, less is sent (`payload`)."""
LOGITS_AT_ONCE = 2**24
"""Logits whose loss is taken in one go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is known of the training objective."""

    weight_decay: float | None = None
    weight_decay_gamma: float | None = None
    decoupled_decay: bool | None = None
    plain_loss: bool | None = None


class _Means(Mapping[str, Reference]):
    """Class means by layer, worked out when the next window asks: closing one must not hold the loop up."""

    def __init__(self, sums: tuple[tuple[tuple[str, ...], Sums], ...], names: Iterable[str]) -> None:
        self._sums = sums
        self._names = frozenset(names)
        self._found: dict[str, Reference] = {}

    def __getitem__(self, name: str) -> Reference:
        if name not in self._names:
            raise KeyError(name)
        if not self._found:
            with torch.no_grad():
                for names, sums in self._sums:
                    self._found.update(zip(names, sums.references(), strict=True))
            self._sums = ()
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class OpenWindow:
    """Adds batches up. `references` are the class means of an earlier window, by layer, that decide for the nearest;
    `before` those of the window before of the same split.

    `classifier` (C, d) are the rows of the classifier, near the span of its input's class means; `pads` lends the
    memory for features.
    """

    def __init__(
        self,
        *,
        exact: bool,
        references: Mapping[str, Reference],
        before: Mapping[str, Reference] | None = None,
        classifier: Tensor | None = None,
        pads: Pads | None = None,
    ) -> None:
        self.exact = exact
        self._pads = pads or Pads()
        self._before = references if before is None else before
        self.steps = 0
        self.sampled_steps = 0
        self.skipped: Counter[str] = Counter()
        self.began = time.time()
        self.given = references
        self._classifier = classifier
        self._layers: tuple[Layer, ...] = ()
        self._sums: list[tuple[tuple[str, ...], Sums]] = []
        """The layers of one width, and what is added up of them."""
        self._moments: dict[str, ClassMoments] = {}
        self._nearest: dict[str, NearestCounts] = {}
        self._head: HeadCounts | None = None
        self._n_classes = 0
        self._frequent: Frequent | None = None
        self._mixtures: Mixtures | None = None
        self._trained: Tensor | None = None
        """Sum over samples of the loss that was trained."""
        self._trained_samples = 0
        self._unheard = False

    def heard(self, loss: Tensor | None, n_samples: int) -> None:
        """Add the loss that was trained on a batch just added, a mean over its samples; None where it is not known."""
        if loss is None or self._head is None:
            self._unheard = True
            return
        if self._trained is None:
            self._trained = torch.zeros((), dtype=torch.float64, device=loss.device)
        self._trained.add_(loss, alpha=n_samples)
        self._trained_samples += n_samples

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
            predicted = self._head.update_mixed(batch.logits, batch.weights)
            self._mixtures = self._mixtures or Mixtures(batch.logits.device)
            for names, sums in self._sums:
                self._mixtures.add(sums, [batch.features[name] for name in names], batch.weights, predicted)
            return
        # A vocabulary's logits in parts: a copy of all of them in single precision may be most of the memory left.
        size = max(1, LOGITS_AT_ONCE // batch.logits.shape[1])
        parts = zip(torch.split(batch.logits, size), torch.split(batch.rows, size), strict=True)
        decided = [self._head.update(logits, rows, exact=self.exact) for logits, rows in parts]
        predicted = batch.places(decided[0] if len(decided) == 1 else torch.cat(decided))
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
        return _Means(tuple(self._sums), self._moments)

    def forget_decisions(self) -> None:
        """Drop the nearest-class decisions: they are taken again by the window's own means."""
        self._nearest.clear()

    def _precise(self, features: Tensor) -> Tensor:
        return features.double() if self.exact else features.float()

    def _begin(self, batch: Batch, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        self._frequent = batch.frequent
        self._n_classes = batch.logits.shape[1] if batch.frequent is None else len(batch.frequent.ids)
        device = batch.logits.device
        self._head = HeadCounts(batch.logits.shape[1], device)
        by_width: dict[int, list[str]] = {}
        for layer in layers:
            by_width.setdefault(layer.n_features, []).append(layer.name)
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

    def close(
        self,
        *,
        run_id: str,
        rank: int,
        world_size: int,
        split: str,
        epoch: int,
        step: int,
        ncc_source: str,
        head: HeadParameters,
        objective: Objective,
        overhead: float | None,
    ) -> ClosedWindow:
        """End the window; nothing is added afterwards."""
        assert self._head is not None
        if self._frequent is not None:
            head, objective = HeadParameters(name=head.name), replace(objective, plain_loss=False)
        if self._mixtures is not None:
            objective = replace(objective, plain_loss=False)
        return ClosedWindow(
            frequent=self._frequent,
            meta={
                "run_id": run_id,
                "rank": rank,
                "world_size": world_size,
                "split": split,
                "epoch": epoch,
                "step": step,
                "steps": self.steps,
                "sampled_steps": self.sampled_steps,
                "time": time.time(),
                "duration_s": time.time() - self.began,
                "exact": self.exact,
                "ncc_source": ncc_source if self._nearest else "none",
                "n_classes": self._n_classes,
                "skipped_batches": dict(self.skipped),
                "overhead": overhead,
            },
            layers=self._layers,
            sums=[sums for _, sums in self._sums],
            moments=self._moments,
            nearest=self._nearest,
            counts=self._head,
            head=head,
            objective=objective,
            trained=None if self._unheard or self._trained is None else (self._trained, self._trained_samples),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClosedWindow:
    """A window that was handed over: sealed once, in the sending thread."""

    meta: dict[str, object]
    layers: tuple[Layer, ...]
    sums: list[Sums]
    moments: dict[str, ClassMoments]
    nearest: dict[str, NearestCounts]
    counts: HeadCounts
    head: HeadParameters
    objective: Objective
    frequent: Frequent | None
    trained: tuple[Tensor, int] | None = None
    """Sum over samples of the loss that was trained, and how many they were."""

    @property
    def nbytes(self) -> int:
        """About the memory that this window holds until it is sealed."""
        own = [sums.nbytes for sums in self.sums] + [tensor.nbytes for tensor in self.head.tensors.values()]
        return sum(own)

    def gap(self, reason: str) -> wire.Gap:
        """Return what is recorded when this window cannot be sealed."""
        return wire.Gap(
            run_id=str(self.meta["run_id"]),
            split=str(self.meta["split"]),
            epoch=int(str(self.meta["epoch"])),
            step=int(str(self.meta["step"])),
            time=time.time(),
            reason=reason[:4096],
        )

    def _trained_loss(self, ignored: int) -> float | None:
        """Return the mean loss that was trained; a mean over samples of which some do not count is another one."""
        if self.trained is None or ignored or self.trained[1] == 0:
            return None
        value = float(self.trained[0]) / self.trained[1]
        return value if math.isfinite(value) else None

    def seal(self) -> tuple[wire.Meta, bytes]:
        """Undo the shifts in float64, reduce the scatter to the span of the class means, and pack."""
        arrays: list[tuple[str, int, wire.Array]] = []
        layers: list[wire.LayerMeta] = []
        several = self.meta["world_size"] != 1
        reduced = reduction(
            self.layers,
            int(str(self.meta["n_classes"])),
            widest_scatter=MAX_SCATTER_FEATURES if several else None,
            budget_bytes=PAYLOAD_BUDGET_BYTES,
        )
        for place, layer in enumerate(self.layers):
            drained = self.moments[layer.name].drain()
            notes: list[str] = [] if self.frequent is None else [self.frequent.note]
            if self.counts.mixed:
                notes.append(MIXED)
            for name in ("class_counts", "within_sq", "norm_sums", "norm_sq_sums", "zero_counts", "nonfinite_counts"):
                arrays.append((name, place, getattr(drained, name)))
            for name in ("class_means", "unit_sums"):
                values = getattr(drained, name)
                arrays.append((name, place, _single(values, reduced.means_single)))
            sends = several and drained.spread is not None and layer.n_features <= MAX_SCATTER_FEATURES
            if said := reduced.note(layer, scatter=sends):
                notes.append(said)
            if drained.before_counts is not None and drained.shift_sq is not None:
                arrays += [("before_counts", place, drained.before_counts), ("shift_sq", place, drained.shift_sq)]
            weighted = drained.weighted
            if several:
                if sends and drained.spread is not None and reduced.wants_scatter(layer):
                    arrays.append(("within_scatter", place, _single(drained.spread.matrix(), reduced.scatter_single)))
                    if weighted is not None and reduced.wants_weighted(layer):
                        arrays.append(
                            ("weighted_scatter", place, _single(weighted.spread.matrix(), reduced.scatter_single))
                        )
                        arrays.append(("moment_weights", place, weighted.weights))
            elif (span := drained.span()) is not None:
                arrays += [("span_singular", place, span.singular), ("span_within", place, span.within)]
                if weighted is not None and span.weighted is not None:
                    arrays += [("span_weighted", place, span.weighted), ("moment_weights", place, weighted.weights)]
            second = self.moments[layer.name].second
            if second is None or (several and layer.n_features > MAX_SCATTER_FEATURES):
                notes.append(f"no second moment above {MAX_SCATTER_FEATURES} features{' of several ranks' * several}")
            else:
                if said := second.note():
                    notes.append(said)
                second.release()
            if (decided := self.nearest.get(layer.name)) is not None:
                for name, tensor in (("counts", decided.taken), ("hits", decided.hits), ("agree", decided.agree)):
                    arrays.append((f"ncc_{name}", place, _whole(tensor)))
            layers.append(
                wire.LayerMeta(
                    name=layer.name,
                    index=layer.index,
                    module=layer.module,
                    n_features=layer.n_features,
                    reduction=layer.reduction,
                    note="; ".join(notes),
                    eps=self.moments[layer.name].eps or EPS_SINGLE,
                )
            )
        weighed = _host(self.counts.labels)
        scale = np.divide(whole(weighed), weighed, out=np.zeros(len(weighed)), where=weighed > 0)
        for name, tensor in (
            ("label_counts", self.counts.labels),
            ("correct", self.counts.correct),
            ("loss_nonfinite", self.counts.nonfinite),
        ):
            arrays.append((name, -1, _whole(tensor)))
        arrays.append(("loss_sums", -1, scale * _host(self.counts.loss)))
        own = [
            ("own_logit_sums", scale * _host(self.counts.own_logit)),
            ("own_loss_sums", scale * _host(self.counts.own_loss)),
        ]
        # Of a part of the classes the mean of all logits is another one: its proof does not hold.
        if self.frequent is None and all(np.isfinite(values).all() for _, values in own):
            arrays += [(name, -1, values) for name, values in own]
        ignored = int(self.counts.ignored)
        if self.frequent is not None:
            ids = self.frequent.ids.cpu().numpy()
            every = int(_host(self.counts.labels).sum() + _host(self.counts.nonfinite).sum())
            arrays = [(name, place, array[ids] if place == -1 else array) for name, place, array in arrays]
            kept = sum(int(array.sum()) for name, _, array in arrays if name in ("label_counts", "loss_nonfinite"))
            ignored += every - kept
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in self.head.tensors.values())
        if finite:
            for name, tensor in self.head.tensors.items():
                # Half-precision parameters are exact in single precision.
                wide = tensor if tensor.dtype == torch.float64 else tensor.float()
                arrays.append((name, -1, wide.cpu().numpy()))
        specs, blob = wire.pack_arrays(arrays)
        head = wire.HeadMeta(
            name=self.head.name,
            has_bias=self.head.has_bias,
            batch_norm=self.head.batch_norm,
            batch_norm_eps=self.head.batch_norm_eps,
            weight_decay=self.objective.weight_decay,
            weight_decay_gamma=self.objective.weight_decay_gamma,
            decoupled_decay=self.objective.decoupled_decay,
            plain_loss=self.objective.plain_loss,
            finite=finite,
            logits_eps=self.counts.eps or EPS_SINGLE,
            trained_loss=self._trained_loss(ignored),
        )
        meta = wire.WindowMeta(
            **self.meta,  # type: ignore[arg-type]
            layers=layers,
            head=head,
            arrays=specs,
            ignored_labels=ignored,
        )
        return meta, blob


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWord:
    """The END of a run, as something that the sending thread seals."""

    end: wire.End

    def seal(self) -> tuple[wire.Meta, bytes]:
        """Return the message; there is nothing to compute."""
        return self.end, b""

    def gap(self, reason: str) -> wire.Gap:
        """Never needed: `seal` does not fail."""
        return wire.Gap(run_id=self.end.run_id, split="", epoch=-1, step=0, time=self.end.time, reason=reason)


def _host(tensor: Tensor) -> NDArray[np.float64]:
    """Return the class rows (C,) of a tensor with a trash row, on the host."""
    array: NDArray[np.float64] = tensor[:-1].detach().cpu().numpy()
    return array


def _whole(tensor: Tensor) -> NDArray[np.int64]:
    """Return counts (C,) of a tensor with a trash row, as whole numbers."""
    return whole(_host(tensor)).astype(np.int64)


def _single(array: NDArray[np.float64], wanted: bool) -> NDArray[np.float32] | NDArray[np.float64]:
    """Return an array in single precision where that is wanted."""
    return array.astype(np.float32) if wanted else array
