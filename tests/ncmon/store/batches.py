"""Batches for the store's tests."""

from __future__ import annotations

from typing import Any

from ncmon.model import StreamSeq
from ncmon.store.writer import Stored

STREAM = b"s" * 16


def stored(seq: int, item: Any, stream: bytes = STREAM) -> Stored:
    return Stored(origins=(StreamSeq(stream=stream, seq=seq),), item=item)
