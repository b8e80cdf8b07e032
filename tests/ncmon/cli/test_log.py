"""`ncmon log` and the dashboard: what cannot be is one line, and every figure of the dashboard is one that is told."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from ncmon import prometheus
from ncmon.cli.grafana import dashboard
from ncmon.store.queries import OVERVIEW
from tests.ncmon.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("latest",), 2, "say where to"),
        (("latest", "--wandb", "p", "--tensorboard", "tb"), 2, "say where to"),
        (("latest", "--wandb", " "), 2, "name of a project"),
        (("--wandb", "p"), 2, "say which runs"),
        (("latest", "--tensorboard", __file__), 2, "expected a directory"),
        (("latest", "--tensorboard", "tb", "--metric", "nc1_pin"), 1, "nc1_pinv"),
        (("latest", "--tensorboard", "tb", "--layer", "blocks.9"), 1, "blocks.0"),
        (("nobody", "--tensorboard", "tb"), 1, "nobody"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, arguments: tuple[str, ...], code: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run("log", *arguments)
    said = (result.stderr or "") + capfd.readouterr().err
    assert result.exit_code == code
    assert text in said
    assert "Traceback" not in said
    assert result.stdout == ""


def test_a_missing_package_is_one_line_that_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    result = run("log", "latest", "--wandb", "p")
    assert result.exit_code == 1
    assert "pip install 'ncmon[wandb]'" in result.stderr


def test_the_dashboard_asks_for_nothing_that_prometheus_is_not_told(made: Path) -> None:
    families = list(prometheus._figures(made, {}))
    told = {sample.name for family in families for sample in family.samples} | {family.name for family in families}
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    # What nothing is to be said of at present, like alerts, has its labels all the same.
    labels |= {family.name: set(family._labelnames) for family in families if not family.samples}
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    asked += [one["definition"] for one in dashboard()["templating"]["list"] if "definition" in one]
    assert len(asked) > 10
    for expression in asked:
        names = set(re.findall(r"\bncmon_\w+", expression))
        assert names
        assert names <= told, expression
        (name,) = names
        used = set(re.findall(r"[{,](\w+)=~?\"", expression)) - {"instance"}
        assert used <= labels[name], expression


def test_every_reading_of_the_dashboard_has_a_panel_with_its_definition(run: Run) -> None:
    told = json.loads(run("metrics", "--grafana").stdout)
    for name in OVERVIEW:
        (panel,) = [panel for panel in told["panels"] if panel["title"].endswith(f"({name})")]
        assert panel["description"]
        assert f'metric="{name}"' in panel["targets"][0]["expr"]
    places = [tuple(panel["gridPos"].values()) for panel in told["panels"]]
    assert len(set(places)) == len(places)
    assert all(place["gridPos"]["x"] + place["gridPos"]["w"] <= 24 for place in told["panels"])
    assert run("metrics", "nc1_pinv", "--grafana").exit_code == 2
    assert run("metrics", "--datasette", "x", "--grafana").exit_code == 2


def test_no_port_is_opened_for_a_dashboard(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "bind", lambda *_: pytest.fail("bound"))
    assert run("metrics", "--grafana").exit_code == 0
