"""Hysteresis, cooldown and memory, against inputs that flap; with rules that say what they are told."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from ncmon.alerts.engine import MOST_OPEN, Engine
from ncmon.alerts.limits import Limits
from ncmon.alerts.spec import Rule, Sight, Sign
from ncmon.model import Alert, Evaluation, RunEnd
from tests.factories import make_window

# What a window says of the one place: bad, in between, well, nothing.
BAD, BETWEEN, WELL, SILENT = "bad", "between", "well", "silent"
WORDS = st.lists(st.tuples(st.sampled_from((BAD, BETWEEN, WELL, SILENT)), st.floats(0.1, 400.0)), max_size=60)


def told(sight: Sight) -> list[Sign] | None:
    """Judge by what stands in the split's name."""
    word = next(iter(sight.evaluation.window.skipped_batches))
    if word == SILENT:
        return None
    return [] if word == WELL else [Sign(bad=word == BAD, text=word)]


def rule(**facts: object) -> Rule:
    defaults = {
        "name": "told",
        "title": "told",
        "severity": "warning",
        "meaning": "",
        "advice": "",
        "screen": "run",
        "raise_after": 2,
        "clear_after": 3,
        "cooldown_s": 600.0,
        "judge_window": told,
    }
    return Rule(**(defaults | facts))  # type: ignore[arg-type]


WINDOW = make_window(layers=1)


def says(word: str, run_id: str = "run") -> Evaluation:
    return Evaluation(window=dataclasses.replace(WINDOW, skipped_batches={word: 1}, run_id=run_id), layers=())


def play(engine: Engine, words: list[tuple[str, float]], now: float = 1000.0) -> list[Alert]:
    found = []
    for word, pause in words:
        now += pause
        found += engine.see(says(word), now=now)
    return found


def simulated(words: list[tuple[str, float]], one: Rule) -> list[tuple[str, float]]:
    """Return what happens when, told in the plainest way: the whole past is looked at for every window."""
    events: list[tuple[str, float]] = []
    now, is_open, since_change = 1000.0, False, 0
    heard: list[str] = []
    for word, pause in words:
        now += pause
        if word == SILENT:
            continue
        heard.append(word)
        recent = heard[since_change:]
        if is_open:
            if len(recent) >= one.clear_after and all(w == WELL for w in recent[-one.clear_after :]):
                events.append(("over", now))
                is_open, since_change = False, len(heard)
        else:
            last = max((at for what, at in events if what == "raised"), default=float("-inf"))
            enough = len(recent) >= one.raise_after and all(w == BAD for w in recent[-one.raise_after :])
            if enough and now - last >= one.cooldown_s:
                events.append(("raised", now))
                is_open, since_change = True, len(heard)
    return events


@given(words=WORDS, raise_after=st.integers(1, 4), clear_after=st.integers(1, 4), cooldown=st.floats(0.0, 1000.0))
def test_flapping_is_judged_as_by_the_plain_reading_of_the_rule(
    words: list[tuple[str, float]], raise_after: int, clear_after: int, cooldown: float
) -> None:
    one = rule(raise_after=raise_after, clear_after=clear_after, cooldown_s=cooldown)
    found = play(Engine([one]), words)
    events = [("over", a.cleared) if a.cleared is not None else ("raised", a.since) for a in found]
    assert events == simulated(words, one)


@given(words=WORDS)
def test_alerts_of_one_place_alternate_and_keep_their_distance(words: list[tuple[str, float]]) -> None:
    found = play(Engine([rule()]), words)
    assert all((alert.cleared is None) == (place % 2 == 0) for place, alert in enumerate(found))
    raised = [alert.since for alert in found if alert.cleared is None]
    assert all(later - earlier >= 600.0 for earlier, later in itertools.pairwise(raised))


@given(words=WORDS, cut=st.integers(0, 60))
def test_an_engine_that_starts_again_never_raises_what_is_open(words: list[tuple[str, float]], cut: int) -> None:
    first, second = Engine([rule()]), Engine([rule()])
    before = play(first, words[:cut])
    now = 1000.0 + sum(pause for _, pause in words[:cut])
    stored: dict[float, Alert] = {}
    for alert in before:
        stored[alert.since] = alert
    assert second.resume(stored.values(), [], now=now) == []
    after = play(second, words[cut:], now)
    everything = sorted([*before, *after], key=lambda alert: alert.cleared or alert.since)
    raised = [alert.since for alert in everything if alert.cleared is None]
    assert all((alert.cleared is None) == (place % 2 == 0) for place, alert in enumerate(everything))
    assert all(later - earlier >= 600.0 for earlier, later in itertools.pairwise(raised))


def test_of_one_rule_few_alerts_of_a_run_are_open() -> None:
    many = rule(raise_after=1, judge_window=lambda sight: [Sign(bad=True, text="x", layer=f"l{i}") for i in range(200)])
    engine = Engine([many])
    assert len(engine.see(says(BAD), now=1.0)) == MOST_OPEN
    assert engine.see(says(BAD), now=2.0) == []
    assert len(engine.see(says(BAD, "other"), now=3.0)) == MOST_OPEN


def test_what_is_about_the_process_is_over_with_the_run() -> None:
    engine = Engine([rule(name="stays", raise_after=1), rule(name="goes", raise_after=1, ends_with_run=True)])
    assert [alert.rule for alert in engine.see(says(BAD), now=1.0)] == ["stays", "goes"]
    ended = engine.see(RunEnd(run_id="run", status="finished", text="", time=2.0), now=2.0)
    assert [(alert.rule, alert.cleared) for alert in ended] == [("goes", 2.0)]


def test_a_rule_that_is_switched_off_says_nothing_and_its_alerts_are_over() -> None:
    engine = Engine([rule(raise_after=1)])
    (alert,) = engine.see(says(BAD), now=1.0)
    quiet = Engine([rule(raise_after=1)], Limits(off=frozenset({"told"})))
    assert [(a.rule, a.cleared) for a in quiet.resume([alert], [], now=5.0)] == [("told", 5.0)]
    assert quiet.see(says(BAD), now=6.0) == []


def test_a_clock_that_is_set_back_does_not_silence_a_place_for_ever() -> None:
    engine = Engine([rule(raise_after=1, clear_after=1)])
    assert len(play(engine, [(BAD, 1.0), (WELL, 1.0)], now=1e9)) == 2
    assert len(play(engine, [(BAD, 1.0)] * 3 + [(BAD, 700.0)], now=1000.0)) == 1


@given(st.text(max_size=50))
def test_a_memory_that_cannot_be_read_is_no_memory(text: str) -> None:
    engine = Engine([rule(raise_after=1)])
    engine.resume([], [("run", text)], now=1.0)
    assert len(engine.see(says(BAD), now=2.0)) == 1
