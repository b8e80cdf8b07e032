"""What a rule is: a frozen specification with one pure function, and what that function sees and says.

A rule looks at one window (`judge_window`), at a message that is no window (`judge_news`) or at the passing of time
(`judge_tick`). It answers with `Sign`s, one a place where something is wrong or nearly so; a place that it does not
name is well. None as an answer means that this window says nothing about the rule: then nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ncmon.alerts.limits import Limits
from ncmon.model import CLASSIFIER_INPUT, Evaluation, Gap, LayerReadings, Rejection, RunEnd, Severity

News = Gap | Rejection | RunEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What a rule has to say about one place."""

    bad: bool
    """False: not bad enough to raise, and too bad to clear."""
    text: str
    """One line, for people: what, where, how much. Names of classes are put in by number, as {class:3}."""
    layer: str = ""
    class_index: int | None = None
    value: float | None = None


TRACED = "nc1_pinv"
"""The metric whose course is remembered, of every layer."""


@dataclass(slots=True)
class Trace:
    """What is remembered of one number over the windows of a series: a few floats and no history."""

    first: float = float("nan")
    least: float = float("inf")
    """Of the median of three."""
    last: list[float] = field(default_factory=list)
    step: int = -1
    """Of the newest value."""

    def add(self, value: float, step: int) -> None:
        """Take the next value; spikes of one window do not count.

        Where steps go back a training goes on from a checkpoint: what came after it is no longer this training's past.
        """
        if step < self.step:
            self.first, self.least, self.last = float("nan"), float("inf"), []
        self.step = step
        if not np.isfinite(value):
            return
        if np.isnan(self.first):
            self.first = value
        self.last = [*self.last[-2:], value]
        if len(self.last) == 3:
            self.least = min(self.least, sorted(self.last)[1])


@dataclass(slots=True)
class Past:
    """What is remembered of a run: all that a rule may know beside the window in front of it."""

    heard: float = 0.0
    """When the run was last heard of, by the daemon's clock."""
    pause_s: float = 0.0
    """Running mean of the time between its windows."""
    windows: int = 0
    ranks: set[int] = field(default_factory=set)
    """That were inside a window so far."""
    traces: dict[str, Trace] = field(default_factory=dict)
    """By series (split, kind) and layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a rule sees."""

    evaluation: Evaluation
    past: Past
    """With this window already in it."""
    limits: Limits

    @property
    def classifier_input(self) -> LayerReadings | None:
        """The readings of the layer that feeds the classifier."""
        return next((layer for layer in self.evaluation.layers if layer.key.name == CLASSIFIER_INPUT), None)

    def value(self, name: str) -> float | None:
        """Return a reading of the classifier's input, None where it has no value."""
        found = self.classifier_input
        reading = found.readings.get(name) if found is not None else None
        return None if reading is None else reading.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that somebody should look at, with all facts about it."""

    name: str
    title: str
    """A few words for a table."""
    severity: Severity
    meaning: str
    """What it means, and when it is raised."""
    advice: str
    """How to see it, and what to do."""
    screen: str
    """Of the terminal UI: where it can be seen."""
    limits: Sequence[str] = ()
    """Names of the limits that it goes by."""
    raise_after: int = 1
    """Windows (or ticks) in a row that have to be bad before it is raised."""
    clear_after: int = 1
    """Windows in a row that have to be well before it is over."""
    cooldown_s: float = 600.0
    """Least time between two alerts of one place."""
    by_class: bool = True
    """Whether two classes are two places; else the class that is named may change while the alert is open."""
    ends_with_run: bool = False
    """Whether it is over when the run is: it was about the process, not about the network."""
    judge_window: Callable[[Sight], Sequence[Sign] | None] | None = None
    judge_news: Callable[[News], Sequence[Sign] | None] | None = None
    judge_tick: Callable[[Past, Limits, float], Sequence[Sign] | None] | None = None


def series_key(split: str, exact: bool, layer: str) -> str:
    """Return the name of a trace: of one layer in the windows of one split and kind."""
    return f"{'exact' if exact else 'streaming'}/{split}/{layer}"


def named(text: str, names: Mapping[int, str]) -> str:
    """Return a sign's text with the names of classes in the place of {class:3}; its number where one has no name."""

    def name(found: re.Match[str]) -> str:
        number = int(found[1])
        return names.get(number, str(number))

    return re.sub(r"\{class:(\d+)\}", name, text)
