"""The session: what to say to the daemon next, whatever the daemon does.

Rules of this module
- It decides and does nothing: it has no socket, no thread and no clock. `sender` does what it says and tells what came.
- It runs in the sending thread alone.

A session is one socket. It begins with HELLO and WELCOME, and it is over after a disconnect, a RESET, a REFUSE or five
seconds without a word about what is in flight. The next one gets a new socket: the automatic reconnection of a DEALER
sends what its old pipe still held, in an order that nobody asked for, and windows are lost behind it.

    IDLE --dial--> DIALLING --connected--> GREETING --WELCOME--> OPEN
      ^                 |                      |                  |
      +----- back-off --+----------------------+------------------+   whatever goes wrong

WELCOME.next says what the store holds of this stream. Below the oldest message that is still here, the store lost what
it had acknowledged (restored from a copy, deleted): what is left goes out as a new stream, behind a recorded gap.
"""

from __future__ import annotations

import enum
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from ncmon_client import wire
from ncmon_client.errors import WireError
from ncmon_client.outbox import Entry, Outbox, Packed, Sealable

GREETING_TIMEOUT_S = 5.0
ACK_TIMEOUT_S = 5.0
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 2.0
REFUSED_WAIT_S = 30.0
"""A refusal is a matter of versions or rights, which do not change within seconds."""
SETTLED_S = 1.0
"""A session that lasted this long starts the back-off anew."""
WARN_AFTER_S = 2.0
"""A daemon that restarts is not worth a line in the log of a training."""
MAX_REASON_CHARS = 1_000


class Phase(enum.Enum):
    """Where a session is."""

    IDLE = "idle"
    DIALLING = "dialling"
    GREETING = "greeting"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a new socket and say `connected` or `lost`."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the socket, at once and with all that it still holds."""


