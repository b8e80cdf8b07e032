"""What the commands that change stored runs share: opening the file, asking first, saying what was done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ncmon import config
from ncmon.cli import diagnostics
from ncmon.cli.arguments import open_store
from ncmon.cli.output import brief
from ncmon.errors import StoreError, UsageError

if TYPE_CHECKING:
    from ncmon.model import Run
    from ncmon.store.edit import Editor

ALIVE_S = 300.0
"""A live run that was heard of this recently is still being written."""


def open_editor(database: Path | None) -> Editor:
    """Open the database that was named, or the user's own, for changes."""
    from ncmon.store.edit import Editor

    return Editor.open(config.default_database() if database is None else database.expanduser())


def find_runs(database: Path | None, refs: Sequence[str]) -> list[Run]:
    """Return the runs that were named, each once."""
    with open_store(database) as store:
        runs = [store.run(ref).run for ref in refs]
    return list({run.run_id: run for run in runs}.values())


def label(run: Run) -> str:
    """Return how a message names a run."""
    return run.run_id if run.name == run.run_id else f"{brief(run.name)} ({run.run_id})"


def labels(runs: Sequence[Run], most: int = 4) -> str:
    """Return how a message names several runs."""
    return ", ".join(label(run) for run in runs[:most]) + (f" and {len(runs) - most} more" if len(runs) > most else "")


def refuse_alive(runs: Sequence[Run], force: bool) -> None:
    """Raise `StoreError` where a run is still being written."""
    for run in runs:
        if not force and run.status == "live" and abs(time.time() - (run.last_seen or 0.0)) < ALIVE_S:
            raise StoreError(f"run {label(run)} is still training: end it first, or --force what would cut it in two")


def confirm(question: str, yes: bool) -> bool:
    """Whether to go on: asked for on the command line, or answered now."""
    if yes:
        return True
    answer = diagnostics.ask(question)
    if answer is None:
        raise UsageError("nobody is there to answer: --yes goes ahead without asking")
    if not answer:
        diagnostics.say("nothing was changed")
    return answer
