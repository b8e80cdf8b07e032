"""Screen 7, the badge, and { } and A from anywhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from textual.pilot import Pilot

import ncmon
from ncmon.tui.app import NcmonApp
from ncmon.tui.messages import SnapshotReady
from ncmon.tui.screens.alerts import AlertsScreen
from ncmon.tui.screens.classes import ClassesScreen
from ncmon.tui.screens.layers import LayersScreen
from ncmon.tui.screens.overview import OverviewScreen
from ncmon.tui.screens.run import RunScreen
from ncmon.tui.widgets.status import Text
from ncmon.tui.widgets.table import Table
from tests.ncmon.tui.stage import make_store, screen_text, settle, with_app


@pytest.fixture
def alerted(tmp_path: Path) -> Path:
    return make_store(tmp_path / "alerted.db", epochs=6, alerts=True)


async def test_the_badge_stands_on_every_screen_and_the_run_says_so(alerted: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        lines = screen_text(app).splitlines()
        assert "! 3 alerts" in lines[0]
        assert next(line for line in lines if "digits-bn" in line and "live" in line).rstrip().endswith("!2")
        assert next(line for line in lines if "resnet-lr1" in line).rstrip().endswith("!")
        assert not next(line for line in lines if "-wd1e-4" in line).rstrip().endswith("!")
        assert any("class dead: of 20 samples of class cat" in line for line in lines)
        for key in "23456":
            await pilot.press(key)
            await settle(pilot, app)
            assert "! 3 alerts" in screen_text(app).splitlines()[0], key
        await pilot.resize_terminal(160, 40)
        await pilot.press("2")
        await settle(pilot, app, lambda: "! class dead +2" in screen_text(app).splitlines()[0])

    await with_app(alerted, act)


async def test_the_screen_says_what_run_layer_class_since_and_what_to_do(alerted: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("7")
        await settle(pilot, app, lambda: isinstance(app.screen, AlertsScreen) and "WHAT" in screen_text(app))
        lines = screen_text(app).splitlines()
        assert "3 to look at  1 seen or news  1 over" in lines[0]
        assert [line.split()[0] for line in lines[2:7]] == ["▸", "!", "!", "i", "○"]
        dead = next(line for line in lines if "class dead" in line)
        for word in ("digits-bn", "cat", "open"):
            assert word in dead
        await pilot.press("o")
        assert "not finite" not in screen_text(app)
        await pilot.press("o")
        table = app.screen.query_one(Table)
        while "class dead" not in screen_text(app).splitlines()[2 + table.place]:
            await pilot.press("j")
        text = screen_text(app)
        assert "of 20 samples of class cat 0.0% are right" in text
        assert "epoch 31" in text
        assert "with whom it is confused" in text
        await pilot.press("y")
        assert app.clipboard.startswith("what\tseverity\trun")
        assert "class-dead\twarning\tdigits-bn" in app.clipboard
        await pilot.press("z")
        assert not app.screen.query_one("#alert-text").display
        await pilot.press("q")
        assert app.screen.query_one("#alert-text").display
        await pilot.press("enter")
        await settle(pilot, app, lambda: isinstance(app.screen, ClassesScreen) and "cat" in screen_text(app))
        assert (app.selection.run_id, app.selection.index, app.selection.split) == ("run2", 1, "train")

    await with_app(alerted, act)


async def test_braces_go_from_alert_to_alert_wherever_one_is(alerted: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        assert app.shown is not None
        rules = [alert.rule for alert in app.shown.open_alerts]
        places = {"run-failed": RunScreen, "class-dead": ClassesScreen, "nc1-rising": LayersScreen}
        assert sorted(rules) == sorted(places)
        for rule in [*rules, rules[0]]:
            await pilot.press("right_curly_bracket")
            await settle(pilot, app, lambda rule=rule: isinstance(app.screen, places[rule]))
        assert app.selection.run_id == app.shown.open_alerts[0].run_id
        await pilot.press("left_curly_bracket")
        await settle(pilot, app, lambda: isinstance(app.screen, places[rules[-1]]))
        await pilot.press("7")
        await settle(pilot, app, lambda: isinstance(app.screen, AlertsScreen) and "WHAT" in screen_text(app))
        await pilot.press("right_curly_bracket")
        assert isinstance(app.screen, AlertsScreen)
        assert app.screen.cursor == app.alert_at

    await with_app(alerted, act)


async def test_what_is_acknowledged_no_longer_presses(alerted: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("A")  # which one?
        await pilot.press("7")
        await settle(pilot, app, lambda: isinstance(app.screen, AlertsScreen) and "WHAT" in screen_text(app))
        await pilot.press("A")
        await settle(pilot, app, lambda: "2 to look at  2 seen" in screen_text(app))
        assert "! 2 alerts" in screen_text(app)
        await pilot.press("1", "right_curly_bracket", "A")
        await settle(pilot, app, lambda: "! 1 alert " in screen_text(app))

    await with_app(alerted, act)
    with ncmon.open(alerted) as store:
        assert sum(alert.acknowledged is not None for alert in store.alerts()) == 2


async def test_where_nothing_may_be_written_a_line_says_so(alerted: Path) -> None:
    said: list[str] = []

    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        notify = app.notify
        app.notify = lambda text, **more: (said.append(text), notify(text, **more))[1]  # type: ignore[method-assign]
        assert app.shown is not None
        shown = dataclasses.replace(app.shown, database=alerted.with_name("gone.db"), version=app.shown.version + 1)
        app._stopping = True  # what is shown stays
        app.on_snapshot_ready(SnapshotReady(shown))
        await pilot.press("right_curly_bracket")
        app.shown = shown
        await pilot.press("A")
        for _ in range(200):
            await pilot.pause(0.02)
            if any("no such database" in text for text in said):
                return
        pytest.fail(json.dumps(said))

    await with_app(alerted, act)


async def test_the_clock_alone_changes_nothing_but_how_long_ago_it_was(alerted: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("7")
        await settle(pilot, app, lambda: isinstance(app.screen, AlertsScreen) and " ago" in screen_text(app))
        screen, snapshot = app.screen, app.shown
        assert isinstance(screen, AlertsScreen)
        assert snapshot is not None
        chosen = next(alert for alert in snapshot.alerts if (alert.run_id, alert.alert_id) == screen.cursor)

        def rows_at(seconds: float) -> tuple[list[object], list[object]]:
            screen.tick(dataclasses.replace(snapshot, taken_at=chosen.since + seconds))
            return list(screen.query_one(Table)._rows), list(screen.query_one("#alert-text", Text)._rows)

        table, text = rows_at(300.0)
        assert any(", 5 m ago" in part for row in text for part, _ in row)  # type: ignore[attr-defined]
        assert rows_at(359.9) == (table, text)
        later_table, later_text = rows_at(360.0)
        assert later_table == table
        assert [one != other for one, other in zip(text, later_text, strict=True)].count(True) == 1
        assert any(", 6 m ago" in part for row in later_text for part, _ in row)  # type: ignore[attr-defined]

    await with_app(alerted, act)


async def test_without_alerts_the_screen_says_what_would_be_there(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("right_curly_bracket", "A")
        assert isinstance(app.screen, OverviewScreen)
        await pilot.press("7")
        await settle(pilot, app, lambda: isinstance(app.screen, AlertsScreen) and "ncmon alerts" in screen_text(app))
        assert "alert" not in screen_text(app).splitlines()[0].partition("●")[2]
        await pilot.press("q")
        assert isinstance(app.screen, OverviewScreen)

    await with_app(database, act)
