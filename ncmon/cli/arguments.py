"""What several commands take: the database, the format, the run, the split, and the examples in their help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ncmon import config
from ncmon.cli.output import FORMATS, brief
from ncmon.errors import NotFound, near

if TYPE_CHECKING:
    from ncmon.store.queries import Store
    from ncmon.store.runs import StoredRun

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
"""A command's function, which comes back as it was."""

RUN_HELP = "RUN is an id, a unique prefix of one, a name (the newest run of that name), or `latest`."


def database_option(function: Decorated) -> Decorated:
    """Add `--db FILE`."""
    return click.option(
        "--db",
        "database",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The database, by default $NCMON_DB or the user's own.",
    )(function)


def format_option(function: Decorated) -> Decorated:
    """Add `--format`."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="Text, or full precision for machines.",
    )(function)


def examples(*commands: str) -> str:
    """Return an epilog of command lines to copy."""
    head = "Example:" if len(commands) == 1 else "Examples:"
    return "\b\n" + head + "".join(f"\n  {command}" for command in commands)


def open_store(database: Path | None) -> Store:
    """Open the database that was named, or the user's own."""
    from ncmon.store.queries import Store

    return Store.open(config.default_database() if database is None else database.expanduser())


def check_split(run: StoredRun, split: str) -> str:
    """Return a split that the run has; `NotFound` tells which there are."""
    found = run.splits
    if found and split not in found:
        raise NotFound(f"run {brief(run.name)} has no split {split!r}{near(split, found)}")
    return split


def usual_split(run: StoredRun) -> str:
    """Return the split to show when none is named: `train`, else the first there is."""
    found = run.splits
    return found[0] if found and "train" not in found else "train"


def class_index(run: StoredRun, name: str) -> int:
    """Return a class by its name or its number; `NotFound` tells near names."""
    names = run.run.class_names
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < run.run.n_classes:
        return int(name)
    raise NotFound(
        f"run {brief(run.name)} has no class {name!r}{near(name, names)} ({run.run.n_classes} classes, from 0)"
    )
