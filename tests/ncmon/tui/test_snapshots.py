"""Pictures of the screens, with time and data frozen. Read the difference before updating one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from ncmon.tui.app import NcmonApp
from tests.ncmon.tui.stage import make_app, make_store, settle

SIZES = [(80, 24), (200, 50)]
SCREENS = {"overview": "1", "run": "2", "layers": "3", "classes": "4", "bounds": "5", "compare": "6"}


async def go(pilot: Pilot[None], *keys: str) -> None:
    assert isinstance(pilot.app, NcmonApp)
    for key in keys:
        await pilot.press(key)
    await settle(pilot, pilot.app)
    # Widgets find their sizes from what they show; the picture is taken when none has moved.
    for _ in range(3):
        await pilot.pause(0.05)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("screen", SCREENS)
def test_screen(snap_compare: Callable[..., bool], database: Path, screen: str, size: tuple[int, int]) -> None:
    async def before(pilot: Pilot[None]) -> None:
        await go(pilot, SCREENS[screen])

    assert snap_compare(make_app(database), terminal_size=size, run_before=before)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("screen", ["overview", "alerts"])
def test_screen_with_alerts(
    snap_compare: Callable[..., bool], tmp_path: Path, screen: str, size: tuple[int, int]
) -> None:
    async def before(pilot: Pilot[None]) -> None:
        await go(pilot, {"overview": "1", "alerts": "7"}[screen])

    alerted = make_store(tmp_path / "alerted.db", epochs=12, alerts=True)
    assert snap_compare(make_app(alerted), terminal_size=size, run_before=before)


def test_help(snap_compare: Callable[..., bool], database: Path) -> None:
    async def before(pilot: Pilot[None]) -> None:
        await go(pilot, "question_mark")
        await pilot.press(*"nc1")
        await pilot.pause(0.2)

    assert snap_compare(make_app(database), terminal_size=(80, 24), run_before=before)


def test_crosshair_in_light(snap_compare: Callable[..., bool], database: Path) -> None:
    async def before(pilot: Pilot[None]) -> None:
        await go(pilot, "T", "2", "less_than_sign")

    assert snap_compare(make_app(database), terminal_size=(80, 24), run_before=before)


def test_layers_without_colour_and_braille(snap_compare: Callable[..., bool], database: Path) -> None:
    async def before(pilot: Pilot[None]) -> None:
        await go(pilot, "T", "T", "T", "3")

    assert snap_compare(make_app(database, ascii=True), terminal_size=(80, 24), run_before=before)
