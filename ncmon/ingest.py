"""A message becomes a noun of the model, or is rejected with a reason. This is where values are checked, once.

`wire.decode` answers for bytes, lengths and types, `wire.unpack_arrays` for shapes. What is left is meaning: numbers
that are finite, counts that can be counts of the same samples, arrays that belong together. Behind this module nothing
is checked again.

A window is taken in two steps: an `Arrival` is a message that could be read, and costs little; what it means is looked
at when it is evaluated (`to_part`). Between the two it may lie in the store's inbox, as bytes (`pack`).

Pure: it knows no socket, no store and no clock; the time of receipt is given.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncmon.errors import Rejected
from ncmon.model import (
    CLASSIFIER_INPUT,
    FloatArray,
    Gap,
    Head,
    IntArray,
    LayerKey,
    LayerStats,
    Part,
    Rejection,
    Run,
    RunEnd,
    StreamSeq,
    Window,
)
from ncmon_client import wire
from ncmon_client.wire import WireError

MAX_COUNT = 2**53
"""Above this a count is not exact as a float64."""
ROUNDING = 1e-6
"""A sum of squares may come out below zero by rounding; relative to the largest one of its array this is taken for
zero, and anything further below is a mistake of the sender."""
_DIFFERENCES = frozenset({"within_sq", "span_within", "span_weighted"})
"""Sums about a mean, found as differences of larger ones."""
REJECTION_HEAD_BYTES = 4096
MAX_REASON_CHARS = 2000
_LENGTH = struct.Struct("<I")

_REQUIRED = (
    "class_counts",
    "class_means",
    "within_sq",
    "unit_sums",
    "norm_sums",
    "norm_sq_sums",
    "zero_counts",
    "nonfinite_counts",
)
_TOGETHER = (("ncc_counts", "ncc_hits"), ("span_singular", "span_within"), ("before_counts", "shift_sq"))
_ONLY_WITH = (
    ("ncc_agree", "ncc_counts"),
    ("span_weighted", "span_within"),
    ("span_weighted", "moment_weights"),
    ("weighted_scatter", "within_scatter"),
    ("weighted_scatter", "moment_weights"),
)
_HEAD_TOGETHER = (
    ("label_counts", "loss_sums", "correct", "loss_nonfinite"),
    ("own_logit_sums", "own_loss_sums"),
    ("bn_gamma", "bn_beta"),
)
# (smaller, larger): class by class, a part is never more than its whole.
_PART_OF = (("zero_counts", "class_counts"), ("ncc_hits", "ncc_counts"), ("ncc_agree", "ncc_counts"))
_NOT_NEGATIVE = frozenset(
    {
        *("within_sq", "norm_sums", "norm_sq_sums", "shift_sq"),
        *("span_singular", "span_within", "span_weighted", "moment_weights"),
    }
)

_Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """A window as it came: legible, of the right run, and its numbers not looked at yet."""

    origin: StreamSeq
    run_id: str
    message: wire.Message
    frames: Sequence[bytes]
    received: float
    """Unix seconds, by the daemon's clock."""

    @property
    def nbytes(self) -> int:
        """Bytes of the message."""
        return sum(map(len, self.frames))


def pack(frames: Sequence[bytes]) -> bytes:
    """Return the frames of a message that could be read as one string of bytes; the checksum stays inside."""
    return b"".join((frames[0], _LENGTH.pack(len(frames[1])), *frames[1:]))


def unpack(packed: bytes) -> list[memoryview]:
    """Return the frames of a packed message, the blob as one; nothing is checked, `wire.decode` does."""
    view = memoryview(packed)
    start = wire.HEADER.size + _LENGTH.size
    if len(view) < start:
        return [view]
    (length,) = _LENGTH.unpack_from(view, wire.HEADER.size)
    frames = [view[: wire.HEADER.size], view[start : start + length], view[start + length :]]
    return frames if len(frames[2]) else frames[:2]