@dataclass(frozen=True, slots=True)
class Send:
    """Hand these frames to the socket and say `sent` or `blocked`."""

    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for this long, unless something comes in."""

    seconds: float
    writable: bool = False
    """Also wake up when the socket takes messages again."""


Command = Dial | HangUp | Send | Wait


class Session:
    """One conversation after another with the daemon, as a state machine: events in, one command at a time out.

    `now` is always a monotonic clock in seconds, given by the caller.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        run: wire.RunInfo,
        outbox: Outbox,
        rng: random.Random,
        now: float,
        stream: bytes | None = None,
        fetch: Callable[[Entry], Packed] | None = None,
    ) -> None:
        """`stream` goes on with one that began earlier; `fetch` returns the bytes of an entry that has left memory."""
        self._endpoint = endpoint
        self._run = run
        self._outbox = outbox
        self._rng = rng
        self._fetch = fetch
        self.kept = "in memory"
        """Where windows are kept while no daemon answers, for the log."""
        self.phase = Phase.IDLE
        self.stream = stream or wire.new_stream()
        self.reached = False
        """Whether a daemon ever said WELCOME."""
        self.failures = 0
        """Sessions in a row that came to nothing."""
        self.attempts = 0
        """Sessions that ended, for whatever reason."""
        self.refused = False
        self.last_error = ""
        self.notices: deque[tuple[int, str]] = deque()
        """Lines for the log, taken away by the caller: `(level, text)`."""
        self._last_acknowledged: Entry | None = None
        self._retry_at = now
        self._down_since = now
        self._warned = False
        self._hang_up = False
        self._greeted = False
        self._blocked = False
        self._opened_at = now
        self._deadline = now
        self._credit_messages = 1
        self._credit_bytes = 0

    # -- commands -----------------------------------------------------------------------------------------------------

    def next(self, now: float) -> Command:
        """Return the one thing to do now."""
        self._watch_clock(now)
        if self._hang_up:
            self._hang_up = False
            return HangUp()
        if self.phase is Phase.IDLE:
            if now >= self._retry_at:
                self.phase, self._deadline = Phase.DIALLING, now + GREETING_TIMEOUT_S
                return Dial()
            return self._wait(now, until=self._retry_at)
        if self._blocked:
            return self._wait(now, until=self._deadline, writable=True)
        if self.phase is Phase.GREETING and not self._greeted:
            return Send(self._hello())
        if self.phase is Phase.OPEN:
            entry = self._outbox.peek()
            if entry is not None and self._within_credit(entry):
                packed = entry.packed or self._pack(entry)
                return Send(
                    wire.seal(
                        wire.Kind(packed.kind), packed.body, packed.blobs, stream=self.stream, seq=self._outbox.cursor
                    )
                )
            if not self._waits_for_acknowledgement:
                return self._wait(now, until=now + 60.0)
        return self._wait(now, until=self._deadline)

    def _hello(self) -> list[bytes]:
        versions = list(wire.READABLE)
        try:
            return wire.encode(wire.Hello(versions=versions, run=self._run), stream=self.stream)
        except (WireError, UnicodeError):
            # Names that are too many or cannot be written are worth less than the run itself.
            bare = msgspec.structs.replace(self._run, name=self._run.run_id, config="{}", class_names=[], tags=[])
            return wire.encode(wire.Hello(versions=versions, run=bare), stream=self.stream)

    def _wait(self, now: float, *, until: float, writable: bool = False) -> Command:
        # What the training loop handed over is larger than its bytes on the wire and may sit on a device: idle time is
        # spent on packing it, one message at a time, so that the thread stays quick to answer.
        entry = self._outbox.unpacked()
        if entry is not None:
            self._pack(entry)
            return Wait(0.0)
        if not self._warned and self.phase is not Phase.OPEN:
            until = min(until, self._down_since + WARN_AFTER_S)
        return Wait(max(0.0, until - now), writable)

    def _watch_clock(self, now: float) -> None:
        if self.phase in (Phase.DIALLING, Phase.GREETING) and now >= self._deadline:
            self.lost(now, f"no answer within {GREETING_TIMEOUT_S:.0f} s")
        elif self.phase is Phase.OPEN and self._waits_for_acknowledgement and now >= self._deadline:
            self.lost(now, f"no acknowledgement within {ACK_TIMEOUT_S:.0f} s")
        if self.phase is not Phase.OPEN and not self._warned and now >= self._down_since + WARN_AFTER_S:
            self._warn(
                f"no daemon answers at {self._endpoint} ({self.last_error or 'not reached yet'}): training goes on and "
                f"windows are kept {self.kept} until one does; `ncmon serve` starts it"
            )

    @property
    def _waits_for_acknowledgement(self) -> bool:
        return self._outbox.cursor > self._outbox.first

    def _within_credit(self, entry: Entry) -> bool:
        messages, nbytes = self._outbox.in_flight()
        # One message always goes, however small the credit: it could never be sent otherwise.
        return messages == 0 or (messages < self._credit_messages and nbytes + entry.nbytes <= self._credit_bytes)

    def _pack(self, entry: Entry) -> Packed:
        if entry.item is None:
            # Read from the file each time it is sent: what is on disk does not have to be in memory as well.
            assert self._fetch is not None
            return self._fetch(entry)
        packed = pack(entry.item, self._run)
        self._outbox.pack(entry, packed)
        return packed

    # -- events -------------------------------------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """The socket has a peer."""
        if self.phase is Phase.DIALLING:
            self.phase, self._greeted = Phase.GREETING, False
            self._deadline = now + GREETING_TIMEOUT_S

    def sent(self, now: float) -> None:
        """The socket took the frames of the last `Send`."""
        if self.phase is Phase.GREETING:
            self._greeted = True
        elif self.phase is Phase.OPEN:
            if not self._waits_for_acknowledgement:
                self._deadline = now + ACK_TIMEOUT_S
            self._outbox.advance()

    def blocked(self) -> None:
        """The socket did not take the frames of the last `Send`; they will be given again."""
        self._blocked = True

    def writable(self) -> None:
        """The socket takes messages again."""
        self._blocked = False

    def lost(self, now: float, why: str, *, wait_s: float | None = None) -> None:
        """The socket is of no use any more; the next session begins after a back-off, or after `wait_s`."""
        if self.phase is Phase.IDLE:
            return
        if self.phase is Phase.OPEN:
            self._down_since = now
            if now - self._opened_at >= SETTLED_S:
                self.failures = 0
        delay = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(self.failures, 16)) * self._rng.uniform(0.5, 1.0)
        self._retry_at = now + (delay if wait_s is None else wait_s)
        self.phase = Phase.IDLE
        self.failures += 1
        self.attempts += 1
        self.last_error = why
        self._hang_up = True
        self._blocked = False

    def hurry(self, now: float) -> None:
        """Do not wait for the back-off: the process is about to end."""
        if self.phase is Phase.IDLE:
            self._retry_at = now

    def received(self, now: float, frames: Sequence[bytes]) -> None:
        """A message came in."""
        if self.phase not in (Phase.GREETING, Phase.OPEN):
            return
        try:
            message = wire.decode(frames)
        except WireError as error:
            self.lost(now, f"the other side does not speak this protocol: {error}")
            return
        meta = message.meta
        if message.stream != self.stream and not isinstance(meta, wire.Reset):
            return
        match meta:
            case wire.Welcome():
                self._welcomed(now, meta)
            case wire.Refuse():
                self.refused = True
                self._warn(f"the daemon at {self._endpoint} refuses this run ({meta.code}): {meta.text}")
                self.lost(now, f"refused ({meta.code}): {meta.text}", wait_s=REFUSED_WAIT_S)
            case wire.Reset():
                self.lost(now, "the daemon does not know this session")
            case wire.Ack() if self.phase is Phase.OPEN:
                # Also a number that says nothing new is a word: the daemon is alive and holds what is in flight.
                self._deadline = now + ACK_TIMEOUT_S
                self._acknowledge(meta.next)
            case wire.Nack() if self.phase is Phase.OPEN:
                if self._outbox.first <= meta.next <= self._outbox.sent:
                    self._deadline = now + ACK_TIMEOUT_S
                    self._outbox.rewind(meta.next)
                else:
                    # HELLO asks what the store really holds.
                    self.lost(now, f"asked for message {meta.next}, held are {self._outbox.first} and later")

    def _welcomed(self, now: float, welcome: wire.Welcome) -> None:
        if self.phase is not Phase.GREETING:
            return
        if welcome.version not in wire.READABLE:
            self.lost(now, f"the daemon answers in protocol {welcome.version}")
            return
        self.reached, self.refused = True, False
        first, sent = self._outbox.first, self._outbox.sent
        if welcome.next < first:
            self._start_stream(missing=first - welcome.next)
            # Not a failure: nothing is gained by waiting.
            self.lost(now, "the store lost acknowledged messages", wait_s=0.0)
            return
        if welcome.next > sent:
            self._start_stream(missing=0)
            self.lost(now, f"the daemon expects message {welcome.next}, {sent} were sent")
            return
        self._acknowledge(welcome.next)
        self._outbox.rewind(welcome.next)
        self._credit_messages = max(1, welcome.credit_messages)
        self._credit_bytes = welcome.credit_bytes
        self.phase, self._opened_at, self._deadline = Phase.OPEN, now, now + ACK_TIMEOUT_S
        self.last_error = ""
        if self._warned:
            self._warned = False
            held = self._outbox.counts().held
            self.notices.append(
                (logging.INFO, f"the daemon at {self._endpoint} answers, {held} messages that waited are being sent")
            )

    def _acknowledge(self, next_seq: int) -> None:
        newest = self._outbox.acknowledge(next_seq)
        if newest is not None:
            self._last_acknowledged = newest
            self.failures = 0

    def _start_stream(self, *, missing: int) -> None:
        self.stream = wire.new_stream()
        gap: Sealable | None = None
        if missing:
            reason = f"the store lost {missing} messages that it had acknowledged (restored from a copy, or deleted)"
            gap = Ready(self._gap_at_last_acknowledged(reason))
        self._outbox.restart(gap)

    def _gap_at_last_acknowledged(self, reason: str) -> wire.Gap:
        entry = self._last_acknowledged
        if entry is not None and entry.packed is not None:
            packed = entry.packed
            with suppress(WireError):
                header_and_meta = wire.seal(wire.Kind(packed.kind), packed.body, (), stream=self.stream, seq=0)
                return gap_like(wire.decode(header_and_meta).meta, self._run, reason)
        return gap_like(None, self._run, reason)

    def _warn(self, text: str) -> None:
        # One line an outage, whatever else goes wrong in it.
        if not self._warned:
            self._warned = True
            self.notices.append((logging.WARNING, text))

    def gave_up(self) -> None:
        """The process ends now; say what it could not deliver, unless that was said and nothing more is to say."""
        counts = self._outbox.counts()
        if not counts.held:
            return
        why = f" ({self.last_error})" if self.last_error else ""
        text = f"{counts.held} messages could not be delivered to the daemon at {self._endpoint}{why}"
        if counts.spooled:
            some = "they" if counts.spooled == counts.held else f"{counts.spooled} of them"
            text += f"; {some} are on disk, the next client of this run or `ncmon spool push` delivers them"
        if self._warned:
            self.notices.append((logging.INFO, text))
        self._warn(text)


