"""How a monitor does, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the monitor does. Messages are windows and, at the end, the run's last word."""

    run_id: str
    accepted: int
    """Messages taken over for delivery."""
    acknowledged: int
    """Messages that are in the store."""
    refused: int
    """Windows not taken because the buffer was full."""
    spooled: int
    """Accepted messages that are in the spool file on this machine's disk and not acknowledged yet."""
    connected: bool
    steps: int
    """Training steps so far."""
    sampled_steps: int
    """Of those, the ones whose features were looked at."""
    every: int
    """At present one step in this many is looked at; 0 when none is."""
    overhead: float | None
    """Measured share of the training's time that the hook takes; None before the second step."""
    mishaps: int
    """Errors that were caught, each kind of which was said once."""
    kernel: str
    """What adds up the sums by class: `compiled`, or `torch` and, where another was asked for, why."""
    last_error: str
