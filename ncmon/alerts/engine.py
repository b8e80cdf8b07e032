"""The engine: evaluations, news and ticks in, alerts raised and alerts that are over out.

Hysteresis and cooldown are here and nowhere else, the same for all rules:

- an alert is raised when its place was bad `raise_after` times in a row, and over when it was well `clear_after` times;
- a place that is in between (past the number that clears, not past the one that raises) changes nothing;
- between two alerts of one place lie at least `cooldown_s`: what flaps faster is one alert;
- of one rule at most `MOST_OPEN` alerts of a run are open: two hundred layers that rise are one event, not two hundred.

It is told the time (unix seconds, the daemon's) and keeps per run what `Past` holds, which goes to text and back, so
that a daemon that starts again goes on where the last one stood. Open alerts come from the store: they are the truth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from ncmon.alerts.limits import Limits
from ncmon.alerts.spec import TRACED, News, Past, Rule, Sight, Sign, Trace, series_key
from ncmon.model import Alert, Evaluation, Gap, Rejection, RunEnd, Window

MOST_OPEN = 5
PAUSE_WEIGHT = 0.2
"""Of a new pause in the running mean of pauses."""

Place = tuple[str, str, bool, str, int | None]
"""Rule, split, exact, layer, class."""


@dataclass(slots=True)
class _Track:
    """How one place of one run does."""

    bad: int = 0
    well: int = 0
    alert: Alert | None = None
    """The one that is open."""
    raised: float = float("-inf")
    """When the last one was."""


@dataclass(slots=True)
class _Watched:
    """One run."""

    past: Past = field(default_factory=Past)
    tracks: dict[Place, _Track] = field(default_factory=dict)
    ended: bool = False


class Engine:
    """The rules at work on all runs of a daemon."""

    def __init__(self, rules: Sequence[Rule], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._rules = tuple(rule for rule in rules if rule.name not in self.limits.off)
        self._by_name = {rule.name: rule for rule in self._rules}
        self._runs: dict[str, _Watched] = {}

    # -- what was before ----------------------------------------------------------------------------------------------

    def resume(self, alerts: Iterable[Alert], memories: Iterable[tuple[str, str]], *, now: float) -> list[Alert]:
        """Go on where another engine stood: its open and its latest alerts, and what it remembered of runs.

        Returns, as over, the open alerts of rules that are no longer asked.
        """
        for run_id, text in memories:
            watched = self._runs.setdefault(run_id, _Watched())
            watched.past = _read_past(text)
            # The daemon was away, not the run.
            watched.past.heard = now
        changes = []
        for alert in alerts:
            rule = self._by_name.get(alert.rule)
            if rule is None:
                if alert.open:
                    changes.append(replace(alert, cleared=now))
                continue
            watched = self._runs.setdefault(alert.run_id, _Watched(past=Past(heard=now), ended=True))
            place = _place(rule, alert.split, alert.exact, alert)
            track = watched.tracks.setdefault(place, _Track())
            track.raised = max(track.raised, alert.since)
            track.alert = alert if alert.open else track.alert
        return changes

    def memory(self, run_id: str) -> str:
        """Return what is remembered of a run, as text for `resume`."""
        return _write_past(self._runs[run_id].past)

    def meet(self, run_id: str, *, now: float) -> None:
        """A run is live: from now on its silence counts."""
        watched = self._runs.setdefault(run_id, _Watched(past=Past(heard=now)))
        watched.ended = False

    def forget(self, run_id: str) -> None:
        """Nothing is expected of a run any more. What is open of it stays known, should it be resumed."""
        watched = self._runs.get(run_id)
        if watched is not None and not any(track.alert for track in watched.tracks.values()):
            del self._runs[run_id]

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that are watched."""
        return tuple(self._runs)

    # -- what comes ---------------------------------------------------------------------------------------------------

    def see(self, item: Evaluation | News, *, now: float) -> list[Alert]:
        """Take what was stored; return alerts that it raised, and alerts that it ended (those have `cleared`)."""
        run_id = item.window.run_id if isinstance(item, Evaluation) else item.run_id
        if not run_id:
            return []
        watched = self._runs.setdefault(run_id, _Watched())
        self._hear(watched.past, now, window=isinstance(item, Evaluation))
        if isinstance(item, Evaluation):
            watched.ended = False
            window = item.window
            _remember(watched.past, item)
            sight = Sight(evaluation=item, past=watched.past, limits=self.limits)
            changes: list[Alert] = []
            for rule in self._rules:
                if rule.judge_window is not None:
                    signs = rule.judge_window(sight)
                    changes += self._settle(run_id, watched, rule, signs, now, window=window)
                elif rule.judge_news is not None:
                    # A window that came through is what these wait for.
                    changes += self._settle(run_id, watched, rule, (), now)
                elif rule.judge_tick is not None:
                    changes += self._settle(run_id, watched, rule, (), now)
            return changes
        return self._news(run_id, watched, item, now)

    def tick(self, *, now: float) -> list[Alert]:
        """Time has passed."""
        changes: list[Alert] = []
        for rule in self._rules:
            if rule.judge_tick is not None:
                for run_id, watched in self._runs.items():
                    if not watched.ended:
                        signs = rule.judge_tick(watched.past, self.limits, now)
                        changes += self._settle(run_id, watched, rule, signs, now)
        return changes

    def _news(self, run_id: str, watched: _Watched, item: Gap | Rejection | RunEnd, now: float) -> list[Alert]:
        changes: list[Alert] = []
        if isinstance(item, RunEnd):
            watched.ended = True
            for track in watched.tracks.values():
                alert = track.alert
                if alert is not None and (rule := self._by_name.get(alert.rule)) is not None and rule.ends_with_run:
                    changes.append(_clear(track, now))
        for rule in self._rules:
            if rule.judge_news is not None and (signs := rule.judge_news(item)) is not None:
                changes += self._settle(run_id, watched, rule, signs, now)
        return changes

    def _hear(self, past: Past, now: float, *, window: bool) -> None:
        if window:
            if past.windows and past.heard:
                pause = max(now - past.heard, 0.0)
                past.pause_s = pause if past.windows == 1 else past.pause_s + PAUSE_WEIGHT * (pause - past.pause_s)
            past.windows += 1
        past.heard = now

    # -- hysteresis and cooldown --------------------------------------------------------------------------------------

    def _settle(
        self,
        run_id: str,
        watched: _Watched,
        rule: Rule,
        signs: Sequence[Sign] | None,
        now: float,
        *,
        window: Window | None = None,
    ) -> list[Alert]:
        """Return what changes at the places of one rule in one series."""
        if signs is None:
            return []
        split, exact = (window.split, window.exact) if window is not None else ("", False)
        found: dict[Place, Sign] = {}
        for sign in signs:
            found.setdefault(_place(rule, split, exact, sign), sign)
        changes: list[Alert] = []
        tracks = watched.tracks
        for place in [place for place in tracks if place[:3] == (rule.name, split, exact) and place not in found]:
            track = tracks[place]
            track.bad, track.well = 0, track.well + 1
            if track.alert is not None and track.well >= rule.clear_after:
                changes.append(_clear(track, now))
            if track.alert is None and not 0 <= now - track.raised < rule.cooldown_s:
                del tracks[place]
        room = MOST_OPEN - sum(track.alert is not None for place, track in tracks.items() if place[0] == rule.name)
        for place, sign in found.items():
            if place not in tracks and not sign.bad:
                continue
            track = tracks.setdefault(place, _Track())
            track.well = 0
            if not sign.bad:
                track.bad = 0
                continue
            track.bad += 1
            if now < track.raised:
                track.raised = now  # The clock was set back: a cooldown must not last for ever.
            if (
                track.alert is None
                and track.bad >= rule.raise_after
                and now - track.raised >= rule.cooldown_s
                and room > 0
            ):
                room -= 1
                track.raised = now
                track.alert = Alert(
                    run_id=run_id,
                    rule=rule.name,
                    severity=rule.severity,
                    split=split,
                    exact=exact,
                    layer=sign.layer,
                    class_index=sign.class_index,
                    epoch=window.epoch if window is not None else -1,
                    step=window.step if window is not None else -1,
                    since=now,
                    value=sign.value if sign.value is not None and np.isfinite(sign.value) else None,
                    text=sign.text,
                )
                changes.append(track.alert)
        return changes


