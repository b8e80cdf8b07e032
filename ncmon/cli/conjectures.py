"""`ncmon conjectures`: the thesis' three conjectures on stored runs, with slack; a check, never a guarantee.

A sweep holds runs of many kinds. The conjectures about weight decay are about two runs that are alike in all else, so
only runs whose configurations say nothing else differently are paired; `--across` names keys that may differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import RUN_HELP, check_split, database_option, examples, format_option, open_store
from ncmon.cli.completing import complete_run, complete_split
from ncmon.cli.output import Column, Listing, emit, lines, number, table, write
from ncmon.errors import UsageError

if TYPE_CHECKING:
    from ncmon.store.runs import StoredRun

PERFECT = 1.0
"""Training accuracy that the conjectures suppose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the conjectures ask of one run: its last window of the split."""

    run: StoredRun
    split: str
    decay: float | None
    accuracy: float | None
    layers: tuple[str, ...]
    margins: tuple[float, ...]
    """One a layer that has one, from the input."""
    errors: tuple[float, ...]
    """1 - accuracy of the nearest class mean, likewise."""
    rest: Mapping[str, Any]
    """What the configuration says beside the decay, and beside what may differ."""

    @property
    def qualified(self) -> bool:
        """Whether the training set is fitted perfectly."""
        return self.accuracy is not None and self.accuracy >= PERFECT


@click.command(
    "conjectures",
    epilog=examples(
        "ncmon conjectures latest",
        "ncmon conjectures wd1e-4 wd5e-4 wd5e-3",
        "ncmon conjectures --all --key config.wd",
        "ncmon conjectures --all --across seed",
    ),
    help=(
        "Check the thesis' conjectures: 3.2.1 (sharper with depth) in every run; 3.1.1 and 3.2.2 (weight decay) on"
        " every pair of runs that differ in weight decay alone and fit the training set perfectly. A check, not a"
        " guarantee."
        f"\n\n{RUN_HELP}"
    ),
)
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=complete_run)
@click.option("--all", "every", is_flag=True, help="All runs of the database.")
@click.option("--key", metavar="KEY", default="config.weight_decay", show_default=True, help="Where the decay is said.")
@click.option(
    "--across", multiple=True, metavar="KEY", help="Pair runs although this key of their configurations differs, too."
)
@click.option("--split", shell_complete=complete_split, metavar="S", help="By default train-exact, or train.")
@database_option
@format_option
def command(
    runs: tuple[str, ...],
    every: bool,
    key: str,
    across: tuple[str, ...],
    split: str | None,
    database: Path | None,
    form: str,
) -> None:
    """Check the conjectures on stored runs."""
    if bool(runs) == every:
        raise UsageError("expected the runs to look at, or --all")
    with open_store(database) as store:
        chosen = list(store.runs()) if every else [store.run(name) for name in dict.fromkeys(runs)]
        found = [_facts(run, key, across, split) for run in chosen]
    single = [_depth(facts) for facts in found]
    pairs = _pairs(found)
    if form != "table":
        emit(_listing([*single, *pairs]), form)
        return
    write(lines(["3.2.1  the cosine margin grows from layer to layer (the last two apart)"]))
    write(_table(single, ("run", "decay", "accuracy", "verdict", "violation", "where")))
    write("\n" + lines(["3.1.1 and 3.2.2  more weight decay: a greater margin, no greater effective depth"]))
    if pairs:
        write(_table(pairs, ("conjecture", "run", "decay", "other_decay", "verdict", "violation", "where")))
    else:
        write("no pair of runs differs in weight decay alone and fits the training set perfectly\n")
    unlike = sum(1 for less, more in _candidates(found) if less.rest != more.rest)
    if unlike:
        write(f"{unlike} pairs differ in more than {key}: not compared; --across KEY takes them all the same\n")
    if len(single) > 1:
        write("\n" + lines(_sums([*single, *pairs])))


def _facts(run: StoredRun, key: str, across: tuple[str, ...], split: str | None) -> Facts:
    from ncmon.store.selection import flat_config

    splits = run.splits
    if split is not None:
        check_split(run, split)
    chosen = split or ("train-exact" if "train-exact" in splits else "train")
    windows = run.readings(split=chosen)
    window = next((one for one in windows if one.exact), windows[0] if windows else None)
    layers = [] if window is None else list(window.layers.items())
    kept = [
        (name, margin, hits)
        for name, layer in layers
        if (margin := _value(layer.readings, "cos_margin")) is not None
        and (hits := _value(layer.readings, "ncc_acc")) is not None
    ]
    said = flat_config(run.config)
    decay = said.get(key.removeprefix("config."))
    free = {name.removeprefix("config.") for name in (key, *across)}
    last = dict(layers).get("classifier-input")
    return Facts(
        run=run,
        split=chosen,
        decay=float(decay) if isinstance(decay, (int, float)) and not isinstance(decay, bool) else None,
        accuracy=None if last is None else _value(last.readings, "accuracy"),
        layers=tuple(name for name, _, _ in kept),
        margins=tuple(margin for _, margin, _ in kept),
        errors=tuple(1.0 - hits for _, _, hits in kept),
        rest={name: value for name, value in said.items() if name not in free},
    )


def _value(readings: Any, name: str) -> float | None:
    return readings[name].value if name in readings else None


def _depth(facts: Facts) -> dict[str, Any]:
    from ncmon.bounds.conjectures import sharper_with_depth

    row: dict[str, Any] = {
        "conjecture": "3.2.1",
        "run_id": facts.run.run_id,
        "run": facts.run.name,
        "other_id": None,
        "other": None,
        "split": facts.split,
        "decay": facts.decay,
        "other_decay": None,
        "accuracy": facts.accuracy,
        "violation": None,
        "where": "",
    }
    if not facts.qualified:
        return row | {"verdict": "not applicable", "where": "accuracy below 1"}
    if len(facts.margins) < 3:
        return row | {"verdict": "not applicable", "where": "fewer than three layers"}
    found = sharper_with_depth(facts.margins)
    if found.layer is None:
        return row | {"verdict": "consistent", "violation": 0.0, "where": f"{found.pairs} pairs of layers"}
    between = f"{facts.layers[found.layer]} to {facts.layers[found.layer + 1]}"
    return row | {"verdict": "violated", "violation": found.violation, "where": between}


def _pairs(found: list[Facts]) -> list[dict[str, Any]]:
    from ncmon.bounds.conjectures import DEPTH_LEVELS, depth_violations, margin_violation

    rows: list[dict[str, Any]] = []
    for less, more in _candidates(found):
        if less.decay is None or more.decay is None or less.rest != more.rest:
            continue
        base: dict[str, Any] = {
            "run_id": less.run.run_id,
            "run": less.run.name,
            "other_id": more.run.run_id,
            "other": more.run.name,
            "split": less.split,
            "decay": less.decay,
            "other_decay": more.decay,
            "accuracy": less.accuracy,
        }
        error = margin_violation(less.decay, less.margins[-1], more.decay, more.margins[-1])
        margins = f"Q {number(less.margins[-1])}, then {number(more.margins[-1])}"
        verdict = "violated" if error > 0 else "consistent"
        rows.append(base | {"conjecture": "3.1.1", "verdict": verdict, "violation": error, "where": margins})
        levels = depth_violations(less.errors, more.errors)
        where = f"at eps {', '.join(map(number, levels))}" if levels else f"at {len(DEPTH_LEVELS)} levels of eps"
        rows.append(
            base
            | {
                "conjecture": "3.2.2",
                "verdict": "violated" if levels else "consistent",
                "violation": float(len(levels)),
                "where": where,
            }
        )
    return rows


def _candidates(found: list[Facts]) -> list[tuple[Facts, Facts]]:
    """Return the pairs that fit the training set and differ in weight decay, and perhaps in more; less decay first."""
    usable = [one for one in found if one.qualified and one.decay is not None and one.decay > 0 and one.margins]
    ordered = sorted(usable, key=lambda one: one.decay or 0.0)
    return [pair for pair in itertools.combinations(ordered, 2) if pair[0].decay != pair[1].decay]


def _sums(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line a conjecture: of how many it holds, and what would save it."""
    told = []
    for conjecture, things in (("3.2.1", "runs"), ("3.1.1", "pairs"), ("3.2.2", "pairs")):
        asked = [row for row in rows if row["conjecture"] == conjecture and row["verdict"] != "not applicable"]
        if not asked:
            continue
        good = sum(row["verdict"] == "consistent" for row in asked)
        worst = max(row["violation"] for row in asked)
        # 3.2.2 has no slack in it: a level of eps is violated or it is not.
        least = "" if worst == 0 or conjecture == "3.2.2" else f"; e = {number(worst)} would save all"
        told.append(f"{conjecture}  consistent in {good} of {len(asked)} {things}{least}")
    return told


_KEYS = (
    *("conjecture", "run_id", "run", "other_id", "other", "split", "decay", "other_decay", "accuracy"),
    *("verdict", "violation", "where"),
)


_RIGHT = ("decay", "other_decay", "accuracy", "violation")
_HEADINGS = {"conjecture": "CONJ", "other_decay": "AND", "violation": "BY"}


def _table(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    columns = tuple(
        Column(key=key, heading=_HEADINGS.get(key, key.upper()), right=key in _RIGHT, clip=22, grow=key == "run")
        for key in keys[:-1]
    )
    where = Column(key=keys[-1], heading=keys[-1].upper())
    return table(Listing(columns=(*columns, where), rows=[[row[key] for key in keys] for row in rows]))


def _listing(rows: list[dict[str, Any]]) -> Listing:
    return Listing(columns=tuple(Column(key=key) for key in _KEYS), rows=[[row[key] for key in _KEYS] for row in rows])
