"""The feed: history first, then live. What every viewer watches.

    with open_feed(None) as feed:
        snapshot = feed.read(Selection())

Rules of this module
- A read ends in one frozen `Snapshot`; viewers compare versions and never touch the store themselves.
- It blocks (a database, a question to the daemon) and so belongs into a viewer's worker thread; it starts no thread.
- What a state is called is decided by pure functions of values and of the clock that was handed in.

A daemon on another machine (tcp://...) is asked for the snapshot itself, because its database is out of reach.

A target is nothing (this user's daemon on this machine), an endpoint, or a database file. A file, and the database of a
daemon that does not answer, are shown all the same, and the state says so.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ncmon import config, packing
from ncmon.detail import (
    BOUNDED,
    BOUNDED_PAIRS,
    CLASS_ARRAYS,
    CLASS_HISTORY,
    LAYER_TABLE,
    Detail,
    bounds_split,
    main_split,
    read_detail,
)
from ncmon.errors import NcmonError, NotFound, StoreError, UsageError
from ncmon.metrics import by_name
from ncmon.model import CLASSIFIER_INPUT, Alert, FloatArray, Run
from ncmon.store.arrivals import Arrival, arrivals, last_arrival
from ncmon.store.edit import Editor
from ncmon.store.queries import Store
from ncmon.store.results import RunSummary
from ncmon.store.screens import (
    Cache,
    ClassPart,
    Compared,
    LayerPart,
    class_part,
    compared,
    layer_part,
    pair_arrays,
)

STALE_AFTER_S = 90.0
REMOTE_TIMEOUT_S = 3.0
MOST_ALERTS = 500
"""Alerts of a snapshot."""
UNMARKED = 8
"""How many of the newest runs stand side by side where none is marked."""
ASK_TIMEOUT_S = 0.3
"""A daemon on this machine answers within milliseconds, unless it is busy with a batch."""
MOST_ARRIVALS = 500
"""Windows in one snapshot; those that follow come with the next."""


class SourceState(enum.Enum):
    """What stands behind a snapshot."""

    LIVE = "LIVE"
    """A daemon answers."""
    REPLAY = "REPLAY"
    """A database file, as it is."""
    DOWN = "DAEMON DOWN"
    """No daemon answers; its database is shown."""
    STALE = "STALE"
    """One of several has not answered for a while; its last answer is shown."""


class RunState(enum.Enum):
    """How a run does, by the clock."""

    LIVE = "LIVE"
    STALE = "STALE"
    """It should have been heard of by now."""
    ENDED = "ENDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a viewer looks at."""

    run_id: str | None = None
    """None: the newest run."""
    layer: str = CLASSIFIER_INPUT
    detail: bool = True
    """Whether the histories of the run are wanted, or only the list of runs."""
    view: str = "run"
    """What else is wanted: `layers`, `classes`, `bounds` and `compare` each hold a part of their own."""
    metric: str = "nc1_pinv"
    """Of the views of layers and of runs side by side."""
    split: str | None = None
    """Of the views of layers and classes; None: the one that the run trains on."""
    index: int = 0
    """The class whose history is wanted."""
    order: str = ""
    """Instead of that: the history of the first class in this order (`arranged`), whichever it is."""
    marked: tuple[str, ...] = ()
    """The runs to compare, by id."""
    step: int | None = None
    """The moment to look at, in steps; None: the last window, whatever comes."""
    since: int | None = None
    """What is wanted of the view `arrivals`: windows stored after this place, by `Snapshot.arrived`; None: none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of several targets that are looked at together."""

    label: str
    """Short, and no other's: it is what a run's id ends with, `ID@LABEL`."""
    state: SourceState
    heard: float
    """When it last answered, Unix seconds; 0: never."""
    host: str = ""
    error: str = ""
    n_runs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """Everything a viewer shows at one moment."""

    version: int
    """Grows whenever something other than `taken_at` changed."""
    taken_at: float
    """Unix seconds."""
    source: SourceState
    database: Path | None
    host: str
    error: str
    """One line on why there is nothing to see; empty otherwise."""
    runs: tuple[RunSummary, ...] = ()
    detail: Detail | None = None
    alerts: tuple[Alert, ...] = ()
    """Those that are open, then the newest of those that are over."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """The daemon's own, empty without one."""
    selection: Selection = Selection()
    """What this is a picture of."""
    layers: LayerPart | None = None
    classes: ClassPart | None = None
    compared: tuple[Compared, ...] = ()
    pairs: Mapping[str, FloatArray] = field(default_factory=dict)
    """Of the view of bounds: the pair arrays of bounds and of what they bound."""
    arrivals: tuple[Arrival, ...] = ()
    """Of the view `arrivals`: the windows that came since the selection's place, in the order in which they came."""
    arrived: int = 0
    """The place of the last of them."""
    sources: tuple[Source, ...] = ()
    """Where several targets are looked at: each of them. Empty with one."""

    @property
    def open_alerts(self) -> tuple[Alert, ...]:
        """Alerts that are neither over nor acknowledged, and more than good news."""
        return tuple(alert for alert in self.alerts if alert.pressing)

    def state(self, summary: RunSummary) -> RunState:
        """Return how a run of this snapshot does."""
        return run_state(summary.run, self.taken_at, window_interval(summary))

    def source_of(self, run_id: str) -> Source | None:
        """Return which of several targets a run is of; None with one."""
        label = run_id.rpartition("@")[2]
        return next((source for source in self.sources if source.label == label), None)


