"""`ncmon runs`: all runs, newest first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ncmon.cli.arguments import database_option, examples, format_option, open_store
from ncmon.cli.output import Column, Listing, emit

if TYPE_CHECKING:
    from ncmon.store.results import RunSummary

SHOWN = (
    ("ce_loss", "LOSS"),
    ("nc1_pinv", "NC1"),
    ("intra_cos_min", "INTRA"),
    ("inter_cos_max", "INTER"),
    ("ncc_acc", "NCC"),
)
"""Metrics of the last window that fit into a line; machine formats have the same under their full names."""

SHORT_ID = 8


@click.command("runs", epilog=examples("ncmon runs", "ncmon runs --limit 5 --format json", "ncmon runs --db old.db"))
@database_option
@format_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N only.")
def command(database: Path | None, form: str, limit: int | None) -> None:
    """List the runs, newest first, with the last window of each (split train where there is one).

    Minimal intra-class and maximal inter-class cosine, NC1 and nearest-class-mean accuracy are those of the features
    that enter the classifier.
    """
    with open_store(database) as store:
        summaries = store.summary(tuple(name for name, _ in SHOWN), limit=limit)
    emit(listing(summaries), form)


def listing(summaries: tuple[RunSummary, ...]) -> Listing:
    """Return one row a run."""
    ids = [summary.run.run_id for summary in summaries]
    short = {run_id: _short(run_id, ids) for run_id in ids}
    columns = (
        Column(key="run_id", heading="RUN", show=lambda run_id: short[run_id], clip=14),
        Column(key="name", heading="NAME", clip=14),
        Column(key="status", heading="STATUS"),
        Column(key="split"),
        Column(key="exact"),
        Column(key="epoch", heading="EPOCH", right=True),
        Column(key="step"),
        Column(key="time"),
        *(Column(key=name, heading=heading, right=True, show=_brief) for name, heading in SHOWN),
        Column(key="windows"),
        Column(key="layers"),
        Column(key="started"),
        Column(key="ended"),
        Column(key="last_seen"),
        Column(key="host"),
        Column(key="world_size"),
        Column(key="n_classes"),
        Column(key="tags"),
        Column(key="config"),
    )
    rows = [
        (
            summary.run.run_id,
            summary.run.name,
            summary.run.status,
            summary.split or None,
            summary.exact if summary.split else None,
            summary.epoch,
            summary.step,
            summary.time,
            *(summary.values[name] for name, _ in SHOWN),
            summary.n_windows,
            summary.n_layers,
            summary.run.started,
            summary.run.ended,
            summary.run.last_seen,
            summary.run.host,
            summary.run.world_size,
            summary.run.n_classes,
            list(summary.run.tags),
            dict(summary.run.config),
        )
        for summary in summaries
    ]
    return Listing(columns=columns, rows=rows, empty="no run yet; `ncmon demo` makes one")


def _short(run_id: str, ids: list[str]) -> str:
    """Return the shortest beginning, of eight letters or more, that names the run and no other."""
    length = SHORT_ID
    while length < len(run_id) and sum(other.startswith(run_id[:length]) for other in ids) > 1:
        length += 1
    return run_id[:length]


def _brief(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"
