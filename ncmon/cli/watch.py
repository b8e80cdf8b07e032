"""`ncmon watch`: the terminal UI on a daemon or a database, or one look at it as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import examples
from ncmon.cli.serve import has_terminal
from ncmon.errors import StoreError

if TYPE_CHECKING:
    from ncmon.feed import Snapshot


ALERT_EXIT_CODE = 3
"""Of a look at runs of which an alert is open that nobody has acknowledged."""


@click.command(
    "watch",
    epilog=examples(
        "ncmon watch",
        "ncmon watch runs.db",
        "ncmon watch tcp://10.0.0.5:7070",
        "ncmon watch --once",
        "ncmon watch runs.db --format json",
    ),
)
@click.argument("target", required=False)
@click.option("--once", is_flag=True, help="Print what there is now and end, as without a terminal.")
@click.option("--format", "form", type=click.Choice(("text", "json")), help="Of --once, which it implies.")
@click.option(
    "--theme", metavar="NAME", help="dark, light, ansi (the terminal's own colours), mono, or one of Textual's."
)
@click.option("--ascii", "ascii_only", is_flag=True, help="Draw with letters only.")
def command(target: str | None, once: bool, form: str | None, theme: str | None, ascii_only: bool) -> int:
    """Show runs in the terminal: of the daemon of this user, of an endpoint, or of a database file.

    An endpoint is ipc://... on this machine, or tcp://HOST:PORT on another, with a key that may view (`ncmon keys`).
    --once ends with 3 while an alert is open that nobody has acknowledged (`ncmon alerts`).
    """
    if not once and form is None and has_terminal():
        from ncmon.tui.app import run_ui

        return run_ui(target, theme=theme, ascii=ascii_only)
    return _look(target, form or "text")


def _look(target: str | None, form: str) -> int:
    import json

    from ncmon.cli.output import write
    from ncmon.feed import Selection, open_feed, plain

    with open_feed(target) as feed:
        snapshot = feed.read(Selection())
    if snapshot.error:
        raise StoreError(snapshot.error)
    write(json.dumps(_record(snapshot), indent=2) + "\n" if form == "json" else plain(snapshot))
    return ALERT_EXIT_CODE if any(alert.pressing for alert in snapshot.alerts) else 0


def _record(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON has it."""
    from ncmon.cli.output import plain

    detail = snapshot.detail
    return {
        "state": snapshot.source.value,
        "database": str(snapshot.database),
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
