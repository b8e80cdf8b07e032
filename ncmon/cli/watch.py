"""`ncmon watch`: the terminal UI on daemons or databases, one look at them as text, or a line for every new window."""

from __future__ import annotations

import click

from ncmon.cli.arguments import examples
from ncmon.cli.output import FORMATS
from ncmon.cli.serve import has_terminal
from ncmon.errors import UsageError


@click.command(
    "watch",
    epilog=examples(
        "ncmon watch",
        "ncmon watch runs.db",
        "ncmon watch tcp://gpu07:7070 tcp://gpu08:7070 old.db",
        "ncmon watch --once",
        "ncmon watch --once --format json",
        "ncmon watch --follow --format jsonl | jq .nc1_pinv",
    ),
)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--once", is_flag=True, help="Print what there is now and end, as without a terminal.")
@click.option("--follow", is_flag=True, help="Print a line for every window that comes, until Ctrl-C.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Of --once, which it implies, or of --follow: text, or full precision for machines.",
)
@click.option(
    "--theme", metavar="NAME", help="dark, light, ansi (the terminal's own colours), mono, or one of Textual's."
)
@click.option("--ascii", "ascii_only", is_flag=True, help="Draw with letters only.")
def command(
    targets: tuple[str, ...], once: bool, follow: bool, form: str | None, theme: str | None, ascii_only: bool
) -> int:
    """Show runs in the terminal: of the daemon of this user, or of TARGETs, several of them side by side.

    A TARGET is an endpoint, ipc://... on this machine or tcp://HOST:PORT on another with a key that may view (`ncmon
    keys`), or a database file. With several, a run is named ID@SOURCE. Any number of viewers may look at a daemon, and
    it may be started again meanwhile.

    --once and --follow end with 0, with 1 if nothing could be read, and with 3 if an alert is open.
    """
    if once and follow:
        raise UsageError("--once ends after one look and --follow never does: expected one of them")
    if follow:
        from ncmon.cli.following import follow as follow_targets

        return follow_targets(targets, form or "table")
    if not once and form is None and has_terminal():
        from ncmon.tui import garbage

        garbage.wait()
        from ncmon.tui.app import run_ui

        return run_ui(*targets, theme=theme, ascii=ascii_only)
    from ncmon.cli.glance import glance

    return glance(targets, form or "table")
