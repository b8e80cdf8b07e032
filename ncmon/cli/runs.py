"""`ncmon runs`: the runs, newest first, or in the order that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import database_option, examples, format_option, open_store
from ncmon.cli.completing import complete_metric
from ncmon.cli.output import Column, Listing, emit
from ncmon.cli.selecting import selection_of, selection_options
from ncmon.errors import NotFound, near

if TYPE_CHECKING:
    from ncmon.store.results import RunSummary
    from ncmon.store.selection import Condition

SHOWN = (
    ("ce_loss", "LOSS"),
    ("nc1_pinv", "NC1"),
    ("intra_cos_min", "INTRA"),
    ("inter_cos_max", "INTER"),
    ("ncc_acc", "NCC"),
)
"""Metrics of the last window that fit into a line; machine formats have the same under their full names."""

FACTS = ("name", "status", "epoch", "step", "windows", "started", "ended")
"""What runs can be sorted by beside metrics and keys of the configuration."""

SHORT_ID = 8


@click.command(
    "runs",
    epilog=examples(
        "ncmon runs",
        "ncmon runs --limit 5 --format json",
        "ncmon runs --db old.db",
        "ncmon runs --attempts --name digits",
        "ncmon runs --config 'weight_decay>=1e-4' --config model=resnet* --sort nc1_pinv",
        "ncmon runs --tag sweep --status finished --since 3d --where 'ncc_acc>0.99' --metric w_etf_err",
    ),
)
@database_option
@format_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N only.")
@click.option(
    "--attempts", is_flag=True, help="With what earlier attempts had beyond the checkpoint from which a later went on."
)
@selection_options
@click.option(
    "--where", multiple=True, metavar="COND", help="A condition on the last value of a metric: 'nc1_pinv<0.1'."
)
@click.option(
    "--sort",
    metavar="KEY",
    help=f"A metric, {', '.join(FACTS)}, or a key of the configuration; -KEY turns it round.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    shell_complete=complete_metric,
    metavar="M",
    help="Show these instead of the usual five.",
)
def command(
    database: Path | None,
    form: str,
    limit: int | None,
    attempts: bool,
    where: tuple[str, ...],
    sort: str | None,
    metrics: tuple[str, ...],
    **selecting: Any,
) -> None:
    """List the runs, newest first, with the last window of each (split train where there is one).

    Minimal intra-class and maximal inter-class cosine, NC1 and nearest-class-mean accuracy are those of the features
    that enter the classifier. Several conditions have to hold together; a run without the value fulfils none.
    """
    from ncmon.metrics import resolve
    from ncmon.store.selection import parse_condition

    selection = selection_of(**selecting)
    asked = [parse_condition(text) for text in where]
    shown = tuple((name, name) for name in dict.fromkeys(metrics)) or SHOWN
    key = (sort or "").removeprefix("-")
    with open_store(database) as store:
        check_metrics(store.metrics, [*metrics, *(condition.key for condition in asked)])
        read = dict.fromkeys([*(name for name, _ in shown), *(condition.key for condition in asked)])
        if resolve(key) in store.metrics:
            read[key] = None
        # What is sorted or picked by its readings is cut afterwards.
        early = limit if not (asked or sort) else None
        summaries = store.summary(tuple(read), limit=early, where=selection, attempts=attempts)
    kept = [summary for summary in summaries if _holds(summary, asked)]
    if sort:
        kept = _sorted(kept, key, descending=sort.startswith("-"))
    picked = len(selecting) > sum(not value for value in selecting.values()) or bool(asked)
    empty = "no run fulfils these conditions" if picked else "no run yet; `ncmon demo` makes one"
    emit(listing(kept[:limit], shown, empty=empty), form)


def check_metrics(known: Sequence[str], asked: Sequence[str], shape: str = ", of one number a window") -> None:
    """Raise `NotFound` with near names for what is not among the metrics that can be meant, nor an alias of one."""
    from ncmon.metrics import resolve

    for name in asked:
        if resolve(name) not in known:
            raise NotFound(f"no metric is named {name!r}{shape}{near(name, known)}")


def _holds(summary: RunSummary, conditions: Sequence[Condition]) -> bool:
    values = summary.values
    return all(
        condition.holds(None if math.isnan(values[condition.key]) else values[condition.key])
        for condition in conditions
    )


def _sorted(summaries: list[RunSummary], key: str, *, descending: bool) -> list[RunSummary]:
    """Return runs in the order of a value; those that have none come last either way."""
    from ncmon.store.selection import config_value, flat_config, sort_key

    def value(summary: RunSummary) -> Any:
        if key in FACTS:
            run = summary.run
            facts = {"name": run.name, "status": run.status, "started": run.started, "ended": run.ended}
            return {**facts, "epoch": summary.epoch, "step": summary.step, "windows": summary.n_windows}[key]
        if key in summary.values:
            found = summary.values[key]
            return None if math.isnan(found) else found
        return config_value(summary.run.config, key.removeprefix("config."))

    values = {id(summary): value(summary) for summary in summaries}
    present = [summary for summary in summaries if values[id(summary)] is not None]
    if summaries and not present and key not in FACTS:
        known = dict.fromkeys(name for summary in summaries for name in flat_config(summary.run.config))
        raise NotFound(f"no run has {key!r} to sort by{near(key, [*FACTS, *known, *summaries[0].values])}")
    present.sort(key=lambda summary: sort_key(values[id(summary)]), reverse=descending)
    return present + [summary for summary in summaries if values[id(summary)] is None]


def listing(
    summaries: Sequence[RunSummary], shown: Sequence[tuple[str, str]] = SHOWN, *, empty: str = "no run yet"
) -> Listing:
    """Return one row a run."""
    ids = [summary.run.run_id for summary in summaries]
    short = {run_id: _short(run_id, ids) for run_id in ids}
    columns = (
        Column(key="run_id", heading="RUN", show=lambda run_id: short[run_id], clip=14),
        Column(key="name", heading="NAME", clip=14, grow=True),
        Column(key="status", heading="STATUS"),
        Column(key="split"),
        Column(key="exact"),
        Column(key="epoch", heading="EPOCH", right=True),
        Column(key="step"),
        Column(key="time"),
        *(Column(key=name, heading=heading, right=True, show=_brief) for name, heading in shown),
        Column(key="windows"),
        Column(key="layers"),
        Column(key="started"),
        Column(key="ended"),
        Column(key="last_seen"),
        Column(key="host"),
        Column(key="world_size"),
        Column(key="n_classes"),
        Column(key="tags"),
        Column(key="note"),
        Column(key="attempt"),
        Column(key="attempt_of"),
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
            *(summary.values[name] for name, _ in shown),
            summary.n_windows,
            summary.n_layers,
            summary.run.started,
            summary.run.ended,
            summary.run.last_seen,
            summary.run.host,
            summary.run.world_size,
            summary.run.n_classes,
            list(summary.run.tags),
            summary.run.note or None,
            summary.run.attempt,
            summary.run.attempt_of or None,
            dict(summary.run.config),
        )
        for summary in summaries
    ]
    return Listing(columns=columns, rows=rows, empty=empty)


def _short(run_id: str, ids: list[str]) -> str:
    """Return the shortest beginning, of eight letters or more, that names the run and no other."""
    if "@" in run_id:
        return run_id  # of a superseded tail: it is never guessed
    length = SHORT_ID
    while length < len(run_id) and sum(other.startswith(run_id[:length]) for other in ids) > 1:
        length += 1
    return run_id[:length]


def _brief(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"
