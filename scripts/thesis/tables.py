"""The tables of the thesis page, as Markdown: every number beside the run that it is of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import mean

from claims import alike, claims
from facts import Outcome, chosen, depths_of
from figures import NORM_TITLES
from sweep import clock

from ncmon.bounds.conjectures import DEPTH_LEVELS, depth_violations, margin_violation, sharper_with_depth

SCALES = {"alpha": "alpha", "beta": "beta", "ce_bound_m": "m", "ce_loss": "loss", "ce_gap": "epsilon"}
GUARANTEES = {
    "intra": ("intra_cos_min", "thm_intra", "thm_tight_intra", "sharp_intra", "cert_intra_min", "cert_plus_intra_min"),
    "NC3": ("nc3_cos_min", "thm_nc3", None, "sharp_nc3", "cert_nc3_min", "cert_plus_nc3_min"),
    "inter": ("inter_cos_max", "thm_inter", "thm_tight_inter", "sharp_inter", "cert_inter_max", "cert_plus_inter_max"),
}
"""Of each quantity what is measured, then T, T on the reachable interval, S, P and P+."""


def claims_table(found: Sequence[Outcome]) -> str:
    """Return every claim with its verdict."""
    return table(
        ("where", "claim", "verdict", "numbers"),
        ((one.where, one.text, f"**{one.verdict}**", one.numbers) for one in claims(found)),
    )


def table_31(found: Sequence[Outcome]) -> str:
    """Return figure 3.1 as numbers, one line a run; several seeds are several lines."""
    shallow, _ = depths_of(found)
    rows = [
        (
            NORM_TITLES[norm],
            f"{one.spec.weight_decay:g}",
            str(one.spec.seed),
            fit(one),
            *(number(one.values.get(name)) for name in ("intra_cos_min", "inter_cos_max", "ncc_acc", "nc1_pinv")),
            clock(one.seconds),
        )
        for norm in NORM_TITLES
        for one in chosen(found, data="normal", n_layers=shallow, norm=norm)
    ]
    head = ("network", "decay", "seed", "training accuracy", "min intra", "max inter", "NCC", "NC1", "took")
    return table(head, rows)


def table_33(found: Sequence[Outcome]) -> str:
    """Return figure 3.3 as numbers: the layers in steps, and the depth that the nearest class mean needs."""
    _, deep = depths_of(found)
    shown = sorted({1, 3, 5, 8, 11, deep - 1})
    rows = []
    for one in chosen(found, data="normal", n_layers=deep):
        cosines = zip(one.depth["intra_cos_min"], one.depth["inter_cos_max"], strict=True)
        pairs = [f"{intra:.2f} / {inter:.2f}" for intra, inter in cosines]
        rows.append(
            (
                f"{one.spec.weight_decay:g}",
                str(one.spec.seed),
                fit(one),
                *(str(one.effective_depth(level)) for level in (0.0, 0.01, 0.05)),
                *(pairs[layer - 1] for layer in shown if layer <= len(pairs)),
            )
        )
    layers = [f"layer {layer}" for layer in shown if layer < deep]
    return table(("decay", "seed", "training accuracy", "d(0)", "d(0.01)", "d(0.05)", *layers), rows)


def theorem_table(found: Sequence[Outcome]) -> str:
    """Return what Theorem 2.3.1 needs and gives for every run of figures 3.1 and 3.3."""
    runs = [one for one in found if one.spec.data == "normal"]
    head = ["run", "accuracy", *SCALES.values()]
    for quantity in GUARANTEES:
        head += [quantity, *(f"{kind}" for kind in ("T", "T+", "S", "P", "P+"))]
    rows = []
    for one in runs:
        row = [one.spec.name, fit(one), *(number(one.values.get(name)) for name in SCALES)]
        for measured, *bounds in GUARANTEES.values():
            row.append(f"**{number(one.values.get(measured))}**")
            row += [_bound(one, name) for name in bounds]
        rows.append(tuple(row))
    return table(tuple(head), rows)


def pairs_table(found: Sequence[Outcome]) -> str:
    """Return conjectures 3.1.1 and 3.2.2 of every pair of neighbouring decays on conic hull data."""
    rows = []
    for layers in depths_of(found):
        kept = [one for one in chosen(found, data="cones", n_layers=layers) if one.perfect]
        for less, more in alike(kept):
            between = {
                one.spec.weight_decay
                for one in kept
                if one.spec.seed == less.spec.seed
                and less.spec.weight_decay < one.spec.weight_decay < more.spec.weight_decay
            }
            if between:
                continue
            violation = margin_violation(less.spec.weight_decay, less.margin, more.spec.weight_decay, more.margin)
            levels = depth_violations(less.errors, more.errors)
            rows.append(
                (
                    str(layers),
                    str(less.spec.seed),
                    f"{less.spec.weight_decay:g} to {more.spec.weight_decay:g}",
                    f"{less.margin:.3f} to {more.margin:.3f}",
                    f"{more.margin - less.margin:+.3f}",
                    "consistent" if violation == 0 else f"violated, e = {violation:.4f}",
                    " ".join(f"{less.effective_depth(level)}→{more.effective_depth(level)}" for level in DEPTH_LEVELS),
                    "consistent" if not levels else f"violated at {', '.join(f'{level:g}' for level in levels)}",
                )
            )
    levels = ", ".join(f"{level:g}" for level in DEPTH_LEVELS)
    return table(("layers", "seed", "decay", "margin Q", "slack", "3.1.1", f"d(eps) at {levels}", "3.2.2"), rows)


def depth_table(found: Sequence[Outcome]) -> str:
    """Return conjecture 3.2.1 of every run on conic hull data."""
    rows = []
    for one in found:
        if one.spec.data != "cones":
            continue
        margins = one.depth["cos_margin"]
        fall = sharper_with_depth(margins)
        verdict = "left out" if not one.perfect else "consistent" if fall.layer is None else "violated"
        where = "" if fall.layer is None else f"{fall.violation:.4f}, layer {fall.layer + 1} to {fall.layer + 2}"
        rows.append(
            (
                str(one.spec.n_layers),
                f"{one.spec.weight_decay:g}",
                str(one.spec.seed),
                fit(one),
                f"{margins[0]:.3f}",
                f"{margins[-2]:.3f}",
                f"{margins[-1]:.3f}",
                verdict,
                where,
            )
        )
    head = (
        "layers",
        "decay",
        "seed",
        "training accuracy",
        "Q first",
        "Q last but one",
        "Q last",
        "3.2.1",
        "greatest fall",
    )
    return table(head, rows)


def seeds_table(found: Sequence[Outcome]) -> str:
    """Return the points that several seeds repeat: mean, and from the least to the greatest."""
    rows = []

    def point(one: Outcome) -> tuple[object, ...]:
        return one.spec.data, one.spec.n_layers, one.spec.norm, one.spec.weight_decay

    for (data, layers, norm, decay), group in itertools.groupby(sorted(found, key=point), key=point):
        runs = list(group)
        kept = [one for one in runs if one.perfect]
        if len(runs) < 2:
            continue
        rows.append(
            (
                f"{data}, {layers} layers, {norm}",
                f"{decay:g}",
                f"{len(kept)} of {len(runs)}",
                *(_spread([value(one) for one in kept]) for value in SPREADS.values()),
            )
        )
    return table(("network", "decay", "seeds that fit", *SPREADS), rows)


SPREADS: dict[str, Callable[[Outcome], float]] = {
    "min intra": lambda one: one.values["intra_cos_min"],
    "max inter": lambda one: one.values["inter_cos_max"],
    "margin": lambda one: one.margin,
    "d(0.01)": lambda one: float(one.effective_depth(0.01)),
}


def digits_table(found: Sequence[Outcome]) -> str:
    """Return the sweep on handwritten digits."""
    rows = [
        (
            str(one.spec.n_layers),
            f"{one.spec.weight_decay:g}",
            fit(one),
            *(number(one.values.get(name)) for name in ("intra_cos_min", "inter_cos_max")),
            _bound(one, "cert_plus_intra_min"),
            str(one.effective_depth(0.01)),
            number(sharper_with_depth(one.depth["cos_margin"]).violation),
        )
        for one in found
        if one.spec.data == "digits"
    ]
    head = ("layers", "decay", "training accuracy", "min intra", "max inter", "P+ intra", "d(0.01)", "3.2.1: e")
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]] | object) -> str:
    """Return a Markdown table; cells are one line each."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]  # type: ignore[attr-defined]
    return "\n".join(lines)


def fit(one: Outcome) -> str:
    """Return the training accuracy, marked where it is not perfect."""
    return "1" if one.perfect else f"{one.values['accuracy']:.4f} ✗"


def number(value: float | None) -> str:
    """Return a number in four digits that count, a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _bound(one: Outcome, name: str | None) -> str:
    if name is None:
        return ""
    if name in one.values:
        return number(one.values[name])
    return one.reasons.get(name, "").partition(":")[0] or "–"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
