"""The demo's trainer."""

from __future__ import annotations

import json

import pytest
import torch

from ncmon_client import demo


def test_the_same_seed_gives_the_same_network(capsys: pytest.CaptureFixture[str]) -> None:
    digits = demo.data()
    assert digits.train_x.shape == (1437, 64)
    assert digits.test_x.shape == (360, 64)
    trained = []
    for _ in range(2):
        model = demo.build(seed=3)
        demo.train(model, digits, epochs=1, seed=3)
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_progress_is_one_json_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--epochs", "2", "--no-monitor"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert lines[1]["accuracy"] > 0.9


def test_a_number_that_cannot_be_right_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(["--epochs", "0"])
    assert ended.value.code == 2
    assert "--epochs" in capsys.readouterr().err
