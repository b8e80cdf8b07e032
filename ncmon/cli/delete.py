"""`ncmon delete`: delete runs, after asking."""

from __future__ import annotations

from pathlib import Path

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples
from ncmon.cli.completing import complete_run
from ncmon.cli.editing import confirm, find_runs, label, labels, open_editor, refuse_alive
from ncmon.cli.output import clean, lines, write


@click.command(
    "delete",
    epilog=examples("ncmon delete 3f2a", "ncmon delete lr-too-high lr-far-too-high --yes"),
    help=(
        "Delete runs with everything that is stored of them. `ncmon export RUN -o FILE.db` keeps a copy;"
        " `ncmon prune` deletes parts, or many runs at once. New runs take the space; `ncmon prune --compact` gives it"
        f" back to the file system.\n\n{RUN_HELP}"
    ),
)
@click.argument("runs", nargs=-1, shell_complete=complete_run, required=True, metavar="RUN...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even a run that is still training; what it sends next begins it anew.")
@database_option
def command(runs: tuple[str, ...], yes: bool, force: bool, database: Path | None) -> int:
    """Delete runs, after asking."""
    found = find_runs(database, runs)
    refuse_alive(found, force)
    what = labels(found) if len(found) < 5 else f"{len(found)} runs, {labels(found)}"
    if not confirm(f"Delete {what} for good?", yes):
        return 1
    with open_editor(database) as editor:
        for run in found:
            windows = editor.delete(run.run_id)
            write(lines([clean(f"{label(run)}: deleted, {windows} windows")]))
    return 0
