"""`ncmon history`: one metric of a run over time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import (
    RUN_HELP,
    check_split,
    class_index,
    database_option,
    examples,
    format_option,
    open_store,
    usual_split,
)
from ncmon.cli.completing import complete_layer, complete_metric, complete_run, complete_split
from ncmon.cli.output import Column, Listing, csv_text, emit, number, table, write
from ncmon.errors import UsageError

if TYPE_CHECKING:
    from ncmon.store.runs import StoredRun

FOLLOW_S = 1.0
"""How often a followed run is asked for more."""

_COLUMNS = (
    Column(key="step", heading="STEP", right=True),
    Column(key="epoch", heading="EPOCH", right=True, show=lambda epoch: "-" if epoch < 0 else str(epoch)),
    Column(key="time"),
    Column(key="exact", heading="KIND", show=lambda exact: "exact" if exact else "stream"),
    Column(key="value", heading="VALUE", right=True, show=number),
    Column(key="reason", heading=" ", show=lambda reason: reason or ""),
)


@click.command(
    "history",
    epilog=examples(
        "ncmon history latest --metric nc1_pinv",
        "ncmon history digits --metric intra_cos_min --split test --format csv > intra.csv",
        "ncmon history digits --metric cert_intra --class 3",
        "ncmon history latest --metric ce_gap --follow",
    ),
    help=(
        "Show one metric or bound of a run over time; `ncmon metrics` lists them. Or a figure of how far they can be"
        " trusted: samples, classes_present, rank_used, resolution_floor, zero_norm, nonfinite, mean_shift,"
        f" movement_share.\n\n{RUN_HELP}"
    ),
)
@click.argument("run", shell_complete=complete_run)
@click.option("--metric", required=True, shell_complete=complete_metric, metavar="M", help="Name of a metric or bound.")
@click.option(
    "--layer",
    shell_complete=complete_layer,
    metavar="L",
    default="classifier-input",
    show_default=True,
    help="Name of a layer.",
)
@click.option("--split", shell_complete=complete_split, metavar="S", help="By default train, or what there is instead.")
@click.option(
    "--class", "class_name", metavar="K", help="Name or number of a class, for metrics that have one value each."
)
@click.option("--follow", is_flag=True, help="Go on with new windows as they come; end with Ctrl-C.")
@database_option
@format_option
def command(
    run: str,
    metric: str,
    layer: str,
    split: str | None,
    class_name: str | None,
    follow: bool,
    database: Path | None,
    form: str,
) -> None:
    """Show one metric or bound of a run over time."""
    if follow and form == "json":
        raise UsageError("--follow has no end, and json needs one: use --format jsonl")
    with open_store(database) as store:
        stored = store.run(run)
        split = check_split(stored, split) if split is not None else usual_split(stored)
        # Looked at before it is read: what comes in between is seen at the next turn.
        revision = store.revision()
        found = _listing(stored, metric, layer, split, class_name)
        emit(found, form)
        told = set(map(_place, found.rows))
        while follow:
            time.sleep(FOLLOW_S)
            if store.revision() == revision:
                continue
            revision = store.revision()
            # All of it: of one step a second window may come, and a training that goes on from a checkpoint goes back.
            found = _listing(stored, metric, layer, split, class_name)
            more = replace(found, rows=[row for row in found.rows if _place(row) not in told])
            if not more.rows:
                continue
            told.update(map(_place, more.rows))
            if form == "jsonl":
                emit(more, form)
            else:
                write(csv_text(more, head=False) if form == "csv" else table(more, head=False))


def _place(row: Sequence[Any]) -> tuple[Any, ...]:
    """Return what tells a window from any other of its run and split: step, time and kind."""
    return row[0], row[2], row[3]


def _listing(run: StoredRun, metric: str, layer: str, split: str, class_name: str | None) -> Listing:
    rows: list[tuple[Any, ...]]
    if class_name is None:
        found = run.history(metric, layer=layer, split=split)
        rows = [
            (step, epoch, at, exact, None if reason else value, reason or None)
            for step, epoch, at, exact, value, reason in zip(
                found.step.tolist(),
                found.epoch.tolist(),
                found.time.tolist(),
                found.exact.tolist(),
                found.value.tolist(),
                found.reason,
                strict=True,
            )
        ]
        return Listing(columns=_COLUMNS, rows=rows, empty=f"no {metric} of {layer}, split {split}, yet")
    index = class_index(run, class_name)
    classes = run.classes(metric, layer=layer, split=split)
    rows = [
        (step, epoch, at, exact, index, run.run.class_name(index), value)
        for step, epoch, at, exact, value in zip(
            classes.step.tolist(),
            classes.epoch.tolist(),
            classes.time.tolist(),
            classes.exact.tolist(),
            classes.values[:, index].tolist() if len(classes) else [],
            strict=True,
        )
    ]
    columns = (
        *_COLUMNS[:4],
        Column(key="class", heading="CLASS", right=True),
        Column(key="class_name", heading="NAME", clip=20),
        Column(key="value", heading="VALUE", right=True, show=number),
    )
    return Listing(columns=columns, rows=rows, empty=f"no {metric} of {layer}, split {split}, yet")