def _place(rule: Rule, split: str, exact: bool, at: Sign | Alert) -> Place:
    return (rule.name, split, exact, at.layer, at.class_index if rule.by_class else None)


def _clear(track: _Track, now: float) -> Alert:
    assert track.alert is not None
    cleared = replace(track.alert, cleared=max(now, track.alert.since))
    track.alert, track.bad, track.well = None, 0, 0
    return cleared


def _remember(past: Past, evaluation: Evaluation) -> None:
    window = evaluation.window
    past.ranks.update(window.ranks)
    for layer in evaluation.layers:
        reading = layer.readings.get(TRACED)
        if reading is not None and reading.value is not None:
            key = series_key(window.split, window.exact, layer.key.name)
            past.traces.setdefault(key, Trace()).add(reading.value, window.step)


def _write_past(past: Past) -> str:
    said = asdict(past) | {"ranks": sorted(past.ranks)}
    said["traces"] = {key: [trace.first, trace.least, trace.last, trace.step] for key, trace in past.traces.items()}
    return json.dumps(said, separators=(",", ":"))


def _read_past(text: str) -> Past:
    """Return what was remembered; a text that cannot be read is a run of which nothing is known."""
    try:
        said = json.loads(text)
        return Past(
            heard=float(said["heard"]),
            pause_s=float(said["pause_s"]),
            windows=int(said["windows"]),
            ranks={int(rank) for rank in said["ranks"]},
            traces={
                str(key): Trace(
                    first=float(first),
                    least=float(least),
                    last=[float(value) for value in last],
                    step=int(rest[0]) if rest else -1,
                )
                for key, (first, least, last, *rest) in said["traces"].items()
            },
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return Past()
