"""`ncmon note`: write something down about a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples
from ncmon.cli.completing import complete_run
from ncmon.cli.editing import find_runs, label, open_editor
from ncmon.cli.output import clean, lines, write
from ncmon.errors import UsageError

MOST_LETTERS = 20_000


@click.command(
    "note",
    epilog=examples(
        "ncmon note latest 'warm-up was too short'", "ncmon note digits - < note.txt", "ncmon note digits --clear"
    ),
    help=(
        "Write a note about a run, in place of the one it has; `-` reads it from the standard input. Without TEXT show"
        f" it.\n\n{RUN_HELP}"
    ),
)
@click.argument("run", shell_complete=complete_run)
@click.argument("text", required=False)
@click.option("--clear", is_flag=True, help="Take the note away.")
@database_option
def command(run: str, text: str | None, clear: bool, database: Path | None) -> None:
    """Write a note about a run."""
    if clear and text is not None:
        raise UsageError("a note is either written or cleared: leave TEXT or --clear out")
    (found,) = find_runs(database, [run])
    if text is None and not clear:
        write(clean(found.note, keep="\n") + "\n" if found.note else lines([clean(f"{label(found)}: no note")]))
        return
    note = (sys.stdin.read() if text == "-" else text or "").strip()
    if len(note) > MOST_LETTERS:
        raise UsageError(f"a note has at most {MOST_LETTERS} letters, this one {len(note)}")
    with open_editor(database) as editor:
        editor.set_note(found.run_id, note)
    write(lines([clean(f"{label(found)}: {'noted' if note else 'no note'}")]))
