"""When to look: budget, phase, warm-up."""

from __future__ import annotations

import random

import pytest

from ncmon_client.schedule import MAX_EVERY, WARM_UP_STEPS, Schedule


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


def test_the_first_steps_are_looked_at_whatever_they_cost() -> None:
    looked = run(Schedule(every=None, budget=0.01, rng=random.Random(0)), 50, step_s=1e-3, hook_s=1.0)
    assert all(looked[:WARM_UP_STEPS])
    assert sum(looked) < 10


def test_a_hopeless_ratio_still_looks_now_and_then() -> None:
    schedule = Schedule(every=None, budget=1e-9, rng=random.Random(0))
    run(schedule, 20 * MAX_EVERY, step_s=1e-3, hook_s=1.0)
    assert schedule.every == MAX_EVERY


def test_never_means_not_even_the_first_step() -> None:
    schedule = Schedule(every=0, budget=0.01, rng=random.Random(0))
    assert not any(run(schedule, 100, step_s=1.0, hook_s=1.0))
    assert schedule.every == 0
    assert schedule.overhead == 0.0
