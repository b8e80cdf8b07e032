"""The desk: answers viewers on other machines, who cannot read the database, with what `feed` shows here.

It runs in the daemon's loop, between two batches, so that it reads at most once a second for each question; whoever has
seen what there is gets a few bytes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ncmon import packing
from ncmon.errors import NcmonError
from ncmon.feed import Feed, Selection

KEPT = 8
"""Answers that are kept: viewers that look at the same thing share one."""
FRESH_S = 1.0

_Kept = tuple[float, str, bytes]
"""When it was read, its token, and the snapshot as bytes."""


class Desk:
    """Answers questions about one database."""

    def __init__(self, database: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._feed = Feed(endpoint=None, database=database)
        self._monotonic = monotonic
        self._kept: OrderedDict[Selection, _Kept] = OrderedDict()

    def answer(self, request: bytes, status: Mapping[str, Any]) -> bytes:
        """Return the reply to one request; an empty one for what is no question. Never raises for what was asked."""
        try:
            question = msgspec.msgpack.decode(request, type=packing.Question)
            selection = msgspec.convert(question.selection, Selection)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return b""
        _, token, snapshot = self._snapshot(selection)
        reply = packing.Reply(
            token=token,
            snapshot=b"" if question.seen == token else snapshot,
            counters={str(name): int(count) for name, count in dict(status.get("counters", {})).items()},
            host=str(status.get("host", "")),
        )
        return msgspec.msgpack.encode(reply)

    def seen(self, request: bytes) -> tuple[int, ...] | None:
        """Return the alerts that a viewer says it has seen, None where the request says something else."""
        try:
            return tuple(msgspec.msgpack.decode(request, type=packing.Acknowledge).acknowledge)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None

    def close(self) -> None:
        """Close the database."""
        self._feed.close()

    def _snapshot(self, selection: Selection) -> _Kept:
        now = self._monotonic()
        kept = self._kept.get(selection)
        if kept is not None and now < kept[0] + FRESH_S:
            return kept
        try:
            found = self._feed.read(selection)
            token, snapshot = f"{found.version}", packing.encode(found)
        except (NcmonError, TypeError, KeyError) as error:
            token, snapshot = f"failed: {error}"[:200], b""
        made = (now, f"{id(self)}/{token}", snapshot)
        self._kept[selection] = made
        self._kept.move_to_end(selection)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return made
