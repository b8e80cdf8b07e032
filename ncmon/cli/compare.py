"""`ncmon compare`: runs side by side: last values, first epoch past a threshold, different configurations."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import RUN_HELP, check_split, database_option, examples, format_option, open_store, usual_split
from ncmon.cli.completing import complete_layer, complete_metric, complete_run, complete_split
from ncmon.cli.output import Column, Listing, clean, emit, lines, number, table, write
from ncmon.cli.runs import check_metrics
from ncmon.errors import UsageError

if TYPE_CHECKING:
    from ncmon.model import Run
    from ncmon.store.results import Columns
    from ncmon.store.runs import StoredRun
    from ncmon.store.selection import Condition

METRICS = (
    *("ce_loss", "ce_gap", "accuracy", "ncc_acc", "nc1_pinv", "intra_cos_min", "cert_intra_min", "inter_cos_max"),
    *("nc2_equinorm", "nc2_equiangularity", "nc3_cos_min", "nc4_agree", "alpha", "beta"),
)
"""What is compared when nothing is asked for."""

THRESHOLDS = ("nc1_pinv<1", "nc1_pinv<0.1", "intra_cos_min>0.9", "ncc_acc>=0.99", "ce_gap<0.01")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One run of a comparison."""

    run: Run
    split: str
    epoch: int | None
    """Of the last window that is compared; None where there is none."""
    step: int | None
    values: dict[str, float | None]
    """By metric."""
    first: dict[str, tuple[int, int] | None]
    """Epoch and step of the first window that fulfils a threshold, by its text."""


@click.command(
    "compare",
    epilog=examples(
        "ncmon compare digits-wd0 digits-wd5e-4",
        "ncmon compare 3f2a 77b1 latest --metric nc1_pinv --first 'nc1_pinv<0.05' --split test",
        "ncmon compare digits-wd0 digits-wd5e-4 --format csv",
    ),
    help=(
        "Compare runs: their values in the last window (or the last of --epoch), the first epoch in which a metric"
        f" passed a threshold, and what their configurations differ in.\n\n{RUN_HELP}"
    ),
)
@click.argument("runs", nargs=-1, shell_complete=complete_run, required=True, metavar="RUN RUN...")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    shell_complete=complete_metric,
    metavar="M",
    help="Compare these metrics or bounds.",
)
@click.option(
    "--first", multiple=True, metavar="COND", help="Thresholds, as 'nc1_pinv<0.1', instead of the usual ones."
)
@click.option(
    "--layer",
    shell_complete=complete_layer,
    metavar="L",
    default="classifier-input",
    show_default=True,
    help="Name of a layer.",
)
@click.option("--split", shell_complete=complete_split, metavar="S", help="By default train, or what there is instead.")
@click.option("--epoch", type=int, metavar="E", help="Values of the last window up to this epoch.")
@database_option
@format_option
def command(
    runs: tuple[str, ...],
    metrics: tuple[str, ...],
    first: tuple[str, ...],
    layer: str,
    split: str | None,
    epoch: int | None,
    database: Path | None,
    form: str,
) -> None:
    """Compare runs."""
    from ncmon.store.selection import config_differences, parse_condition

    thresholds = [parse_condition(text) for text in first or THRESHOLDS]
    names = tuple(dict.fromkeys(metrics)) or METRICS
    with open_store(database) as store:
        found = list({one.run_id: one for one in (store.run(ref) for ref in runs)}.values())
        if len(found) < 2:
            raise UsageError("a comparison needs two runs that are not the same")
        check_metrics(store.metrics, [*names, *(one.key for one in thresholds)])
        compared = [read(one, names, thresholds, layer=layer, split=split, epoch=epoch) for one in found]
    differences = config_differences([one.run.config for one in compared])
    if form == "table":
        write(_text(compared, names, thresholds, differences))
    else:
        emit(_listing(compared, names, thresholds, differences), form)


