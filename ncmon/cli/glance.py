"""What there is now, for `ncmon watch --once`: the runs, and the last window of the newest one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ncmon.cells import fit, middle, printable
from ncmon.cli.output import Column, Listing, emit, plain, write
from ncmon.errors import StoreError
from ncmon.feed import REMOTE_TIMEOUT_S, Selection, Snapshot
from ncmon.feeds import Feeds, open_feeds

MOST_RUNS = 20
"""In text; machines get them all."""

ALERT_OPEN = 3
"""Exit code of a look that finds an open alert."""


def glance(targets: Sequence[str], form: str) -> int:
    """Print what the targets show, and return the exit code."""
    feed = open_feeds(targets)
    if isinstance(feed, Feeds):
        # Nobody looks again: all have to answer, or to fail.
        feed = Feeds(list(dict.fromkeys(targets)), patience_s=2 * REMOTE_TIMEOUT_S)
    try:
        snapshot = feed.read(Selection())
    finally:
        feed.close()
    if snapshot.error:
        raise StoreError(snapshot.error)
    if form == "table":
        write(text(snapshot))
    elif form == "json":
        write(json.dumps(record(snapshot), indent=2) + "\n")
    else:
        emit(listing(snapshot), form)
    return ALERT_OPEN if alert_open(snapshot) else 0


def alert_open(snapshot: Snapshot) -> bool:
    """Whether an alert of a snapshot is neither over nor acknowledged."""
    return bool(snapshot.open_alerts)


def text(snapshot: Snapshot, *, limit: int = MOST_RUNS) -> str:
    """Return a snapshot as text for a pipe."""
    lines = [f"ncmon {snapshot.source.value}  {printable(str(snapshot.database))}"]
    several = max((len(source.label) for source in snapshot.sources), default=0)
    if several:
        lines = ["ncmon"]
        for source in snapshot.sources:
            more = f"  {printable(source.error)}" if source.error else f"  {source.n_runs} runs"
            lines.append(f"  {source.label:<{several}}  {source.state.value:<11}{more}")
    if snapshot.error:
        return "\n".join([*lines, snapshot.error, ""])
    if not snapshot.runs:
        return "\n".join([*lines, "no run yet: start one with `ncmon demo`, or see `ncmon serve --help`", ""])
    origin = f" {'SOURCE':<{max(several, 6)}}" if several else ""
    lines.append(
        f"{'RUN':<24}{origin} {'STATE':<7} {'EPOCH':>6} {'LOSS':>9} {'NC1':>9} {'INTRA':>7} {'INTER':>7} {'NCC':>7}"
    )
    for summary in snapshot.runs[:limit]:
        value = summary.values.get
        source_of = snapshot.source_of(summary.run.run_id)
        origin = f" {source_of.label:<{max(several, 6)}}" if source_of is not None else ""
        lines.append(
            f"{fit(middle(summary.run.name, 24), 24)}{origin} {snapshot.state(summary).value:<7}"
            f" {'-' if summary.epoch is None else summary.epoch:>6} {_short(value('ce_loss')):>9}"
            f" {_short(value('nc1_pinv')):>9} {_short(value('intra_cos_min')):>7} {_short(value('inter_cos_max')):>7}"
            f" {_short(value('ncc_acc')):>7}"
        )
    names = {summary.run.run_id: summary.run.name for summary in snapshot.runs}
    for alert in snapshot.open_alerts:
        name = printable(names.get(alert.run_id, alert.run_id))
        lines.append(f"! {alert.rule}  {name}  {printable(alert.text)}  (ncmon ack {alert.alert_id})")
    detail = snapshot.detail
    if detail is not None and detail.layer is not None:
        for split, window in detail.latest.items():
            found = window.layers.get(detail.layer.name)
            if found is None:
                continue
            kind = "exact" if window.exact else "streaming"
            name, layer = middle(detail.run.name, 48), printable(detail.layer.name)
            lines += ["", f"{name}  {layer}  {printable(split)} ({kind})  step {window.step}"]
            for metric, reading in found.readings.items():
                shown = _short(reading.value) if reading.value is not None else reading.reason
                lines.append(f"  {metric:<20} {shown}")
    return "\n".join([*lines, ""])


def listing(snapshot: Snapshot) -> Listing:
    """Return one row a run."""
    names = tuple(snapshot.runs[0].values) if snapshot.runs else ()
    columns = ("source", "source_state", "run_id", "name", "state", "split", "epoch", "step", "windows", *names)
    rows = []
    for summary in snapshot.runs:
        source = snapshot.source_of(summary.run.run_id)
        rows.append(
            (
                source.label if source is not None else None,
                (source.state if source is not None else snapshot.source).value,
                summary.run.run_id,
                summary.run.name,
                snapshot.state(summary).value,
                summary.split or None,
                summary.epoch,
                summary.step,
                summary.n_windows,
                *(summary.values[name] for name in names),
            )
        )
    return Listing(columns=tuple(Column(key=name) for name in columns), rows=rows)


def record(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON has it."""
    detail = snapshot.detail
    return {
        "state": snapshot.source.value,
        "database": None if snapshot.database is None else str(snapshot.database),
        "sources": [
            {
                "label": source.label,
                "state": source.state.value,
                "host": source.host or None,
                "runs": source.n_runs,
                "error": source.error or None,
            }
            for source in snapshot.sources
        ],
        "counters": dict(snapshot.counters),
        "alerts": [asdict(alert) for alert in snapshot.alerts if alert.open],
        "runs": [
            {
                "run_id": summary.run.run_id,
                "name": summary.run.name,
                "state": snapshot.state(summary).value,
                "split": summary.split,
                "epoch": summary.epoch,
                "step": summary.step,
                "windows": summary.n_windows,
                **{name: plain(value) for name, value in summary.values.items()},
            }
            for summary in snapshot.runs
        ],
        "detail": None
        if detail is None
        else {
            "run_id": detail.run.run_id,
            "layer": None if detail.layer is None else detail.layer.name,
            "gaps": detail.gaps,
            "windows": [
                {
                    "split": split,
                    "exact": window.exact,
                    "epoch": window.epoch,
                    "step": window.step,
                    "readings": {
                        name: {"value": plain(reading.value), "reason": reading.reason or None}
                        for name, reading in window.layers[detail.layer.name].readings.items()
                    }
                    if detail.layer is not None and detail.layer.name in window.layers
                    else {},
                }
                for split, window in detail.latest.items()
            ],
        },
    }


def _short(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.4g}"
