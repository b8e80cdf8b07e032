"""BLOBs: what was computed is what is read, and damage is one line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ncmon.errors import StoreError
from ncmon.store import arrays

ANY = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=6))


@given(ANY)
def test_what_is_packed_comes_back_bit_for_bit(array: np.ndarray) -> None:
    back = arrays.unpack(arrays.pack(array))
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


@given(st.integers(1, 8), st.integers(0, 2**31))
def test_a_symmetric_matrix_is_stored_once(size: int, seed: int) -> None:
    half = np.random.default_rng(seed).normal(size=(size, size))
    half[0, -1] = np.nan
    matrix = np.triu(half) + np.triu(half, 1).T
    blob = arrays.pack(matrix)
    assert len(blob) == 10 + 8 * size * (size + 1) // 2
    np.testing.assert_array_equal(arrays.unpack(blob), matrix)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x01",
        b"\x01\x01\x05\x00\x00\x00" + bytes(8),
        b"\x09\x01\x01\x00\x00\x00" + bytes(8),
        arrays.pack(np.eye(3))[:-1],
        b"\x02\x00",
    ],
)
def test_a_damaged_blob_says_so(blob: bytes) -> None:
    with pytest.raises(StoreError, match=r"damaged|does not know"):
        arrays.unpack(blob)
