"""Which runs are meant: conditions on name, tag, status, date and configuration, and the order to show them in.

    lr<0.1    model=resnet*    optimizer.momentum>=0.9    augment=true    seed        (the last: has such a key)

Pure: a run goes in, true or false comes out. A condition on a number holds for numbers only; a value that is absent
fulfils none, not even `!=`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ncmon.errors import UsageError
from ncmon.model import Run

_CONDITION = re.compile(r"\s*([^=!<>\s][^=!<>]*?)\s*(?:(<=|>=|!=|<|>|==|=)\s*(.*?)\s*)?", flags=re.DOTALL)

_ORDER: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition on one named value."""

    key: str
    operator: str
    """One of = != < <= > >=; empty asks for the key alone."""
    text: str

    def holds(self, value: Any) -> bool:
        """Whether a value, None where there is none, fulfils the condition."""
        if value is None or not self.operator:
            return value is not None
        number = as_number(value)
        if self.operator in _ORDER:
            return number is not None and _ORDER[self.operator](number, float(self.text))
        return self._equal(value, number) == (self.operator == "=")

    def _equal(self, value: Any, number: float | None) -> bool:
        if isinstance(value, bool):
            return self.text.lower() == str(value).lower()
        limit = as_number(self.text)
        if number is not None and limit is not None:
            return number == limit
        return str(value) == self.text or fnmatchcase(str(value), self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Conditions that a run has to fulfil all together; the empty one is fulfilled by every run."""

    name: str = ""
    """A pattern with * and ?, or a part of the name."""
    tags: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    config: tuple[Condition, ...] = ()
    since: float | None = None
    """Unix seconds: runs that began then or later."""
    until: float | None = None
    """Runs that began before."""

    def __call__(self, run: Run) -> bool:
        """Whether a run is meant."""
        return (
            self._is_named(run.name)
            and all(any(fnmatchcase(tag, wanted) for tag in run.tags) for wanted in self.tags)
            and (not self.statuses or run.status in self.statuses)
            and (self.since is None or run.started >= self.since)
            and (self.until is None or run.started < self.until)
            and all(condition.holds(config_value(run.config, condition.key)) for condition in self.config)
        )

    def _is_named(self, name: str) -> bool:
        if not any(letter in self.name for letter in "*?["):
            return self.name.lower() in name.lower()
        return fnmatchcase(name.lower(), self.name.lower())


def parse_condition(text: str) -> Condition:
    """Return a condition that was typed; raises `UsageError`."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no condition: expected KEY=VALUE, KEY<VALUE, KEY>=VALUE, KEY!=VALUE or KEY")
    key, operator, right = match.group(1), match.group(2) or "", match.group(3) or ""
    operator = "=" if operator == "==" else operator
    if right[:1] in ("=", "<", ">"):
        raise UsageError(f"{text!r} is no condition: expected one of = != < <= > >= between key and value")
    if operator in _ORDER and as_number(right) is None:
        raise UsageError(f"{text!r} compares with {right!r}: expected a number behind {operator}")
    return Condition(key=key, operator=operator, text=right)


def config_value(config: Mapping[str, Any], key: str) -> Any:
    """Return a value of a configuration by its key, or by the path to it with dots; None where there is none."""
    if key in config:
        return config[key]
    head, _, rest = key.partition(".")
    inner = config.get(head)
    return config_value(inner, rest) if rest and isinstance(inner, Mapping) else None


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found.update(flat_config(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def config_differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the keys whose values are not the same in all configurations, with the values; None where absent."""
    flats = [flat_config(config) for config in configs]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    rows = {key: tuple(flat.get(key) for flat in flats) for key in keys}
    return {
        key: values
        for key, values in rows.items()
        if any(key not in flat for flat in flats) or any(value != values[0] for value in values[1:])
    }


def sort_key(value: Any) -> tuple[int, float, str]:
    """Return what a value is ordered by: numbers, then texts; whoever sorts keeps the absent (None, NaN) apart."""
    number = as_number(value)
    return (0, number, "") if number is not None else (1, 0.0, str(value))


def as_number(value: Any) -> float | None:
    """Return a number, or a text that is one, as float; None for anything else, and for NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number
