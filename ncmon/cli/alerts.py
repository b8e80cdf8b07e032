"""`ncmon alerts`: what rules raised, of one run or of all; and which rules there are."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples, format_option, open_store
from ncmon.cli.completing import complete_run
from ncmon.cli.output import Column, Listing, emit, line_width, lines, moment, number, write
from ncmon.errors import UsageError

if TYPE_CHECKING:
    from ncmon.alerts import Rule
    from ncmon.model import Alert, Run

MARKS = {"alert": "!", "warning": "!", "info": "i"}


@click.command(
    "alerts",
    epilog=examples(
        "ncmon alerts",
        "ncmon alerts latest --open",
        "ncmon alerts --format json",
        "ncmon alerts --rules",
        "ncmon ack 12 13",
    ),
    help=(
        "List what somebody should look at: of one run or of all, open alerts first, then the newest. A daemon raises"
        " them while trainings run (`ncmon serve --on-alert` tells others); `ncmon ack` says that they were"
        f" seen.\n\n{RUN_HELP}"
    ),
)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--open", "only_open", is_flag=True, help="Leave out what is over.")
@click.option("--rules", is_flag=True, help="Say which rules there are, what they mean, and their limits.")
@database_option
@format_option
def command(run: str | None, only_open: bool, rules: bool, database: Path | None, form: str) -> None:
    """List alerts, or the rules that raise them."""
    if rules:
        if run is not None or only_open:
            raise UsageError("--rules lists rules, not alerts: leave RUN and --open out")
        _rules(form)
        return
    with open_store(database) as store:
        found = store.run(run) if run is not None else None
        alerts = store.alerts(found, only_open=only_open)
        runs = {one.run_id: one.run for one in store.runs()}
    emit(listing(alerts, runs, now=time.time()), form)


def listing(alerts: Sequence[Alert], runs: Mapping[str, Run], *, now: float) -> Listing:
    """Return one row an alert."""
    from ncmon.alerts import title_of

    def ago(since: float) -> str:
        return moment(since) if abs(now - since) >= 86_400 else time.strftime("%H:%M:%S", time.localtime(since))

    columns = (
        Column(key="id", heading="ID", right=True),
        Column(key="rule", heading="WHAT", show=title_of),
        Column(key="severity"),
        Column(key="run_id"),
        Column(key="run", heading="RUN", clip=18),
        Column(key="split"),
        Column(key="exact"),
        Column(key="layer", heading="LAYER", clip=18, show=lambda name: name or "-"),
        Column(key="class"),
        Column(key="class_name"),
        Column(key="epoch"),
        Column(key="step"),
        Column(key="since", heading="SINCE", show=ago),
        Column(key="cleared"),
        Column(key="acknowledged"),
        Column(key="state", heading="STATE"),
        Column(key="value"),
        Column(key="text", heading="WHY"),
    )
    rows = []
    for alert in alerts:
        run = runs.get(alert.run_id)
        index = alert.class_index
        rows.append(
            (
                alert.alert_id,
                alert.rule,
                alert.severity,
                alert.run_id,
                run.name if run is not None else alert.run_id,
                alert.split or None,
                alert.exact if alert.split else None,
                alert.layer or None,
                index,
                run.class_name(index) if run is not None and index is not None else None,
                alert.epoch if alert.epoch >= 0 else None,
                alert.step if alert.step >= 0 else None,
                alert.since,
                alert.cleared,
                alert.acknowledged,
                state_of(alert),
                alert.value,
                alert.text,
            )
        )
    return Listing(columns=columns, rows=rows, empty="no alert")


def state_of(alert: Alert) -> str:
    """Return how an alert stands, in a word."""
    if not alert.open:
        return "over"
    return "seen" if alert.acknowledged is not None else "open"


def _rules(form: str) -> None:
    from ncmon.alerts import LIMITS, RULES

    if form == "table":
        limits = {limit.name: limit for limit in LIMITS}
        write("\n".join(_block(rule, {name: number(limits[name].default) for name in rule.limits}) for rule in RULES))
        write("\nLimits, for `ncmon serve --alert NAME=NUMBER`:\n")
        width = max(len(limit.name) for limit in LIMITS)
        write(lines(f"  {limit.name:<{width}}  {number(limit.default):>6}  {limit.text}" for limit in LIMITS))
        return
    facts = ("name", "title", "severity", "meaning", "advice", "screen", "limits")
    keys = (*facts, "raise_after", "clear_after", "cooldown_s", "ends_with_run")
    rows = [tuple(getattr(rule, key) for key in keys) for rule in RULES]
    emit(Listing(columns=tuple(Column(key=key) for key in keys), rows=rows), form)


def _block(rule: Rule, limits: Mapping[str, str]) -> str:
    indent, width = " " * 4, min(line_width(), 100)
    facts = f"{rule.severity}; over after {rule.clear_after} good; at most one in {rule.cooldown_s / 60:g} min a place"
    said = [f"limits: {', '.join(f'{name}={value}' for name, value in limits.items())}"] if limits else []
    texts = [rule.meaning, rule.advice, facts, *said]
    wrapped = [textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent) for text in texts]
    return lines([f"{rule.name}  {rule.title}", *(line for part in wrapped for line in part)])
