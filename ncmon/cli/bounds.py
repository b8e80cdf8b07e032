"""`ncmon bounds`: what is measured beside what a theorem guarantees."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples, format_option, open_store
from ncmon.cli.completing import complete_layer, complete_run, complete_split
from ncmon.cli.output import Column, Listing, emit, line_width, lines, number, table, write
from ncmon.cli.show import read_windows, run_line, window_line
from ncmon.errors import NotFound

if TYPE_CHECKING:
    from ncmon.metrics.spec import Bound
    from ncmon.model import LayerReadings, Run
    from ncmon.store.results import WindowReadings
    from ncmon.store.runs import StoredRun

ROUNDING = 1e-5
"""Slack below minus this contradicts the theorem; less is the rounding of statistics in single precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One bound beside the number that it bounds."""

    window: WindowReadings
    layer: str
    bound: Bound
    measured: float | None
    value: float | None
    reason: str
    """Why there is no bound."""
    class_index: int | None = None
    attained_at: tuple[int, ...] = ()
    exceptions: int = 0
    """How many classes may be worse."""

    @property
    def slack(self) -> float | None:
        """Distance to the bound, not negative when it holds."""
        if self.measured is None or self.value is None:
            return None
        return self.measured - self.value if self.bound.side == "lower" else self.value - self.measured

    @property
    def state(self) -> str:
        """One of holds, VIOLATED, vacuous, inconsistent, not applicable, none."""
        if self.slack is not None:
            return "holds" if self.slack >= -ROUNDING else "VIOLATED"
        kind = self.reason.partition(":")[0]
        return kind if kind in ("vacuous", "inconsistent", "not applicable") else "none"

    @property
    def standing(self) -> str:
        """A guarantee at frozen weights, an estimate where they moved inside the window."""
        return "guarantee" if self.window.exact else "estimate"


@click.command(
    "bounds",
    epilog=examples(
        "ncmon bounds latest",
        "ncmon bounds digits --split test --per-class",
        "ncmon bounds digits --delta 0.1",
        "ncmon bounds digits --format csv",
    ),
    help=(
        "Show every bound of the last window beside what was measured: the slack (not negative when the bound holds),"
        " and whether it is a guarantee (the weights stood still) or an estimate (they moved inside the window)."
        f"\n\n{RUN_HELP}"
    ),
)
@click.argument("run", shell_complete=complete_run)
@click.option(
    "--layer",
    shell_complete=complete_layer,
    metavar="L",
    help="By default the classifier's input, which most bounds are about.",
)
@click.option("--split", shell_complete=complete_split, metavar="S", help="This split only.")
@click.option("--epoch", type=int, metavar="E", help="The last window of this epoch.")
@click.option("--per-class", is_flag=True, help="The bounds of every class, too.")
@click.option(
    "--delta",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="X",
    help="S and T for all but a share X of the classes, too.",
)
@database_option
@format_option
def command(
    run: str,
    layer: str | None,
    split: str | None,
    epoch: int | None,
    per_class: bool,
    delta: float | None,
    database: Path | None,
    form: str,
) -> None:
    """Show what is measured beside what is guaranteed."""
    with open_store(database) as store:
        stored = store.run(run)
        windows = read_windows(stored, layer=layer, split=split, epoch=epoch)
        found = [
            (window, [*_compare(window, layer, per_class), *_all_but(stored, window, delta)]) for window in windows
        ]
    if layer is not None and windows and not any(comparisons for _, comparisons in found):
        raise NotFound(f"no bound is about layer {layer!r}: they are about the classifier's input")
    if form != "table":
        emit(_listing(stored.run, [one for _, comparisons in found for one in comparisons]), form)
        return
    write(run_line(stored.run))
    if not windows:
        write("no window yet\n")
    for window, comparisons in found:
        write("\n" + window_line(window))
        write(_table(stored.run, [one for one in comparisons if one.class_index is None]))
        if window.assumptions:
            write("\n" + _panel(window))
        if per_class:
            write("\n" + _class_table(stored.run, [one for one in comparisons if one.class_index is not None]))
    if windows:
        write("\n" + _legend())


def _compare(window: WindowReadings, layer: str | None, per_class: bool) -> Iterator[Comparison]:
    from ncmon.bounds import BOUNDS
    from ncmon.model import CLASSIFIER_INPUT

    found = window.layers.get(CLASSIFIER_INPUT if layer is None else layer)
    if found is None:
        return
    for bound in BOUNDS:
        if bound.scope == "class":
            if per_class:
                yield from _class_comparisons(window, found, bound)
            continue
        reading, measured = found.readings.get(bound.name), found.readings.get(bound.of)
        if reading is not None:
            yield Comparison(
                window=window,
                layer=found.key.name,
                bound=bound,
                measured=None if measured is None else measured.value,
                value=reading.value,
                reason=reading.reason,
                attained_at=reading.attained_at,
            )


def _class_comparisons(window: WindowReadings, found: LayerReadings, bound: Bound) -> Iterator[Comparison]:
    values, measured = found.class_arrays.get(bound.name), found.class_arrays.get(bound.of)
    if values is None or measured is None:
        return
    for index in range(len(values)):
        if math.isnan(measured[index]):
            continue
        missing = math.isnan(values[index])
        yield Comparison(
            window=window,
            layer=found.key.name,
            bound=bound,
            measured=float(measured[index]),
            value=None if missing else float(values[index]),
            reason="no certificate for this class" if missing else "",
            class_index=index,
        )


def _all_but(run: StoredRun, window: WindowReadings, delta: float | None) -> Iterator[Comparison]:
    """Compare S and T for all but floor(delta C) classes with the worst class, or pair, of the others."""
    from ncmon.bounds import BOUNDS, inputs, levels, sharp, theorem
    from ncmon.metrics.readings import Unavailable
    from ncmon.model import CLASSIFIER_INPUT

    layer = window.layers.get(CLASSIFIER_INPUT)
    if delta is None or layer is None or not {"rms_norm", "class_loss"} <= layer.class_arrays.keys():
        return
    n_classes = len(layer.class_arrays["rms_norm"])
    exceptions = math.floor(delta * n_classes)
    beta, bias = layer.readings.get("beta"), {fact.name: fact.holds for fact in window.assumptions}
    bounds = {bound.name: bound for bound in BOUNDS}
    values: dict[str, float | None] = {}
    reason, reasons = "", {}
    try:
        if beta is None or beta.value is None:
            raise Unavailable("the classifier's weight was not sent")
        if bias.get("no_last_bias") is False:
            raise Unavailable("not applicable: the classifier has a last bias")
        start = inputs.from_classes(layer.class_arrays["rms_norm"], layer.class_arrays["class_loss"], beta.value)
        found = sharp.sharp(start, exceptions=exceptions)
        values = {"sharp_intra": None if found.cosine is None else found.cosine**2, "sharp_nc3": found.nc3}
        values["sharp_inter"] = found.inter
        for name, kind in (("sharp_intra", "cosine"), ("sharp_nc3", "nc3"), ("sharp_inter", "inter")):
            if values[name] is None:
                reasons[name] = levels.nothing(start, kind, exceptions)
        for tight, name in ((False, "thm"), (True, "thm_tight")):
            proven = theorem.theorem(start, exceptions=exceptions, tight=tight)
            values |= {f"{name}_intra": proven.intra, f"{name}_nc3": proven.nc3, f"{name}_inter": proven.inter}
            reasons |= {f"{name}_{kind}": theorem.nothing(proven, kind) for kind in ("intra", "nc3", "inter")}
    except Unavailable as missing:
        reason = str(missing)
    for name in (name for name in bounds if name.startswith(("sharp_", "thm_"))):
        yield Comparison(
            window=window,
            layer=layer.key.name,
            bound=bounds[name],
            measured=_worst_but(run, window, bounds[name], exceptions),
            value=values.get(name),
            reason="" if values.get(name) is not None else reason or reasons[name],
            exceptions=exceptions,
        )


def _worst_but(run: StoredRun, window: WindowReadings, bound: Bound, exceptions: int) -> float | None:
    """Return what a bound for all but `exceptions` classes is to be compared with, None where that is not stored."""
    from ncmon.bounds import cover
    from ncmon.model import CLASSIFIER_INPUT

    if bound.of == "inter_cos_max":
        try:
            matrix = run.matrix("inter_cos", split=window.split, step=window.step)
        except NotFound:
            return None
        # As many as the proof leaves out: of S the ends of disjoint pairs.
        left_out = exceptions // 2 * 2 if bound.name.startswith("sharp_") else exceptions
        return cover.greatest_but(matrix, left_out)
    arrays = window.layers[CLASSIFIER_INPUT].class_arrays
    values = sorted(arrays["nc3_cos_class" if bound.of == "nc3_cos_min" else "intra_cos"].tolist())
    kept = [value for value in values if not math.isnan(value)]
    return kept[exceptions] if exceptions < len(kept) else None


def _panel(window: WindowReadings) -> str:
    """Return the assumptions of the theory, each with its fact."""
    from ncmon.bounds.assumptions import TITLES

    marks = {True: "yes", False: "no", None: "?"}
    columns = (
        Column(key="assumption", heading="ASSUMPTION"),
        Column(key="holds", heading="HOLDS"),
        Column(key="fact", heading="FACT"),
    )
    rows = [(TITLES.get(fact.name, fact.name), marks[fact.holds], fact.fact) for fact in window.assumptions]
    return table(Listing(columns=columns, rows=rows))


def _table(run: Run, comparisons: list[Comparison]) -> str:
    columns = (
        Column(key="quantity", heading="QUANTITY"),
        Column(key="measured", heading="MEASURED", right=True),
        Column(key="bound", heading="BOUND"),
        Column(key="value", heading="VALUE", right=True),
        Column(key="slack", heading="SLACK", right=True),
        Column(key="state", heading="STATE"),
        Column(key="reason", heading="STANDING"),
    )
    rows = [
        (
            one.bound.of + (f" but {one.exceptions}" if one.exceptions else ""),
            one.measured,
            ("<= " if one.bound.side == "upper" else ">= ") + one.bound.name,
            one.value,
            one.slack,
            one.state,
            one.reason.removeprefix(f"{one.state}: ") if one.value is None else one.standing,
        )
        for one in comparisons
    ]
    return table(Listing(columns=columns, rows=rows, empty="no bound of this window"))


def _class_table(run: Run, comparisons: list[Comparison]) -> str:
    columns = (
        Column(key="class", heading="CLASS", right=True),
        Column(key="class_name", heading="NAME", clip=20),
        Column(key="quantity", heading="QUANTITY"),
        Column(key="measured", heading="MEASURED", right=True),
        Column(key="value", heading="BOUND", right=True),
        Column(key="slack", heading="SLACK", right=True),
        Column(key="state", heading="STATE"),
    )
    rows = [
        (
            one.class_index,
            run.class_name(one.class_index or 0),
            one.bound.of,
            one.measured,
            one.value,
            one.slack,
            one.state,
        )
        for one in comparisons
    ]
    return table(Listing(columns=columns, rows=rows, empty="no class has a bound"))


def _legend() -> str:
    """Return what the bounds assume, each text once."""
    from ncmon.bounds import BOUNDS

    width = line_width()
    found = [f"Slack of at least 0 (within {number(ROUNDING)}) means that the bound holds. The bounds assume:"]
    for text in dict.fromkeys(text for bound in BOUNDS for text in bound.assumptions):
        found += textwrap.wrap(text, width, initial_indent="  - ", subsequent_indent="    ")
    found += textwrap.wrap(
        "Source: thesis, Theorem 2.3.1, and what sharpens it; `ncmon metrics NAME` says it of each.", width
    )
    return lines(found)


def _listing(run: Run, comparisons: list[Comparison]) -> Listing:
    keys = (
        "run_id split exact epoch step layer class class_name quantity measured bound side value slack state standing"
        " reason attained_at exceptions requires assumptions source"
    )
    rows: list[tuple[Any, ...]] = [
        (
            run.run_id,
            one.window.split,
            one.window.exact,
            one.window.epoch,
            one.window.step,
            one.layer,
            one.class_index,
            None if one.class_index is None else run.class_name(one.class_index),
            one.bound.of,
            one.measured,
            one.bound.name,
            one.bound.side,
            one.value,
            one.slack,
            one.state.lower(),
            one.standing,
            one.reason or None,
            list(one.attained_at),
            one.exceptions,
            list(one.bound.requires),
            list(one.bound.assumptions),
            one.bound.source,
        )
        for one in comparisons
    ]
    return Listing(columns=tuple(Column(key=key) for key in keys.split()), rows=rows)