def to_part(message: wire.Message, *, received: float) -> Part:
    """Return the share of a window that a WINDOW message carries, everything as float64 and int64.

    `received` is the daemon's clock, in Unix seconds, for a sender whose own clock is not a number of this era.
    Raises `Rejected`, with a code and one line, for whatever can never become a window.
    """
    meta = message.meta
    if not isinstance(meta, wire.WindowMeta):
        raise Rejected("kind", f"a window was expected, {message.kind.name} came")
    _check_meta(meta)
    try:
        arrays = wire.unpack_arrays(meta, message.blob)
    except WireError as error:
        raise Rejected(error.code, str(error)) from None
    layers = tuple(
        _layer(index, layer, {name: array for (place, name), array in arrays.items() if place == index}, meta)
        for index, layer in enumerate(meta.layers)
    )
    head = _head(meta.head, {name: array for (place, name), array in arrays.items() if place == -1}, layers)
    window = Window(
        run_id=meta.run_id,
        split=meta.split,
        epoch=meta.epoch,
        step=meta.step,
        steps=meta.steps,
        sampled_steps=meta.sampled_steps,
        time=meta.time if meta.time > 0 else received,
        duration_s=meta.duration_s,
        exact=meta.exact,
        ncc_source=meta.ncc_source,
        n_classes=meta.n_classes,
        layers=layers,
        head=head,
        ignored_labels=meta.ignored_labels,
        skipped_batches=dict(meta.skipped_batches),
        overhead=meta.overhead,
        ranks=(meta.rank,),
        world_size=meta.world_size,
    )
    return Part(origin=StreamSeq(stream=message.stream, seq=message.seq), rank=meta.rank, window=window)


def to_gap(message: wire.Message) -> Gap:
    """Return the gap that a GAP message records."""
    meta = message.meta
    if not isinstance(meta, wire.Gap):
        raise Rejected("kind", f"a gap was expected, {message.kind.name} came")
    _finite("time", meta.time)
    return Gap(
        run_id=meta.run_id, split=meta.split, epoch=meta.epoch, step=meta.step, time=meta.time, reason=meta.reason
    )


def to_end(message: wire.Message) -> RunEnd:
    """Return the end of a run that an END message tells."""
    meta = message.meta
    if not isinstance(meta, wire.End):
        raise Rejected("kind", f"the end of a run was expected, {message.kind.name} came")
    _finite("time", meta.time)
    return RunEnd(run_id=meta.run_id, status=meta.status, text=meta.text, time=meta.time)


