"""The reception: which stream a client's message belongs to, whether it is its turn, and what to answer.

Rules of this module
- No sockets and no clocks: a message and the time go in; what can be stored comes out, answers lie in `answers`.
- A message that can never become a window takes its turn as a rejection, so that it never blocks its stream.
- Only what the store has committed, evaluated or into its inbox, is ever told as acknowledged.

Of each stream it knows two numbers: `committed`, what the store expects next, and `expected`, what comes next on the
connection. Between them lies what was received and is not stored yet, most of it held by the collector for other ranks.

    seq < expected    acknowledged again (up to `committed`), and otherwise ignored
    seq = expected    taken
    seq > expected    answered NACK{expected}, once: what is on its way behind it needs no second one

A stream is bound to the connection on which it last said HELLO. Anything else is answered RESET, and the client begins
a new session, in which the store's own number counts.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from ncmon import ingest
from ncmon.collector import Collector, Passing, Ready
from ncmon.errors import Rejected
from ncmon.ingest import Arrival
from ncmon.model import Gap, Part, Rejection, Run, RunEnd, StreamSeq
from ncmon_client import wire
from ncmon_client.wire import WireError

CREDIT_MESSAGES = 512
"""In flight of one client: what arrives while a batch is committed, so that small windows do not wait for the disk."""
CREDIT_SHARES = 64
"""Where several ranks send shares, which may be held in memory until the last one has come."""
CREDIT_BYTES = 32 * 1024 * 1024
CROWD_BYTES = 64 * 1024 * 1024
"""Of all clients together. One message of each may always be on its way, whatever its size."""
MAX_STREAMS = 4096
MAX_REFUSAL_CHARS = 1000
COMPLAIN_EVERY_S = 1.0


class Ledger(Protocol):
    """What the store knows about streams."""

    def stream_next(self, stream: bytes) -> int | None:
        """Return what is expected next of a stream, None for an unknown one. May raise `StoreError`."""
        ...

    def put_run(self, run: Run, stream: bytes, *, now: float, rank: int = 0) -> None:
        """Introduce the stream of a rank, and its run. May raise `StoreError`."""
        ...

    def attempt(self, stream: bytes) -> int:
        """Return which attempt of its run a stream belongs to. May raise `StoreError`."""
        ...


@dataclass(slots=True, kw_only=True)
class Counters:
    """What happened since the daemon began."""

    accepted: int = 0
    """Messages that took their turn: each is stored, kept as a rejection, or waits."""
    rejected: int = 0
    """Messages that can never become a window."""
    refused: int = 0
    """Sessions that were refused, and messages of nobody."""
    duplicates: int = 0
    """Messages that came again."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Stream:
    peer: bytes
    """Routing id of its connection."""
    run: wire.RunInfo
    committed: int
    expected: int
    owner: str = ""
    """Whose key opened it; empty for the owner of the daemon's account."""
    nacked: int = -1
    """The number that the last NACK asked for."""


