"""`ncmon rename`: give a run another name."""

from __future__ import annotations

from pathlib import Path

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples
from ncmon.cli.completing import complete_run
from ncmon.cli.editing import find_runs, open_editor
from ncmon.cli.output import brief, clean, lines, write


@click.command(
    "rename",
    epilog=examples("ncmon rename latest digits-wd5e-4"),
    help=f"Give a run another name; its id stays. The name stays when the training resumes.\n\n{RUN_HELP}",
)
@click.argument("run", shell_complete=complete_run)
@click.argument("name")
@database_option
def command(run: str, name: str, database: Path | None) -> None:
    """Give a run another name."""
    (found,) = find_runs(database, [run])
    with open_editor(database) as editor:
        editor.rename(found.run_id, name)
    write(lines([clean(f"{found.run_id}: {brief(found.name)} is now {brief(name.strip())}")]))
