"""The wire: every message between client and daemon, and nothing about how messages travel.

Rules of this module
- It imports neither torch nor zmq, and it is the only module of the client that the daemon imports.
- Decoding trusts nothing: lengths are checked before bytes are read, integers are bounded, unknown fields refused, and
  every array is a raw little-endian buffer whose size must equal the product of its shape. Never pickle.
- Encoding and decoding are inverse functions; both sides share the one table of arrays below.

A message is a list of frames `[header][meta][blob]...`, at most 18:

    header   36 bytes: magic, version, kind, flags, stream id, seq, crc32 of all that follows
    meta     msgpack of one frozen struct, named by `kind`, at most 256 KB
    blobs    one logical buffer, cut into frames of at most 8 MB; the arrays of a window lie in it one after the other,
             in the order of `WindowMeta.arrays`, without padding

Sequenced messages (WINDOW, GAP, END) carry a client's own counter `seq`, from 0 and without holes for one stream. A
stream is one start of one sending process. The daemon acknowledges with ACK{next} only after the commit, asks for a
rewind with NACK{next}, and asks for a new session with RESET when it does not know the peer.

    client                          daemon
      HELLO{versions, run}   ->
                             <-     WELCOME{version, next, credit}   or REFUSE{code, text}
      WINDOW seq=next        ->
                             <-     ACK{next = seq + 1}
"""

from __future__ import annotations

import enum
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ncmon_client.errors import WireError as WireError  # the daemon knows of the client this module alone

PROTOCOL = 1
READABLE = (1,)
"""Protocol versions that this code reads: N and, from the second version on, N-1."""

MAGIC = b"NCMW"
HEADER = struct.Struct("<4sHBB16sQI")
MAX_META_BYTES = 256 * 1024
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Larger frames are refused by the socket itself (MAXMSGSIZE)."""
BLOB_CUT_BYTES = 8 * 1024 * 1024
MAX_BLOBS = 16
MAX_FRAMES = 2 + MAX_BLOBS
MAX_CLASSES = 65_536
MAX_LAYERS = 1_024
MAX_DIM = 2**24

STREAM_BYTES = 16


class Kind(enum.IntEnum):
    """What a message is; the numbers are the protocol."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    WINDOW = 4
    GAP = 5
    END = 6
    ACK = 7
    NACK = 8
    RESET = 9


SEQUENCED = frozenset({Kind.WINDOW, Kind.GAP, Kind.END})

# Bounded field types: a hostile peer may send any integer or string that msgpack can express.
Name = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Json = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Epoch = Annotated[int, msgspec.Meta(ge=-1, lt=2**31)]
"""-1: the loop has not named an epoch."""
Resolution = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Dim = Annotated[int, msgspec.Meta(ge=0, le=MAX_DIM)]
Classes = Annotated[int, msgspec.Meta(ge=2, le=MAX_CLASSES)]
Rank = Annotated[int, msgspec.Meta(ge=0, lt=65_536)]
World = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
RunId = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")]