@dataclass(frozen=True, slots=True)
class Ready:
    """A message that needs no further work, as a `Sealable`: a gap, or the end of a run."""

    meta: wire.Meta

    def seal(self) -> tuple[wire.Meta, bytes]:
        """Return the message, which has no buffer."""
        return self.meta, b""

    def gap(self, reason: str) -> wire.Gap:
        """Return what is recorded when the message itself cannot be packed."""
        return gap_like(self.meta, None, reason)


def gap_like(meta: wire.Meta | None, run: wire.RunInfo | None, reason: str) -> wire.Gap:
    """Return the gap that stands where `meta` stood; without one, a gap of the run as a whole."""
    reason = reason[:MAX_REASON_CHARS]
    match meta:
        case wire.WindowMeta() | wire.Gap():
            return wire.Gap(
                run_id=meta.run_id, split=meta.split, epoch=meta.epoch, step=meta.step, time=meta.time, reason=reason
            )
        case wire.End():
            return wire.Gap(run_id=meta.run_id, split="", epoch=-1, step=0, time=meta.time, reason=reason)
    run_id, started = (run.run_id, run.started) if run is not None else ("unknown", 0.0)
    return wire.Gap(run_id=run_id, split="", epoch=-1, step=0, time=started, reason=reason)


def pack(item: Sealable, run: wire.RunInfo) -> Packed:
    """Return the bytes of `item`, or of a gap that says why there are none. Never raises."""
    try:
        meta, blob = item.seal()
        kind = wire.kind_of(meta)
        if kind not in wire.SEQUENCED:
            raise WireError("kind", f"{kind.name} is not a sequenced message")
        return Packed(kind=kind, body=wire.pack_meta(meta), blobs=tuple(wire.cut(blob)))
    except Exception as error:
        reason = f"the window could not be packed: {type(error).__name__}: {error}"[:MAX_REASON_CHARS]
    try:
        return Packed(kind=wire.Kind.GAP, body=wire.pack_meta(item.gap(reason)))
    except Exception:
        return Packed(kind=wire.Kind.GAP, body=wire.pack_meta(gap_like(None, run, reason)))
