"""Conditions on runs: what is meant, what is not, and what cannot be a condition."""

from __future__ import annotations

from typing import Any

import pytest

from ncmon.errors import UsageError
from ncmon.store.selection import Selection, config_differences, config_value, parse_condition
from tests.factories import make_run

CONFIG = {
    "lr": 0.1,
    "epochs": 200,
    "model": "resnet18",
    "augment": True,
    "seed": None,
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "a.b": 7,
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("lr=0.1", True),
        ("lr=1e-1", True),
        ("lr==0.10", True),
        ("lr!=0.1", False),
        ("lr<0.1", False),
        ("lr<=0.1", True),
        ("lr > 0.05", True),
        ("epochs>=200", True),
        ("epochs=200.0", True),
        ("model=resnet18", True),
        ("model=resnet*", True),
        ("model=RESNET*", False),
        ("model!=vit*", True),
        ("model<3", False),
        ("augment=true", True),
        ("augment=1", False),
        ("augment<2", False),
        ("optimizer.momentum>0.8", True),
        ("optimizer.name=sgd", True),
        ("optimizer.nosuch=1", False),
        ("a.b=7", True),
        ("seed", False),
        ("lr", True),
        ("nosuch", False),
        ("nosuch!=1", False),
    ],
)
def test_a_condition_on_the_configuration(text: str, holds: bool) -> None:
    condition = parse_condition(text)
    assert condition.holds(config_value(CONFIG, condition.key)) is holds


@pytest.mark.parametrize("text", ["", "=", "<3", "lr<", "lr<big", "lr<<3", "lr=>3", "a==="])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({}, True),
        ({"name": "DIGI"}, True),
        ({"name": "digits-*"}, True),
        ({"name": "digits"}, True),
        ({"name": "igits-*"}, False),
        ({"tags": ("sweep",)}, True),
        ({"tags": ("sw*", "good")}, True),
        ({"tags": ("sweep", "bad")}, False),
        ({"statuses": ("finished", "live")}, True),
        ({"statuses": ("failed",)}, False),
        ({"since": 100.0}, True),
        ({"since": 100.1}, False),
        ({"until": 100.0}, False),
        ({"until": 100.1}, True),
        ({"config": (parse_condition("lr=0.1"), parse_condition("epochs>100"))}, True),
        ({"config": (parse_condition("lr=0.1"), parse_condition("epochs<100"))}, False),
    ],
)
def test_a_selection_is_all_of_its_conditions(fields: dict[str, Any], meant: bool) -> None:
    run = make_run(name="digits-wd5e-4", tags=("sweep", "good"), started=100.0, config=CONFIG)
    assert Selection(**fields)(run) is meant


def test_differences_are_found_in_nested_keys_and_absent_ones() -> None:
    other = {**CONFIG, "optimizer": {"name": "sgd", "momentum": 0.8}, "epochs": 200.0, "extra": None}
    assert config_differences([CONFIG, other]) == {"optimizer.momentum": (0.9, 0.8), "extra": (None, None)}
    assert config_differences([CONFIG, dict(CONFIG), dict(CONFIG)]) == {}