class _Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common rules of every struct on the wire."""


class RunInfo(_Meta, frozen=True, kw_only=True):
    """Who is training what; sent in every HELLO, so that a daemon that lost its store learns it again."""

    run_id: RunId
    name: Name
    config: Json
    """A JSON object, as text: the daemon stores it and never interprets it."""
    tags: Annotated[list[Name], msgspec.Meta(max_length=64)]
    host: Name
    pid: Count
    started: float
    """Unix seconds."""
    rank: Rank
    world_size: World
    n_classes: Classes
    class_names: Annotated[list[Name], msgspec.Meta(max_length=MAX_CLASSES)]
    """Empty, or one for each class."""
    client: Name
    """Version of ncmon-client."""


class Hello(_Meta, frozen=True, kw_only=True):
    versions: Annotated[list[Count], msgspec.Meta(min_length=1, max_length=8)]
    run: RunInfo


class Welcome(_Meta, frozen=True, kw_only=True):
    version: Count
    next: Count
    """The sequence number that the daemon expects from this stream."""
    credit_messages: Count
    credit_bytes: Count
    max_frame_bytes: Count


class Refuse(_Meta, frozen=True, kw_only=True):
    code: Name
    text: Text


class Ack(_Meta, frozen=True, kw_only=True):
    """Everything below `next` is committed."""

    next: Count


class Nack(_Meta, frozen=True, kw_only=True):
    """Out of order: send again from `next`."""

    next: Count


class Reset(_Meta, frozen=True, kw_only=True):
    """The daemon does not know this peer: open a new session."""


class Gap(_Meta, frozen=True, kw_only=True):
    """A window that the client accepted and could not deliver; recorded, so that a hole in a history has a reason."""

    run_id: RunId
    split: Name
    epoch: Epoch
    step: Count
    time: float
    reason: Text


class End(_Meta, frozen=True, kw_only=True):
    """The last message of a run."""

    run_id: RunId
    status: Literal["finished", "failed"]
    text: Text
    time: float


class LayerMeta(_Meta, frozen=True, kw_only=True):
    """One watched layer of a window; its arrays name it by its place in `WindowMeta.layers`."""

    name: Name
    index: Count
    """Place in the order of the forward pass, from the input, from 0."""
    module: Name
    """Class name of the module whose output was taken."""
    n_features: Dim
    reduction: Name
    """How a feature map became one vector a sample: `none`, `mean`, `flatten`, `cls`, `tokens`."""
    note: Text
    """What was reduced to fit the payload budget, or why something is missing; empty if nothing."""
    eps: Resolution = 2.0**-23
    """Machine epsilon of the features as the network computed them: 2^-7 for bfloat16."""


class HeadMeta(_Meta, frozen=True, kw_only=True):
    """The classifier, and the facts about the training objective that the bounds' assumptions ask for."""

    name: Name
    """Qualified name of the module; empty when the head is not a module."""
    has_bias: bool
    batch_norm: Name
    """Qualified name of the BatchNorm that feeds the classifier directly; empty if there is none."""
    batch_norm_eps: float
    weight_decay: float | None
    """Of the classifier's weight, from the optimizer; None when unknown."""
    weight_decay_gamma: float | None
    """Of the BatchNorm's scale, likewise."""
    decoupled_decay: bool | None
    """True for AdamW: then the objective (2.1) does not exist."""
    plain_loss: bool | None
    """The criterion is cross-entropy without label smoothing or class weights; None when unknown."""
    finite: bool
    """All parameters sent here are finite; where they are not, they are left out."""
    logits_eps: Resolution = 2.0**-23
    """Machine epsilon of the logits as the network computed them."""
    trained_loss: float | None = None
    """Mean over the window's samples of the loss that was trained; None where it was not heard, or is no such mean."""


class ArraySpec(_Meta, frozen=True, kw_only=True):
    name: Name
    layer: Annotated[int, msgspec.Meta(ge=-1, lt=MAX_LAYERS)]
    """Index into `WindowMeta.layers`; -1 for the classifier's own arrays."""
    dtype: Literal["f4", "f8", "i8"]
    shape: Annotated[list[Dim], msgspec.Meta(min_length=1, max_length=2)]


class WindowMeta(_Meta, frozen=True, kw_only=True):
    """A stretch of training steps (streaming), or one pass over a data set at frozen weights (exact)."""

    run_id: RunId
    rank: Rank
    world_size: World
    split: Name
    epoch: Epoch
    step: Count
    """Training steps done when the window closed."""
    steps: Count
    """Training steps inside the window (batches, for an exact one)."""
    sampled_steps: Count
    """Of those, the ones whose features were looked at."""
    time: float
    """Unix seconds at the close."""
    duration_s: float
    exact: bool
    ncc_source: Literal["own", "previous", "none"]
    """Class means that the nearest-class decisions used: the window's own (exact, second pass) or the previous ones."""
    n_classes: Classes
    layers: Annotated[list[LayerMeta], msgspec.Meta(max_length=MAX_LAYERS)]
    head: HeadMeta
    arrays: Annotated[list[ArraySpec], msgspec.Meta(max_length=16 * MAX_LAYERS)]
    ignored_labels: Count
    """Samples left out because their label was ignore_index or outside [0, n_classes)."""
    skipped_batches: Annotated[dict[Name, Count], msgspec.Meta(max_length=32)]
    """Batches that could not be used, by reason."""
    overhead: float | None
    """Measured share of the step time that the hook took; None before the first measurement."""