class Complaints:
    """Warnings for the log, at most one a second for each code: who floods the daemon does not flood its log."""

    def __init__(self, log: logging.Logger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._last: dict[str, tuple[float, int]] = {}

    def say(self, code: str, text: str) -> None:
        """Log `text`, or count it where its code was heard just before."""
        now = self._monotonic()
        last, silent = self._last.get(code, (now - COMPLAIN_EVERY_S, 0))
        if now - last < COMPLAIN_EVERY_S:
            self._last[code] = (last, silent + 1)
            return
        self._last[code] = (now, 0)
        self._log.warning("%s%s", printable(text), f" (and {silent} more of the kind)" if silent else "")


def printable(text: str) -> str:
    """Return text of a client as one line without control characters, for the log."""
    return "".join(character if character.isprintable() else "�" for character in text[:1000])


class Reception:
    """The sessions of all clients, in front of one collector."""

    def __init__(self, *, ledger: Ledger, collector: Collector, log: logging.Logger, complaints: Complaints) -> None:
        self._ledger = ledger
        self._collector = collector
        self._log = log
        self._complaints = complaints
        self._streams: OrderedDict[bytes, _Stream] = OrderedDict()
        """The one that was silent for longest comes first."""
        self.counters = Counters()
        self.answers: list[tuple[bytes, list[bytes]]] = []
        """`(peer, frames)` to be sent, taken away by the caller."""
        self.crowd = 1
        """How many clients are connected, as the caller knows: they share what may be in flight."""

    # -- what comes in ------------------------------------------------------------------------------------------------

    def receive(self, peer: bytes, frames: Sequence[bytes], *, now: float, wall: float, user: str = "") -> list[Ready]:
        """Take a message from connection `peer`, which showed the key of `user`; return what can be stored now.

        `now` is the monotonic clock, `wall` Unix time, both in seconds.
        """
        try:
            message = wire.decode(frames)
        except WireError as error:
            return self._unreadable(peer, frames, error, now, wall)
        if isinstance(message.meta, wire.Hello):
            self._hello(peer, message.stream, message.meta, wall, user)
            return []
        if message.kind not in wire.SEQUENCED:
            self._complaints.say("kind", f"a client sent {message.kind.name}, which only the daemon says")
            return []
        stream = self._in_turn(peer, message.stream, message.seq)
        if stream is None:
            return []
        item: Part | Passing | Arrival
        try:
            item = self._item(stream, message, frames, wall)
        except Rejected as error:
            item = self._rejection(stream, frames, message.stream, message.seq, error, wall)
        except Exception as error:
            # Whatever it was, the message has its turn and must not be asked for again for ever.
            why = Rejected("internal", f"{type(error).__name__}: {error}")
            item = self._rejection(stream, frames, message.stream, message.seq, why, wall)
        return self._take(stream, StreamSeq(stream=message.stream, seq=message.seq), item, now)

    def run_of(self, stream: bytes) -> str:
        """Return the run of a stream, empty when it is not known."""
        known = self._streams.get(stream)
        return known.run.run_id if known is not None else ""

    def connected_runs(self, peers: int) -> frozenset[str]:
        """Return the runs of the `peers` streams that were heard of last: at most so many are connected."""
        newest = list(self._streams.values())[-peers:] if peers else []
        return frozenset(stream.run.run_id for stream in newest)

    # -- what the store said ------------------------------------------------------------------------------------------

    def stored(self, origins: Sequence[StreamSeq]) -> None:
        """These messages are committed: acknowledge them."""
        moved: set[bytes] = set()
        for origin in origins:
            stream = self._streams.get(origin.stream)
            if stream is not None:
                stream.committed = max(stream.committed, origin.seq + 1)
                moved.add(origin.stream)
        self._acknowledge(moved)

    def ask_again(self) -> None:
        """What was received and not stored is forgotten: ask every stream for what the store does not have."""
        self._collector.drop()
        for stream_id, stream in self._streams.items():
            with suppress(Exception):  # a store that cannot even be read is asked again after the next pause
                stream.committed = self._ledger.stream_next(stream_id) or 0
            self.counters.accepted -= max(0, stream.expected - stream.committed)
            if stream.expected != stream.committed:
                stream.expected = stream.nacked = stream.committed
                self._answer(stream.peer, stream_id, wire.Nack(next=stream.committed))

    def remind(self, *, everybody: bool = False) -> None:
        """Tell the streams that wait for other ranks that they are not forgotten; their clients would hang up.

        With `everybody` all that are connected are told, because nothing is received at present or the daemon is
        behind: whose messages wait in the sockets is not known here, and who begins a new session sends them all again.
        """
        waiting = self._collector.held_streams()
        if everybody and self.crowd:
            waiting |= frozenset(list(self._streams)[-self.crowd :])
        self._acknowledge(waiting)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def _hello(self, peer: bytes, stream_id: bytes, hello: wire.Hello, wall: float, user: str) -> None:
        info = hello.run
        if not set(hello.versions) & set(wire.READABLE):
            spoken = ", ".join(map(str, wire.READABLE))
            self._refuse(peer, stream_id, "version", f"this daemon speaks protocol {spoken}: update the older side")
            return
        known = self._streams.get(stream_id)
        if known is not None and (known.run.run_id, known.run.rank) != (info.run_id, info.rank):
            self._refuse(peer, stream_id, "stream", f"the stream belongs to run {known.run.run_id}")
            return
        if known is not None and user and known.owner != user:
            self._refuse(peer, stream_id, "stream", "the stream belongs to another key")
            return
        try:
            run = ingest.to_run(info)
        except Rejected as error:
            self._refuse(peer, stream_id, error.code, str(error))
            return
        try:
            committed = self._ledger.stream_next(stream_id)
            if committed is None:
                # Only a stream that the store does not know introduces its run: one that comes back when its END is
                # stored must not bring a finished run to life.
                self._ledger.put_run(run, stream_id, now=wall, rank=info.rank)
                committed = self._ledger.stream_next(stream_id) or 0
            attempt = self._ledger.attempt(stream_id)
        except Exception as error:
            # The store's trouble, whatever it is: the client comes back by itself.
            self._complaints.say("store", f"run {run.run_id} has to wait: {error}")
            self._answer(peer, stream_id, wire.Reset())
            return
        if known is None:
            self._log.info(
                "run %s (%s) from %s, pid %d: rank %d of %d, message %d is next",
                run.run_id,
                printable(run.name),
                printable(run.host),
                run.pid,
                info.rank,
                run.world_size,
                committed,
            )
            known = _Stream(peer=peer, run=info, committed=committed, expected=committed, owner=user)
            self._streams[stream_id] = known
            while len(self._streams) > MAX_STREAMS:
                oldest, _ = self._streams.popitem(last=False)
                self._collector.forget(oldest)
        known.peer, known.nacked = peer, -1
        if committed < known.committed:
            # The store was put back to an earlier state under the daemon. What is left comes as a new stream.
            known.committed = known.expected = committed
        self._streams.move_to_end(stream_id)
        self._collector.open(stream_id, run_id=info.run_id, rank=info.rank, attempt=attempt)
        welcome = wire.Welcome(
            version=wire.PROTOCOL,
            next=committed,
            credit_messages=_credit(info),
            credit_bytes=min(CREDIT_BYTES, CROWD_BYTES // max(1, self.crowd)),
            max_frame_bytes=wire.MAX_FRAME_BYTES,
        )
        self._answer(peer, stream_id, welcome)

    def _in_turn(self, peer: bytes, stream_id: bytes, seq: int) -> _Stream | None:
        """Return the stream if this is its next message; otherwise answer what is."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.peer != peer:
            self._answer(peer, stream_id, wire.Reset())
            return None
        self._streams.move_to_end(stream_id)
        if seq < stream.expected:
            self.counters.duplicates += 1
            self._answer(peer, stream_id, wire.Ack(next=stream.committed))
            return None
        if seq > stream.expected:
            if stream.nacked != stream.expected:
                stream.nacked = stream.expected
                self._answer(peer, stream_id, wire.Nack(next=stream.expected))
            return None
        if stream.expected - stream.committed >= 2 * _credit(stream.run):
            # No client of ours does this; what is held for other ranks has to stay bounded all the same.
            self._complaints.say("credit", f"run {stream.run.run_id} sends beyond its credit")
            return None
        return stream

    # -- messages -----------------------------------------------------------------------------------------------------

    def _item(
        self, stream: _Stream, message: wire.Message, frames: Sequence[bytes], wall: float
    ) -> Part | Gap | RunEnd | Arrival:
        meta, run = message.meta, stream.run
        if getattr(meta, "run_id", run.run_id) != run.run_id:
            raise Rejected("run", f"a message of another run came in a stream of {run.run_id}")
        if isinstance(meta, wire.Gap):
            return ingest.to_gap(message)
        if isinstance(meta, wire.End):
            return ingest.to_end(message)
        if isinstance(meta, wire.WindowMeta) and (
            (meta.rank, meta.world_size, meta.n_classes) != (run.rank, run.world_size, run.n_classes)
        ):
            raise Rejected(
                "run",
                f"rank {meta.rank} of {meta.world_size} with {meta.n_classes} classes came, HELLO said rank {run.rank} "
                f"of {run.world_size} with {run.n_classes}",
            )
        if run.world_size == 1:
            origin = StreamSeq(stream=message.stream, seq=message.seq)
            return Arrival(origin=origin, run_id=run.run_id, message=message, frames=frames, received=wall)
        return replace(ingest.to_part(message, received=wall), packed=ingest.pack(frames))

    def _unreadable(
        self, peer: bytes, frames: Sequence[bytes], error: WireError, now: float, wall: float
    ) -> list[Ready]:
        address = ingest.address(frames)
        if address is None or address.kind not in wire.SEQUENCED:
            self.counters.refused += 1
            self._complaints.say(error.code, f"a message was dropped ({error.code}): {error}")
            if address is not None and address.kind is wire.Kind.HELLO:
                refuse = wire.Refuse(code=error.code, text=printable(str(error)))
                self._answer(peer, address.stream, refuse)
            return []
        stream = self._in_turn(peer, address.stream, address.seq)
        if stream is None:
            return []
        item = self._rejection(stream, frames, address.stream, address.seq, error, wall)
        return self._take(stream, StreamSeq(stream=address.stream, seq=address.seq), item, now)

    def _rejection(
        self,
        stream: _Stream,
        frames: Sequence[bytes],
        stream_id: bytes,
        seq: int,
        error: Rejected | WireError,
        wall: float,
    ) -> Rejection:
        self.counters.rejected += 1
        run_id = stream.run.run_id
        self._complaints.say(error.code, f"run {run_id}: message {seq} is rejected ({error.code}): {error}")
        return ingest.to_rejection(frames, stream=stream_id, seq=seq, run_id=run_id, error=error, now=wall)

    def _take(self, stream: _Stream, origin: StreamSeq, item: Part | Passing | Arrival, now: float) -> list[Ready]:
        self.counters.accepted += 1
        stream.expected = origin.seq + 1
        if isinstance(item, RunEnd):
            self._log.info("run %s %s %s", item.run_id, item.status, printable(item.text))
        if isinstance(item, Arrival):
            # Nothing of a run with one rank ever waits in the collector.
            return [Ready(item=item, origins=(origin,))]
        return self._collector.put(item, origin, now=now)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _acknowledge(self, streams: set[bytes] | frozenset[bytes]) -> None:
        for stream_id in streams:
            stream = self._streams.get(stream_id)
            if stream is not None:
                self._answer(stream.peer, stream_id, wire.Ack(next=stream.committed))

    def _refuse(self, peer: bytes, stream_id: bytes, code: str, text: str) -> None:
        self.counters.refused += 1
        self._complaints.say(code, f"a client is refused ({code}): {text}")
        self._answer(peer, stream_id, wire.Refuse(code=code, text=text[:MAX_REFUSAL_CHARS]))

    def _answer(self, peer: bytes, stream_id: bytes, meta: wire.Meta) -> None:
        self.answers.append((peer, wire.encode(meta, stream=stream_id)))


def _credit(run: wire.RunInfo) -> int:
    return CREDIT_MESSAGES if run.world_size == 1 else CREDIT_SHARES
