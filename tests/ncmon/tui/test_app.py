"""The application over a real store: every key, every size, and what states say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from ncmon.feed import Snapshot, SourceState
from ncmon.tui.app import NcmonApp
from ncmon.tui.messages import SnapshotReady
from ncmon.tui.screens.help import HelpScreen
from ncmon.tui.screens.overview import OverviewScreen
from ncmon.tui.screens.run import PANELS, RunScreen
from ncmon.tui.widgets.lines import Lines
from tests.ncmon.tui.stage import NOW, make_app, make_store, screen_text, settle, with_app

SIZES = [(300, 80), (300, 1), (1, 80), (160, 45), (100, 6), (60, 14), (40, 24), (20, 5), (10, 3), (3, 2), (1, 1)]


async def test_the_overview_says_which_runs_are_alive(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        text = screen_text(app)
        assert "1 live  2 stored" in text
        assert "gpu07" in text
        assert "● LIVE" in text
        rows = [line for line in text.splitlines() if "digits-bn" in line and "40/40" in line]
        assert len(rows) == 1
        assert "●" in rows[0]
        assert any("resnet-lr1" in line and line.lstrip(" ▸").startswith("x") for line in text.splitlines())
        assert any("-wd1e-4" in line and "○" in line for line in text.splitlines())
        # What the run under the cursor is, and what it is guaranteed.
        assert "certified" in text
        assert "weight_decay" in text

    await with_app(database, act)


async def test_keys_of_the_overview(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        table = app.screen.query_one("#runs")
        newest = table.cursor.run.name
        await pilot.press("j")
        second = table.cursor.run.name
        assert second != newest
        await pilot.press("k")
        assert table.cursor.run.name == newest
        await pilot.press("G")
        last = table.cursor.run.name
        await pilot.press("g")
        assert table.cursor.run.name == newest
        await pilot.press("S")
        await pilot.press("g")
        assert table.cursor.run.name == last
        await pilot.press("S", "s")
        await pilot.press("g")
        assert table.cursor.run.name == "digits-bn"  # by name
        await pilot.press("slash")
        await pilot.press(*"vit")
        assert "1 live" in screen_text(app)
        assert [row.run.name for row in table._runs] == ["vit-small-wd1e-4"]
        await pilot.press("enter")
        assert not app.screen.query_one(Input).display
        assert [row.run.name for row in table._runs] == ["vit-small-wd1e-4"]
        await pilot.press("escape")
        assert len(table._runs) == 3
        await pilot.press("enter")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen))
        assert app.screen is not None

    await with_app(database, act)


async def test_opening_a_run_shows_its_four_pictures(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("enter")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen) and "intra" in screen_text(app))
        text = screen_text(app)
        for part in (
            "classifier-input [3/3]",
            "epoch 40/40",
            "NC1 log",
            "cosine",
            "NC2 NC3",
            "loss",
            "bound",
        ):
            assert part in text, part

    await with_app(database, act)


async def test_keys_of_the_run_screen(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("2")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen) and "NC1 log" in screen_text(app))
        await pilot.press("left_square_bracket")
        await settle(pilot, app, lambda: "[2/3]" in screen_text(app))
        assert "NCC error" in screen_text(app)  # a hidden layer has no loss of its own
        await pilot.press("right_square_bracket", "right_square_bracket")
        await settle(pilot, app, lambda: "[3/3]" in screen_text(app))
        assert "NC1 log" in screen_text(app)
        await pilot.press("L")
        assert "NC1 log" not in screen_text(app)
        await pilot.press("L")
        assert "40 epoch" in screen_text(app)
        await pilot.press("x")
        assert "step" in screen_text(app)
        await pilot.press("x")
        assert "minutes" in screen_text(app)
        await pilot.press("x")
        assert "bound" in screen_text(app).splitlines()[0] or "┄┄bound" in screen_text(app)
        await pilot.press("b")
        assert "┄┄bound" not in screen_text(app)
        await pilot.press("b", "m")
        assert "NC1 cdnv" in screen_text(app)
        await pilot.press("tab")
        focused = app.screen.focused.id
        assert focused in PANELS
        await pilot.press("z")
        await pilot.pause()
        assert [name for name in PANELS if app.screen.query_one(f"#{name}").display] == [focused]
        await pilot.press("q")
        await pilot.pause()
        assert all(app.screen.query_one(f"#{name}").display for name in PANELS)
        await pilot.press("q")
        assert isinstance(app.screen, OverviewScreen)

    await with_app(database, act)


async def test_freezing_holds_the_picture_and_says_for_how_long(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        held = app.shown
        await pilot.press("p")
        assert "FROZEN +0 s" in screen_text(app)
        app.clock = lambda: NOW + 42
        assert held is not None
        newer = dataclasses.replace(held, version=held.version + 1, runs=held.runs[:1])
        app.on_snapshot_ready(SnapshotReady(newer))
        assert app.shown.runs == held.runs
        assert "FROZEN +42 s" in screen_text(app)
        await pilot.press("p")
        assert "FROZEN" not in screen_text(app)

    await with_app(database, act)


async def test_help_is_searchable_and_knows_every_metric(database: Path) -> None:
    from rich.console import Console

    from ncmon.metrics import METRICS
    from ncmon.tui.screens.help import entries

    def said(search: str) -> str:
        console = Console(width=200)
        with console.capture() as captured:
            console.print(entries(search))
        return captured.get()

    everything = said("")
    assert all(metric.name in everything for metric in METRICS)
    assert "cert_intra_min" in everything
    assert "nc1_cdnv" in said("galanti")
    assert "nc3_cos" not in said("galanti")
    assert "says 'nonsense'" in said("nonsense")
    # Every key that does something is in it, under the name of its screen.
    for key, what in (("]", "next layer"), ("p space", "freeze the picture"), ("*", "compare others with this run")):
        assert key in said(what)
    assert "Keys of Overview" in said("mark the run")
    assert "Is the network collapsing?" in everything

    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press(*"freeze", "escape")
        assert isinstance(app.screen, OverviewScreen)
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)

    await with_app(database, act)


async def test_the_rest_of_the_keys(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        theme = app.theme
        await pilot.press("T")
        assert app.theme != theme
        await pilot.press("colon")
        assert len(app.screen_stack) == 3  # the palette
        await pilot.press("escape")
        await pilot.press("2")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen) and "NC1" in screen_text(app))
        await pilot.press("y")
        assert "classifier-input" in screen_text(app)
        assert "train\t39\t400\tnc1_pinv\t" in app.clipboard
        await pilot.press("f", "1")
        assert isinstance(app.screen, OverviewScreen)
        await pilot.press("q")

    app = make_app(database)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot, app)
        await act(pilot, app)
    assert app.return_code == 0


def everything(app: NcmonApp) -> str:
    """Return all cells of the screen, those of Textual's own widgets among them."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def foreign(app: NcmonApp) -> set[str]:
    """Return the letters in sight that are not ASCII."""
    return {letter for letter in everything(app) if not letter.isascii()}


