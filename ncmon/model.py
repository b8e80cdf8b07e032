"""The nouns of ncmon: frozen values that flow upward from the wire to the screen.

Shapes: C declared classes, d features of a layer, K present classes (class_counts > 0). Class rows follow the declared
classes; rows of absent classes are zero and mean nothing. Everything is float64 or int64 from here upward.

Nothing here computes a metric, knows a socket, a table or a screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CLASSIFIER_INPUT = "classifier-input"
"""Name of the features that enter the classifier, whatever module they come out of."""

RunStatus = Literal["live", "finished", "failed"]
"""As stored. Whether a live run is stale or lost is a question of the clock, answered by viewers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run."""

    run_id: str
    name: str
    status: RunStatus
    started: float
    """Unix seconds, by the trainer's clock."""
    ended: float | None = None
    host: str = ""
    pid: int = 0
    world_size: int = 1
    n_classes: int
    class_names: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    client: str = ""
    last_seen: float | None = None
    """Unix seconds of the last committed message, by the daemon's clock."""
    note: str = ""
    """What the user wrote about it."""
    attempt: int = 1
    """How many times it was begun: a training that goes on from a checkpoint is the next attempt of its run."""
    attempt_of: str = ""
    """Of the superseded tail of an attempt: the id of the run that went on without it."""

    def class_name(self, index: int) -> str:
        """Return the name of one class, its number where the run gave no names."""
        return self.class_names[index] if index < len(self.class_names) else str(index)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKey:
    """Which layer: its qualified name and its place in the forward pass, from 0."""

    name: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerStats:
    """Additive statistics of one layer over one window."""

    key: LayerKey
    module: str
    reduction: str
    note: str
    n_features: int
    class_counts: IntArray
    """(C,) finite samples."""
    class_means: FloatArray
    """(C, d)"""
    within_sq: FloatArray
    """(C,) sum over the class of |h - mean_c|^2."""
    unit_sums: FloatArray
    """(C, d) sum of h / |h| over the non-zero vectors."""
    norm_sums: FloatArray
    """(C,) sum |h|."""
    norm_sq_sums: FloatArray
    """(C,) sum |h|^2."""
    zero_counts: IntArray
    """(C,) vectors with |h| = 0; they are part of class_counts."""
    nonfinite_counts: IntArray
    """(C,) samples with an infinite or NaN feature; they are not part of class_counts."""
    ncc_counts: IntArray | None = None
    """(C,) samples decided by the nearest class mean, None when that was not measured."""
    ncc_hits: IntArray | None = None
    ncc_agree: IntArray | None = None
    span_singular: FloatArray | None = None
    """(r,) singular values of the centred class means, descending, as the client computed them in float64."""
    span_within: FloatArray | None = None
    """(r,) v^T S v along the right singular vectors; S is the pooled within-class scatter (a sum, not a mean)."""
    within_scatter: FloatArray | None = None
    """(d, d) S itself, where several ranks were merged."""
    before_counts: IntArray | None = None
    """(C,) finite samples in the window before of the same split, None where there was none."""
    shift_sq: FloatArray | None = None
    """(C,) |mean_c - mean_c before|^2 of the classes that are in both windows."""
    moment_weights: FloatArray | None = None
    """(C,) a_c of the scatter M = sum_c a_c S_c, by which every class counts about once; zero for a class that was not
    expected.
    """
    span_weighted: FloatArray | None = None
    """(r,) v^T M v"""
    weighted_scatter: FloatArray | None = None
    """(d, d) M itself, where several ranks were merged."""
    eps: float = 2.0**-23
    """Machine epsilon of the features as the network computed them: 2^-7 for bfloat16."""
    means_f4: bool = False
    """Class means travelled in single precision: the resolution floor is that of float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """The classifier of a window, and what is known of the training objective."""

    name: str
    has_bias: bool
    batch_norm: str
    batch_norm_eps: float
    weight_decay: float | None
    weight_decay_gamma: float | None
    decoupled_decay: bool | None
    plain_loss: bool | None
    finite: bool
    weight: FloatArray | None = None
    """(C, d)"""
    bias: FloatArray | None = None
    """(C,)"""
    bn_gamma: FloatArray | None = None
    bn_beta: FloatArray | None = None
    label_counts: IntArray | None = None
    """(C,) samples whose loss is finite."""
    loss_sums: FloatArray | None = None
    """(C,) plain cross-entropy, natural log."""
    correct: IntArray | None = None
    loss_nonfinite: IntArray | None = None
    logits_eps: float = 2.0**-23
    """Machine epsilon of the logits as the network computed them."""
    trained_loss: float | None = None
    """Mean over the window's samples of the loss that was trained, where it is known."""
    own_logit_sums: FloatArray | None = None
    """(C,) sum of z, the own logit less the mean of all logits, of the samples in label_counts."""
    own_loss_sums: FloatArray | None = None
    """(C,) sum of g(z) = log(1 + (C-1) exp(-C/(C-1) z)) over the same samples: at most the loss."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """A stretch of training steps (streaming) or one pass at frozen weights (exact), all ranks merged."""

    run_id: str
    split: str
    epoch: int
    """-1 when the loop named none."""
    step: int
    steps: int
    sampled_steps: int
    time: float
    duration_s: float
    exact: bool
    ncc_source: Literal["own", "previous", "none"]
    n_classes: int
    layers: tuple[LayerStats, ...]
    head: Head
    ignored_labels: int = 0
    skipped_batches: Mapping[str, int] = field(default_factory=dict)
    overhead: float | None = None
    ranks: tuple[int, ...] = (0,)
    """Ranks whose part is inside, ascending."""
    world_size: int = 1

    @property
    def partial(self) -> bool:
        """Whether the parts of some ranks are missing."""
        return len(self.ranks) < self.world_size

    @property
    def classifier_input(self) -> LayerStats | None:
        """The layer that feeds the classifier, None if it is not among the layers."""
        for layer in self.layers:
            if layer.key.name == CLASSIFIER_INPUT:
                return layer
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSeq:
    """One sequenced message of one stream: what an acknowledgement is about."""

    stream: bytes
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One rank's share of a window, as it came."""

    origin: StreamSeq
    rank: int
    window: Window
    packed: bytes = b""
    """The message itself, as the inbox keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number of a window, or the reason why there is none."""

    value: float | None
    reason: str = ""
    """Non-empty exactly when value is None."""
    attained_at: tuple[int, ...] = ()
    """The class, or the pair of classes, at which a minimum or maximum is attained."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerReadings:
    """All that was computed for one layer of one window."""

    key: LayerKey
    module: str
    reduction: str
    note: str
    n_features: int
    readings: Mapping[str, Reading]
    """By metric or bound name; names that do not apply to this layer are absent."""
    class_arrays: Mapping[str, FloatArray]
    """(C,) by name; NaN where a class has no value."""
    pair_arrays: Mapping[str, FloatArray]
    """(C, C) by name; NaN where a pair has no value."""
    quality: Mapping[str, float]
    """Samples, classes_present, rank_used, resolution_floor, zero_norm, nonfinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """One assumption of the theory in one window."""

    name: str
    holds: bool | None
    """None: not known."""
    fact: str
    """What says so."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """A window's readings: what is stored, published and shown."""

    window: Window
    layers: tuple[LayerReadings, ...]
    assumptions: tuple[Assumption, ...] = ()
    """What holds of the theory's assumptions; empty where an older ncmon did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A window that was accepted and could not be delivered."""

    run_id: str
    split: str
    epoch: int
    step: int
    time: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """A run's own last word."""

    run_id: str
    status: Literal["finished", "failed"]
    text: str
    time: float


Severity = Literal["alert", "warning", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something about a run that somebody should look at, from when a rule raised it until it was over."""

    alert_id: int = 0
    """In the store; 0 before it is there."""
    run_id: str
    rule: str
    severity: Severity
    split: str = ""
    """Empty where the run as a whole is meant; so are layer and class_index."""
    exact: bool = False
    layer: str = ""
    class_index: int | None = None
    epoch: int = -1
    step: int = -1
    """Of the window that raised it, -1 where none did."""
    since: float
    """Unix seconds, by the daemon's clock; so are the next two."""
    cleared: float | None = None
    acknowledged: float | None = None
    value: float | None = None
    """What was found, when it was raised."""
    text: str

    @property
    def open(self) -> bool:
        """Whether it is still so."""
        return self.cleared is None

    @property
    def pressing(self) -> bool:
        """Whether it is still so, nobody has acknowledged it, and it is more than good news."""
        return self.cleared is None and self.acknowledged is None and self.severity != "info"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rejection:
    """A message that can never become a window: kept, with its reason and at most 4 KB of it."""

    stream: bytes
    seq: int
    run_id: str
    code: str
    reason: str
    head: bytes
    time: float
