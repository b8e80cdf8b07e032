"""Every key that is bound does something that can be seen, on every screen that has it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding
from textual.dom import DOMNode
from textual.pilot import Pilot

from ncmon.tui.app import SCREENS, NcmonApp
from ncmon.tui.keys import NcmonKeys
from ncmon.tui.screens.base import DataScreen
from ncmon.tui.widgets.runs import RunTable
from ncmon.tui.widgets.table import Table
from tests.ncmon.tui.stage import make_store, screen_text, settle, with_app

# Per screen: the key that leads there, then keys in an order in which each of them changes something.
LISTS = "j k down up G g end home pagedown pageup"
BRACKETS = "left_square_bracket right_square_bracket"
PRESSED = {
    "overview": f"1 {LISTS} n N s S space asterisk slash escape enter 1 l 1 right 1",
    "run": "2 left_square_bracket right_square_bracket t L x b m left right h l tab z escape tab shift+tab z q",
    "layers": f"3 k j up down g G home end pageup pagedown enter 3 m L t {BRACKETS} left right h l z escape z q",
    "classes": f"4 {LISTS} s S x t left_square_bracket right_square_bracket left right h l enter escape z q",
    "bounds": f"5 {LISTS} j L x t left_square_bracket right_square_bracket left right h l enter escape z q",
    "compare": f"6 {LISTS} enter 6 m L x asterisk space z escape 6 z q",
    "alerts": f"7 {LISTS} enter 7 o z escape 7 z q",
}
ENDS = ("2 1 2 escape 3 4 5 6 7 1 2 i i comma full_stop less_than_sign greater_than_sign plus equals_sign minus 0 w p p"
        " space space comma f y e T R colon escape ctrl+p escape question_mark escape f1 f1 right_curly_bracket"
        " left_curly_bracket A q")  # fmt: skip
"""Keys of every screen, tried on the screen of a run."""
SETTLED = {"1": "overview", "2": "run", "3": "layers", "4": "classes", "5": "bounds", "6": "compare", "7": "alerts"}


def bound(*places: type[DOMNode]) -> Iterator[str]:
    for place in places:
        for kind in place.__mro__:
            if kind.__module__.startswith("ncmon"):
                for binding in kind.__dict__.get("BINDINGS", ()):
                    assert isinstance(binding, Binding)
                    yield from (key.strip() for key in binding.key.split(","))


@pytest.mark.parametrize("name", SCREENS)
def test_no_key_is_left_out(name: str) -> None:
    """What is pressed below is what is bound, so that a new key needs a place here."""
    screen = SCREENS[name]()
    lists = {"overview": (RunTable,), "run": ()}.get(name, (Table,))
    assert isinstance(screen, DataScreen)
    keys = set(bound(type(screen), *lists))
    # At the root q ends the application: test_app looks at that.
    assert keys - ({"q"} if name == "overview" else set()) <= set(PRESSED[name].split()), name
    assert set(bound(NcmonKeys)) <= set(ENDS.split())


def seen(app: NcmonApp, folder: Path) -> tuple[Any, ...]:
    """Return all that a key may change."""
    return (
        type(app.screen).__name__,
        len(app.screen_stack),
        app.selection,
        dataclasses.astuple(app.look),
        app.frozen_at,
        app.zoom,
        app.theme,
        tuple(app.marked),
        app.baseline,
        app.alert_at,
        app.clipboard,
        len(list(folder.iterdir())),
        app.focused.id if app.focused is not None else None,
        screen_text(app),
        len(app._notifications),
    )


async def press(pilot: Pilot[None], app: NcmonApp, key: str, folder: Path) -> None:
    before = seen(app, folder)
    await pilot.press(key)
    end = time.monotonic() + 15
    while seen(app, folder) == before:
        if time.monotonic() > end:
            pytest.fail(f"{key} on {before[0]} changes nothing")
        await pilot.pause(0.02)
    await settle(pilot, app)
    if key in SETTLED:
        await settle(pilot, app, lambda: app.screen.id == SETTLED[key])
        await pilot.pause(0.1)


@pytest.mark.parametrize("name", [*SCREENS, "everywhere"])
async def test_every_key_does_something(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    database = make_store(tmp_path / "keys.db", epochs=24, alerts=True)

    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        app.export_to = folder
        if name != "overview":
            await press(pilot, app, "2", folder)
        for key in PRESSED.get(name, ENDS).split():
            if key == app.screen.id or SETTLED.get(key) == app.screen.id:
                continue
            await press(pilot, app, key, folder)

    await with_app(database, act, size=(110, 40))
