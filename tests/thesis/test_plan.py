"""Which runs there are, and what the thesis states of them."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from plan import DECAYS_31, DECAYS_33, HEADLINE, QUICK, Scale, Spec, plan  # isort: skip


def test_the_figures_hold_what_the_thesis_states() -> None:
    specs = plan(Scale())
    first = [spec for spec in specs if spec.data == "normal" and spec.seed == 0]
    figure_31 = {(spec.norm, spec.weight_decay) for spec in first if spec.n_layers == 6}
    assert figure_31 == {(norm, decay) for norm in ("affine", "plain", "none") for decay in DECAYS_31}
    figure_33 = {(spec.norm, spec.weight_decay) for spec in first if spec.n_layers == 15}
    assert figure_33 == {("affine", decay) for decay in DECAYS_33}
    for spec in first:
        stated = (spec.lr, spec.momentum, spec.batch, spec.epochs, spec.n_samples)
        assert stated == (0.0679, 0.9, 128, 300, 10_000)
        assert spec.milestones == (75, 150, 225)


def test_every_run_is_planned_once_and_headline_points_three_times() -> None:
    specs = plan(Scale())
    assert len(set(specs)) == len(specs)
    assert len({spec.name for spec in specs}) == len(specs)
    for data, layers in (("cones", 6), ("cones", 15), ("normal", 6), ("normal", 15)):
        for decay in HEADLINE:
            seeds = {
                spec.seed
                for spec in specs
                if (spec.data, spec.n_layers, spec.norm, spec.weight_decay) == (data, layers, "affine", decay)
            }
            assert seeds == {0, 1, 2}
    # What repeats comes last: a sweep that is cut off has the figures.
    seeds = [min(spec.seed, 1) for spec in specs]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize("scale", [Scale(), QUICK], ids=["full", "quick"])
def test_the_first_and_the_last_epoch_are_measured_and_few_between(scale: Scale) -> None:
    for spec in plan(scale):
        assert (spec.measured[0], spec.measured[-1]) == (0, spec.epochs - 1)
        assert len(spec.measured) <= 11


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (Spec(data="cones", n_layers=15, norm="affine", weight_decay=3e-4, seed=2), "cones15-3e-4-s2"),
        (Spec(data="normal", n_layers=6, norm="plain", weight_decay=0.01), "normal6-plain-1e-2"),
        (Spec(data="normal", n_layers=6, norm="none", weight_decay=0.00125), "normal6-none-1.25e-3"),
        (Spec(data="digits", n_layers=6, norm="affine", weight_decay=0.0), "digits6-0"),
    ],
)
def test_names_say_what_differs(spec: Spec, name: str) -> None:
    assert spec.name == name


def test_one_experiment_can_be_planned_by_itself() -> None:
    assert {spec.data for spec in plan(Scale(), ["digits"])} == {"digits"}
    assert {spec.n_layers for spec in plan(Scale(), ["3.3"])} == {15}


def test_a_spec_is_what_a_stored_configuration_says() -> None:
    spec = Spec(data="cones", n_layers=6, norm="affine", weight_decay=1e-3)
    assert Spec(**asdict(spec)) == spec
    assert spec != Spec(**(asdict(spec) | {"width": 65}))
