"""Pictures of the screens, with time and data frozen. Read the difference before updating one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from ncmon.tui.screens.run import RunScreen
from tests.ncmon.tui.stage import make_app

SIZES = [(80, 24), (120, 40)]


async def settle(pilot: Pilot[None]) -> None:
    for _ in range(200):
        await pilot.pause(0.02)
        screen = pilot.app.screen
        if getattr(pilot.app, "shown", None) is not None and (
            not isinstance(screen, RunScreen) or screen.query_one("#nc1").picture is not None
        ):
            break
    await pilot.pause(0.2)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_overview(snap_compare: Callable[..., bool], database: Path, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(database), terminal_size=size, run_before=settle)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_run(snap_compare: Callable[..., bool], database: Path, size: tuple[int, int]) -> None:
    async def go(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await settle(pilot)

    assert snap_compare(make_app(database), terminal_size=size, run_before=go)


def test_help(snap_compare: Callable[..., bool], database: Path) -> None:
    async def go(pilot: Pilot[None]) -> None:
        await settle(pilot)
        await pilot.press("question_mark")
        await pilot.press(*"nc1")
        await pilot.pause(0.2)

    assert snap_compare(make_app(database), terminal_size=(80, 24), run_before=go)