async def test_where_ascii_alone_is_known_nothing_else_is_drawn(database: Path) -> None:
    app = make_app(database, ascii=True)
    async with app.run_test(notifications=True) as pilot:
        await settle(pilot, app)
        await pilot.press("question_mark")
        await settle(pilot, app, lambda: "What to look at" in everything(app))
        assert "* live" in everything(app)
        assert not foreign(app)
        await pilot.press("escape", "colon")
        await settle(pilot, app, lambda: "Alerts: what" in everything(app))
        assert "search what there is to do" in everything(app)
        assert not foreign(app)
        await pilot.press("escape", "slash")
        await settle(pilot, app, lambda: "tag or status" in everything(app))
        assert not foreign(app)
        await pilot.press("escape", "R")
        await settle(pilot, app, lambda: "every 2 s" in everything(app))
        assert not foreign(app)


async def test_the_help_stays_behind_the_beginning_of_what_takes_several_lines(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("question_mark")
        await settle(pilot, app, lambda: "What to look at" in everything(app))
        lines = everything(app).splitlines()
        place = next(i for i, line in enumerate(lines) if "NC1 falls, intra rises" in line)
        assert lines[place + 1].startswith(" " * 7 + "floor")

    await with_app(database, act)


async def test_beside_a_run_readings_and_configuration_both_have_room(tmp_path: Path) -> None:
    path = make_store(tmp_path / "one.db", epochs=2, others=False)

    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("2")
        await settle(pilot, app, lambda: "last window" in screen_text(app))

        def side() -> list[str]:
            return ["".join(text for text, _ in row) for row in app.screen.query_one("#side", Lines)._rows]

        rows = [row.strip() for row in side()]
        more = next(row for row in rows if row.startswith("…"))
        assert "y copies all of them" in more
        assert any(row.startswith("weight_decay") for row in rows[rows.index("config") :])
        # As many as it says, and with room for all of them no such line.
        shown = rows.index(more)
        await pilot.resize_terminal(160, 100)
        await settle(pilot, app, lambda: not any("…" in row for row in side()))
        assert [row.strip() for row in side()].index("config") - 1 - shown == int(more.split()[1])

    await with_app(path, act, size=(160, 40))


async def test_a_narrow_line_names_the_run_and_has_no_clock(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("4")
        await settle(pilot, app, lambda: "closest pair" in screen_text(app))
        lines = screen_text(app).splitlines()
        assert lines[0].startswith(" digits-bn ")
        assert "LIVE" in lines[0]
        assert "08:11" not in lines[0]
        note = next(line for line in lines if "closest pair" in line)
        assert note.rstrip()[-3:].isdigit()  # nothing that is cut in its middle

    await with_app(database, act, size=(40, 10))


@pytest.mark.parametrize("ascii_only", [False, True])
async def test_no_size_breaks_a_screen(database: Path, ascii_only: bool) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        for screen in "2345671":
            await pilot.press(screen)
            await settle(pilot, app)
            for size in SIZES:
                await pilot.resize_terminal(*size)
                if size == (20, 5):
                    await pilot.press("z", "j", "z", "comma")
                if ascii_only:
                    assert screen_text(app).isascii()
        for key in ("question_mark", "escape", "slash", "escape"):
            await pilot.press(key)

    await with_app(database, act, ascii=ascii_only)


async def test_a_tiny_terminal_still_shows_one_chart(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("2")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen))
        await pilot.pause()
        assert [name for name in PANELS if app.screen.query_one(f"#{name}").display] == ["nc1"]
        assert "NC1" in screen_text(app)

    await with_app(database, act, size=(30, 9))


async def test_names_from_elsewhere_are_harmless(tmp_path: Path) -> None:
    database = make_store(tmp_path / "hostile.db", epochs=2, hostile=True, others=False)

    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        for key in ("G", "enter", "1", "g", "enter"):
            await pilot.press(key)
            await pilot.pause(0.05)
            text = screen_text(app)
            assert not any(ord(character) < 32 and character != "\n" for character in text)
            assert "\x1b" not in text

    await with_app(database, act)


async def test_an_empty_store_says_what_to_type_next(tmp_path: Path) -> None:
    from ncmon.store.writer import Writer

    with Writer.open(tmp_path / "empty.db"):
        pass

    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        assert "ncmon demo" in screen_text(app)
        await pilot.press("2")
        await pilot.pause()
        await pilot.press("left_square_bracket", "y", "z", "q", "q")

    await with_app(tmp_path / "empty.db", act)


@pytest.mark.parametrize(
    ("source", "said"), [(SourceState.DOWN, "DAEMON DOWN"), (SourceState.REPLAY, "REPLAY"), (SourceState.LIVE, "LIVE")]
)
async def test_what_stands_behind_the_picture_is_always_said(database: Path, source: SourceState, said: str) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        assert app.shown is not None
        for key in "123456":
            await pilot.press(key)
            await settle(pilot, app)
            app.frozen_at = None
            shown: Snapshot = dataclasses.replace(app.shown, source=source)
            app.screen.show(shown)  # type: ignore[attr-defined]
            assert said in screen_text(app)

    await with_app(database, act)


async def test_a_run_that_fell_silent_is_stale(tmp_path: Path) -> None:
    database = make_store(tmp_path / "r.db", epochs=3, others=False)
    app = make_app(database)
    app._feed._clock = lambda: NOW + 3_600
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot, app)
        assert "silent for 1 h" in screen_text(app)
        await pilot.press("2")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen) and "STALE" in screen_text(app))


async def test_an_unchanged_picture_is_not_sent_again(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("2")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen) and "NC1 log" in screen_text(app))
        refreshed: list[object] = []
        for widget in app.screen.query(Lines):
            original = widget.refresh

            def refresh(*regions: Any, _original: Any = original, _id: Any = widget.id, **kwargs: Any) -> Any:
                refreshed.append((_id, regions))
                return _original(*regions, **kwargs)

            widget.refresh = refresh  # type: ignore[method-assign]
        await pilot.pause(0.3)  # several reads of the feed
        assert refreshed == []

    await with_app(database, act)


async def test_no_color_does_not_crash(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.press("2")
        await settle(pilot, app, lambda: isinstance(app.screen, RunScreen) and "NC1" in screen_text(app))

    await with_app(database, act)
