"""`ncmon tag`: give a run tags, or take them away."""

from __future__ import annotations

from pathlib import Path

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples
from ncmon.cli.completing import complete_run
from ncmon.cli.editing import find_runs, label, open_editor
from ncmon.cli.output import clean, lines, write


@click.command(
    "tag",
    epilog=examples("ncmon tag latest good figure-3", "ncmon tag digits good --remove", "ncmon tag latest"),
    help=(
        "Give a run tags, or take them away with --remove; without TAG show what it has."
        f" Tags that were given here stay when the training resumes.\n\n{RUN_HELP}"
    ),
)
@click.argument("run", shell_complete=complete_run)
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@click.option("--remove", is_flag=True, help="Take these tags away.")
@database_option
def command(run: str, tags: tuple[str, ...], remove: bool, database: Path | None) -> None:
    """Give a run tags, or take them away."""
    (found,) = find_runs(database, [run])
    now = found.tags
    if tags:
        with open_editor(database) as editor:
            now = editor.tag(found.run_id, add=() if remove else tags, remove=tags if remove else ())
    write(lines([clean(f"{label(found)}: {', '.join(now) or 'no tags'}")]))
