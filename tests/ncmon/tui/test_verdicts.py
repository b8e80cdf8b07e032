"""What is said about a bound, against readings made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ncmon.bounds import BOUNDS, Bound
from ncmon.model import LayerKey, LayerReadings, Reading
from ncmon.tui.verdicts import GLYPHS, STYLES, course, heading, verdicts


def bound(**fields: Any) -> Bound:
    defaults: dict[str, Any] = {
        "name": "b",
        "title": "a bound",
        "of": "m",
        "side": "lower",
        "scope": "layer",
        "assumptions": ("none",),
        "source": "here",
        "definition": "d",
        "compute": lambda view: None,
    }
    return Bound(**(defaults | fields))


def layer(readings: dict[str, Reading] | None = None, arrays: dict[str, Any] | None = None) -> LayerReadings:
    return LayerReadings(
        key=LayerKey(name="classifier-input", index=0),
        module="",
        reduction="",
        note="",
        n_features=1,
        readings=readings or {},
        class_arrays={name: np.array(value, dtype=float) for name, value in (arrays or {}).items()},
        pair_arrays={},
        quality={},
    )


@pytest.mark.parametrize(
    ("side", "measured", "value", "state", "slack"),
    [
        ("lower", 0.9, 0.8, "holds", 0.1),
        ("lower", 0.8, 0.9, "VIOLATED", -0.1),
        ("upper", 0.1, 0.4, "holds", 0.3),
        ("upper", 0.4, 0.1, "VIOLATED", -0.3),
        ("lower", 0.5, 0.500001, "holds", -1e-6),
    ],
)
def test_slack_is_the_distance_on_the_side_of_the_bound(
    side: str, measured: float, value: float, state: str, slack: float
) -> None:
    found = layer({"m": Reading(value=measured), "b": Reading(value=value, attained_at=(3,))})
    (said,) = verdicts(found, {}, bounds=(bound(side=side),))
    assert (said.state, said.where) == (state, (3,))
    assert said.slack == pytest.approx(slack)


@pytest.mark.parametrize(
    ("reason", "state"),
    [("vacuous: x", "vacuous"), ("inconsistent: y", "inconsistent"), ("not applicable: bias", "n/a")],
)
def test_no_bound_has_a_state_and_keeps_its_reason(reason: str, state: str) -> None:
    found = layer({"m": Reading(value=1.0), "b": Reading(value=None, reason=reason)})
    (said,) = verdicts(found, {}, bounds=(bound(),))
    assert (said.state, said.reason, said.slack) == (state, reason, None)
    assert state in GLYPHS
    assert state in STYLES


def test_of_an_array_the_least_slack_is_said_and_how_many_have_a_bound() -> None:
    found = layer(arrays={"m": [0.9, 0.8, 0.7, np.nan], "b": [0.5, np.nan, 0.65, np.nan]})
    (said,) = verdicts(found, {}, bounds=(bound(scope="class"),))
    assert (said.held, said.of, said.where, said.state) == (2, 3, (2,), "holds")
    assert said.slack == pytest.approx(0.05)
    matrix = np.array([[np.nan, 0.1], [0.1, np.nan]])
    (pair,) = verdicts(layer(), {"m": matrix, "b": matrix + 0.2}, bounds=(bound(scope="pair", side="upper"),))
    assert (pair.state, pair.where, pair.held) == ("holds", (0, 1), 2)
    (none,) = verdicts(layer(arrays={"m": [0.9], "b": [np.nan]}), {}, bounds=(bound(scope="class"),))
    assert (none.state, none.slack) == ("vacuous", None)


def test_what_a_layer_does_not_have_is_left_out() -> None:
    assert verdicts(layer(), {}) == []
    assert all(b.side in ("lower", "upper") for b in BOUNDS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.geomspace(1.0, 0.01, 41), f"NC1 fell {100 ** (37 / 40):.1f}-fold, falling"),
        ([1.0] * 3 + [0.1] * 40, "NC1 fell 10.0-fold, flat now"),
        ([1.0] * 3 + [0.1] * 20 + [0.2] * 5, "NC1 fell 5.0-fold, rising"),
        ([1.0] * 40, "NC1 has not moved, flat now"),
        ([0.1] * 3 + [1.0] * 40, "NC1 rose 10.0-fold, flat now"),
        ([1.0, 0.5, np.nan], ""),
        ([], ""),
    ],
)
def test_the_course_of_a_run_is_a_few_words(values: Any, said: str) -> None:
    assert course(np.array(values, dtype=np.float64)) == said


def test_noise_is_no_direction() -> None:
    noise = np.random.default_rng(0).normal(size=200)
    assert heading(np.linspace(0, 1, 50)) == 1
    assert heading(np.linspace(1, 0, 50)) == -1
    assert heading(np.full(50, 0.3)) == 0
    # A last value that jumps back turns no arrow around.
    assert heading(np.array([*np.linspace(1, 0, 50), 0.1])) == -1
    assert heading(noise[:1]) == 0
