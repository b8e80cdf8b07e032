"""Layers, Classes, Bounds and Compare over a real store: what they say, and every key of theirs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot

from ncmon.bounds import BOUNDS
from ncmon.store.queries import Store
from ncmon.tui.app import NcmonApp
from ncmon.tui.screens.bounds import BoundsScreen
from ncmon.tui.screens.classes import ClassesScreen
from ncmon.tui.screens.compare import CompareScreen
from ncmon.tui.screens.layers import LayersScreen
from ncmon.tui.screens.overview import OverviewScreen
from ncmon.tui.screens.run import RunScreen
from ncmon.tui.widgets.table import Table
from tests.ncmon.tui.stage import make_app, screen_text, settle, with_app


async def press(pilot: Pilot[None], app: NcmonApp, *keys: str) -> str:
    """Press keys, wait for what they ask for, and return what is in sight."""
    for key in keys:
        await pilot.press(key)
    await settle(pilot, app)
    return screen_text(app)


def stored(database: Path, metric: str, **where: str) -> np.ndarray:
    with Store.open(database) as store:
        return store.run("digits-bn").history(metric, **where).value  # type: ignore[arg-type]


async def test_layers_say_where_collapse_begins(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        text = await press(pilot, app, "3")
        assert isinstance(app.screen, LayersScreen)
        assert "NC1 of each layer over time" in text
        assert "collapsed" in text.splitlines()[1]
        assert "NC1 by depth" in text
        assert "effective depth" in text or "no layer separates" in text
        last = stored(database, "intra_cos_min")[-1]
        (row,) = [line for line in text.splitlines() if "▸ classifier-input" in line]
        assert f"{last:.3f}" in row
        # The cursor is the selected layer, by table and by bracket.
        await press(pilot, app, "k")
        assert app.selection.layer == "blocks.1"
        await press(pilot, app, "left_square_bracket")
        assert app.selection.layer == "blocks.0"
        text = await press(pilot, app, "right_square_bracket", "m")
        assert app.selection.layer == "blocks.1"
        assert "NC1 cdnv of each layer" in text
        await press(pilot, app, "m")
        assert "min intra cosine of each layer" in screen_text(app)
        text = await press(pilot, app, "t")
        assert "  test" in text.splitlines()[0]
        await press(pilot, app, "L")
        assert not app.look.log
        await press(pilot, app, "enter")
        assert isinstance(app.screen, RunScreen)
        assert "blocks.1" in screen_text(app)

    await with_app(database, act)


async def test_time_travel_shows_the_same_moment_everywhere(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        values = stored(database, "intra_cos_min")
        text = await press(pilot, app, "3", "comma")
        assert "◂ epoch 39" in text
        assert f"{values[38]:.3f}" in text
        text = await press(pilot, app, "less_than_sign")
        assert "◂ epoch 29" in text
        text = await press(pilot, app, "full_stop")
        assert "◂ epoch 30" in text
        assert app.shown is not None
        assert app.shown.selection.step == 300
        # Other screens look at the same moment: charts have a crosshair, the legend says the values there.
        text = await press(pilot, app, "2")
        assert "◂ epoch 30" in text
        assert f" {values[29]:.4f} intra" in text
        assert "│" in "".join(line[9:38] for line in text.splitlines()[3:10])
        nc1 = app.screen.query_one("#nc1").picture.cursor  # type: ignore[attr-defined]
        assert nc1 == 30
        text = await press(pilot, app, "5")
        assert "◂ epoch 30" in text
        text = await press(pilot, app, "4", "greater_than_sign")
        assert "◂ epoch 40" in text
        text = await press(pilot, app, "full_stop")
        assert "◂" not in text
        assert app.selection.step is None
        text = await press(pilot, app, "i")
        assert "◂ epoch 40" in text
        text = await press(pilot, app, "i")
        assert "◂" not in text
        await press(pilot, app, "2")
        text = await press(pilot, app, "h", "left")
        assert "◂ epoch 38" in text
        text = await press(pilot, app, "l")
        assert "◂ epoch 39" in text
        text = await press(pilot, app, "f")
        assert "◂" not in text
        assert "epoch 40/40" in text
        await pilot.click("#nc1", offset=(8, 4))
        await settle(pilot, app)
        assert app.selection.step == 10  # the left end of the axis is the first window

    await with_app(database, act)


async def test_zoom_smoothing_and_axes_are_those_of_all_charts(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await press(pilot, app, "2")
        picture = app.screen.query_one("#nc1").picture  # type: ignore[attr-defined]
        assert picture.x_range is None
        await press(pilot, app, "plus")
        assert app.screen.query_one("#nc1").picture.x_range == (20.5, 40.0)  # type: ignore[attr-defined]
        await press(pilot, app, "plus", "minus", "minus")
        assert app.screen.query_one("#nc1").picture.x_range is None  # type: ignore[attr-defined]
        await press(pilot, app, "equals_sign", "0")
        assert app.zoom == 0
        text = await press(pilot, app, "w")
        assert "NC1 w5" in text
        await press(pilot, app, "w", "w")
        assert "w5" not in screen_text(app)
        text = await press(pilot, app, "x", "x", "x")
        assert "log step" in text

    await with_app(database, act)


async def test_classes_say_who_lags_and_with_whom(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        text = await press(pilot, app, "4")
        assert isinstance(app.screen, ClassesScreen)
        assert "closest pair cat ~ dog" in text or "closest pair dog ~ cat" in text
        # The worst stands first and is looked at.
        table = app.screen.query_one(Table)
        await settle(pilot, app, lambda: app.shown.classes.index == table._keys[0] == table.cursor)  # type: ignore[union-attr]
        with Store.open(database) as store:
            run = store.run("digits-bn")
            intra, near = (run.classes(name).values[-1] for name in ("intra_cos", "nearest_cos"))
            cert = run.classes("cert_intra").values[-1]
        assert list(table._keys) == np.argsort(intra - near, kind="stable").tolist()
        rows = [line for line in screen_text(app).splitlines() if "CLASS" in line or "ship" in line]
        assert any(f"{intra[0]:.3f}" in row for row in rows)
        assert any("= " in row or "x no" in row for row in screen_text(app).splitlines())
        assert f"{int(np.count_nonzero(~np.isnan(cert)))}/4" in screen_text(app)
        text = await press(pilot, app, "s")
        assert list(table._keys) == [0, 1, 2, 3]
        await press(pilot, app, "S")
        assert list(table._keys) == [3, 2, 1, 0]
        await press(pilot, app, "S", "s")
        assert list(table._keys) == np.argsort(-near, kind="stable").tolist()
        await press(pilot, app, "s", "s")
        text = await press(pilot, app, "G", "k")
        assert app.selection.index == table._keys[2]
        assert f"class {('ship', 'cat', 'truck', 'dog')[table._keys[2]]}" in text
        await press(pilot, app, "enter")
        assert [w for w in app.screen.PANELS if app.screen.query_one(f"#{w}").display] == ["class-history"]
        await press(pilot, app, "q", "x")
        assert isinstance(app.screen.focused, Table)
        assert "step" in screen_text(app)
        text = await press(pilot, app, "t")
        assert "  test" in text.splitlines()[0]
        text = await press(pilot, app, "left_square_bracket")
        assert "blocks.1" in text.splitlines()[0]
        await pilot.click("#pairs", offset=(8, 4))
        await settle(pilot, app)
        await press(pilot, app, "escape")
        assert isinstance(app.screen, OverviewScreen)

    await with_app(database, act)


async def test_bounds_are_those_of_the_registry(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        text = await press(pilot, app, "5")
        assert isinstance(app.screen, BoundsScreen)
        assert "  test" in text.splitlines()[0]  # measured at frozen weights: a guarantee
        assert "a guarantee" in text
        names = list(app.screen.query_one(Table)._keys)
        assert set(names) <= {bound.name for bound in BOUNDS}
        assert {bound.name for bound in BOUNDS if bound.scope != "pair"} <= set(names)
        sheet = app.screen.sheet()
        assert sheet is not None
        for quantity, measured, name, side, value, slack, state, reason in sheet[1]:
            assert state in ("holds", "vacuous", "n/a"), (name, state)
            if slack is not None:
                assert slack == pytest.approx(measured - value if side == "lower" else value - measured)
            else:
                assert reason
            assert quantity
        for name in names:
            bound = next(bound for bound in BOUNDS if bound.name == name)
            app.screen.query_one(Table).go(names.index(name))
            await pilot.pause()
            text = screen_text(app)
            assert f" {bound.title}" in text
        await press(pilot, app, "g", "enter")
        assert [w for w in app.screen.PANELS if app.screen.query_one(f"#{w}").display] == ["bound-text"]
        text = screen_text(app)
        assert "slack of each class" in text
        assert "assumes" in text
        assert "- logits are W h + v of these features" in text
        await press(pilot, app, "q")
        text = await press(pilot, app, "t")
        assert "  train" in text.splitlines()[0]
        assert "an estimate" in text
        await press(pilot, app, "L", "x", "z")
        text = await press(pilot, app, "q", "left_square_bracket")
        assert "blocks.1" in text.splitlines()[0]
        await press(pilot, app, "q")
        assert isinstance(app.screen, OverviewScreen)

    await with_app(database, act)


async def test_compare_shows_the_marked_runs_beside_the_baseline(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        text = await press(pilot, app, "6")
        assert isinstance(app.screen, CompareScreen)
        assert "3 runs" in text
        assert "mark others with space" in text
        await press(pilot, app, "q")
        await press(pilot, app, "space", "G", "space")
        assert len(app.marked) == 2
        assert sum(line[1:2] == "+" for line in screen_text(app).splitlines()) == 2
        await press(pilot, app, "asterisk")
        text = await press(pilot, app, "6")
        assert "2 runs" in text
        assert "digits-bn" in text
        assert "resnet-lr1" not in text
        assert "* vit-small" in text or "* digits" in text
        differing = text.split("configurations differ in")[1]
        assert "weight_decay" in differing
        assert "lr" not in differing
        value, other = (stored(database, "nc1_pinv")[-1], 0.0)
        with Store.open(database) as store:
            other = float(store.run("vit-small-wd1e-4").history("nc1_pinv").value[-1])
        sheet = app.screen.copied()
        assert sheet is not None
        assert {round(row[3], 9) for row in sheet[1]} == {round(float(value), 9), round(other, 9)}  # type: ignore[call-overload]
        text = await press(pilot, app, "m")
        assert "min intra cosine" in text
        await press(pilot, app, "L", "x", "j", "asterisk")
        assert app.baseline == app.screen.query_one(Table).cursor
        text = await press(pilot, app, "space")
        assert "1 run " in text
        await press(pilot, app, "z", "z", "enter")
        assert isinstance(app.screen, RunScreen)

    await with_app(database, act)


async def test_what_is_shown_can_be_copied_and_exported(database: Path, tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        app.export_to = tmp_path
        for key, name, head in (
            ("1", "overview", "run,name,state"),
            ("2", "run", "split,step,epoch,nc1_pinv"),
            ("3", "layers", "index,layer,nc1_pinv"),
            ("4", "classes", "class,name,intra_cos"),
            ("5", "bounds", "quantity,measured,bound"),
            ("6", "compare", "run,name,split,step,epoch,nc1_pinv"),
        ):
            await press(pilot, app, key, "y", "e")
            assert app.clipboard
            (path,) = tmp_path.glob(f"ncmon-*-{name}.csv")
            assert path.read_text().startswith(head)
        rows = list(csv.DictReader((tmp_path / "ncmon-digits-bn-run.csv").read_text().splitlines()))
        values = [float(row["nc1_pinv"]) for row in rows if row["split"] == "train"]
        np.testing.assert_array_equal(values, stored(database, "nc1_pinv"))
        app.export_to = tmp_path / "missing"
        await press(pilot, app, "e")  # says so, and goes on
        assert not (tmp_path / "missing").exists()

    await with_app(database, act)


async def test_freezing_goes_with_the_viewer_to_another_screen(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await press(pilot, app, "3", "p")
        assert "FROZEN" in screen_text(app)
        text = await press(pilot, app, "4")
        assert "FROZEN" in text
        assert "closest pair" in text
        text = await press(pilot, app, "p")
        assert "FROZEN" not in text
        text = await press(pilot, app, "p", "f")
        assert "FROZEN" not in text

    await with_app(database, act)


async def test_the_footer_does_what_its_keys_do(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await pilot.click("#foot", offset=(13, 0))
        await settle(pilot, app)
        assert isinstance(app.screen, LayersScreen)
        line = screen_text(app).splitlines()[-1]
        await pilot.click("#foot", offset=(line.index("m metric"), 0))
        await settle(pilot, app)
        assert app.look.layer_metric == 1

    await with_app(database, act)


async def test_the_palette_offers_what_keys_do_and_does_it(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        await press(pilot, app, "3")
        commands = {command.title: command for command in app.get_system_commands(app.screen)}
        assert {"the next metric", "freeze the picture, or let it go on", "Theme: light", "Quit"} <= commands.keys()
        result = commands["the next metric"].callback()
        if result is not None:
            await result
        await settle(pilot, app)
        assert app.look.layer_metric == 1
        commands["Theme: light"].callback()
        assert app.theme == "light"

    await with_app(database, act)


async def test_a_rate_and_a_theme_are_kept_for_the_next_time(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "look.json"
    app = make_app(database, look=path)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot, app)
        await press(pilot, app, "T", "R", "3", "m")
    again = make_app(database, look=path)
    assert again.theme == "light"
    assert (again.look.rate, again.look.layer_metric) == (1, 1)


@pytest.mark.parametrize("theme", ["light", "ansi", "mono"])
async def test_every_theme_draws_every_screen(database: Path, theme: str) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        app.theme = theme
        for key in "3456":
            text = await press(pilot, app, key)
            if theme == "mono" and key == "3":
                assert any(glyph in text for glyph in "░▒▓█")  # no colour: shades

    await with_app(database, act)


async def test_the_overview_says_what_became_of_everything_that_was_accepted(database: Path) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        line = screen_text(app).splitlines()[0]
        assert "1,204 accepted = 1,200 stored + 1 rejected + 3 waiting" in line

    counters = {"accepted": 1204, "stored": 1200, "rejected": 1, "waiting": 3, "duplicates": 7}
    await with_app(database, act, counters=counters, size=(160, 40))
