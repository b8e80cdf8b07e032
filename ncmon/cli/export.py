"""`ncmon export`: stored runs as files that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon import config
from ncmon.cli.arguments import RUN_HELP, database_option, examples, open_store
from ncmon.cli.completing import complete_run
from ncmon.cli.output import clean, lines, write
from ncmon.cli.runs import check_metrics
from ncmon.cli.selecting import part_options, pick_runs
from ncmon.errors import NotFound, UsageError, near

if TYPE_CHECKING:
    from ncmon.export.rows import Choice
    from ncmon.store.queries import Store
    from ncmon.store.runs import StoredRun

SUFFIXES = (".csv", ".jsonl", ".parquet", ".npz", ".db")
TABLES = ("history", "class_history", "runs")


@click.command(
    "export",
    epilog=examples(
        "ncmon export latest -o digits.csv",
        "ncmon export digits vit -o classes.parquet --table class_history",
        "ncmon export --name 'sweep-*' --parquet runs/",
        "ncmon export --all --tensorboard tb/ --layer classifier-input",
        "ncmon export 3f2a -o one-run.db",
    ),
    help=(
        "Write runs to a file: .csv, .jsonl or .parquet (one table), .npz (all arrays), .db (a database of its own,"
        " which `ncmon merge` takes in again); or to a directory: --parquet, partitioned by run for DuckDB, Spark and"
        f" Polars, or --tensorboard.\n\n{RUN_HELP} Or pick runs by the conditions that `ncmon runs` takes."
    ),
)
@click.argument("refs", nargs=-1, shell_complete=complete_run, metavar="[RUN]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="By its ending.")
@click.option("--parquet", type=click.Path(path_type=Path), metavar="DIR", help="All tables, partitioned by run.")
@click.option("--tensorboard", type=click.Path(path_type=Path), metavar="DIR", help="Event files.")
@click.option("--table", type=click.Choice(TABLES), help="Of .csv, .jsonl and .parquet; by default history.")
@part_options
@database_option
def command(
    refs: tuple[str, ...],
    output: Path | None,
    parquet: Path | None,
    tensorboard: Path | None,
    table: str | None,
    metrics: tuple[str, ...],
    layers: tuple[str, ...],
    splits: tuple[str, ...],
    everything: bool,
    database: Path | None,
    **selecting: Any,
) -> None:
    """Write runs to files."""
    if sum(path is not None for path in (output, parquet, tensorboard)) != 1:
        raise UsageError("say where to: one of -o FILE, --parquet DIR and --tensorboard DIR")
    if output is not None:
        _check_output(output, table)
    elif table is not None:
        raise UsageError("--table is of files; a directory has all tables")
    if output is not None and output.suffix == ".db" and (metrics or layers or splits):
        raise UsageError("a database holds whole runs: leave --metric, --layer and --split out")
    with open_store(database) as store:
        runs = pick_runs(store, refs, everything=everything, **selecting)
        if output is not None and output.suffix == ".db":
            _export_database(store.path, output, runs)
            return
        choice = choice_of(store, runs, metrics, layers, splits)
        path = output or parquet or tensorboard
        assert path is not None
        what = _export(path, runs, choice, table or "history", directory=output is None, events=tensorboard is not None)
    write(lines([clean(f"{path}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {what}")]))


def _check_output(path: Path, table: str | None) -> None:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: expected a name that ends in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UsageError(f"{path} is a directory, expected a file")
    if table is not None and path.suffix in (".npz", ".db"):
        raise UsageError(f"--table is of .csv, .jsonl and .parquet; {path.suffix} has everything")


def choice_of(
    store: Store, runs: list[StoredRun], metrics: tuple[str, ...], layers: tuple[str, ...], splits: tuple[str, ...]
) -> Choice:
    """Return what was asked for, checked against what there is."""
    from ncmon.export.rows import ENTRIES, Choice
    from ncmon.metrics import resolve

    arrays = [entry.name for entry in ENTRIES if entry.scope in ("class", "pair")]
    check_metrics([*store.metrics, *arrays], metrics, shape="")
    for asked, known, what in (
        (layers, dict.fromkeys(key.name for run in runs for key in run.layers), "layer"),
        (splits, dict.fromkeys(split for run in runs for split in run.splits), "split"),
    ):
        for name in asked:
            if name not in known:
                raise NotFound(f"none of these runs has a {what} {name!r}{near(name, known)}")
    return Choice(metrics=tuple(resolve(name) for name in metrics), layers=layers, splits=splits)


def _export(path: Path, runs: list[StoredRun], choice: Choice, table: str, *, directory: bool, events: bool) -> str:
    """Write the files; return what is in them."""
    if events:
        from ncmon.export.tensorboard import write_events

        return f"{write_events(path, runs, choice)} scalars"
    if directory:
        from ncmon.export.parquet import write_dataset

        return f"{write_dataset(path, runs, choice)} rows of history"
    if path.suffix == ".npz":
        from ncmon.export.npz import write_npz

        return f"{write_npz(path, runs, choice)} arrays"
    if path.suffix == ".parquet":
        from ncmon.export.parquet import write_parquet

        return f"{write_parquet(path, runs, table, choice)} rows of {table}"
    from ncmon.export.text import write_csv, write_jsonl

    count = (write_csv if path.suffix == ".csv" else write_jsonl)(path, runs, table, choice)
    return f"{count} rows of {table}"


def _export_database(source: Path, target: Path, runs: list[StoredRun]) -> None:
    from ncmon.cli.merge import say_waiting
    from ncmon.store.merge import merge

    if target.exists():
        raise UsageError(f"{target} is there already: `ncmon merge` takes runs over into a database")
    if target.absolute() == config.default_database().absolute():
        raise UsageError(f"{target} is the database of this user")
    merged = merge(source, target, runs=[run.run_id for run in runs])
    windows = sum(one.added for one in merged)
    say_waiting(source, sum(one.waiting for one in merged))
    write(lines([clean(f"{target}: {len(merged)} run{'s' if len(merged) > 1 else ''}, {windows} windows")]))
