"""Several targets at once: what all of them show, as one snapshot.

    feeds = Feeds(["tcp://gpu07:7070", "tcp://gpu08:7070", "old.db"])
    snapshot = feeds.read(Selection())

Rules of this module
- One thread a target, the only one that ever touches its `Feed`: a machine that does not answer makes nobody wait.
  What has not answered in time stays on view as it was, and its state says STALE.
- Runs are named `ID@LABEL`: the same run in two targets is two lines, each with its source.
- Only the target of the run that is looked at is asked for more than its list of runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ncmon import config
from ncmon.cells import printable
from ncmon.feed import UNMARKED, Feed, Reads, Selection, Snapshot, Source, SourceState, open_feed
from ncmon.model import Alert, Run

PATIENCE_S = 0.4
"""How long a read waits for all; a daemon on this machine answers within milliseconds."""
STALE_SOURCE_S = 5.0
"""An answer is old after this; one that is late by a read or two is nothing to speak of."""
LONGEST_LABEL = 24

_LIST = Selection(detail=False, view="overview")
"""What is asked of targets that are not looked at."""


def open_feeds(targets: Sequence[str], *, clock: Callable[[], float] = time.time) -> Reads:
    """Return what reads these targets: none (this user's daemon), one, or several.

    Raises `UsageError` or `ListenError` for a target that cannot be.
    """
    once = list(dict.fromkeys(targets))
    if len(once) > 1:
        return Feeds(once, clock=clock)
    return open_feed(once[0] if once else None, clock=clock)


def labels(targets: Sequence[str]) -> list[str]:
    """Return short names of targets, each different: as much of each as tells it from the others."""
    names = [_names(target) for target in targets]
    found: list[str] = []
    for mine in names:
        # The shortest that no other target could be called as well.
        chosen = next((name for name in mine if sum(name in other for other in names) == 1), mine[-1])
        chosen = printable(chosen).replace("@", "_")[-LONGEST_LABEL:]
        number = 2
        label = chosen
        while label in found:
            label, number = f"{chosen}#{number}", number + 1
        found.append(label)
    return found


def _names(target: str) -> list[str]:
    scheme, there, address = target.partition("://")
    if there and scheme == "tcp":
        return [address.rpartition(":")[0], address]
    path = Path(address if there else target)
    parents = [part for part in path.parts[:-1] if part != "/"][::-1]
    longer = ["/".join([*parents[: count + 1][::-1], path.name]) for count in range(len(parents))]
    return [path.stem, path.name, *longer]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a target said last."""

    selection: Selection
    """What it was asked."""
    snapshot: Snapshot
    at: float


class Reader:
    """One target, and the thread that may have to wait for it."""

    def __init__(self, label: str, feed: Feed, clock: Callable[[], float]) -> None:
        self.label = label
        self.answer: Answer | None = None
        self.feed = feed
        self._clock = clock
        self._changed = threading.Condition()
        self._wish: Selection | None = None
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"read {label}", daemon=True)
        self._thread.start()

    def ask(self, selection: Selection) -> None:
        """Want an answer; of several questions that wait the last one counts."""
        with self._changed:
            self._wish = selection
            self._changed.notify_all()

    def wait(self, until: float) -> bool:
        """Wait for the answer to the last question, at most until this moment of the monotonic clock."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._wish is None and not self._busy, max(until - time.monotonic(), 0.0)
            )

    def close(self) -> None:
        """Let the thread end when it can; nobody waits for one that hangs in a question."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._wish is not None)
                    if self._closed or self._wish is None:
                        return
                    selection, self._wish, self._busy = self._wish, None, True
                snapshot = self.feed.read(selection)
                with self._changed:
                    self.answer, self._busy = Answer(selection=selection, snapshot=snapshot, at=self._clock()), False
                    self._changed.notify_all()
        finally:
            self.feed.close()
            with self._changed:
                self._busy = False
                self._changed.notify_all()


