"""The lookout: lets the rules look at what was stored, stores what they raise, and rings the bell.

It is called after a commit and about once a second, in the daemon's thread. What it cannot store at once, because the
disk is full or somebody else writes, it keeps and stores later; trainings never wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from ncmon.alerts import RULES, Engine, Limits, title_of
from ncmon.errors import StoreError
from ncmon.model import Alert, Evaluation, Gap, Rejection, RunEnd

REMEMBER_S = 10.0
"""How often what the rules remember is stored: what a daemon that is killed forgets."""
MEET_S = 10.0
OLD_S = 86_400.0
"""Runs that were not heard of for longer are no longer waited for."""
MOST_PENDING = 1000
MOST_SAID = 32

log = logging.getLogger("ncmon.alerts")


class Ledger(Protocol):
    """What the lookout needs of the store."""

    def put_alerts(self, changes: list[Alert], memories: Mapping[str, str]) -> tuple[Alert, ...]:
        """Store changes; return the raised ones as stored."""

    def alert_state(self, *, since: float) -> tuple[tuple[Alert, ...], tuple[tuple[str, str], ...]]:
        """Return what another lookout left."""

    def live_runs(self, *, heard_after: float) -> dict[str, str]:
        """Return names by id."""


class Lookout:
    """The rules over one store."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        limits: Limits | None = None,
        ring: Callable[[dict[str, Any]], None] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        now = wall()
        self._ledger = ledger
        self._wall = wall
        self._engine = Engine(RULES, limits)
        self._ring = ring
        self._names: dict[str, str] = {}
        self._fresh: set[str] = set()
        """Runs whose memory has changed since it was stored."""
        self._said: set[str] = set()
        """Mistakes of our own, each of which is logged once."""
        self._next_meet = self._next_memory = now
        self.raised = 0
        """Alerts that were raised since the start."""
        longest = max(rule.cooldown_s for rule in RULES)
        opened, memories = ledger.alert_state(since=now - longest)
        self._pending = self._engine.resume(opened, memories, now=now)

    def committed(self, items: Iterable[Evaluation | Gap | RunEnd | Rejection]) -> None:
        """These are stored now."""
        now = self._wall()
        for item in items:
            run_id = item.window.run_id if isinstance(item, Evaluation) else item.run_id
            if not run_id:
                continue
            self._fresh.add(run_id)
            try:
                self._pending += self._engine.see(item, now=now)
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                if text not in self._said and len(self._said) < MOST_SAID:
                    self._said.add(text)
                    log.exception("a rule failed, its alerts may be missing: %s", text)
        self._store(now)

    def tick(self) -> None:
        """About a second has passed."""
        now = self._wall()
        # A clock that was set back must not keep anything waiting.
        if not 0 < self._next_meet - now <= MEET_S:
            self._next_meet = now + MEET_S
            self._meet(now)
        self._pending += self._engine.tick(now=now)
        self._store(now)

    def close(self) -> None:
        """Store what is remembered: the next daemon goes on with it."""
        now = self._wall()
        self._next_memory = now
        self._store(now)

    def _meet(self, now: float) -> None:
        self._names = self._ledger.live_runs(heard_after=now - OLD_S)
        for run_id in self._names:
            self._engine.meet(run_id, now=now)
        for run_id in set(self._engine.runs).difference(self._names, self._fresh):
            # It has ended, was deleted, or is silent for a day.
            self._engine.forget(run_id)

    def _store(self, now: float) -> None:
        memories: dict[str, str] = {}
        if self._fresh and not 0 < self._next_memory - now <= REMEMBER_S:
            known = set(self._engine.runs)
            memories = {run_id: self._engine.memory(run_id) for run_id in self._fresh & known}
        if not self._pending and not memories:
            return
        try:
            raised = self._ledger.put_alerts(self._pending, memories)
        except StoreError as error:
            self._pending = self._pending[-MOST_PENDING:]
            log.warning("alerts cannot be stored now: %s", error)
            return
        if memories:
            self._fresh.clear()
            self._next_memory = now + REMEMBER_S
        self._pending = []
        self.raised += len(raised)
        for alert in raised:
            name = self._names.get(alert.run_id, alert.run_id)
            log.warning("%s: run %s: %s", alert.rule, _printable(name), _printable(alert.text))
            if self._ring is not None:
                self._ring(record(alert, name))


def record(alert: Alert, run_name: str) -> dict[str, Any]:
    """Return an alert as a command gets it."""
    return {"run": run_name, "title": title_of(alert.rule), **asdict(alert)}


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in text)