class Reads(Protocol):
    """What a viewer looks through: one target or several."""

    def read(self, selection: Selection) -> Snapshot:
        """Return what there is now."""

    def acknowledge(self, alert: Alert, database: Path | None) -> None:
        """Say that an alert was seen; `database` is that of the snapshot. Any thread. Raises `NcmonError`."""

    def close(self) -> None:
        """Let go of everything."""


def run_state(run: Run, now: float, interval_s: float = 0.0) -> RunState:
    """Return how a run does at `now`: stale after 90 s of silence, or three of its usual windows if that is longer."""
    if run.status == "finished":
        return RunState.ENDED
    if run.status == "failed":
        return RunState.FAILED
    heard = run.last_seen if run.last_seen is not None else run.started
    return RunState.STALE if now - heard > max(STALE_AFTER_S, 3 * interval_s) else RunState.LIVE


def window_interval(summary: RunSummary) -> float:
    """Return the mean time between a run's windows, in seconds; 0 before the first."""
    if summary.time is None or not summary.n_windows:
        return 0.0
    return max(summary.time - summary.run.started, 0.0) / summary.n_windows


class Feed:
    """Reads one target. Not for two threads at once."""

    def __init__(
        self,
        *,
        endpoint: str | None,
        database: Path | None,
        clock: Callable[[], float] = time.time,
        ask: Callable[[str], dict[str, Any] | None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._database = database
        self._clock = clock
        self._ask = ask or _ask
        self._answered: dict[str, Any] | None = None
        """What the daemon said when it was asked last, None if nothing."""
        self._store: Store | None = None
        self._opened: Path | None = None
        self._seen: tuple[Any, ...] = ()
        self._version = 0
        self._last: Snapshot | None = None
        self._cache = Cache()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Closing twice does nothing."""
        if self._store is not None:
            self._store.close()
        self._store, self._opened = None, None

    def read(self, selection: Selection) -> Snapshot:
        """Return what there is now. Never raises for what a database or a daemon does: the snapshot says it."""
        if self._endpoint is not None and config.is_tcp(self._endpoint):
            return self._read_remote(self._endpoint, selection)
        status = self._asked(self._endpoint) if self._endpoint is not None else None
        if status is not None:
            source, database = SourceState.LIVE, Path(str(status["database"]))
        else:
            source = SourceState.REPLAY if self._endpoint is None else SourceState.DOWN
            database = self._database or config.default_database()
        counters = {str(k): int(v) for k, v in (status or {}).get("counters", {}).items() if isinstance(v, int)}
        try:
            store = self._open(database)
            # What a daemon counts changes while nothing is stored; it is shown, but it is no reason to read again.
            seen: tuple[Any, ...] = (source, database, store.revision(), selection)
            if seen == self._seen and self._last is not None:
                return self._replaced(source, counters)
            runs, alerts = store.summary(), store.alerts(limit=MOST_ALERTS)
            parts = self._parts(store, selection, runs)
            error = ""
        except NcmonError as problem:
            self.close()
            seen, runs, alerts, parts, error = (source, database, str(problem), selection), (), (), {}, str(problem)
            if source is SourceState.DOWN and not database.exists():
                error = ""
        if seen != self._seen:
            self._version += 1
        self._seen = seen
        self._last = Snapshot(
            version=self._version,
            taken_at=self._clock(),
            source=source,
            database=database,
            host=str((status or {}).get("host", "")),
            error=error,
            runs=runs,
            alerts=alerts,
            counters=counters,
            selection=selection,
            **parts,
        )
        return self._last

    def _asked(self, endpoint: str) -> dict[str, Any] | None:
        """Return what the daemon says of itself; one that answered before may be late once, for it has work to do."""
        said = self._ask(endpoint)
        if said is None and self._answered is not None:
            said, self._answered = self._answered, None
        else:
            self._answered = said
        return said

    def acknowledge(self, alert: Alert, database: Path | None) -> None:
        """Say that an alert was seen, to the database or to a daemon on another machine; raises `NcmonError`."""
        if self._endpoint is not None and config.is_tcp(self._endpoint):
            _acknowledge_at(self._endpoint, alert)
            return
        if database is None:
            raise StoreError("there is no database to write to")
        with Editor.open(database) as editor:
            editor.acknowledge([alert.alert_id], now=self._clock())

    def _read_remote(self, endpoint: str, selection: Selection) -> Snapshot:
        """Ask the daemon for what it shows. The last answer stays on view while none comes."""
        token, before = (self._seen[0], self._last) if self._seen[1:] == (selection,) else ("", None)
        try:
            reply, snapshot = _ask_for(endpoint, selection, token)
        except NcmonError as problem:
            self._version += 1
            last = before or self._last
            nothing = Snapshot(
                version=0, taken_at=0.0, source=SourceState.DOWN, database=None, host="", error=str(problem)
            )
            return replace(
                last or nothing, version=self._version, taken_at=self._clock(), source=SourceState.DOWN, counters={}
            )
        if snapshot is None:
            snapshot = before
        else:
            self._version += 1
        assert snapshot is not None
        self._seen = (reply.token, selection)
        self._last = replace(
            snapshot,
            version=self._version,
            taken_at=self._clock(),
            source=SourceState.LIVE,
            host=reply.host,
            counters=reply.counters,
        )
        return self._last

    def _replaced(self, source: SourceState, counters: Mapping[str, int]) -> Snapshot:
        assert self._last is not None
        return replace(self._last, taken_at=self._clock(), source=source, counters=counters)

    def _open(self, database: Path) -> Store:
        if self._store is None or self._opened != database:
            self.close()
            self._store = Store.open(database)
            self._opened, self._cache = database, Cache()
        return self._store

    def _parts(self, store: Store, selection: Selection, runs: tuple[RunSummary, ...]) -> dict[str, Any]:
        """Return the fields of a snapshot that the selection asks for."""
        if selection.view == "arrivals":
            # Nobody wants the past unasked: the first answer says where the present is.
            if selection.since is None:
                return {"arrived": last_arrival(store)}
            came = arrivals(store, selection.since, limit=MOST_ARRIVALS)
            return {"arrivals": came, "arrived": came[-1].place if came else selection.since}
        wanted = selection.run_id or (runs[0].run.run_id if runs else None)
        if wanted is None or not selection.detail:
            return {}
        try:
            run = store.run(wanted)
        except NotFound:
            return {}
        more = BOUNDED if selection.view == "bounds" else ()
        arrays = CLASS_ARRAYS.get(selection.view, ())
        detail = read_detail(run, selection.layer, self._cache.memory, step=selection.step, more=more, arrays=arrays)
        parts: dict[str, Any] = {"detail": detail}
        split = selection.split if selection.split in detail.splits else main_split(detail.splits)
        if selection.view == "layers":
            parts["layers"] = layer_part(run, selection.metric, split, LAYER_TABLE, selection.step, self._cache)
        elif selection.view == "classes" and detail.layer is not None:
            parts["classes"] = class_part(
                run,
                detail.layer.name,
                split,
                CLASS_HISTORY,
                selection.index,
                selection.step,
                self._cache,
                order=selection.order,
            )
        elif selection.view == "bounds" and detail.layer is not None:
            wanted_split = selection.split or bounds_split(detail)
            parts["pairs"] = pair_arrays(run, BOUNDED_PAIRS, detail.layer.name, wanted_split, selection.step)
        elif selection.view == "compare":
            stored = {found.run_id: found for found in store.runs()}
            chosen = selection.marked or tuple(summary.run.run_id for summary in runs[:UNMARKED])
            wanted_runs = [stored[name] for name in chosen if name in stored]
            parts["compared"] = compared(wanted_runs, selection.metric, self._cache)
        return parts


def open_feed(target: str | None = None, *, clock: Callable[[], float] = time.time) -> Feed:
    """Return the feed of a target: None, an endpoint (`ipc://...`, `tcp://...`), or a database file.

    Raises `UsageError` for a target that is neither an endpoint nor an existing file.
    """
    if target is None:
        return Feed(endpoint=config.default_endpoint(), database=None, clock=clock)
    if "://" in target:
        return Feed(endpoint=config.check_endpoint(target), database=None, clock=clock)
    path = Path(target).expanduser()
    if not path.is_file():
        raise UsageError(f"expected an endpoint (ipc://... or tcp://...) or a database file, found no file {target!r}")
    return Feed(endpoint=None, database=path, clock=clock)


def _ask(endpoint: str) -> dict[str, Any] | None:
    # zmq is half of what starting a viewer costs, and a database file needs none of it.
    from ncmon.transport import status

    return status(config.view_endpoint(endpoint), timeout_s=ASK_TIMEOUT_S)


def _ask_for(endpoint: str, selection: Selection, seen: str) -> tuple[packing.Reply, Snapshot | None]:
    """Return a remote daemon's answer, without a snapshot where `seen` names it; raises `NcmonError` without answer."""
    import msgspec

    from ncmon.transport import ask

    question = packing.Question(selection=msgspec.to_builtins(selection), seen=seen)
    request = msgspec.msgpack.encode(question)
    answer = ask(config.view_endpoint(endpoint), request, timeout_s=REMOTE_TIMEOUT_S)
    if answer is None:
        raise NcmonError(f"no answer from {endpoint}: is the daemon there, and may this key view? (`ncmon keys list`)")
    reply = packing.decode(answer, packing.Reply)
    if seen and reply.token == seen:
        return reply, None
    return reply, packing.decode(reply.snapshot, Snapshot)


def _acknowledge_at(endpoint: str, alert: Alert) -> None:
    import msgspec

    from ncmon.transport import ask

    request = msgspec.msgpack.encode(packing.Acknowledge(acknowledge=[alert.alert_id]))
    answer = ask(config.view_endpoint(endpoint), request, timeout_s=REMOTE_TIMEOUT_S)
    if not answer:
        raise NcmonError(f"no answer from {endpoint}: is the daemon there, and does it know alerts?")
    if problem := packing.decode(answer, packing.Done).problem:
        raise NcmonError(problem)


def target_of(metric: str, n_classes: int) -> float | None:
    """Return a metric's value at perfect collapse, None where it has none (a bound, a scale)."""
    try:
        target = by_name(metric).target
    except NotFound:
        return None
    return None if target is None else target(n_classes)
