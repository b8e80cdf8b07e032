"""Frozen values of the model as bytes and back, for viewers on other machines. No types of its own, and never pickle.

What a value is decoded to is said by the caller; bytes decide nothing but values. Arrays are little-endian float64,
int64 or bool with their shape.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec
import numpy as np

from ncmon.errors import NcmonError

T = TypeVar("T")


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a viewer on another machine asks the daemon."""

    selection: dict[str, Any]
    """What it looks at, by the names of `feed.Selection`."""
    seen: str
    """Token of the answer that it has; the same one needs no second copy."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What it is told."""

    token: str
    snapshot: bytes
    """Empty where the viewer has it already."""
    counters: dict[str, int]
    host: str


class Acknowledge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A viewer on another machine has seen these alerts."""

    acknowledge: list[int]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Whether that was stored."""

    problem: str
    """One line on why not, empty otherwise."""


_DTYPES = {"f8": np.dtype("<f8"), "i8": np.dtype("<i8"), "b1": np.dtype("?")}


def encode(value: Any) -> bytes:
    """Return a value of dataclasses, containers, numbers, text, paths and arrays as bytes."""
    return msgspec.msgpack.encode(value, enc_hook=_encode)


def decode(data: bytes, into: type[T]) -> T:
    """Return a value of the type `into`; raises `NcmonError` for bytes that are not one."""
    try:
        return msgspec.msgpack.decode(data, type=into, dec_hook=_decode)
    except (msgspec.MsgspecError, UnicodeError, ValueError, TypeError, RecursionError) as error:
        raise NcmonError(f"the daemon's answer cannot be read, is it another version of ncmon? ({error})") from None


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        code = f"{value.dtype.kind}{value.dtype.itemsize}"
        return {"d": code, "s": list(value.shape), "b": np.ascontiguousarray(value, dtype=_DTYPES[code]).tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not sent to viewers")


def _decode(into: Any, value: Any) -> Any:
    if into is Path:
        return Path(value)
    if (get_origin(into) or into) is np.ndarray:
        dtype, shape, raw = _DTYPES[value["d"]], [int(size) for size in value["s"]], value["b"]
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
            raise ValueError(f"an array of shape {shape} came in {len(raw)} bytes")
        array = np.frombuffer(raw, dtype=dtype).reshape(shape)
        array.flags.writeable = False
        return array
    raise TypeError(f"{into} is not expected")
