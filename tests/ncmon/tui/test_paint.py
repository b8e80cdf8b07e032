"""Rows are sent by a shorter way than Textual's own: what arrives is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.style import Style
from textual.pilot import Pilot
from textual.strip import Strip
from textual.widget import Widget

from ncmon.tui import palette
from ncmon.tui.app import NcmonApp
from ncmon.tui.widgets.lines import Lines
from tests.ncmon.tui.stage import make_app, make_store, settle


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("paint") / "runs.db", epochs=12, alerts=True)


def cells(strips: list[Strip]) -> list[list[tuple[str, Style | None]]]:
    return [[(letter, segment.style) for segment in strip for letter in segment.text] for strip in strips]


def check(app: NcmonApp) -> int:
    """Compare all rows in sight; return how many widgets had any."""
    found = 0
    for widget in app.screen.query(Lines):
        if widget.display and widget.size:
            shorter, longer = widget.render_lines(widget.size.region), Widget.render_lines(widget, widget.size.region)
            assert cells(shorter) == cells(longer), widget
            found += 1
    return found


@pytest.mark.parametrize("plain", [False, True], ids=["colour", "NO_COLOR"])
async def test_rows_are_what_textual_would_send(database: Path, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(database)
    async with app.run_test(size=(160, 45)) as pilot:
        await settle(pilot, app)
        for number, screen in enumerate("1234567"):
            await press(pilot, app, screen)
            for key in ("", "tab", "comma", "f"):  # what has the focus has another ground, and the past other numbers
                if key:
                    await press(pilot, app, key)
                assert check(app) >= 3
            app.theme = palette.THEMES[number % len(palette.THEMES)]
            await settle(pilot, app)
            assert check(app) >= 3


async def press(pilot: Pilot[None], app: NcmonApp, key: str) -> None:
    await pilot.press(key)
    await settle(pilot, app)
