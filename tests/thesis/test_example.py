"""The database that is shipped: small, whole, and what the quick set makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ncmon

from facts import outcomes  # isort: skip
from plan import QUICK, plan  # isort: skip
from sweep import finished  # isort: skip

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "thesis.db"


def test_it_is_small_and_every_run_of_the_quick_set_is_in_it() -> None:
    assert EXAMPLE.stat().st_size <= 5_000_000
    specs = plan(QUICK)
    assert finished(EXAMPLE, specs) == set(specs)
    with ncmon.open(EXAMPLE) as store:
        assert {run.name for run in store} == {spec.name for spec in specs}
        for run in store:
            windows = run.window_columns("train")
            assert windows.exact.all()
            assert windows.epoch[-1] == run.config["epochs"] - 1


def test_it_shows_what_it_is_there_for() -> None:
    """Collapse that grows with weight decay, in runs that fit; and bounds beside every one of them."""
    found = outcomes(EXAMPLE)
    fit = [one for one in found if one.perfect]
    assert len(fit) >= len(found) / 2
    series = [one.margin for one in fit if (one.spec.data, one.spec.n_layers, one.spec.norm) == ("normal", 6, "affine")]
    assert len(series) == 3
    assert series == sorted(series)
    for one in found:
        slack = one.slack("cert_plus_intra_min")
        assert slack is None or slack > -1e-5


@pytest.mark.parametrize("arguments", [("watch", str(EXAMPLE), "--once"), ("runs", "--db", str(EXAMPLE))])
def test_commands_show_something_at_once(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncmon.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "normal15-3e-3" in done.stdout