def read(
    run: StoredRun,
    metrics: Sequence[str],
    thresholds: Sequence[Condition],
    *,
    layer: str,
    split: str | None,
    epoch: int | None,
) -> Compared:
    """Return what one run brings to a comparison."""
    split = usual_split(run) if split is None else check_split(run, split)
    asked = list(dict.fromkeys([*metrics, *(one.key for one in thresholds)]))
    histories = run.histories(asked, layer=layer, split=split)
    ends = [_end(histories[name], epoch) for name in metrics]
    # Metrics that say nothing about the last window are not looked up in earlier ones: a value of another epoch.
    last = max((histories[name].step[end] for name, end in zip(metrics, ends, strict=True) if end >= 0), default=None)
    values: dict[str, float | None] = {}
    at = None
    for name, end in zip(metrics, ends, strict=True):
        history = histories[name]
        here = end >= 0 and history.step[end] == last
        values[name] = float(history.value[end]) if here and not history.reason[end] else None
        at = int(history.epoch[end]) if here else at
    return Compared(
        run=run.run,
        split=split,
        epoch=at,
        step=None if last is None else int(last),
        values=values,
        first={text_of(one): _first(histories[one.key], one) for one in thresholds},
    )


def text_of(condition: Condition) -> str:
    """Return a threshold as text."""
    return f"{condition.key} {condition.operator} {condition.text}"


def _end(history: Columns, epoch: int | None) -> int:
    """Return the place of the last window up to an epoch, -1 where there is none."""
    places = [place for place, at in enumerate(history.epoch.tolist()) if epoch is None or at <= epoch]
    return places[-1] if places else -1


def _first(history: Columns, condition: Condition) -> tuple[int, int] | None:
    for epoch, step, value, reason in zip(
        history.epoch.tolist(), history.step.tolist(), history.value.tolist(), history.reason, strict=True
    ):
        if not reason and condition.holds(value):
            return epoch, step
    return None


def _letters(count: int) -> list[str]:
    letters = string.ascii_uppercase
    return [letters[place] if count <= len(letters) else str(place + 1) for place in range(count)]


def _text(
    compared: Sequence[Compared],
    metrics: Iterable[str],
    thresholds: Sequence[Condition],
    differences: dict[str, tuple[Any, ...]],
) -> str:
    heads = _letters(len(compared))
    legend = [
        (head, one.run.name, one.run.run_id, one.run.status, one.split, "-" if one.epoch is None else one.epoch)
        for head, one in zip(heads, compared, strict=True)
    ]
    titles = (" ", "NAME", "RUN", "STATUS", "SPLIT", "EPOCH")
    columns = tuple(
        Column(
            key=title, heading=title, clip={"NAME": 26, "RUN": 20, "SPLIT": 12}.get(title, 0), right=title == "EPOCH"
        )
        for title in titles
    )
    two = len(compared) == 2
    values = []
    for name in metrics:
        row = [one.values[name] for one in compared]
        values.append((name, *row, *([_difference(row[0], row[1])] if two else [])))
    firsts = []
    for threshold in thresholds:
        text = text_of(threshold)
        found = [one.first[text] for one in compared]
        firsts.append((text, *(_moment(one) for one in found)))
    parts = [
        table(Listing(columns=columns, rows=legend)),
        _side("LAST VALUE", values, [*heads, *(["B - A"] if two else [])]),
        _side("FIRST EPOCH WITH", firsts, heads),
    ]
    if differences:
        rows = [(key, *map(_value, row)) for key, row in differences.items()]
        parts.append(_side("CONFIG", rows, heads))
    else:
        parts.append(lines(["Their configurations are the same."]))
    return "\n".join(parts)


def _side(title: str, rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    columns = (
        Column(key="name", heading=title, clip=32),
        *(Column(key=head, heading=head, right=True, clip=16) for head in heads),
    )
    return table(Listing(columns=columns, rows=rows))


def _listing(
    compared: Sequence[Compared],
    metrics: Iterable[str],
    thresholds: Sequence[Condition],
    differences: dict[str, tuple[Any, ...]],
) -> Listing:
    keys = ("kind", "name", "run_id", "run_name", "split", "epoch", "step", "value")
    rows: list[tuple[Any, ...]] = [
        ("value", name, one.run.run_id, one.run.name, one.split, one.epoch, one.step, one.values[name])
        for name in metrics
        for one in compared
    ]
    for threshold in thresholds:
        for one in compared:
            epoch, step = one.first[text_of(threshold)] or (None, None)
            rows.append(("first", text_of(threshold), one.run.run_id, one.run.name, one.split, epoch, step, None))
    for key, values in differences.items():
        for one, value in zip(compared, values, strict=True):
            rows.append(("config", key, one.run.run_id, one.run.name, None, None, None, value))
    return Listing(columns=tuple(Column(key=key) for key in keys), rows=rows)


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def _moment(found: tuple[int, int] | None) -> str:
    if found is None:
        return "never"
    epoch, step = found
    return str(epoch) if epoch >= 0 else f"step {step}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return "-" if value is None else clean(str(value))
