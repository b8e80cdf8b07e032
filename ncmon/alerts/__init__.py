"""Alerts: rules that look at every window and at the passing of time, and say what somebody should look at.

Pure: evaluations and ticks go in, alerts that are raised or over come out. Nothing here reads a clock, a database or a
socket. `RULES` is the one visible list, the twin of `METRICS`: commands, help, screens and the store's texts read it.
"""

from __future__ import annotations

from ncmon.alerts import motion, process, theory
from ncmon.alerts.engine import Engine
from ncmon.alerts.limits import LIMITS, Limits, parse_limits
from ncmon.alerts.spec import Rule
from ncmon.errors import NotFound, near

RULES: tuple[Rule, ...] = (*process.RULES, *theory.RULES, *motion.RULES)
"""In the order of listings: what is broken, what contradicts theory, what moves the wrong way, what is reached."""

_BY_NAME = {rule.name: rule for rule in RULES}

if len(_BY_NAME) != len(RULES) or not _BY_NAME.keys().isdisjoint(limit.name for limit in LIMITS):
    raise RuntimeError("two rules, or a rule and a limit, share a name")


def rule_named(name: str) -> Rule:
    """Return one rule; `NotFound` offers near names."""
    if name not in _BY_NAME:
        raise NotFound(f"no rule is named {name!r}{near(name, _BY_NAME)}")
    return _BY_NAME[name]


def title_of(name: str) -> str:
    """Return a rule's title; of a rule that this ncmon does not know, its name."""
    return _BY_NAME[name].title if name in _BY_NAME else name


__all__ = ("LIMITS", "RULES", "Engine", "Limits", "Rule", "parse_limits", "rule_named", "title_of")
