"""`ncmon show`: the last window of a run, or of one epoch: every layer, every metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.alerts import MARKS
from ncmon.cli.arguments import RUN_HELP, check_split, database_option, examples, format_option, open_store
from ncmon.cli.completing import complete_layer, complete_run, complete_split
from ncmon.cli.output import Column, Listing, brief, clean, emit, lines, moment, number, table, write
from ncmon.errors import NotFound

if TYPE_CHECKING:
    from ncmon.model import LayerReadings, Reading, Run
    from ncmon.store.results import WindowReadings
    from ncmon.store.runs import StoredRun

PROFILE = (
    ("nc1_pinv", "NC1"),
    ("intra_cos_min", "INTRA"),
    ("inter_cos_max", "INTER"),
    ("nc2_equinorm", "NC2"),
    ("ncc_acc", "NCC"),
    ("alpha", "ALPHA"),
)
"""What the table of all layers shows of each."""


@click.command(
    "show",
    epilog=examples(
        "ncmon show latest",
        "ncmon show digits --split test --epoch 50",
        "ncmon show digits --layer blocks.0 --format json",
    ),
    help=(
        "Show the last window of every split of a run: all layers in short, then every metric of the features that"
        f" enter the classifier, or of the layer that is named.\n\n{RUN_HELP}"
    ),
)
@click.argument("run", shell_complete=complete_run)
@click.option("--layer", shell_complete=complete_layer, metavar="L", help="This layer only.")
@click.option("--split", shell_complete=complete_split, metavar="S", help="This split only.")
@click.option("--epoch", type=int, metavar="E", help="The last window of this epoch.")
@database_option
@format_option
def command(
    run: str, layer: str | None, split: str | None, epoch: int | None, database: Path | None, form: str
) -> None:
    """Show the last window of a run."""
    from ncmon.alerts import title_of

    with open_store(database) as store:
        stored = store.run(run)
        windows = read_windows(stored, layer=layer, split=split, epoch=epoch)
        gaps, superseded = len(stored.gaps()), stored.superseded()
        alerts = store.alerts(stored, only_open=True)
    if form != "table":
        emit(_listing(stored.run, windows), form)
        return
    write(run_line(stored.run) + (f"{gaps} windows were lost on the way (see `gap` in the database)\n" if gaps else ""))
    write(
        lines(
            [
                f"attempt {tail.attempt} went on to step {tail.steps[1]}: its {tail.windows} windows from step"
                f" {tail.steps[0]} on are {tail.run_id}"
                for tail in superseded
            ]
        )
    )
    write(lines([clean(f"{MARKS[alert.severity]} {title_of(alert.rule)}: {alert.text}") for alert in alerts]))
    if not windows:
        write("no window yet\n")
    for window in windows:
        write("\n" + window_line(window))
        if layer is None:
            write(_profile(window))
        for found in _in_full(window, layer):
            write("\n" + _metrics(stored.run, found))


def read_windows(
    run: StoredRun, *, layer: str | None, split: str | None, epoch: int | None
) -> tuple[WindowReadings, ...]:
    """Return the windows to show; `NotFound` where the run has no such split or epoch."""
    if split is not None:
        check_split(run, split)
    windows = run.readings(epoch=epoch, split=split, layer=layer)
    if epoch is not None and not windows:
        raise NotFound(f"run {brief(run.name)} has no window of epoch {epoch}")
    return windows


def run_line(run: Run) -> str:
    """Return what stands above everything about a run: one line, its tags and its note."""
    names = f"{brief(run.name)} ({run.run_id})"
    ended = f", ended {moment(run.ended)}" if run.ended is not None else ""
    head = [clean(f"{names}  {run.status}, began {moment(run.started)}{ended}, {run.n_classes} classes")]
    tags = [clean("tags: " + ", ".join(map(brief, run.tags)))] if run.tags else []
    if run.attempt_of:
        head.append(f"superseded tail of attempt {run.attempt} of {run.attempt_of}")
    elif run.attempt > 1:
        head.append(f"attempt {run.attempt}")
    return lines([*head, *tags, *(clean(f"note: {line}") for line in run.note.splitlines())])


def window_line(window: WindowReadings) -> str:
    """Return the line above the readings of a window."""
    epoch = f"epoch {window.epoch}, " if window.epoch >= 0 else ""
    kind = "exact" if window.exact else f"streaming, {window.sampled_steps} of {window.steps} steps"
    partial = f", PARTIAL: {len(window.ranks)} of {window.world_size} ranks" if window.partial else ""
    return lines([clean(f"{window.split}  {epoch}step {window.step} ({kind}{partial})")])


def _in_full(window: WindowReadings, layer: str | None) -> Iterable[LayerReadings]:
    from ncmon.model import CLASSIFIER_INPUT

    name = CLASSIFIER_INPUT if layer is None else layer
    return [window.layers[name]] if name in window.layers else []


def _profile(window: WindowReadings) -> str:
    rows = [
        (found.key.index, name, *(_value(found.readings.get(metric)) for metric, _ in PROFILE))
        for name, found in window.layers.items()
    ]
    columns = (
        Column(key="layer_index", heading="#", right=True),
        Column(key="layer", heading="LAYER", clip=26),
        *(Column(key=metric, heading=heading, right=True, show=_brief) for metric, heading in PROFILE),
    )
    return table(Listing(columns=columns, rows=rows))


def _metrics(run: Run, found: LayerReadings) -> str:
    from ncmon.metrics import METRICS

    targets = {metric.name: metric.at_collapse for metric in METRICS}
    present = int(found.quality.get("classes_present", 0))
    head = (
        f"{found.key.name}: {found.module}, {found.n_features} features, {found.quality.get('samples', 0):.0f} samples,"
        f" {present} classes present"
    )
    floor = found.quality.get("resolution_floor", 0.0)
    rows = [
        (
            name,
            reading.value,
            targets.get(name, ""),
            _place(run, reading) + _unresolved(name, reading.value, floor)
            if reading.value is not None
            else reading.reason,
        )
        for name, reading in found.readings.items()
    ]
    columns = (
        Column(key="metric", heading="METRIC"),
        Column(key="value", heading="VALUE", right=True, show=number),
        Column(key="at_collapse", heading="COLLAPSE", right=True),
        Column(key="where", heading="AT, OR WHY NOT"),
    )
    return lines([clean(head), *map(clean, quality_lines(found))]) + table(Listing(columns=columns, rows=rows))


def quality_lines(found: LayerReadings) -> list[str]:
    """Return how far the readings of a layer can be trusted."""
    quality = found.quality
    parts = [f"rank {quality.get('rank_used', 0):.0f}"]
    if "resolution_floor" in quality:
        parts.append(f"cosines resolved to {quality['resolution_floor']:.2g}")
    for name, text in (("zero_norm", "zero vectors"), ("nonfinite", "not finite")):
        if quality.get(name):
            parts.append(f"{quality[name]:.0f} {text}")
    found_lines = ["  " + ", ".join(parts)]
    if "mean_shift" in quality:
        moved = f"  means moved by {quality['mean_shift']:.3g} since the window before"
        share = quality.get("movement_share")
        found_lines.append(moved + ("" if share is None else f": about {_percent(share)} of the variance"))
    return found_lines


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 1e-4 else "0.01 % or less"


NEAR_ONE = frozenset({"intra_cos_min", "intra_cos_mean"})
"""Metrics whose distance to 1 has the resolution floor."""


def _unresolved(name: str, value: float, floor: float) -> str:
    return ", 1 within the resolution" if name in NEAR_ONE and 1 - value <= floor else ""


def _listing(run: Run, windows: Sequence[WindowReadings]) -> Listing:
    from ncmon.store.schema import QUALITY

    keys = "run_id split exact partial epoch step time layer_index layer metric value reason attained_at"
    rows: list[tuple[Any, ...]] = [
        (
            run.run_id,
            window.split,
            window.exact,
            window.partial,
            window.epoch,
            window.step,
            window.time,
            found.key.index,
            name,
            metric,
            reading.value,
            reading.reason or None,
            list(reading.attained_at),
            *(found.quality.get(figure) for figure in QUALITY),
        )
        for window in windows
        for name, found in window.layers.items()
        for metric, reading in found.readings.items()
    ]
    return Listing(columns=tuple(Column(key=key) for key in (*keys.split(), *QUALITY)), rows=rows)


def _place(run: Run, reading: Reading) -> str:
    """Return the classes at which a minimum or maximum is attained, by name."""
    names = " and ".join(run.class_name(index) for index in reading.attained_at)
    return f"class{'es' if len(reading.attained_at) > 1 else ''} {names}" if names else ""


def _value(reading: Reading | None) -> float | None:
    return None if reading is None else reading.value


def _brief(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
