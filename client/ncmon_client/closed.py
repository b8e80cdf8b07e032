"""A closed window: read out in float64, reduced to what its budget allows, and sealed into a message.

All of it in the sending thread, once: it waits for the device. What the training's thread makes when a window closes
are tuples and a bare class: a frozen dataclass takes several times as long to make.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncmon_client import wire
from ncmon_client.accumulate import Sums
from ncmon_client.decisions import HeadCounts, NearestCounts
from ncmon_client.frequent import Frequent
from ncmon_client.head import HeadParameters
from ncmon_client.layers import Layer
from ncmon_client.mixtures import NOTE as MIXED
from ncmon_client.moments import ClassMoments, whole
from ncmon_client.payload import PAYLOAD_BUDGET_BYTES, Reduction, reduction
from ncmon_client.second import MAX_SCATTER_FEATURES

EPS_SINGLE = 2.0**-23

_Arrays = list[tuple[str, int, wire.Array]]
"""Name, place of the layer (-1 for the classifier) and numbers."""


class Objective(NamedTuple):
    """What is known of the training objective."""

    weight_decay: float | None = None
    weight_decay_gamma: float | None = None
    decoupled_decay: bool | None = None
    plain_loss: bool | None = None


class Ending(NamedTuple):
    """What is known when a window ends, and has to be written down then: time and parameters move on."""

    run: wire.RunInfo
    split: str
    epoch: int
    step: int
    time: float
    overhead: float | None
    ncc_source: Literal["own", "previous", "none"]
    """Whose means decided for the nearest."""
    head: HeadParameters
    objective: Objective


@dataclass(slots=True, kw_only=True, eq=False)
class ClosedWindow:
    """A window that was handed over: sealed once, in the sending thread. Nothing of it changes."""

    ending: Ending
    began: float
    steps: int
    sampled_steps: int
    skipped: Mapping[str, int]
    exact: bool
    n_classes: int
    layers: tuple[Layer, ...]
    widest: int
    """Features of the widest layer."""
    sums: list[Sums]
    moments: dict[str, ClassMoments]
    nearest: dict[str, NearestCounts]
    counts: HeadCounts
    frequent: Frequent | None
    trained: tuple[Tensor, int] | None = None
    """Sum over samples of the loss that was trained, and how many they were."""

    @property
    def nbytes(self) -> int:
        """About the memory that this window holds until it is sealed."""
        total = 8 * self.n_classes * self.widest
        for sums in self.sums:
            total += sums.nbytes
        return total

    def gap(self, reason: str) -> wire.Gap:
        """Return what is recorded when this window cannot be sealed."""
        end = self.ending
        return wire.Gap(
            run_id=end.run.run_id,
            split=end.split,
            epoch=end.epoch,
            step=end.step,
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
        end, objective = self.ending, self.ending.objective
        # Of a part of the classes, or of weighed samples, the loss is another one than the trained.
        part = self.frequent is not None
        head = HeadParameters(name=end.head.name) if part else end.head
        reduced = reduction(
            self.layers,
            self.n_classes,
            widest_scatter=MAX_SCATTER_FEATURES if self._several else None,
            budget_bytes=PAYLOAD_BUDGET_BYTES,
        )
        arrays: _Arrays = []
        layers: list[wire.LayerMeta] = []
        for place, layer in enumerate(self.layers):
            own, record = self._layer(place, layer, reduced)
            arrays += own
            layers.append(record)
        arrays += self._counted()
        ignored = int(self.counts.ignored)
        if self.frequent is not None:
            ids = self.frequent.ids.cpu().numpy()
            every = int(_host(self.counts.labels).sum() + _host(self.counts.nonfinite).sum())
            arrays = [(name, place, array[ids] if place == -1 else array) for name, place, array in arrays]
            kept = sum(int(array.sum()) for name, _, array in arrays if name in ("label_counts", "loss_nonfinite"))
            ignored += every - kept
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in head.tensors.values())
        if finite:
            for name, tensor in head.tensors.items():
                # Half-precision parameters are exact in single precision.
                wide = tensor if tensor.dtype == torch.float64 else tensor.float()
                arrays.append((name, -1, wide.cpu().numpy()))
        specs, blob = wire.pack_arrays(arrays)
        said = wire.HeadMeta(
            name=head.name,
            has_bias=head.has_bias,
            batch_norm=head.batch_norm,
            batch_norm_eps=head.batch_norm_eps,
            weight_decay=objective.weight_decay,
            weight_decay_gamma=objective.weight_decay_gamma,
            decoupled_decay=objective.decoupled_decay,
            plain_loss=False if part or self.counts.mixed else objective.plain_loss,
            finite=finite,
            logits_eps=self.counts.eps or EPS_SINGLE,
            trained_loss=self._trained_loss(ignored),
        )
        meta = wire.WindowMeta(
            run_id=end.run.run_id,
            rank=end.run.rank,
            world_size=end.run.world_size,
            split=end.split,
            epoch=end.epoch,
            step=end.step,
            steps=self.steps,
            sampled_steps=self.sampled_steps,
            time=end.time,
            duration_s=end.time - self.began,
            exact=self.exact,
            ncc_source=end.ncc_source if self.nearest else "none",
            n_classes=self.n_classes,
            skipped_batches=dict(self.skipped),
            overhead=end.overhead,
            layers=layers,
            head=said,
            arrays=specs,
            ignored_labels=ignored,
        )
        return meta, blob

    @property
    def _several(self) -> bool:
        """Whether this is the share of one of several ranks."""
        return self.ending.run.world_size != 1

    def _layer(self, place: int, layer: Layer, reduced: Reduction) -> tuple[_Arrays, wire.LayerMeta]:
        """Return a layer's arrays and record."""
        moments = self.moments[layer.name]
        drained = moments.drain()
        arrays: _Arrays = []
        notes: list[str] = [] if self.frequent is None else [self.frequent.note]
        if self.counts.mixed:
            notes.append(MIXED)
        for name in ("class_counts", "within_sq", "norm_sums", "norm_sq_sums", "zero_counts", "nonfinite_counts"):
            arrays.append((name, place, getattr(drained, name)))
        for name in ("class_means", "unit_sums"):
            arrays.append((name, place, _single(getattr(drained, name), reduced.means_single)))
        if drained.before_counts is not None and drained.shift_sq is not None:
            arrays += [("before_counts", place, drained.before_counts), ("shift_sq", place, drained.shift_sq)]
        narrow = layer.n_features <= MAX_SCATTER_FEATURES
        weighted = drained.weighted
        if self._several:
            if said := reduced.note(layer, scatter=narrow and drained.spread is not None):
                notes.append(said)
            if narrow and drained.spread is not None and reduced.wants_scatter(layer):
                arrays.append(("within_scatter", place, _single(drained.spread.matrix(), reduced.scatter_single)))
                if weighted is not None and reduced.wants_weighted(layer):
                    matrix = _single(weighted.spread.matrix(), reduced.scatter_single)
                    arrays += [("weighted_scatter", place, matrix), ("moment_weights", place, weighted.weights)]
        else:
            if said := reduced.note(layer, scatter=False):
                notes.append(said)
            if (span := drained.span()) is not None:
                arrays += [("span_singular", place, span.singular), ("span_within", place, span.within)]
                if weighted is not None and span.weighted is not None:
                    arrays += [("span_weighted", place, span.weighted), ("moment_weights", place, weighted.weights)]
        second = moments.second
        if second is None or (self._several and not narrow):
            of_ranks = " of several ranks" if self._several else ""
            notes.append(f"no second moment above {MAX_SCATTER_FEATURES} features{of_ranks}")
        elif said := second.note():
            notes.append(said)
        if second is not None:
            second.release()
        if (decided := self.nearest.get(layer.name)) is not None:
            for name, tensor in (("counts", decided.taken), ("hits", decided.hits), ("agree", decided.agree)):
                arrays.append((f"ncc_{name}", place, _whole(tensor)))
        return arrays, wire.LayerMeta(
            name=layer.name,
            index=layer.index,
            module=layer.module,
            n_features=layer.n_features,
            reduction=layer.reduction,
            note="; ".join(notes),
            eps=moments.eps or EPS_SINGLE,
        )

    def _counted(self) -> _Arrays:
        """Return what was counted and summed of logits and labels."""
        weighed = _host(self.counts.labels)
        scale = np.divide(whole(weighed), weighed, out=np.zeros(len(weighed)), where=weighed > 0)
        arrays: _Arrays = [
            ("label_counts", -1, _whole(self.counts.labels)),
            ("correct", -1, _whole(self.counts.correct)),
            ("loss_nonfinite", -1, _whole(self.counts.nonfinite)),
            ("loss_sums", -1, scale * _host(self.counts.loss)),
        ]
        own = (
            ("own_logit_sums", scale * _host(self.counts.own_logit)),
            ("own_loss_sums", scale * _host(self.counts.own_loss)),
        )
        # Of a part of the classes the mean of all logits is another one: its proof does not hold.
        if self.frequent is None and all(np.isfinite(values).all() for _, values in own):
            arrays += [(name, -1, values) for name, values in own]
        return arrays


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
