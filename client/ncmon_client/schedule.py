"""When to look: which steps are sampled, so that the hook stays within its budget.

Pure: it is told what things took and says what to do next; it reads no clock and never touches a global generator.

Two rules, and both have to agree. *The plan*: a looked-at step costs `t_hook` on top of the `t_step` that training
takes without it; steps that are not looked at cost `t_idle`, whatever they do. One step in
`every = ceil(t_hook / (budget / 2 * t_step - t_idle))` keeps the share at half the budget. The step is drawn anew in
each block of `every` steps: a fixed phase would meet a fixed phase of the data. *The account*: all that ncmon took so
far, closed windows and the sending thread among it, has to be below nine tenths of the budget before another step is
looked at. So a run that is short, or closes windows faster than they can be paid, is looked at less, and for a while
not at all; an epoch without a look has no window, which costs nothing either.

The first step is looked at whatever it costs: it shows what there is to see. The second look waits until it is paid.
Where hooks that do not even look cost more than the budget, nothing ever is: then one step in `MAX_WAIT` is looked at.
"""

from __future__ import annotations

import math
import random

MAX_EVERY = 1_000
MAX_WAIT = 10_000
SMOOTHING = 0.2
"""Weight of a new measurement in the running means."""
PLANNED, ALLOWED = 0.5, 0.9
"""Shares of the budget: what looking is planned to cost, and what all may have cost before another look."""


class Schedule:
    """Decides, step by step, whether the next step is looked at."""

    def __init__(self, *, every: int | None, budget: float, rng: random.Random) -> None:
        self._fixed = every  # 0: never
        self._budget = budget
        self._rng = rng
        self._place = 0
        self._chosen = 0
        self._looked = False
        """In the present block."""
        self._every = 1 if every is None else every
        self._steps = 0
        self._waited = 0
        self._step_s: float | None = None
        self._hook_s: float | None = None
        self._idle_s = 0.0
        """Of the steps that were not looked at, and outside steps."""
        self._total_s = 0.0
        self._cost_s = 0.0

    @property
    def every(self) -> int:
        """One step in this many is looked at; 0 when none is."""
        return self._every

    @property
    def overhead(self) -> float | None:
        """Share of the training's time that ncmon took so far; None before the second step."""
        return self._cost_s / self._total_s if self._total_s > 0 else None

    def look(self) -> bool:
        """Say whether the step that begins now is looked at."""
        if self._fixed == 0:
            return False
        if self._fixed is not None or self._steps == 0:
            return self._place == self._chosen
        # A look that was not paid for at its place comes later, and the block ends with it.
        return not self._looked and self._place >= self._chosen and (self._paid() or self._waited >= MAX_WAIT)

    def done(self, *, looked: bool, step_s: float | None, hook_s: float) -> None:
        """A step is over: `step_s` since the end of the one before (None for the first), `hook_s` of it in the hook."""
        self._steps += 1
        self._place += 1
        self._waited = 0 if looked else self._waited + 1
        self._cost_s += hook_s
        # Nobody saw the first step begin: what the hook itself took of it is known.
        self._total_s += hook_s if step_s is None else step_s
        if step_s is not None:
            self._step_s = _smooth(self._step_s, max(step_s - hook_s, 0.0))
        if not looked:
            self._idle_s += hook_s
        elif self._steps > 1:
            # The first look pays for allocations and finds out what there is; it says nothing about the others.
            self._hook_s = _smooth(self._hook_s, hook_s)
        self._looked = self._looked or looked
        if self._fixed != 0 and self._place >= self._every and (self._looked or self._fixed is not None):
            self._place, self._looked = 0, False
            self._every = self._next_every()
            self._chosen = self._rng.randrange(self._every)

    def spent(self, hook_s: float, *, beside: bool = False) -> None:
        """Ncmon took time outside a step: an epoch's window was closed, or (`beside`) another thread worked."""
        if not beside:
            self._total_s += hook_s
        self._cost_s += hook_s
        self._idle_s += hook_s

    def _paid(self) -> bool:
        return self._cost_s <= ALLOWED * self._budget * self._total_s

    def _next_every(self) -> int:
        if self._fixed is not None:
            return self._fixed
        if self._hook_s is None or not self._step_s:
            return 1
        allowed = PLANNED * self._budget * self._step_s
        # What looking less cannot save is never more than nine tenths of the plan, or nothing would be seen at all.
        allowed = max(allowed - self._idle_s / self._steps, 0.1 * allowed)
        return min(max(math.ceil(self._hook_s / allowed), 1), MAX_EVERY)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else (1 - SMOOTHING) * old + SMOOTHING * new
