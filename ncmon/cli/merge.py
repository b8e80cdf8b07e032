"""`ncmon merge`: take over the runs of other databases."""

from __future__ import annotations

from pathlib import Path

import click

from ncmon import config
from ncmon.cli import diagnostics
from ncmon.cli.arguments import database_option, examples, format_option
from ncmon.cli.output import Column, Listing, emit


@click.command(
    "merge",
    epilog=examples("ncmon merge node1.db node2.db --db all.db", "ncmon merge gpu07.db"),
)
@click.argument("sources", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@database_option
@format_option
def command(sources: tuple[Path, ...], database: Path | None, form: str) -> None:
    """Take over the runs of other databases into this one, which is made where it is not there.

    Merging again takes over only what has come since; the order does not matter. Runs that were deleted here do not
    come back. Daemons may go on writing to all of them.
    """
    from ncmon.store.merge import merge

    target = config.default_database() if database is None else database.expanduser()
    rows = []
    for source in sources:
        merged = merge(source.expanduser(), target)
        rows += [(str(source), one.run_id, one.name, one.outcome, one.added, one.replaced) for one in merged]
        say_waiting(source, sum(one.waiting for one in merged))
    columns = (
        Column(key="source", heading="FROM", clip=24),
        Column(key="run_id", heading="RUN", clip=14),
        Column(key="name", heading="NAME", clip=16),
        Column(key="outcome", heading="OUTCOME"),
        Column(key="added", heading="ADDED", right=True),
        Column(key="replaced", heading="REPLACED", right=True),
    )
    emit(Listing(columns=columns, rows=rows, empty="these databases hold no run"), form)


def say_waiting(source: Path, messages: int) -> None:
    """Say on stderr that what is taken over is not all that is there."""
    if messages:
        diagnostics.say(
            f"{source}: {messages} windows were received and not evaluated yet: a daemon (`ncmon serve --db {source}`) "
            "does that, then do this once more"
        )
