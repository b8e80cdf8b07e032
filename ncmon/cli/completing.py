"""What the shell completes: runs of the database, metrics of the registry, layers and splits of the run that was named.

Completion never fails and never writes: where something is missing there is nothing to offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ncmon.cli.arguments import open_store

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ncmon.metrics.spec import Bound, Metric
    from ncmon.store.runs import StoredRun

NEWEST = 50
"""Runs that are offered."""


def complete_run(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer names and ids of the newest runs, with what tells them apart."""
    from click.shell_completion import CompletionItem

    try:
        with open_store(_database(context)) as store:
            runs = [one.run for one in store.runs(limit=NEWEST)]
    except Exception:
        return []
    found = {"latest": "the newest run"}
    for run in runs:
        found.setdefault(run.name, run.status)
        found.setdefault(run.run_id, run.name)
    # What a shell would take apart is no word to complete.
    return [
        CompletionItem(word, help=text)
        for word, text in found.items()
        if word.startswith(begun) and word.isprintable() and not set(word) & set(" \t'\"\\$`:")
    ]


def complete_metric(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer metrics and bounds, with their titles."""
    from click.shell_completion import CompletionItem

    from ncmon.bounds import BOUNDS
    from ncmon.metrics import METRICS

    entries: list[Metric | Bound] = [*METRICS, *BOUNDS]
    return [CompletionItem(entry.name, help=entry.title) for entry in entries if entry.name.startswith(begun)]


def complete_layer(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the layers of the run that was named."""
    return _of_run(context, begun, lambda run: [key.name for key in run.layers])


def complete_split(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the splits of the run that was named."""
    return _of_run(context, begun, lambda run: run.splits)


def _of_run(context: click.Context, begun: str, names: Callable[[StoredRun], Iterable[str]]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    ref = context.params.get("run") or next(iter(context.params.get("refs") or context.params.get("runs") or ()), None)
    try:
        with open_store(_database(context)) as store:
            return [CompletionItem(name) for name in names(store.run(ref or "latest")) if name.startswith(begun)]
    except Exception:
        return []


def _database(context: click.Context) -> Path | None:
    database = context.params.get("database")
    return None if database is None else Path(database)
