"""The workshop: what waits in the inbox becomes readings, in a process of its own.

Rules of this module
- An entry is handed in by its key; the process reads it from the database itself, which it cannot write.
- It works one entry after another, at a lower priority than a training and in one thread. It ends with the daemon,
  however that ends, and when it had nothing to do for a while.
- An entry over which the process ends three times (memory, a fault in a library) is a rejection, and the next one has
  its turn. A process that does not even begin is started again, ever more rarely: what waits is safe where it is.
- The parent never waits for it: both ends of the pipe hold what does not fit.

`Bench` does the same in the calling process: for tests, and where no second process can be had.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ncmon
import ncmon_client
from ncmon import ingest
from ncmon.collector import merge
from ncmon.errors import Rejected
from ncmon.evaluate import evaluate
from ncmon.model import Evaluation, Part, Rejection, RunEnd, Window
from ncmon.store import inbox
from ncmon.store.connection import connect_reader
from ncmon.store.inbox import Entry
from ncmon_client import wire
from ncmon_client.wire import WireError

SLICE_S = 0.010
"""What a bench evaluates before its caller looks at the sockets again; one entry it does, however long that takes."""
IN_FLIGHT = 4
"""Entries that are handed in: one to work on, and no waiting for the next."""
ATTEMPTS = 3
IDLE_S = 60.0
"""Without work the process ends, and gives its memory back."""
NICENESS = 10
"""Half way to what runs only where nothing else does: trainings and the daemon itself come first, yet it goes on."""
RESTART_MIN_S, RESTART_MAX_S = 0.5, 30.0
"""Between a process that failed and the next."""
_LENGTH = struct.Struct("<I")

Item = Evaluation | Rejection | RunEnd

log = logging.getLogger("ncmon.daemon")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Done:
    """What became of an entry; nothing where it was no longer in the inbox."""

    entry: Entry
    item: Item | None


class Workplace(Protocol):
    """Where entries of the inbox are evaluated, in the order in which they are handed in."""

    aside: bool
    """Whether that costs the caller no time."""

    def room(self) -> bool:
        """Whether another entry may be handed in now."""
        ...

    def give(self, entry: Entry) -> None:
        """Hand an entry in."""
        ...

    def done(self) -> list[Done]:
        """Return what is finished. Never waits."""
        ...

    def forget(self) -> None:
        """Of what was handed in nothing is wanted any more."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something is finished, -1 for none."""
        ...

    def close(self) -> None:
        """End it."""
        ...


def become(
    entry: Entry, messages: Sequence[bytes], *, compute: Callable[[Window], Evaluation], now: float
) -> Item | None:
    """Return what becomes of an entry of the inbox. Never raises for what a message may hold."""
    if not messages:
        return None
    parts: list[Part] = []
    for origin, packed in zip(entry.origins, messages, strict=True):
        if not packed:
            continue
        frames = ingest.unpack(packed)
        try:
            message = wire.decode(frames)
            if isinstance(message.meta, wire.End):
                return ingest.to_end(message)
            parts.append(ingest.to_part(message, received=entry.received))
        except Exception as error:
            why = reason(error)
            return ingest.to_rejection(
                frames, stream=origin.stream, seq=origin.seq, run_id=entry.run_id, error=why, now=now
            )
    window = merge([part.window for part in sorted(parts, key=lambda part: part.rank)])
    try:
        return compute(window)
    except Exception as error:
        return failed(entry, f"step {window.step} ({window.split}): {type(error).__name__}: {error}", now=now)


def reason(error: Exception) -> Rejected | WireError:
    """Return why a message is rejected, whatever was raised while it was looked at."""
    if isinstance(error, Rejected | WireError):
        return error
    # Whatever it was, the message has had its turn and must not be asked for again for ever.
    return Rejected("internal", f"{type(error).__name__}: {error}")


def failed(entry: Entry, text: str, *, now: float) -> Rejection:
    """Return the record of an entry that cannot be evaluated."""
    first = entry.origins[0]
    why = Rejected("evaluate", text)
    return ingest.to_rejection((), stream=first.stream, seq=first.seq, run_id=entry.run_id, error=why, now=now)