Meta = Hello | Welcome | Refuse | WindowMeta | Gap | End | Ack | Nack | Reset

_STRUCTS: dict[Kind, type[_Meta]] = {
    Kind.HELLO: Hello,
    Kind.WELCOME: Welcome,
    Kind.REFUSE: Refuse,
    Kind.WINDOW: WindowMeta,
    Kind.GAP: Gap,
    Kind.END: End,
    Kind.ACK: Ack,
    Kind.NACK: Nack,
    Kind.RESET: Reset,
}
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS = {kind: msgspec.msgpack.Decoder(struct_type) for kind, struct_type in _STRUCTS.items()}

# Every array that a window may hold: name -> (dtypes, symbols of its shape). C classes, d features of the layer,
# r = directions kept, H = width of the classifier's input. Class rows follow the declared classes; a class without
# samples has zero rows and a zero count. `sum` below runs over the finite samples of a class.
LAYER_ARRAYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "class_counts": (("i8",), ("C",)),  # finite samples
    "class_means": (("f4", "f8"), ("C", "d")),
    "within_sq": (("f8",), ("C",)),  # sum |h - mean_c|^2
    "unit_sums": (("f4", "f8"), ("C", "d")),  # sum h / |h|, zero vectors contribute 0
    "norm_sums": (("f8",), ("C",)),  # sum |h|
    "norm_sq_sums": (("f8",), ("C",)),  # sum |h|^2
    "zero_counts": (("i8",), ("C",)),  # samples with |h| = 0, part of class_counts
    "nonfinite_counts": (("i8",), ("C",)),  # samples with an infinite or NaN feature, not part of class_counts
    "ncc_counts": (("i8",), ("C",)),  # samples decided by the nearest class mean
    "ncc_hits": (("i8",), ("C",)),  # of those, decided for their own class
    "ncc_agree": (("i8",), ("C",)),  # of those, decided as the classifier's argmax
    "span_singular": (("f8",), ("r",)),  # singular values of the rows mean_c - mean_G of present classes, descending
    "span_within": (("f8",), ("r",)),  # v^T S v along the right singular vectors v; S = sum (h - mean)(h - mean)^T
    "within_scatter": (("f4", "f8"), ("d", "d")),  # S itself, sent when several ranks have to be merged
    "before_counts": (("i8",), ("C",)),  # finite samples in the window before of the same split, 0 where it had none
    "shift_sq": (("f8",), ("C",)),  # |mean_c - mean_c before|^2 of the classes that are in both windows
    "moment_weights": (("f8",), ("C",)),  # a_c of M = sum over all samples of a_c (h - mean)(h - mean)^T
    "span_weighted": (("f8",), ("r",)),  # v^T M v
    "weighted_scatter": (("f4", "f8"), ("d", "d")),  # M itself, sent when several ranks have to be merged
}
HEAD_ARRAYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "weight": (("f4", "f8"), ("C", "H")),
    "bias": (("f4", "f8"), ("C",)),
    "bn_gamma": (("f4", "f8"), ("H",)),
    "bn_beta": (("f4", "f8"), ("H",)),
    "label_counts": (("i8",), ("C",)),  # samples whose loss is finite
    "loss_sums": (("f8",), ("C",)),  # sum of plain cross-entropy, natural log, recomputed from the logits
    "correct": (("i8",), ("C",)),
    "loss_nonfinite": (("i8",), ("C",)),  # samples whose loss is infinite or NaN, not part of label_counts
    "own_logit_sums": (("f8",), ("C",)),  # sum z, the own logit less the mean of all logits, of those in label_counts
    "own_loss_sums": (("f8",), ("C",)),  # sum log(1 + (C-1) exp(-C/(C-1) z)), of the same samples
}

_ITEMSIZE = {"f4": 4, "f8": 8, "i8": 8}
_NUMPY: dict[str, np.dtype[Any]] = {"f4": np.dtype("<f4"), "f8": np.dtype("<f8"), "i8": np.dtype("<i8")}

