"""`ncmon plot` and `ncmon report`, as typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ncmon.cli.conftest import Run


@pytest.mark.parametrize(
    "arguments",
    [
        ("digits-bn",),
        ("run0", "run2", "--metric", "nc1_pinv", "--split", "test", "--scale", "log"),
        ("digits-bn", "--kind", "bounds"),
        ("--name", "*-*", "--kind", "depth", "--epoch", "2"),
        ("digits-bn", "--kind", "heat"),
        ("digits-bn", "--kind", "classes", "--layer", "blocks.0"),
        ("--all", "--kind", "sweep", "--against", "epochs"),
    ],
    ids=" ".join,
)
def test_every_kind_is_drawn(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "new" / "x.png"
    done = run("plot", *arguments, "-o", str(path))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_report_is_written(run: Run, tmp_path: Path) -> None:
    done = run("report", "digits-bn", "-o", str(tmp_path / "r.html"))
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("plot", "digits-bn"), 2, "--output"),
        (("plot", "digits-bn", "-o", "x.gif"), 2, ".png"),
        (("plot", "-o", "x.png"), 2, "say which runs"),
        (("plot", "digits-bn", "-o", "x.png", "--metric", "nc1_pniv"), 1, "nc1_pinv"),
        (("plot", "digits-bn", "-o", "x.png", "--against", "lr"), 2, "takes no --against"),
        (("plot", "--all", "-o", "x.png", "--kind", "sweep"), 2, "--against"),
        (("plot", "--all", "-o", "x.png", "--kind", "sweep", "--against", "epohcs"), 1, "epochs"),
        (("plot", "run0", "run2", "-o", "x.png", "--kind", "heat"), 2, "draws one run"),
        (("plot", "digits-bn", "-o", "x.png", "--kind", "classes", "--metric", "nc1_pinv"), 1, "one number a window"),
        (("plot", "digits-bn", "-o", "/etc/passwd/x.png"), 1, "cannot be written"),
        (("report", "digits-bn", "-o", "x.pdf"), 2, ".html"),
        (("report", "nosuchrun", "-o", "x.html"), 1, "no run is named"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == code, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("plot", "digits-bn", "-o", "x.png"), ("report", "digits-bn", "-o", "x.html")])
def test_without_matplotlib_the_way_to_it_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run(*arguments)
    assert done.exit_code == 1
    assert "pip install 'ncmon[plot]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
