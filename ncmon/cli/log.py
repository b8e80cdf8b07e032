"""`ncmon log`: stored runs, and what comes, into another tracker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples, open_store
from ncmon.cli.completing import complete_run
from ncmon.cli.export import choice_of
from ncmon.cli.output import brief, clean, lines, write
from ncmon.cli.selecting import part_options, pick_runs
from ncmon.errors import UsageError

if TYPE_CHECKING:
    from ncmon.export.bridge import Board, Bridge
    from ncmon.model import Run
    from ncmon.store.runs import StoredRun

FOLLOW_S = 1.0
"""How often the database is asked for more."""


@click.command(
    "log",
    epilog=examples(
        "ncmon log latest --wandb collapse --follow",
        "ncmon log --tag sweep --wandb collapse --metric nc1_pinv --metric intra_cos_min",
        "ncmon log --all --tensorboard tb/ --follow",
    ),
    help=(
        "Log runs to Weights & Biases or to TensorBoard, as if the trainings had done so themselves; with --follow also"
        f" what comes, until the runs have ended.\n\n{RUN_HELP} Or pick runs by the conditions that `ncmon runs` takes;"
        " then --follow takes in new runs too."
    ),
)
@click.argument("refs", nargs=-1, shell_complete=complete_run, metavar="[RUN]...")
@click.option("--wandb", metavar="PROJECT", help="A project of Weights & Biases; WANDB_MODE=offline works too.")
@click.option("--tensorboard", type=click.Path(path_type=Path), metavar="DIR", help="Event files.")
@click.option("--follow", is_flag=True, help="Go on with new windows as they come; end with Ctrl-C.")
@part_options
@database_option
def command(
    refs: tuple[str, ...],
    wandb: str | None,
    tensorboard: Path | None,
    follow: bool,
    metrics: tuple[str, ...],
    layers: tuple[str, ...],
    splits: tuple[str, ...],
    everything: bool,
    database: Path | None,
    **selecting: Any,
) -> None:
    """Log runs to another tracker."""
    from ncmon.export.bridge import Bridge

    board = _boards(wandb, tensorboard)
    bridges: dict[str, Bridge] = {}
    windows: dict[str, int] = {}
    with open_store(database) as store:
        runs = pick_runs(store, refs, everything=everything, **selecting)
        choice = choice_of(store, runs, metrics, layers, splits)
        revision = -1
        try:
            while True:
                # Looked at before it is read: what comes in between is seen at the next turn.
                revision = store.revision()
                runs = pick_runs(store, refs, everything=everything, **selecting)
                for run in runs:
                    if run.run_id not in bridges:
                        bridges[run.run_id] = Bridge(board(run.run), choice)
                    windows[run.run_id] = windows.get(run.run_id, 0) + bridges[run.run_id].turn(run)
                if not follow or all(run.status != "live" for run in runs):
                    break
                while store.revision() == revision:
                    time.sleep(FOLLOW_S)
        except KeyboardInterrupt:
            pass  # as it is meant to end
        finally:
            _close(bridges, runs)
    where = f"W&B project {wandb}" if wandb is not None else str(tensorboard)
    counted = [f"{brief(run.name)} ({run.run_id}), {windows.get(run.run_id, 0)} windows" for run in runs]
    write(lines([clean(f"{where}: {text}") for text in counted]))


def _close(bridges: dict[str, Bridge], runs: list[StoredRun]) -> None:
    for run in runs:
        if run.run_id in bridges:
            bridges[run.run_id].close(run)


def _boards(project: str | None, directory: Path | None) -> Callable[[Run], Board]:
    """Return what makes the board of a run; raises `UsageError` where it was not said which."""
    if (project is None) == (directory is None):
        raise UsageError("say where to: one of --wandb PROJECT and --tensorboard DIR")
    if directory is not None:
        from ncmon.export.tensorboard import EventBoard

        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory} is a file, expected a directory")
        return lambda run: EventBoard(run, directory)
    from ncmon.export.wandb import WandbBoard

    if not (project or "").strip():
        raise UsageError("--wandb: expected the name of a project, got an empty one")
    return lambda run: WandbBoard(run, project or "")
