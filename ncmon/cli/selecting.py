"""Which runs a command is about, as options: name, tag, status, configuration and date."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ncmon.cli.completing import complete_layer, complete_metric, complete_split
from ncmon.errors import NotFound, UsageError

if TYPE_CHECKING:
    from ncmon.store.queries import Store
    from ncmon.store.runs import StoredRun
    from ncmon.store.selection import Selection

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_AGES = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def selection_options(function: Decorated) -> Decorated:
    """Add the options that pick runs; the command gets them as keywords for `selection_of`."""
    for option in reversed(
        (
            click.option("--name", metavar="PATTERN", default="", help="Part of the name, or a pattern with * and ?."),
            click.option("--tag", "tags", multiple=True, metavar="TAG", help="Has this tag, or one like it*."),
            click.option(
                "--status",
                "statuses",
                multiple=True,
                type=click.Choice(("live", "finished", "failed")),
                help="One of these, when given several times.",
            ),
            click.option(
                "--config",
                "conditions",
                multiple=True,
                metavar="COND",
                help="KEY=VALUE, KEY!=VALUE, KEY<VALUE, ...; KEY may be a path with dots, VALUE a pattern.",
            ),
            click.option(
                "--since", metavar="WHEN", help="Began then or later: 2026-11-23, 2026-11-23T14:00, or 3d ago."
            ),
            click.option("--until", metavar="WHEN", help="Began before."),
        )
    ):
        function = option(function)
    return function


def part_options(function: Decorated) -> Decorated:
    """Add the options that pick runs, or all, and parts of them: `everything`, `metrics`, `layers` and `splits` too."""
    function = selection_options(function)
    function = click.option("--all", "everything", is_flag=True, help="All runs.")(function)
    for name, letter, complete in (
        ("split", "S", complete_split),
        ("layer", "L", complete_layer),
        ("metric", "M", complete_metric),
    ):
        function = click.option(
            f"--{name}", f"{name}s", multiple=True, shell_complete=complete, metavar=letter, help=f"These {name}s only."
        )(function)
    return function


def selection_of(
    *,
    name: str,
    tags: tuple[str, ...],
    statuses: tuple[str, ...],
    conditions: tuple[str, ...],
    since: str | None,
    until: str | None,
) -> Selection:
    """Return the selection that was typed; raises `UsageError`."""
    from ncmon.store.selection import Selection, parse_condition

    now = time.time()
    return Selection(
        name=name,
        tags=tags,
        statuses=statuses,
        config=tuple(parse_condition(text) for text in conditions),
        since=None if since is None else moment_of(since, now=now),
        until=None if until is None else moment_of(until, now=now),
    )


def pick_runs(store: Store, refs: Sequence[str], *, everything: bool, **selecting: Any) -> list[StoredRun]:
    """Return the runs that were named, those that fulfil conditions, or all of them; raises `UsageError`."""
    selection = selection_of(**selecting)
    picked = any(selecting.values())
    if bool(refs) + picked + everything != 1:
        raise UsageError("say which runs: name them, or pick them by conditions (--name, --tag, ...), or take --all")
    if refs:
        return list({run.run_id: run for run in map(store.run, refs)}.values())
    found = [run for run in store.runs() if selection(run.run)]
    if not found:
        raise NotFound("no run fulfils these conditions" if picked else f"{store.path} holds no run yet")
    return found


def moment_of(text: str, *, now: float) -> float:
    """Return a date, a time, or an age like `3d` (m, h, d, w) as unix seconds; dates are local."""
    age = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip())
    if age is not None:
        return now - float(age.group(1)) * _AGES[age.group(2)]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{text!r} is no date: expected 2026-11-23, 2026-11-23T14:00, or an age like 90m, 12h, 3d, 2w"
        ) from None
