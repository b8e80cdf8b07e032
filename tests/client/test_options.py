"""What `watch` is given: each mistake one line that says what was expected, what came, and what to do."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
from torch import nn

import ncmon_client
from tests.client.hooking import NOBODY, batch, mlp, recorded

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"model": "resnet"}, "model: expected a torch.nn.Module, got str; give the network itself"),
    ({"model": nn.Linear}, "model: expected a torch.nn.Module, got Linear"),
    ({"criterion": nn.functional.cross_entropy}, "got cross_entropy; for a functional loss leave it out and call"),
    (
        {"criterion": nn.BCEWithLogitsLoss()},
        "criterion: expected an nn.CrossEntropyLoss module, got BCEWithLogitsLoss;",
    ),
    ({"optimizer": "sgd"}, "optimizer: expected one with param_groups (torch.optim), got str; leave it out"),
    ({"optimizer": torch.optim.SGD}, "optimizer: expected one with param_groups (torch.optim), got SGD"),
    ({"run": ""}, "run: expected a name, got ''; leave it out"),
    ({"run": 7}, "run: expected a name, got 7"),
    (
        {"run_id": "a b"},
        "run_id: expected 1 to 64 letters, digits, dots, dashes or underscores, got 'a b'; leave it out",
    ),
    ({"run_id": ""}, "run_id: expected 1 to 64 letters"),
    ({"config": ["lr"]}, "config: expected a dictionary of hyperparameters, got list; try vars(config)"),
    ({"config": {"big": "x" * 70_000}}, "at most 64 KB"),
    ({"tags": "baseline"}, "tags: expected a list of tags, got 'baseline'; write ['baseline']"),
    ({"tags": 3}, "tags: expected a list of tags, got 3"),
    ({"layers": "blocks.*"}, "no layer is named 'blocks.*'; near ones:"),
    ({"layers": ["0:median"]}, "expected a pooling among"),
    ({"layers": 3}, "layers: expected 'auto', a module's name or glob, or a list of them, got 3"),
    ({"layers": [nn.Linear(2, 2)]}, "layers: expected 'auto', a module's name or glob, or a list of them"),
    ({"num_classes": 7}, "num_classes=7 contradicts the model"),
    ({"num_classes": 1}, "at least 2"),
    ({"num_classes": "10"}, "num_classes: expected a number of classes of at least 2, got '10'; leave it out"),
    ({"num_classes": 3.0}, "num_classes: expected a number of classes"),
    ({"num_classes": 3, "class_names": ["a", "b"]}, "class_names: expected 3 names, one a class, got 2"),
    ({"class_names": "abc"}, "class_names: expected a list of class names, got 'abc'"),
    ({"class_names": [0, 1, 2]}, "class_names: expected names, got 0 among them; write str(0)"),
    ({"first_step": -1}, "first_step: expected the number of steps done before, got -1; 0 where nothing is continued"),
    ({"first_step": "10"}, "first_step: expected the number of steps done before, got '10'"),
    ({"window_steps": 0}, "window_steps: expected a number of steps from 1, got 0; the default is 200"),
    ({"window_steps": 2.5}, "window_steps: expected a number of steps from 1, got 2.5"),
    ({"every": 0}, "every: expected 'auto', 'never' or a number of steps from 1, got 0; 1 looks at every step"),
    ({"every": "often"}, "every: expected 'auto', 'never' or a number of steps from 1, got 'often'"),
    ({"every": True}, "every: expected 'auto', 'never' or a number of steps from 1, got True"),
    (
        {"overhead": 0.0},
        "overhead: expected a share of the training's time between 0 and 1, got 0.0; 0.01 is one percent",
    ),
    ({"overhead": "1%"}, "overhead: expected a share of the training's time between 0 and 1, got '1%'"),
    ({"overhead": float("nan")}, "overhead: expected a share of the training's time between 0 and 1, got nan"),
    ({"pool": "max"}, "pool: expected auto, cls, mean or tokens, got 'max'"),
    ({"pool": None}, "pool: expected auto, cls, mean or tokens, got None"),
    ({"kernel": "fast"}, "kernel: expected 'torch' or 'compiled', got 'fast'; 'compiled' needs a C compiler"),
    ({"spool": "disk"}, "spool: expected auto, memory, always or fsync, got 'disk'"),
    (
        {"endpoint": "localhost:5555"},
        "endpoint: expected ipc://PATH or tcp://HOST:PORT, got 'localhost:5555'; leave it",
    ),
    ({"endpoint": 5555}, "endpoint: expected ipc://PATH or tcp://HOST:PORT, got 5555"),
    ({"soft": "yes"}, "soft: expected True or False, got 'yes'; True uses labels that are probabilities"),
    ({"enabled": "no"}, "enabled: expected True or False, got 'no'"),
]


@pytest.mark.parametrize(("options", "said"), MISTAKES)
def test_arguments_that_cannot_be_right_are_said_at_once(options: dict[str, Any], said: str) -> None:
    given = {"model": mlp(), "endpoint": NOBODY, **options}
    with pytest.raises(ncmon_client.ConfigError) as error:
        ncmon_client.watch(**given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_argument_is_left_unchecked() -> None:
    wrong = {name for options, _ in MISTAKES for name in options}
    assert wrong == set(inspect.signature(ncmon_client.watch).parameters)


def test_a_mistake_leaves_no_hook_behind() -> None:
    model = mlp()
    for options, _ in MISTAKES:
        if "model" not in options:
            with pytest.raises(ncmon_client.ConfigError):
                ncmon_client.watch(model, **{"endpoint": NOBODY, **options})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_goes_wrong_later_is_one_warning_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    monitor, _ = recorded(model)
    x, _ = batch()
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        for _ in range(5):
            model(x)
            monitor.observe("logits", "labels")  # type: ignore[arg-type]
        monitor.measure([1, 2])  # type: ignore[list-item]
        monitor.epoch("seven")  # type: ignore[arg-type]
    assert len(caplog.records) == 3
    assert monitor.status().mishaps == 7
    assert "seven" in monitor.status().last_error
