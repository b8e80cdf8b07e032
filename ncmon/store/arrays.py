"""Arrays as BLOBs: one codec byte, one byte of dimensions, each size as little-endian uint32, then the numbers.

    1  float64, little-endian, row by row
    2  a symmetric matrix: the upper triangle of it, diagonal included, as 1

Full precision: what was computed is what is read. Never pickle, never numpy's own format.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from ncmon.errors import StoreError
from ncmon.model import FloatArray

_PLAIN = 1
_SYMMETRIC = 2
_F8 = np.dtype("<f8")


def pack(array: FloatArray) -> bytes:
    """Return an array of one or two dimensions as a BLOB."""
    head = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    values = np.ascontiguousarray(array, dtype=_F8)
    if array.ndim == 2 and array.shape[0] == array.shape[1] and np.array_equal(values, values.T, equal_nan=True):
        return bytes([_SYMMETRIC]) + head + values[np.triu_indices(array.shape[0])].tobytes()
    return bytes([_PLAIN]) + head + values.tobytes()


def unpack(blob: bytes) -> FloatArray:
    """Return the array of a BLOB, writable; raises `StoreError` when it is damaged."""
    try:
        codec, n_dims = struct.unpack_from("<BB", blob)
        shape = struct.unpack_from(f"<{n_dims}I", blob, 2)
        offset = 2 + 4 * n_dims
        if codec == _PLAIN:
            return np.frombuffer(blob, dtype=_F8, count=math.prod(shape), offset=offset).reshape(shape).astype(float)
        if codec == _SYMMETRIC:
            size = shape[0]
            # A mask goes through the memory in order: of a thousand classes, a quarter of the time that indices take.
            upper = ~np.tri(size, k=-1, dtype=bool)
            values = np.empty((size, size))
            found = np.frombuffer(blob, dtype=_F8, count=size * (size + 1) // 2, offset=offset)
            values[upper] = found
            values.T[upper] = found
            return values
    except (struct.error, ValueError, IndexError) as error:
        raise StoreError(f"a stored array is damaged: {error}") from error
    raise StoreError(f"a stored array has codec {codec}, which this ncmon does not know")
