"""Verdicts follow from facts, either way: outcomes are made up here, the arithmetic is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from claims import (  # isort: skip
    alike,
    bounds_hold,
    conjecture_311,
    conjecture_321,
    conjecture_322,
    grows_with_decay,
    less_depth_needed,
    no_help_without_norm,
    only_with_affine,
    positive_between,
    sharper_deeper,
    weaker_without_affine,
)
from facts import Outcome  # isort: skip
from plan import Spec  # isort: skip


def outcome(
    decay: float,
    intra: float = 0.5,
    inter: float = -0.1,
    *,
    layers: int = 6,
    accuracy: float = 1.0,
    intras: Sequence[float] | None = None,
    inters: Sequence[float] | None = None,
    ncc: Sequence[float] | None = None,
    bounds: dict[str, float] | None = None,
    **spec: Any,
) -> Outcome:
    """Return a made up outcome; by depth it is the same everywhere unless the profiles say otherwise."""
    first = list(intras or [intra] * (layers - 1))
    second = list(inters or [inter] * (layers - 1))
    return Outcome(
        spec=Spec(**({"data": "normal", "n_layers": layers, "norm": "affine", "weight_decay": decay} | spec)),
        run_id=f"{decay}{spec}",
        seconds=1.0,
        values={"accuracy": accuracy, "intra_cos_min": first[-1], "inter_cos_max": second[-1], **(bounds or {})},
        reasons={"thm_intra": "vacuous: needs a smaller gap"},
        depth={
            "ncc_acc": tuple(ncc or [1.0] * (layers - 1)),
            "intra_cos_min": tuple(first),
            "inter_cos_max": tuple(second),
            "cos_margin": tuple(a - b for a, b in zip(first, second, strict=True)),
        },
    )


DEEP = outcome(1e-4, layers=15)
"""Says which networks are the deep ones."""


def sweep(*, affine: Sequence[float], plain: Sequence[float], none: Sequence[float]) -> list[Outcome]:
    found = [DEEP]
    for norm, intras in (("affine", affine), ("plain", plain), ("none", none)):
        found += [outcome(decay, intra, norm=norm) for decay, intra in zip((1e-4, 1e-3, 1e-2), intras, strict=False)]
    return found


def test_collapse_only_with_affine() -> None:
    assert only_with_affine(sweep(affine=[0.5, 0.92, 0.99], plain=[0.5, 0.6], none=[0.4, 0.4])).verdict == "reproduced"
    assert only_with_affine(sweep(affine=[0.5, 0.92, 0.99], plain=[0.5, 0.95], none=[0.4])).verdict == "differs"
    assert only_with_affine(sweep(affine=[0.95, 0.96, 0.99], plain=[0.5], none=[0.4])).verdict == "differs"
    assert only_with_affine(sweep(affine=[0.5, 0.6, 0.7], plain=[0.5], none=[0.4])).verdict == "not reproduced"
    assert only_with_affine(sweep(affine=[0.5, 0.6, 0.99], plain=[0.5], none=[])).verdict == "open"


def test_runs_that_do_not_fit_do_not_count() -> None:
    found = [*sweep(affine=[0.5, 0.7], plain=[], none=[]), outcome(1e-2, 0.1, accuracy=0.9999)]
    claim = grows_with_decay(found)
    assert claim.verdict == "open"
    assert "0.01" not in claim.numbers


def test_growth_with_decay() -> None:
    assert grows_with_decay(sweep(affine=[0.5, 0.7, 0.9], plain=[], none=[])).verdict == "reproduced"
    falling = grows_with_decay(sweep(affine=[0.5, 0.9, 0.7], plain=[], none=[]))
    assert falling.verdict == "differs"
    assert "falls from 0.001 to 0.01" in falling.numbers


def test_weaker_without_affine() -> None:
    assert weaker_without_affine(sweep(affine=[0.6, 0.9], plain=[0.5, 0.6], none=[])).verdict == "reproduced"
    slightly = weaker_without_affine(sweep(affine=[0.6, 0.9], plain=[0.5, 0.85], none=[]))
    assert slightly.verdict == "differs"
    assert "0.001: 0.050" in slightly.numbers
    assert weaker_without_affine(sweep(affine=[0.4, 0.9], plain=[0.5, 0.6], none=[])).verdict == "differs"
    assert weaker_without_affine(sweep(affine=[0.4, 0.5], plain=[0.5, 0.6], none=[])).verdict == "not reproduced"
    assert weaker_without_affine(sweep(affine=[0.4], plain=[], none=[])).verdict == "open"


def test_no_help_without_norm() -> None:
    assert no_help_without_norm(sweep(affine=[0.5, 0.9], plain=[], none=[0.5, 0.4])).verdict == "reproduced"
    assert no_help_without_norm(sweep(affine=[0.5, 0.9], plain=[], none=[0.5, 0.8])).verdict == "not reproduced"


def test_deeper_is_sharper() -> None:
    rising = [0.05 * layer for layer in range(1, 15)]
    dented = [*rising[:6], 0.1, *rising[7:]]
    shallow = outcome(1e-4)
    assert sharper_deeper([shallow, outcome(1e-3, layers=15, intras=rising)]).verdict == "reproduced"
    assert sharper_deeper([shallow, outcome(1e-3, layers=15, intras=dented)]).verdict == "differs"
    assert sharper_deeper([shallow, outcome(1e-3, layers=15, intras=rising[::-1])]).verdict == "not reproduced"
    assert sharper_deeper([shallow, outcome(1e-3, layers=15, accuracy=0.9)]).verdict == "open"


@pytest.mark.parametrize(
    ("more", "verdict"), [([0.5] * 2 + [1.0] * 12, "reproduced"), ([0.5] * 12 + [1.0] * 2, "not reproduced")]
)
def test_depth_needed(more: list[float], verdict: str) -> None:
    less = outcome(1e-4, layers=15, ncc=[0.5] * 7 + [1.0] * 7)
    assert less_depth_needed([outcome(1e-4), less, outcome(1e-3, layers=15, ncc=more)]).verdict == verdict


def test_a_positive_cosine_between() -> None:
    peak = [-0.1] * 5 + [0.2] + [-0.1] * 8
    claim = positive_between([outcome(1e-4), outcome(3e-3, layers=15, inters=peak)])
    assert claim.verdict == "reproduced"
    assert "0.200 at layer 6" in claim.numbers
    # The first and the last layer are not between.
    ends = [0.2] + [-0.1] * 12 + [0.2]
    assert positive_between([outcome(1e-4), outcome(3e-3, layers=15, inters=ends)]).verdict == "not reproduced"
    assert positive_between([outcome(1e-4), outcome(1e-3, layers=15, inters=peak)]).verdict == "open"


def test_a_broken_bound_is_told() -> None:
    good = outcome(1e-3, 0.8, bounds={"cert_intra_min": 0.7, "cert_inter_max": 0.1})
    claim = bounds_hold([good])
    assert claim.verdict == "reproduced"
    assert claim.numbers.startswith("2 bounds of 1 runs beside their measurement, 0 broken, 1 vacuous")
    assert bounds_hold([good, outcome(1e-2, 0.8, bounds={"cert_intra_min": 0.9})]).verdict == "not reproduced"
    assert bounds_hold([outcome(1e-2, -0.2, 0.3, bounds={"cert_inter_max": 0.2})]).verdict == "not reproduced"


def test_only_what_differs_in_decay_alone_is_a_pair() -> None:
    runs = [
        outcome(1e-4),
        outcome(1e-3),
        outcome(1e-3, seed=1),
        outcome(1e-2, norm="plain"),
        outcome(1e-2, layers=15),
        outcome(1e-2, accuracy=0.99),
    ]
    assert [(a.spec.weight_decay, b.spec.weight_decay) for a, b in alike(runs)] == [(1e-4, 1e-3)]


def test_conjectures_on_conic_data() -> None:
    less = outcome(1e-4, 0.5, data="cones", ncc=[0.9, 0.9, 1.0, 1.0, 1.0])
    more = outcome(1e-3, 0.4, data="cones", ncc=[0.9, 0.9, 0.9, 0.9, 1.0])
    elsewhere = outcome(1e-2, 0.1)
    found = [less, more, elsewhere]
    falling = conjecture_311(found)
    assert falling.verdict == "not reproduced"
    assert "0 of 1 pairs" in falling.numbers
    assert f"{0.1 / 2.302585:.4f}" in falling.numbers
    assert conjecture_322(found).verdict == "not reproduced"
    assert conjecture_311([less, outcome(1e-3, 0.6, data="cones")]).verdict == "reproduced"
    assert conjecture_321(found).verdict == "reproduced"
    dented = outcome(1e-3, data="cones", intras=[0.1, 0.3, 0.2, 0.5, 0.4])
    claim = conjecture_321([less, dented])
    assert "1 of 2 runs consistent; greatest fall 0.1000 after layer 2" in claim.numbers
    assert conjecture_311([elsewhere]).verdict == "open"
