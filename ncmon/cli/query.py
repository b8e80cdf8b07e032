"""`ncmon query`: SQL over the store, read-only."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ncmon.cli import diagnostics
from ncmon.cli.arguments import database_option, examples, format_option, open_store
from ncmon.cli.output import Column, Listing, emit

LONGEST_CELL = 40
"""In text; machine formats have everything."""


@click.command(
    "query",
    epilog=examples(
        "ncmon query \"SELECT epoch, value FROM history WHERE metric = 'nc1_pinv' AND split = 'test'\"",
        "ncmon query 'SELECT run_id, name, status FROM runs' --format csv",
        "ncmon query - < question.sql",
    ),
)
@click.argument("sql")
@click.option("--max-rows", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True, metavar="S")
@database_option
@format_option
def command(sql: str, max_rows: int, timeout: float, database: Path | None, form: str) -> None:
    """Run one SELECT over the database; `-` reads it from the standard input. Nothing can be changed.

    \b
    Views to rely on:
      runs(run_id, name, status, started, ended, host, world_size, n_classes,
           config)
      history(run_id, run_name, layer, layer_index, split, exact, epoch, step,
              time, metric, value, reason)
      class_history(... as history ..., class, class_name)
      aliases(alias, metric)
    class_history holds the layer `classifier-input`. Metrics go by the names
    of `ncmon metrics`, bounds by theirs; `aliases` tells other names.
    """
    text = sys.stdin.read() if sql == "-" else sql
    with open_store(database) as store:
        found = store.sql(text, max_rows=max_rows, timeout_s=timeout)
    columns = tuple(
        Column(
            key=name,
            heading=name,
            clip=LONGEST_CELL,
            right=all(row[place] is None or isinstance(row[place], (int, float)) for row in found.rows),
        )
        for place, name in enumerate(_unique(found.columns))
    )
    emit(Listing(columns=columns, rows=found.rows, empty="no rows"), form)
    if found.truncated:
        diagnostics.say(f"only the first {max_rows} rows are shown; --max-rows N shows more")


def _unique(names: tuple[str, ...]) -> list[str]:
    """Return the names of columns with a number behind those that come again: a JSON object has each once."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found