class Feeds:
    """Reads several targets. Not for two threads at once."""

    def __init__(
        self, targets: Sequence[str], *, clock: Callable[[], float] = time.time, patience_s: float = PATIENCE_S
    ) -> None:
        # All of them are checked before the first thread starts.
        feeds = [open_feed(target, clock=clock) for target in targets]
        self._readers = [
            Reader(label, feed, clock) for label, feed in zip(labels(list(map(_shown, targets))), feeds, strict=True)
        ]
        self._clock = clock
        self._patience_s = patience_s
        self._seen: tuple[object, ...] = ()
        self._version = 0
        self._answered = Selection()

    def close(self) -> None:
        """Let go of all targets. Closing twice does nothing."""
        for reader in self._readers:
            reader.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """What the targets are called."""
        return tuple(reader.label for reader in self._readers)

    def ask(self, questions: Mapping[str, Selection]) -> dict[str, Snapshot]:
        """Ask targets by label, and return what those say that answer in time, with run ids of their own."""
        until = time.monotonic() + self._patience_s
        asked = [reader for reader in self._readers if reader.label in questions]
        for reader in asked:
            reader.ask(questions[reader.label])
        in_time = [reader for reader in asked if reader.wait(until)]
        return {reader.label: reader.answer.snapshot for reader in in_time if reader.answer is not None}

    def acknowledge(self, alert: Alert, database: Path | None) -> None:
        """Say that an alert was seen, to the target that it came from; raises `NcmonError`."""
        run_id, label = _parted(alert.run_id)
        for reader in self._readers:
            if reader.label == label:
                own = reader.answer.snapshot.database if reader.answer is not None else None
                reader.feed.acknowledge(replace(alert, run_id=run_id), own)

    def read(self, selection: Selection) -> Snapshot:
        """Return what there is now, of all targets. Never raises for what one of them does: its state says it."""
        if selection.run_id is None and selection.detail and not any(reader.answer for reader in self._readers):
            # Which run is the newest is known when all have told theirs.
            self.ask(dict.fromkeys(self.labels, _LIST))
        wanted = selection.run_id or self._newest()
        questions = dict.fromkeys(self.labels, _LIST)
        run_id, label = _parted(wanted)
        if selection.detail and label in questions:
            questions[label] = replace(selection, run_id=run_id, marked=())
        if selection.view == "compare":
            for label, marked in self._marked(selection).items():
                own = questions[label].run_id or marked[0]
                questions[label] = replace(selection, run_id=own, marked=marked)
        self.ask(questions)
        return self._merged(selection, wanted, questions)

    def _marked(self, selection: Selection) -> dict[str, tuple[str, ...]]:
        """Return the runs to compare by target, with their own ids."""
        chosen = selection.marked or tuple(_qualified(run, label) for run, label in self._runs()[:UNMARKED])
        found: dict[str, tuple[str, ...]] = {}
        for name in chosen:
            run_id, label = _parted(name)
            if label in self.labels:
                found[label] = (*found.get(label, ()), run_id)
        return found

    def _runs(self) -> list[tuple[Run, str]]:
        """Return all runs that are known, newest first, each with its label."""
        found = [(s.run, r.label) for r in self._readers if r.answer is not None for s in r.answer.snapshot.runs]
        return sorted(found, key=lambda pair: pair[0].started, reverse=True)

    def _newest(self) -> str:
        return next((_qualified(run, label) for run, label in self._runs()), "")

    def _merged(self, selection: Selection, wanted: str, questions: Mapping[str, Selection]) -> Snapshot:
        now = self._clock()
        answers = {reader.label: reader.answer for reader in self._readers if reader.answer is not None}
        sources = tuple(_source(reader, now) for reader in self._readers)
        owner = _parted(wanted)[1]
        mine = answers.get(owner)
        if owner not in questions or (mine is not None and mine.selection == questions[owner]):
            self._answered = selection
        summaries = [
            replace(summary, run=_relabelled(summary.run, label))
            for label, answer in answers.items()
            for summary in answer.snapshot.runs
        ]
        states = {source.label: source.state for source in sources}
        seen = (self._answered, *((label, answer.snapshot.version) for label, answer in answers.items()), *sources)
        if _timeless(seen) != _timeless(self._seen):
            self._version += 1
        self._seen = seen
        said = mine.snapshot if mine is not None else None
        own = questions.get(owner)
        shown = said if own is not None and own.detail else None
        detail = shown.detail if shown is not None else None
        compared = [
            replace(one, run=replace(_relabelled(one.run, label), name=f"{one.run.name} @{label}"))
            for label, answer in answers.items()
            if answer.selection.view == selection.view == "compare"
            for one in answer.snapshot.compared
        ]
        order = {name: place for place, name in enumerate(selection.marked)}
        compared.sort(key=lambda one: (order.get(one.run.run_id, 0), -one.run.started))
        failed = [f"{label}: {answer.snapshot.error}" for label, answer in answers.items() if answer.snapshot.error]
        counters: dict[str, int] = {}
        for answer in answers.values():
            for name, count in answer.snapshot.counters.items():
                counters[name] = counters.get(name, 0) + count
        return Snapshot(
            version=self._version,
            taken_at=now,
            source=states.get(owner) or _overall(states.values()),
            database=said.database if said is not None else None,
            host="",
            error="; ".join(failed) if not summaries else "",
            runs=tuple(sorted(summaries, key=lambda s: s.run.started, reverse=True)),
            detail=None if detail is None else replace(detail, run=_relabelled(detail.run, owner)),
            alerts=_alerts(answers),
            counters=counters,
            selection=self._answered,
            layers=shown.layers if shown is not None else None,
            classes=shown.classes if shown is not None else None,
            pairs=shown.pairs if shown is not None else {},
            compared=tuple(compared),
            sources=sources,
        )


def _shown(target: str) -> str:
    """Return what a target is called by; the user's own daemon has a long path that says nothing."""
    return "local" if target == config.default_endpoint() else target


def _source(reader: Reader, now: float) -> Source:
    answer = reader.answer
    if answer is None:
        return Source(label=reader.label, state=SourceState.STALE, heard=0.0)
    snapshot = answer.snapshot
    late = now - answer.at > STALE_SOURCE_S
    return Source(
        label=reader.label,
        state=SourceState.STALE if late else snapshot.source,
        heard=answer.at,
        host=snapshot.host,
        error=snapshot.error,
        n_runs=len(snapshot.runs),
    )


def _overall(states: Iterable[SourceState]) -> SourceState:
    found = list(states)
    for state in (SourceState.LIVE, SourceState.REPLAY, SourceState.STALE):
        if state in found:
            return state
    return SourceState.DOWN


def _alerts(answers: Mapping[str, Answer]) -> tuple[Alert, ...]:
    """Return the alerts of all targets in the order of one: those that press, those that are open, then the newest."""
    found = [
        replace(alert, run_id=f"{alert.run_id}@{label}")
        for label, answer in answers.items()
        for alert in answer.snapshot.alerts
    ]
    return tuple(sorted(found, key=lambda one: (not one.open, not one.pressing, -one.since)))


def _timeless(seen: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(replace(part, heard=0.0) if isinstance(part, Source) else part for part in seen)


def _qualified(run: Run, label: str) -> str:
    return f"{run.run_id}@{label}"


def _relabelled(run: Run, label: str) -> Run:
    return replace(run, run_id=_qualified(run, label))


def _parted(name: str) -> tuple[str, str]:
    run_id, _, label = name.rpartition("@")
    return run_id, label
