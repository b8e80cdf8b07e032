"""When to look: budget, phase, warm-up."""

from __future__ import annotations

import random

import pytest

from ncmon_client.schedule import MAX_EVERY, MAX_WAIT, Schedule


def run(schedule: Schedule, steps: int, *, step_s: float, hook_s: float) -> list[bool]:
    looked = []
    for number in range(steps):
        look = schedule.look()
        looked.append(look)
        cost = hook_s if look else 0.0
        schedule.done(looked=look, step_s=None if number == 0 else step_s + cost, hook_s=cost)
    return looked


@pytest.mark.parametrize("budget", [0.01, 0.05])
@pytest.mark.parametrize("cost", [0.001, 0.02, 0.1])
def test_the_share_stays_within_the_budget(budget: float, cost: float) -> None:
    schedule = Schedule(every=None, budget=budget, rng=random.Random(0))
    run(schedule, 20_000, step_s=1.0, hook_s=cost)
    assert schedule.overhead is not None
    assert schedule.overhead <= budget
    # And uses it: a controller that never looks would keep any budget.
    assert schedule.overhead >= min(cost, budget / 2) * 0.75


def test_a_fixed_number_is_kept_exactly_with_a_moving_phase() -> None:
    looked = run(Schedule(every=5, budget=0.01, rng=random.Random(1)), 5_000, step_s=1.0, hook_s=0.5)
    places = [n for n, look in enumerate(looked) if look and n >= 10]
    assert abs(len(places) - 998) <= 2
    assert {place % 5 for place in places} == {0, 1, 2, 3, 4}


def test_every_step_means_every_step() -> None:
    assert all(run(Schedule(every=1, budget=0.01, rng=random.Random(0)), 100, step_s=1.0, hook_s=1.0))


@pytest.mark.parametrize("steps", [30, 300, 3_000, 30_000])
@pytest.mark.parametrize("close_s", [0.0, 0.05, 2.0])
def test_after_the_first_look_every_run_keeps_its_budget_with_everything_it_costs(steps: int, close_s: float) -> None:
    """Windows close every 50 steps if something was looked at; half of that cost is another thread's."""
    schedule = Schedule(every=None, budget=0.01, rng=random.Random(2))
    spent, total, seen = 0.0, 0.0, 0
    looks = 0
    for number in range(steps):
        looked = schedule.look()
        looks += looked
        hook_s = (0.3 if number == 0 else 0.1) if looked else 0.0005
        seen += looked
        if number % 50 == 49 and seen:
            hook_s += close_s / 2
            schedule.spent(close_s / 2, beside=True)
            spent, seen = spent + close_s / 2, 0
        schedule.done(looked=looked, step_s=None if number == 0 else 1.0 + hook_s, hook_s=hook_s)
        spent, total = spent + hook_s, total + 1.0 + hook_s
    # One look and the window that it fills may be under way when the run ends.
    assert spent <= 0.01 * total + 0.3 + close_s
    assert looks >= 1
    if steps == 30_000:
        assert spent <= 0.0101 * total
        assert spent >= 0.003 * total


def test_the_first_step_is_looked_at_whatever_it_costs_and_paid_before_the_second() -> None:
    looked = run(Schedule(every=None, budget=0.01, rng=random.Random(0)), 500, step_s=1e-3, hook_s=2e-3)
    assert looked[0]
    # 2 ms are paid after 200 ms and more; the plan is one look in 400.
    assert not any(looked[1:200])
    assert sum(looked) in (2, 3)


def test_a_cheap_hook_looks_at_every_step() -> None:
    looked = run(Schedule(every=None, budget=0.01, rng=random.Random(0)), 500, step_s=1.0, hook_s=0.002)
    # How long the first step took nobody saw; the second is the first to be paid out of.
    assert sum(looked) == 499


def test_a_budget_that_idle_hooks_use_up_still_lets_it_look_now_and_then() -> None:
    schedule = Schedule(every=None, budget=1e-3, rng=random.Random(0))
    looks = 0
    for number in range(3 * MAX_WAIT):
        looked = schedule.look()
        looks += looked
        hook_s = 1.0 if looked else 0.01
        schedule.done(looked=looked, step_s=None if number == 0 else 1.0 + hook_s, hook_s=hook_s)
    assert 2 <= looks <= 4


def test_a_hopeless_ratio_still_looks_now_and_then() -> None:
    schedule = Schedule(every=None, budget=1e-9, rng=random.Random(0))
    run(schedule, 3 * MAX_WAIT, step_s=1e-3, hook_s=1.0)
    assert schedule.every == MAX_EVERY


def test_never_means_not_even_the_first_step() -> None:
    schedule = Schedule(every=0, budget=0.01, rng=random.Random(0))
    assert not any(run(schedule, 100, step_s=1.0, hook_s=1.0))
    assert schedule.every == 0
    assert schedule.overhead == 0.0
