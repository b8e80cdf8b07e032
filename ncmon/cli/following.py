"""A line for every window that comes, for `ncmon watch --follow`: what a script reads.

It looks twice a second and misses no window: each target is asked for what came after the last one that it told of. A
daemon that goes away and comes back goes on where it was. The end is Ctrl-C, or whoever reads this having seen enough,
which is noticed while nothing comes, too.
"""

from __future__ import annotations

import json
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from ncmon.cells import fit
from ncmon.cli.diagnostics import Unread
from ncmon.cli.glance import ALERT_OPEN, alert_open
from ncmon.cli.output import Column, Listing, csv_text, plain, write
from ncmon.errors import StoreError, UsageError
from ncmon.feed import MOST_ARRIVALS, Feed, Selection, Snapshot, SourceState, open_feed
from ncmon.feeds import Feeds
from ncmon.store.arrivals import READINGS, Arrival

PERIOD_S = 0.5
FIXED = ("source", "run_id", "name", "split", "epoch", "step", "time", "exact")
SHOWN = (("ce_loss", "LOSS"), ("nc1_pinv", "NC1"), ("intra_cos_min", "INTRA"), ("inter_cos_max", "INTER"))


def follow(targets: Sequence[str], form: str) -> int:
    """Print windows as they come; return the exit code when it was interrupted."""
    if form == "json":
        raise UsageError("--follow writes lines without an end, which is no JSON: expected --format jsonl")
    once = list(dict.fromkeys(targets))
    looking = _Several(Feeds(once)) if len(once) > 1 else _One(open_feed(once[0] if once else None))
    stop = _Stop()
    try:
        with stop:
            _follow(looking, form, stop)
    finally:
        looking.close()
    return ALERT_OPEN if looking.alert else 0


def _follow(looking: _One | _Several, form: str, stop: _Stop) -> None:
    began = False
    while True:
        full = False
        for label, snapshot in looking.read().items():
            if not began and snapshot.error and snapshot.source is SourceState.REPLAY:
                raise StoreError(snapshot.error)
            write("".join(line(arrival, label, form) for arrival in snapshot.arrivals))
            full = full or len(snapshot.arrivals) >= MOST_ARRIVALS
        if not began:
            began = True
            write(head(form))
        if not full and stop.wait(PERIOD_S):
            return


class _One:
    """One target, read here."""

    def __init__(self, feed: Feed) -> None:
        self.alert = False
        self._feed = feed
        self._since: int | None = None

    def read(self) -> Mapping[str, Snapshot]:
        """Return what came since the last time."""
        asked = Selection(view="arrivals", since=self._since)
        snapshot = self._feed.read(asked)
        if snapshot.selection != asked:
            # A daemon far away is silent: this is its last answer, which was read before.
            return {}
        self._since, self.alert = _after(snapshot, self._since), alert_open(snapshot)
        return {"": snapshot}

    def close(self) -> None:
        """Close the target."""
        self._feed.close()


class _Several:
    """Several targets, each with its own place."""

    def __init__(self, feeds: Feeds) -> None:
        self.alert = False
        self._feeds = feeds
        self._since: dict[str, int | None] = dict.fromkeys(feeds.labels)

    def read(self) -> Mapping[str, Snapshot]:
        """Return what came since the last time, of those that answer."""
        asked = {label: Selection(view="arrivals", since=place) for label, place in self._since.items()}
        # An answer that came too late for its own read was to the same question, and is not lost: it comes again.
        found = {
            label: snapshot for label, snapshot in self._feeds.ask(asked).items() if snapshot.selection == asked[label]
        }
        for label, snapshot in found.items():
            self._since[label] = _after(snapshot, self._since[label])
        self.alert = any(alert_open(snapshot) for snapshot in found.values())
        return found

    def close(self) -> None:
        """Close all of them."""
        self._feeds.close()


def _after(snapshot: Snapshot, since: int | None) -> int | None:
    """Return where to go on: a target that could not be read says nothing of it."""
    return since if snapshot.error else snapshot.arrived


def head(form: str) -> str:
    """Return the line of names."""
    if form == "csv":
        return ",".join((*FIXED, *READINGS)) + "\n"
    if form == "table":
        return (
            f"{'TIME':<8}  {'RUN':<24}  {'SPLIT':<12}  {'EPOCH':>5}  {'STEP':>8}"
            + "".join(f"  {heading:>9}" for _, heading in SHOWN)
            + "\n"
        )
    return ""


def line(arrival: Arrival, source: str, form: str) -> str:
    """Return one window as a line."""
    run_id = f"{arrival.run_id}@{source}" if source else arrival.run_id
    fixed: tuple[Any, ...] = (
        source or None,
        run_id,
        arrival.name,
        arrival.split,
        arrival.epoch if arrival.epoch >= 0 else None,
        arrival.step,
        arrival.time,
        arrival.exact,
    )
    values = tuple(arrival.values.get(name) for name in READINGS)
    if form == "jsonl":
        return json.dumps(dict(zip((*FIXED, *READINGS), map(plain, (*fixed, *values)), strict=True))) + "\n"
    if form == "csv":
        columns = tuple(Column(key=name) for name in (*FIXED, *READINGS))
        return csv_text(Listing(columns=columns, rows=[(*fixed, *values)]), head=False)
    name = f"{arrival.name} @{source}" if source else arrival.name
    epoch = "-" if arrival.epoch < 0 else str(arrival.epoch)
    shown = [arrival.values.get(name) for name, _ in SHOWN]
    return (
        f"{time.strftime('%H:%M:%S', time.localtime(arrival.time))}  {fit(name, 24)}  {fit(arrival.split, 12)}"
        f"  {epoch:>5}  {arrival.step:>8}"
        + "".join(f"  {'-' if value is None or value != value else f'{value:.4g}':>9}" for value in shown)
        + "\n"
    )


class _Stop:
    """Ctrl-C and SIGTERM end between two lines, and so does a reader that is gone."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def wait(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> bool:
        """Wait, and return whether this shall end; raises `Unread` when nobody reads any more."""
        poll = select.poll()
        try:
            poll.register(sys.stdout.fileno(), select.POLLERR)
        except (OSError, ValueError):
            pass  # a stdout of a test, which no pipe is behind
        until = monotonic() + seconds
        while not self._asked and (left := until - monotonic()) > 0:
            if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(min(left, 0.1) * 1000)):
                raise Unread
        return self._asked
