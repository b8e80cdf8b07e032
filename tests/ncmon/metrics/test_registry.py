"""The registry itself: names, aliases, facts that every reader relies on."""

from __future__ import annotations

import re

import pytest

from ncmon.bounds import BOUNDS
from ncmon.errors import NotFound
from ncmon.metrics import METRICS, by_name, resolve

CONTRACT = [
    "intra_cos_min",
    "intra_cos_mean",
    "inter_cos_max",
    "inter_cos_mean",
    "cos_margin",
    "nc1_pinv",
    "nc1_trace_ratio",
    "nc1_cdnv",
    "nc2_equinorm",
    "nc2_maxangle",
    "ncc_acc",
    "alpha",
    "nc3_cos_min",
    "nc3_cos_mean",
    "nc4_agree",
    "accuracy",
    "beta",
    "ce_loss",
    "ce_bound_m",
    "ce_gap",
    "alpha_aug",
    "beta_aug",
    "effective_depth",
    "count",
    "intra_cos",
    "nearest_class",
    "nearest_cos",
    "mean_norm",
    "rms_norm",
    "class_loss",
    "class_accuracy",
    "class_ncc_acc",
    "nc3_cos_class",
    "inter_cos",
]


def test_the_published_names_are_there() -> None:
    assert set(CONTRACT) <= {metric.name for metric in METRICS}


def test_names_and_aliases_are_unique_words_across_metrics_and_bounds() -> None:
    names = [entry.name for entry in (*METRICS, *BOUNDS)]
    aliases = [alias for metric in METRICS for alias in metric.aliases]
    assert len({*names, *aliases}) == len(names) + len(aliases)
    # They become columns of a table.
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{1,40}", name) for name in (*names, *aliases))


def test_every_entry_explains_itself() -> None:
    for entry in (*METRICS, *BOUNDS):
        assert entry.title, entry.name
        assert entry.definition, entry.name
        assert entry.needs, entry.name
        assert entry.version >= 1
        assert entry.compute.__doc__, entry.name


def test_a_target_has_its_text_and_a_direction() -> None:
    for metric in METRICS:
        if metric.target is not None:
            assert metric.at_collapse, metric.name
            assert metric.better != "neither", metric.name


def test_a_bound_names_what_it_bounds_and_its_assumptions() -> None:
    names = {metric.name for metric in METRICS}
    for bound in BOUNDS:
        assert bound.of in names
        assert bound.assumptions
        assert bound.source


def test_aliases_lead_to_metrics() -> None:
    assert resolve("nc3_cos") == "nc3_centred_cos_mean"
    assert by_name("nc3_cos").name == "nc3_centred_cos_mean"
    assert resolve("intra_cos_min") == "intra_cos_min"


def test_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(NotFound, match="nc1_pinv"):
        by_name("nc1_pinf")
    with pytest.raises(NotFound, match="ncmon metrics"):
        by_name("zzzzzz")
