"""The courier: delivers a spool file that a dead process left behind.

The file's own stream goes on: HELLO for it, WELCOME says what the store has already, the rest is sent. So the file may
be delivered twice, by two at once, or after the daemon has everything: nothing is stored twice. It is removed when the
daemon has acknowledged its last message, and stays where it is until then.

Called by the next client of the same run, by `ncmon spool push` and by the daemon for its own machine.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ncmon_client import spool, wire
from ncmon_client.keeper import lost
from ncmon_client.line import Line, step
from ncmon_client.outbox import Entry, Outbox, Packed
from ncmon_client.session import Ready, Session, gap_like, pack

CONTACT_S = 1.0
"""For a daemon that does not answer at all: on one node it does within milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What became of one file."""

    path: Path
    run_id: str
    messages: int
    """How many it held that can be read."""
    left: int
    """How many of them are not acknowledged yet; 0: all are in the store."""
    damaged: bool
    """Part of it could not be read; the file was kept, renamed."""
    problem: str
    """Why some are left; empty where none are."""


def deliver(
    path: Path,
    *,
    endpoint: str | None = None,
    timeout_s: float = 60.0,
    log: logging.Logger,
    stop: threading.Event | None = None,
) -> Delivered:
    """Deliver one file to `endpoint`, by default the one that it names.

    Raises `spool.InUse` where its process lives, and `spool.SpoolError` where the file cannot be read.
    """
    file, found = spool.SpoolFile.take(path)
    try:
        run = found.label.run
        outbox, damaged = _load(found)
        total = len(found.records)
        problem = _talk(file, outbox, endpoint or found.label.endpoint, run, timeout_s, log, stop)
        left = len(outbox.entries())
    except BaseException:
        file.close()
        raise
    if left:
        file.close()
    elif damaged:
        spool.set_aside(path)
        file.close()
    else:
        file.remove()
    return Delivered(path=path, run_id=run.run_id, messages=total, left=left, damaged=damaged, problem=problem)


def left_behind(run_id: str, rank: int, *, place: Path | None = None) -> list[Path]:
    """Return the files of a run and rank that lie in the spool directory, oldest first."""
    return spool.files(place, run_id=run_id, rank=rank)


def _load(found: spool.Scan) -> tuple[Outbox, bool]:
    """Return what a file holds, with gaps where records are damaged."""
    outbox = Outbox()
    entries: list[Entry] = []
    damaged = found.damaged_bytes > 0
    first = expected = found.records[0].seq if found.records else 0
    for record in found.records:
        if record.seq < expected:
            damaged = True
            continue
        if record.seq > expected + len(found.records) + 1000:
            damaged = True  # no hole is that long
            break
        while expected < record.seq:
            reason = "a message of the spool file was damaged on disk"
            gap = Ready(gap_like(None, found.label.run, reason))
            entries.append(Entry(seq=expected, item=gap, nbytes=0, counted=False))
            damaged, expected = True, expected + 1
        entries.append(Entry(seq=record.seq, item=None, place=record.place, nbytes=record.place.length))
        expected += 1
    outbox.load(entries, first=first)
    return outbox, damaged


def _talk(
    file: spool.SpoolFile,
    outbox: Outbox,
    endpoint: str,
    run: wire.RunInfo,
    timeout_s: float,
    log: logging.Logger,
    stop: threading.Event | None,
) -> str:
    def fetch(entry: Entry) -> Packed:
        try:
            assert entry.place is not None
            return file.read(entry.place)
        except spool.SpoolError as error:
            log.warning("ncmon's spool: %s", error)
            return lost(run, f"the spool file could not be read: {error}")

    begin = time.monotonic()
    talk = Session(
        endpoint=endpoint,
        run=run,
        outbox=outbox,
        rng=random.Random(os.urandom(8)),
        now=begin,
        stream=file.label.stream,
        fetch=fetch,
    )
    line = Line(endpoint)
    try:
        while outbox.oldest is not None:
            now = time.monotonic()
            if talk.refused or (stop is not None and stop.is_set()) or now >= begin + timeout_s:
                break
            if not talk.reached and now >= begin + CONTACT_S:
                break
            if talk.stream != file.label.stream:
                # Before a word is said under the new stream: who delivers the file later must go on with it.
                entries = outbox.entries()
                label = spool.Label(stream=talk.stream, endpoint=file.label.endpoint, run=run)
                places = file.rewrite(label, ((entry.seq, _bytes_of(entry, run, fetch)) for entry in entries))
                for entry, place in zip(entries, places, strict=True):
                    entry.place = place
            step(talk, line, now, longest_s=0.1)
        return "" if outbox.oldest is None else talk.last_error or "the daemon has not acknowledged all of it in time"
    finally:
        line.close()


def _bytes_of(entry: Entry, run: wire.RunInfo, fetch: Callable[[Entry], Packed]) -> Packed:
    if entry.packed is not None:
        return entry.packed
    return pack(entry.item, run) if entry.item is not None else fetch(entry)
