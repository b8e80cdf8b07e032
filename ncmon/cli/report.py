"""`ncmon report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

import ncmon
from ncmon.cli.arguments import RUN_HELP, database_option, examples, open_store
from ncmon.cli.completing import complete_run
from ncmon.cli.output import brief, clean, lines, write
from ncmon.cli.plot import save
from ncmon.errors import UsageError


@click.command(
    "report",
    epilog=examples("ncmon report latest -o digits.html"),
    help=(
        "Write one HTML file about a run, with pictures, tables, the bounds' assumptions and the configuration. It"
        f" needs nothing else: send it, keep it, print it.\n\n{RUN_HELP}"
    ),
)
@click.argument("run", shell_complete=complete_run)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Ends in .html.")
@database_option
def command(run: str, output: Path, database: Path | None) -> None:
    """Write a report of a run."""
    from ncmon.plot.report import report
    from ncmon.plot.style import styled

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output}: expected a name that ends in .html")
    with styled(), open_store(database) as store:
        stored = store.run(run)
        text = report(stored, version=ncmon.__version__, alerts=store.alerts(stored))
    save(output, text.encode())
    write(lines([clean(f"{output}: {brief(stored.name)} ({stored.run_id}), {len(text) / 1e3:.0f} kB")]))
