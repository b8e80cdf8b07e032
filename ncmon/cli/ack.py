"""`ncmon ack`: say that alerts were seen."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ncmon.cli.arguments import database_option, examples, open_store
from ncmon.cli.completing import complete_run
from ncmon.cli.editing import open_editor
from ncmon.cli.output import lines, write
from ncmon.errors import NotFound, UsageError


@click.command("ack", epilog=examples("ncmon ack 12 13", "ncmon ack --all", "ncmon ack --run latest"))
@click.argument("ids", nargs=-1, type=click.IntRange(min=1), metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All open alerts.")
@click.option("--run", metavar="RUN", shell_complete=complete_run, help="All open alerts of this run.")
@database_option
def command(ids: tuple[int, ...], everything: bool, run: str | None, database: Path | None) -> None:
    """Acknowledge alerts by the numbers that `ncmon alerts` shows.

    They stay listed and open, but no longer press: no badge, and `ncmon watch --once` ends with 0.
    """
    if bool(ids) + everything + (run is not None) != 1:
        raise UsageError("expected numbers of alerts (`ncmon alerts`), or --all, or --run RUN")
    with open_store(database) as store:
        if ids:
            known = {alert.alert_id for alert in store.alerts()}
            missing = [number for number in ids if number not in known]
            if missing:
                raise NotFound(f"there is no alert {missing[0]}: `ncmon alerts` lists them")
        else:
            ids = tuple(alert.alert_id for alert in store.alerts(run, only_open=True))
    count = 0
    if ids:
        with open_editor(database) as editor:
            count = editor.acknowledge(ids, now=time.time())
    write(lines([f"{count} alert{'s' * (count != 1)} acknowledged"]))