class Bench:
    """Evaluates in the calling process, while it is asked for room."""

    aside = False

    def __init__(
        self,
        read: Callable[[Entry], tuple[bytes, ...]],
        *,
        compute: Callable[[Window], Evaluation],
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`read` returns the messages of an entry."""
        self._read = read
        self._compute = compute
        self._monotonic = monotonic
        self._wall = wall
        self._spent_s = 0.0
        self._done: list[Done] = []

    def room(self) -> bool:
        return not self._done or self._spent_s < SLICE_S

    def give(self, entry: Entry) -> None:
        begin = self._monotonic()
        item = become(entry, self._read(entry), compute=self._compute, now=self._wall())
        self._spent_s += self._monotonic() - begin
        self._done.append(Done(entry=entry, item=item))

    def done(self) -> list[Done]:
        done, self._done = self._done, []
        self._spent_s = 0.0
        return done

    def forget(self) -> None:
        self._done = []

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._done = []


class Workshop:
    """Evaluates in a process of its own, which is started when there is something to do."""

    aside = True

    def __init__(self, database: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._monotonic = monotonic
        self._process: subprocess.Popen[bytes] | None = None
        # A pipe of our own, so that its descriptor stays the same whatever becomes of the process.
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._received = bytearray()
        self._jobs = 0
        self._flying: OrderedDict[int, Entry] = OrderedDict()
        """What was handed in and is not finished, in that order."""
        self._begun: int | None = None
        """The job that the process is at."""
        self._fatal: dict[int, int] = {}
        """Entry -> how many processes ended over it."""
        self._not_before = 0.0
        self._restart_s = RESTART_MIN_S
        self._idle_since = monotonic()

    def room(self) -> bool:
        return len(self._flying) < IN_FLIGHT and (self._process is not None or self._monotonic() >= self._not_before)

    def give(self, entry: Entry) -> None:
        self._jobs += 1
        self._flying[self._jobs] = entry
        if self._process is None:
            self._start()
        else:
            self._send(self._jobs, entry)

    def done(self) -> list[Done]:
        found = self._heard()
        if self._process is None:
            if self._flying and self._monotonic() >= self._not_before:
                self._start()
        elif self._process.poll() is not None:
            found += self._heard()  # what it still said before it ended
            found += self._ended(self._process.returncode)
        elif self._flying:
            self._idle_since = self._monotonic()
        elif self._monotonic() >= self._idle_since + IDLE_S:
            self._process.kill()
            self._let_go()
        return found

    def forget(self) -> None:
        self._flying.clear()

    def fileno(self) -> int:
        return self._read_end

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._let_go()
        for end in (self._read_end, self._write_end):
            with suppress(OSError):
                os.close(end)

    # -- the process --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        roots = [str(Path(next(iter(package.__path__))).parent) for package in (ncmon, ncmon_client)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])]),
            **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
        }
        command = "import sys; from ncmon.workshop import main; main(sys.argv[1], int(sys.argv[2]))"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command, str(self._database), str(self._write_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._write_end,),
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            log.warning("nothing can be evaluated at present: %s", error)
            self._hold_off()
            return
        for job, entry in self._flying.items():
            self._send(job, entry)

    def _send(self, job: int, entry: Entry) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        body = pickle.dumps((job, entry))
        with suppress(OSError):  # it has just ended, which is seen by looking after it
            self._process.stdin.write(_LENGTH.pack(len(body)) + body)

    def _heard(self) -> list[Done]:
        """Return what the process has said."""
        with suppress(BlockingIOError):
            while chunk := os.read(self._read_end, 1 << 20):
                self._received += chunk
        found: list[Done] = []
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if len(self._received) < _LENGTH.size + length:
                break
            job, finished, item = pickle.loads(self._received[_LENGTH.size : _LENGTH.size + length])
            del self._received[: _LENGTH.size + length]
            self._begun = None if finished else job
            self._restart_s = RESTART_MIN_S
            entry = self._flying.pop(job, None) if finished else None
            if entry is not None:
                self._fatal.pop(entry.key, None)
                found.append(Done(entry=entry, item=item))
        return found

    def _ended(self, code: int) -> list[Done]:
        """The process ended by itself. Return the entry that is to blame for it, if it was not the first time."""
        entry = self._flying.get(self._begun) if self._begun is not None else None
        what = f"over message {entry.origins[0].seq} of run {entry.run_id}" if entry is not None else "without a reason"
        log.warning("the process that evaluates windows ended with code %d, %s", code, what)
        job = self._begun
        self._let_go()
        self._hold_off()
        if entry is None or job is None:
            return []
        self._fatal[entry.key] = self._fatal.get(entry.key, 0) + 1
        if self._fatal[entry.key] < ATTEMPTS:
            return []
        del self._flying[job], self._fatal[entry.key]
        text = f"the process that evaluated it ended with code {code}, {ATTEMPTS} times"
        return [Done(entry=entry, item=failed(entry, text, now=time.time()))]

    def _hold_off(self) -> None:
        self._not_before = self._monotonic() + self._restart_s
        self._restart_s = min(2 * self._restart_s, RESTART_MAX_S)

    def _let_go(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process = None
        self._received.clear()
        self._begun = None


def main(database: str, results: int) -> None:
    """Work until standard input ends: entries come in there, what becomes of them goes to the descriptor `results`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal; the daemon decides
    # Not added to that of a daemon which was started politely itself: at the bottom nothing would go on.
    os.nice(max(0, NICENESS - os.nice(0)))
    with closing(connect_reader(Path(database))) as connection, os.fdopen(results, "wb") as out:

        def say(*what: object) -> None:
            body = pickle.dumps(what, protocol=5)
            out.write(_LENGTH.pack(len(body)) + body)
            out.flush()

        with suppress(BrokenPipeError):
            while len(head := sys.stdin.buffer.read(_LENGTH.size)) == _LENGTH.size:
                job, entry = pickle.loads(sys.stdin.buffer.read(*_LENGTH.unpack(head)))
                say(job, False, None)
                say(
                    job,
                    True,
                    _slim(become(entry, inbox.messages(connection, entry), compute=evaluate, now=time.time())),
                )


def _slim(item: Item | None) -> Item | None:
    """Return an item without a window's statistics: nobody reads them any more, and they are most of it."""
    if not isinstance(item, Evaluation):
        return item
    # The rules of alerts count losses that are none; everything else they take from readings.
    bare: dict[str, Any] = dict.fromkeys(wire.HEAD_ARRAYS.keys() - {"label_counts", "loss_nonfinite"})
    window = replace(item.window, layers=(), head=replace(item.window.head, **bare))
    return replace(item, window=window)
