"""Several targets at once: which run is of which of them, in the Overview and behind every other screen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ncmon.feed import SourceState
from ncmon.feeds import open_feeds
from ncmon.tui.app import NcmonApp
from ncmon.tui.widgets.runs import RunTable
from tests.ncmon.tui.stage import NOW, make_store, screen_text, settle

LENGTHS = {"gpu07": 9, "gpu08": 14}
"""Epochs of the live run in each: it has the same id and the same name in both."""


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sources")
    made = [
        make_store(folder / f"{name}.db", epochs=length, alerts=name == "gpu08") for name, length in LENGTHS.items()
    ]
    return [str(path) for path in made]


def make_app(targets: list[str]) -> NcmonApp:
    return NcmonApp(open_feeds(targets, clock=lambda: NOW), clock=lambda: NOW, refresh_s=0.05)


def lines(app: NcmonApp) -> list[str]:
    return ["".join(text for text, _ in row) for row in app.screen.query_one("#runs", RunTable)._rows]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)], ids=["80x24", "200x50"])
async def test_every_run_says_which_target_it_is_of(databases: list[str], size: tuple[int, int]) -> None:
    app = make_app(databases)
    async with app.run_test(size=size) as pilot:
        await settle(pilot, app, lambda: app.shown is not None and len(app.shown.runs) == 6)
        heading, *rows = lines(app)
        start = heading.index("SOURCE")
        end = heading.index("STATE")
        listed = {}
        for row in rows[:6]:
            name, source = row[4:start].strip(), row[start:end].strip()
            listed.setdefault(name, []).append(source)
        # Three runs in each, the same names: six lines, each with its own source.
        assert {name: sorted(found) for name, found in listed.items()} == {
            "digits-bn": ["gpu07", "gpu08"],
            "resnet-lr1": ["gpu07", "gpu08"],
            "vit-small-wd1e-4": ["gpu07", "gpu08"],
        }
        # The run of one name that was opened is that of the line it was opened from, with its own number of epochs.
        for label, epochs in LENGTHS.items():
            assert app.shown is not None
            place = next(i for i, s in enumerate(app.shown.runs) if s.run.run_id == f"run2@{label}")
            runs = app.screen.query_one("#runs", RunTable)
            assert "digits-bn" in lines(app)[1 + place]
            assert label in lines(app)[1 + place]
            runs.focus()
            await pilot.press("g", *["j"] * place, "enter")
            await settle(pilot, app, lambda: app.screen.id == "run")
            assert app.shown.detail is not None
            assert app.shown.detail.run.run_id == f"run2@{label}"
            assert len(app.shown.detail.series["train"]["ce_loss"]) == epochs
            assert f"{label} REPLAY" in screen_text(app)
            await pilot.press("q")
            await settle(pilot, app, lambda: app.screen.id == "overview")


async def test_alerts_are_those_of_their_target(databases: list[str]) -> None:
    app = make_app(databases)
    async with app.run_test(size=(160, 45)) as pilot:
        await settle(pilot, app, lambda: app.shown is not None and len(app.shown.runs) == 6)
        flagged = [line for line in lines(app)[1:7] if line.rstrip().endswith(("!", "!2"))]
        assert flagged
        assert all("gpu08" in line for line in flagged)


async def test_with_one_target_there_is_no_such_column(databases: list[str]) -> None:
    app = make_app(databases[:1])
    async with app.run_test(size=(200, 50)) as pilot:
        await settle(pilot, app)
        assert "SOURCE" not in lines(app)[0]
        assert lines(app)[0].split()[:2] == ["RUN", "STATE"]


async def test_a_target_that_is_gone_is_said_and_its_runs_stay_in_sight(databases: list[str], tmp_path: Path) -> None:
    copy = Path(shutil.copy(databases[0], tmp_path / "old.db"))
    app = make_app([databases[1], str(copy)])
    async with app.run_test(size=(160, 45)) as pilot:
        await settle(pilot, app, lambda: app.shown is not None and len(app.shown.runs) == 6)
        assert "○ gpu08 REPLAY" in screen_text(app)
        assert "○ old REPLAY" in screen_text(app)
        assert {source.state for source in app.shown.sources} == {SourceState.REPLAY}  # type: ignore[union-attr]
