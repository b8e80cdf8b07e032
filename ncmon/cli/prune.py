"""`ncmon prune`: make the database smaller, after saying what would go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import database_option, examples, open_store
from ncmon.cli.completing import complete_run
from ncmon.cli.editing import confirm, find_runs, labels, open_editor, refuse_alive
from ncmon.cli.output import clean, lines, write
from ncmon.cli.selecting import selection_of, selection_options
from ncmon.errors import UsageError

if TYPE_CHECKING:
    from ncmon.model import Run
    from ncmon.store.edit import Editor


@click.command(
    "prune",
    epilog=examples(
        "ncmon prune --arrays --until 4w",
        "ncmon prune --thin 10 --name 'sweep-*' --status finished",
        "ncmon prune --runs --status failed --until 2026-10-01 --yes",
    ),
)
@click.argument("refs", nargs=-1, shell_complete=complete_run, metavar="[RUN]...")
@click.option("--arrays", is_flag=True, help="Class and pair arrays, but those of the last windows. Numbers stay.")
@click.option("--thin", type=click.IntRange(min=2), metavar="N", help="Windows but the first, every Nth and the last.")
@click.option("--runs", "whole", is_flag=True, help="Whole runs.")
@click.option("--compact", is_flag=True, help="Nothing; only give back the space of what was deleted before.")
@selection_options
@click.option("--dry-run", is_flag=True, help="Only say which runs it would be.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_option
def command(
    refs: tuple[str, ...],
    arrays: bool,
    thin: int | None,
    whole: bool,
    compact: bool,
    dry_run: bool,
    yes: bool,
    database: Path | None,
    **selecting: Any,
) -> int:
    """Throw away parts of runs, or many runs, and give the space back.

    RUNs are named, or picked by the conditions that `ncmon runs` takes. Runs that are still training are left out.
    """
    if arrays + whole + compact + (thin is not None) != 1:
        raise UsageError("say what is to go: one of --arrays, --thin N, --runs and --compact")
    if compact:
        if refs or any(selecting.values()):
            raise UsageError("--compact is about the whole database: leave runs and conditions out")
        with open_editor(database) as editor:
            write(f"{editor.compact() / 1e6:.1f} MB given back\n")
        return 0
    selection = selection_of(**selecting)
    if refs and any(selecting.values()):
        raise UsageError("runs are either named or picked by conditions, not both")
    if whole and not refs and not any(selecting.values()):
        raise UsageError("--runs without a name or a condition would delete everything: say which runs")
    if refs:
        found = find_runs(database, refs)
        refuse_alive(found, force=False)
    else:
        with open_store(database) as store:
            found = [one.run for one in store.runs() if selection(one.run) and one.run.status != "live"]
    if not found:
        write("no run that has ended fulfils these conditions\n")
        return 0
    what = "class and pair arrays" if arrays else f"all but every {thin}th window" if thin else "everything"
    text = f"{what} of {len(found)} run{'s' if len(found) > 1 else ''}: {labels(found)}"
    if dry_run:
        write(lines([clean(f"would delete {text}")]))
        return 0
    if not confirm(f"Delete {text}?", yes):
        return 1
    with open_editor(database) as editor:
        windows = sum(_prune(editor, run, arrays=arrays, thin=thin) for run in found)
        freed = editor.compact()
    runs = f"{len(found)} run{'s' if len(found) > 1 else ''}"
    write(f"{runs}, {windows} windows, {freed / 1e6:.1f} MB given back\n")
    return 0


def _prune(editor: Editor, run: Run, *, arrays: bool, thin: int | None) -> int:
    if arrays:
        return editor.drop_arrays(run.run_id)
    return editor.delete(run.run_id) if thin is None else editor.thin(run.run_id, thin)