Array = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded message. `blob` is the concatenation of the blob frames (windows only)."""

    kind: Kind
    stream: bytes
    seq: int
    meta: Meta
    blob: bytes = b""


def new_stream() -> bytes:
    """Return a fresh stream id: 16 random bytes."""
    return os.urandom(STREAM_BYTES)


def kind_of(meta: Meta) -> Kind:
    """Return the kind whose struct `meta` is."""
    for kind, struct_type in _STRUCTS.items():
        if type(meta) is struct_type:
            return kind
    raise TypeError(f"not a message of the wire: {type(meta).__name__}")


def encode(meta: Meta, *, stream: bytes, seq: int = 0, blob: bytes | memoryview = b"") -> list[bytes]:
    """Return the frames of one message.

    Raises `WireError` where the message would break the limits that the other side enforces.
    """
    body = pack_meta(meta)
    return seal(kind_of(meta), body, cut(blob), stream=stream, seq=seq)


def pack_meta(meta: Meta) -> bytes:
    """Return the msgpack bytes of one struct, refused above the limit."""
    body = _ENCODER.encode(meta)
    if len(body) > MAX_META_BYTES:
        raise WireError("meta-too-large", f"meta of {len(body)} bytes, at most {MAX_META_BYTES} are allowed")
    return body


def cut(blob: bytes | memoryview) -> list[bytes]:
    """Cut one buffer into frames of at most 8 MB; none for an empty one."""
    view = memoryview(blob).cast("B")
    if len(view) > MAX_BLOBS * BLOB_CUT_BYTES:
        raise WireError(
            "payload-too-large", f"payload of {len(view)} bytes, at most {MAX_BLOBS * BLOB_CUT_BYTES} are allowed"
        )
    return [bytes(view[start : start + BLOB_CUT_BYTES]) for start in range(0, len(view), BLOB_CUT_BYTES)]


def seal(kind: Kind, body: bytes, blobs: Sequence[bytes], *, stream: bytes, seq: int) -> list[bytes]:
    """Put a header before packed meta and blobs; stream and seq may change between two sendings of one message."""
    crc = zlib.crc32(body)
    for part in blobs:
        crc = zlib.crc32(part, crc)
    header = HEADER.pack(MAGIC, PROTOCOL, kind, 0, stream, seq, crc)
    return [header, body, *blobs]


def decode(frames: Sequence[bytes | memoryview]) -> Message:
    """Check and decode one message; `WireError` says what is wrong with it.

    The checks run from the cheapest to the dearest, and none reads past a length that was not checked before.
    """
    if not 2 <= len(frames) <= MAX_FRAMES:
        raise WireError("frames", f"a message has 2 to {MAX_FRAMES} frames, {len(frames)} came")
    header, body = bytes(frames[0]), bytes(frames[1]) if len(frames[1]) <= MAX_META_BYTES else None
    if len(header) != HEADER.size:
        raise WireError("header", f"a header has {HEADER.size} bytes, {len(header)} came")
    magic, version, kind_number, _flags, stream, seq, crc = HEADER.unpack(header)
    if magic != MAGIC:
        raise WireError("magic", f"not an ncmon message: it starts with {magic!r}, expected {MAGIC!r}")
    if version not in READABLE:
        raise WireError(
            "version",
            f"protocol {version} came, this side reads {', '.join(map(str, READABLE))}: update the older side",
        )
    if body is None:
        raise WireError("meta-too-large", f"meta of {len(frames[1])} bytes, at most {MAX_META_BYTES} are allowed")
    try:
        kind = Kind(kind_number)
    except ValueError:
        raise WireError("kind", f"unknown kind {kind_number}") from None
    if len(frames) > 2 and kind is not Kind.WINDOW:
        raise WireError("frames", f"{kind.name} carries no arrays, {len(frames) - 2} blobs came")
    actual = zlib.crc32(body)
    for part in frames[2:]:
        actual = zlib.crc32(part, actual)
    if actual != crc:
        raise WireError("crc", f"checksum {actual:08x} where the header says {crc:08x}: the bytes changed on the way")
    try:
        meta = _DECODERS[kind].decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, MemoryError) as error:
        raise WireError("meta", f"{kind.name} cannot be read: {error}") from None
    return Message(kind=kind, stream=stream, seq=seq, meta=meta, blob=b"".join(frames[2:]))  # type: ignore[arg-type]


def pack_arrays(arrays: Sequence[tuple[str, int, Array]]) -> tuple[list[ArraySpec], bytes]:
    """Lay `(name, layer, array)` out as one little-endian buffer; return the specs, in order, and the buffer."""
    specs: list[ArraySpec] = []
    parts: list[bytes] = []
    for name, layer, array in arrays:
        code = f"{array.dtype.kind}{array.dtype.itemsize}"
        if code not in _NUMPY:
            raise WireError("dtype", f"array {name!r} has dtype {array.dtype}, expected one of {', '.join(_NUMPY)}")
        little = np.ascontiguousarray(array, dtype=_NUMPY[code])
        specs.append(ArraySpec(name=name, layer=layer, dtype=code, shape=list(little.shape)))  # type: ignore[arg-type]
        parts.append(little.tobytes())
    return specs, b"".join(parts)


def unpack_arrays(meta: WindowMeta, blob: bytes) -> dict[tuple[int, str], Array]:
    """Return the arrays of a window as read-only views of `blob`, by `(layer, name)`.

    Raises `WireError` for an unknown or repeated array, a wrong dtype, a shape that contradicts the window's classes
    or the layer's width, and a buffer whose length is not the sum of the arrays'. Values are not looked at here.
    """
    width = {index: layer.n_features for index, layer in enumerate(meta.layers)}
    found: dict[tuple[int, str], Array] = {}
    offset = 0
    head_width: int | None = None
    for spec in meta.arrays:
        table = HEAD_ARRAYS if spec.layer == -1 else LAYER_ARRAYS
        where = "the classifier" if spec.layer == -1 else f"layer {spec.layer}"
        if spec.name not in table:
            raise WireError("array", f"unknown array {spec.name!r} of {where}")
        if (spec.layer, spec.name) in found:
            raise WireError("array", f"array {spec.name!r} of {where} came twice")
        if spec.layer >= len(meta.layers):
            raise WireError("array", f"array {spec.name!r} names {where}, the window has {len(meta.layers)} layers")
        dtypes, symbols = table[spec.name]
        if spec.dtype not in dtypes:
            raise WireError(
                "dtype", f"array {spec.name!r} of {where} has dtype {spec.dtype}, expected {' or '.join(dtypes)}"
            )
        expected: list[int] = []
        for axis, symbol in enumerate(symbols):
            size = spec.shape[axis] if axis < len(spec.shape) else -1
            if symbol == "C":
                expected.append(meta.n_classes)
            elif symbol == "d":
                expected.append(width[spec.layer])
            elif symbol == "H":
                head_width = size if head_width is None else head_width
                expected.append(head_width)
            else:
                expected.append(size)
        if list(spec.shape) != expected:
            raise WireError(
                "shape", f"array {spec.name!r} of {where} has shape {tuple(spec.shape)}, expected {tuple(expected)}"
            )
        length = math.prod(spec.shape) * _ITEMSIZE[spec.dtype]
        if offset + length > len(blob):
            raise WireError(
                "length", f"array {spec.name!r} of {where} needs bytes {offset} to {offset + length}, {len(blob)} came"
            )
        flat = np.frombuffer(blob, dtype=_NUMPY[spec.dtype], count=math.prod(spec.shape), offset=offset)
        found[spec.layer, spec.name] = flat.reshape(spec.shape)
        offset += length
    if offset != len(blob):
        raise WireError("length", f"{len(blob) - offset} bytes are left over after the last array")
    return found


def runtime_dir() -> Path:
    """Return the directory of default sockets: `$XDG_RUNTIME_DIR/ncmon`, else `ncmon-UID` under the temporary one."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "ncmon"
    return Path(tempfile.gettempdir()) / f"ncmon-{os.getuid()}"


def default_endpoint() -> str:
    """Return where client and daemon of one user on one node meet: `$NCMON_ENDPOINT`, else an ipc socket."""
    return os.environ.get("NCMON_ENDPOINT") or f"ipc://{runtime_dir() / 'ncmon.sock'}"
