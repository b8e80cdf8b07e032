"""The conjectures as checks: by hand-made margins and errors."""

from __future__ import annotations

import math

import pytest

from ncmon.bounds.conjectures import (
    depth_violations,
    effective_depth,
    margin_violation,
    sharper_with_depth,
)


def test_a_margin_that_grows_is_consistent_and_the_last_two_layers_stand_apart() -> None:
    assert sharper_with_depth([0.1, 0.2, 0.5, 0.9]).violation == 0.0
    found = sharper_with_depth([0.1, 0.2, 0.5, 0.3])
    assert (found.violation, found.layer, found.pairs) == (0.0, None, 2)


def test_a_margin_that_falls_says_how_far_and_where() -> None:
    found = sharper_with_depth([0.1, 0.4, 0.15, 0.1, 0.9])
    assert found.violation == pytest.approx(0.25)
    assert found.layer == 1
    assert found.pairs == 3


def test_the_constant_of_two_decays() -> None:
    assert margin_violation(1e-4, 0.5, 1e-3, 0.6) == 0.0
    error = margin_violation(1e-4, 0.6, 1e-3, 0.5)
    assert error == pytest.approx(0.1 / math.log(10))
    # It is the least that makes the statement true.
    assert 0.5 - 0.6 + error * math.log(10) == pytest.approx(0.0, abs=1e-12)


def test_depths_are_compared_at_every_level() -> None:
    assert effective_depth([0.3, 0.02, 0.0], 0.02) == 2
    assert effective_depth([0.3, 0.02, 0.01], 0.0) == 3
    assert depth_violations([0.3, 0.02, 0.0], [0.3, 0.0, 0.0]) == ()
    assert depth_violations([0.04, 0.0, 0.0], [0.3, 0.03, 0.0]) == (0.0, 0.005, 0.01, 0.02, 0.05)
    assert depth_violations([0.3, 0.012, 0.0], [0.3, 0.03, 0.0]) == (0.02,)
