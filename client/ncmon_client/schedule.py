"""When to look: which steps are sampled, so that the hook stays within its budget.

Pure: it is told what things took and says what to do next; it reads no clock and never touches a global generator.

A looked-at step costs `t_hook` on top of the `t_step` that training takes without it; steps that are not looked at,
and closing windows, cost `t_idle` a step. One step in `every = ceil(t_hook / (budget / 2 * t_step - t_idle))` keeps the
share at half the budget, so that a noisy measurement still stays inside. The sampled step is drawn anew in each block
of `every` steps: a fixed phase would meet a fixed phase of the data.
"""

from __future__ import annotations

import math
import random

WARM_UP_STEPS = 3
"""Looked at whatever it costs, to have a measurement; the first of them pays for allocations and is not counted."""
MAX_EVERY = 1_000
SMOOTHING = 0.2
"""Weight of a new measurement in the running means."""


class Schedule:
    """Decides, step by step, whether the next step is looked at."""

    def __init__(self, *, every: int | None, budget: float, rng: random.Random) -> None:
        self._fixed = every  # 0: never
        self._budget = budget
        self._rng = rng
        self._seen = 0
        self._place = 0
        self._chosen = 0
        self._every = 1 if every is None else every
        self._step_s: float | None = None
        self._hook_s: float | None = None
        self._idle_s = 0.0
        self._total_s = 0.0
        self._total_hook_s = 0.0

    @property
    def every(self) -> int:
        """One step in this many is looked at; 0 when none is."""
        return self._every

    @property
    def overhead(self) -> float | None:
        """Share of the time that the hook took so far, the first step left out; None before the second."""
        return self._total_hook_s / self._total_s if self._total_s > 0 else None

    def look(self) -> bool:
        """Say whether the step that begins now is looked at."""
        if self._fixed == 0:
            return False
        if self._seen < WARM_UP_STEPS:
            return True
        return self._place == self._chosen

    def done(self, *, looked: bool, step_s: float | None, hook_s: float) -> None:
        """A step is over: `step_s` since the end of the one before (None for the first), `hook_s` of it in the hook."""
        self._seen += 1
        self._place += 1
        if step_s is not None and self._seen > 1:
            self._total_s += step_s
            self._total_hook_s += hook_s
            self._step_s = _smooth(self._step_s, max(step_s - hook_s, 0.0))
            if looked:
                self._hook_s = _smooth(self._hook_s, hook_s)
            else:
                self._idle_s += hook_s
        if self._fixed != 0 and self._place >= self._every:
            self._place = 0
            self._every = self._next_every()
            self._chosen = self._rng.randrange(self._every)

    def spent(self, hook_s: float) -> None:
        """The hook took time outside a step: a window was closed at the end of an epoch."""
        self._total_s += hook_s
        self._total_hook_s += hook_s
        self._idle_s += hook_s

    def _next_every(self) -> int:
        if self._fixed is not None:
            return self._fixed
        if self._hook_s is None or not self._step_s:
            return 1
        allowed = self._budget / 2 * self._step_s
        # What looking less cannot save is never more than nine tenths of the plan, or nothing would be seen at all.
        allowed = max(allowed - self._idle_s / self._seen, 0.1 * allowed)
        return min(max(math.ceil(self._hook_s / allowed), 1), MAX_EVERY)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else (1 - SMOOTHING) * old + SMOOTHING * new