def to_run(info: wire.RunInfo) -> Run:
    """Return the run that a HELLO introduces, live from now on."""
    _finite("started", info.started)
    if info.rank >= info.world_size:
        raise Rejected("rank", f"rank {info.rank} in a world of {info.world_size}")
    if info.class_names and len(info.class_names) != info.n_classes:
        raise Rejected("class-names", f"{len(info.class_names)} class names for {info.n_classes} classes")
    return Run(
        run_id=info.run_id,
        name=info.name,
        status="live",
        started=info.started,
        host=info.host,
        pid=info.pid,
        world_size=info.world_size,
        n_classes=info.n_classes,
        class_names=tuple(info.class_names),
        config=_config(info.config),
        tags=tuple(info.tags),
        client=info.client,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What can be read of a message whose rest cannot."""

    kind: wire.Kind
    stream: bytes
    seq: int


def address(frames: Sequence[bytes]) -> Address | None:
    """Return whose message this is, None where not even its header can be read.

    The header keeps its layout from version to version, so that a version that is not read here can be answered.
    """
    if not frames or len(frames[0]) != wire.HEADER.size:
        return None
    magic, _version, kind, _flags, stream, seq, _crc = wire.HEADER.unpack(frames[0])
    if magic != wire.MAGIC or kind not in set(wire.Kind):
        return None
    return Address(kind=wire.Kind(kind), stream=stream, seq=seq)


def to_rejection(
    frames: Sequence[bytes | memoryview],
    *,
    stream: bytes,
    seq: int,
    run_id: str,
    error: Rejected | WireError,
    now: float,
) -> Rejection:
    """Return the record of a message that can never become a window, with its first 4 KB."""
    head = b""
    for frame in frames:
        head += bytes(frame[: REJECTION_HEAD_BYTES - len(head)])
    return Rejection(
        stream=stream,
        seq=seq,
        run_id=run_id,
        code=error.code,
        # Replaced, not refused: the reason may quote the very bytes that could not be read.
        reason=str(error)[:MAX_REASON_CHARS].encode("utf-8", "replace").decode("utf-8"),
        head=head,
        time=now,
    )


def _config(text: str) -> dict[str, Any]:
    try:
        # NaN and infinities are no JSON and a database refuses them: as text they are still what the user wrote.
        config = json.loads(text, parse_constant=str)
        # "\ud800" is JSON, and no text that could be stored.
        json.dumps(config, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Rejected("config", f"the run's config is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise Rejected("config", f"the run's config is a JSON {type(config).__name__}, expected an object")
    return config


def _check_meta(meta: wire.WindowMeta) -> None:
    for name in ("time", "duration_s", "overhead"):
        _finite(name, getattr(meta, name))
    if meta.duration_s < 0:
        raise Rejected("negative", f"duration_s is {meta.duration_s}")
    if meta.rank >= meta.world_size:
        raise Rejected("rank", f"rank {meta.rank} in a world of {meta.world_size}")
    if meta.sampled_steps > meta.steps:
        raise Rejected("counts", f"{meta.sampled_steps} sampled steps in a window of {meta.steps}")
    seen: set[str] = set()
    for layer in meta.layers:
        if layer.name in seen:
            raise Rejected("layers", f"layer {layer.name!r} came twice")
        if not layer.name or layer.n_features < 1:
            raise Rejected("layers", f"layer {layer.name!r} has {layer.n_features} features")
        seen.add(layer.name)


def _layer(index: int, layer: wire.LayerMeta, arrays: _Arrays, meta: wire.WindowMeta) -> LayerStats:
    where = f"layer {layer.name!r}"
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise Rejected("missing", f"{where} lacks {', '.join(missing)}")
    _check_together(where, arrays, _TOGETHER)
    for name, needed in _ONLY_WITH:
        if name in arrays and needed not in arrays:
            raise Rejected("missing", f"{where} has {name} without {needed}")
    single = arrays["class_means"].dtype.itemsize == 4
    squares = float(np.sum(np.abs(arrays["norm_sq_sums"])))
    values = {name: _values(where, name, array, squares) for name, array in arrays.items()}
    for part, whole in _PART_OF:
        if part in values and whole in values:
            _check_part(where, part, values[part], whole, values[whole])
    if meta.ncc_source == "previous" and "ncc_counts" in values:
        # A second pass ("own") may see other samples of a class; decisions taken on the way cannot.
        _check_part(where, "ncc_counts", values["ncc_counts"], "class_counts", values["class_counts"])
    if "span_singular" in values:
        most = min(meta.n_classes, layer.n_features)
        for name in ("span_within", "span_weighted"):
            if name in values:
                _check_span(where, values["span_singular"], values[name], most)
    return LayerStats(
        key=LayerKey(name=layer.name, index=layer.index),
        module=layer.module,
        reduction=layer.reduction,
        note=layer.note,
        eps=layer.eps,
        n_features=layer.n_features,
        means_f4=single,
        **values,
    )


def _head(head: wire.HeadMeta, arrays: _Arrays, layers: Sequence[LayerStats]) -> Head:
    where = "the classifier"
    for name in ("batch_norm_eps", "weight_decay", "weight_decay_gamma", "trained_loss"):
        _finite(name, getattr(head, name))
    _check_together(where, arrays, _HEAD_TOGETHER)
    values = {name: _values(where, name, array) for name, array in arrays.items()}
    if "correct" in values:
        seen = values["label_counts"] + values["loss_nonfinite"]
        _check_part(where, "correct", values["correct"], "label_counts + loss_nonfinite", seen)
    width = next((layer.n_features for layer in layers if layer.key.name == CLASSIFIER_INPUT), None)
    for name in ("weight", "bn_gamma", "bn_beta"):
        if width is not None and name in values and values[name].shape[-1] != width:
            raise Rejected(
                "shape", f"{name} of {where} is {values[name].shape[-1]} wide, the features that enter it are {width}"
            )
    return Head(
        name=head.name,
        has_bias=head.has_bias,
        batch_norm=head.batch_norm,
        batch_norm_eps=head.batch_norm_eps,
        weight_decay=head.weight_decay,
        weight_decay_gamma=head.weight_decay_gamma,
        decoupled_decay=head.decoupled_decay,
        plain_loss=head.plain_loss,
        finite=head.finite,
        logits_eps=head.logits_eps,
        trained_loss=head.trained_loss,
        **values,
    )


def _values(where: str, name: str, array: NDArray[Any], squares: float = 0.0) -> Any:
    """Return the array as int64 or float64 of its own, checked alone; `squares` is the sum of |h|^2 of the layer."""
    if array.dtype.kind == "i":
        counts: IntArray = array.astype(np.int64)
        if counts.size and (counts.min() < 0 or counts.max() >= MAX_COUNT):
            raise Rejected("counts", f"{name} of {where} counts from {counts.min()} to {counts.max()}")
        return counts
    numbers: FloatArray = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        bad = int(numbers.size - np.isfinite(numbers).sum())
        raise Rejected("nonfinite", f"{name} of {where} has {bad} values that are not finite, of {numbers.size}")
    if name in _NOT_NEGATIVE:
        return _not_negative(where, name, numbers, squares if name in _DIFFERENCES else 0.0)
    if name in ("within_scatter", "weighted_scatter"):
        np.fill_diagonal(numbers, _not_negative(where, name, np.diagonal(numbers), squares))
    return numbers


def _not_negative(where: str, name: str, numbers: FloatArray, squares: float) -> FloatArray:
    """Return the sums of squares. What is below zero by rounding of itself is zero; what is by rounding of the larger
    sums that it is the difference of stays negative, for metrics to say that it is below resolution.
    """
    if numbers.size == 0:
        return numbers
    largest = max(0.0, float(numbers.max()))
    if numbers.min() < -ROUNDING * max(largest, squares):
        raise Rejected("negative", f"{name} of {where} goes down to {numbers.min():.6g}, a sum of squares does not")
    # Also turns -0.0 into 0.0.
    return np.where(numbers >= -ROUNDING * largest, np.maximum(numbers, 0.0), numbers) + 0.0


def _check_part(where: str, part: str, smaller: IntArray, whole: str, larger: IntArray) -> None:
    if (smaller > larger).any():
        at = int(np.argmax(smaller > larger))
        raise Rejected("counts", f"{where}, class {at}: {part} is {smaller[at]}, {whole} is {larger[at]}")


def _check_together(where: str, arrays: _Arrays, groups: Sequence[Sequence[str]]) -> None:
    for group in groups:
        present = [name for name in group if name in arrays]
        if present and len(present) < len(group):
            lacking = [name for name in group if name not in arrays]
            raise Rejected("missing", f"{where} has {', '.join(present)} without {', '.join(lacking)}")


def _check_span(where: str, singular: FloatArray, within: FloatArray, most: int) -> None:
    if singular.size != within.size or singular.size > most:
        raise Rejected(
            "span",
            f"{where} has {singular.size} singular values and {within.size} variances along them, "
            f"expected as many, and at most {most}",
        )
    if (np.diff(singular) > 0).any():
        raise Rejected("span", f"{where} has singular values that are not in descending order")


def _finite(name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise Rejected("nonfinite", f"{name} is {value}")
