"""What a viewer keeps and takes away: the look, keys of one's own, sheets, smoothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from rich.style import Style
from textual.theme import BUILTIN_THEMES

from ncmon.errors import UsageError
from ncmon.tui import palette, sheets
from ncmon.tui.keys import known, load
from ncmon.tui.look import Look, save
from ncmon.tui.look import load as load_look
from ncmon.tui.plots import smoothed


def test_the_look_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "look.json"
    save(Look(theme="light", log=False, axis=3, class_sort=2), path)
    assert load_look(path) == Look(theme="light", log=False, axis=3, class_sort=2)
    assert [file.name for file in path.parent.iterdir()] == ["look.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"axis": 99}', '{"axis": -1}', '{"axis": "1"}', '{"log": 1}', '{"other": 3}']
)
def test_a_look_that_cannot_be_is_the_default(tmp_path: Path, text: str) -> None:
    path = tmp_path / "look.json"
    path.write_text(text)
    assert load_look(path) == Look()
    assert load_look(tmp_path / "missing") == Look()
    save(Look(), tmp_path / "look.json" / "not-a-directory" / "look.json")  # passed over


def test_keys_of_ones_own_are_read_and_checked(tmp_path: Path) -> None:
    from ncmon.tui.app import NcmonApp
    from ncmon.tui.screens.layers import LayersScreen

    actions = known(NcmonApp, LayersScreen)
    assert actions["freeze"] == "p,space"
    assert actions["next-layer"] == "right_square_bracket"
    path = tmp_path / "keys.toml"
    assert load(path, actions) == {}
    path.write_text('freeze = "F"\nnext-layer = "n,right_square_bracket"\n')
    assert load(path, actions) == {"freeze": "F", "next-layer": "n,right_square_bracket"}
    for text, said in (
        ('frieze = "F"', "did you mean freeze"),
        ("freeze = 3", "expected the keys of freeze as text"),
        ('freeze = ""', "expected the keys"),
        ("freeze = ", "keys.toml"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            load(path, actions)


def test_a_sheet_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    sheet = (("name", "value"), [("a\x1b[2J", 0.1), ("=1+1", float("nan")), ("-0.5", None), ("+evil", 1)])
    first, second = (sheets.write(sheet, tmp_path, "../run x/1") for _ in range(2))
    assert [first.name, second.name] == ["ncmon-run_x_1.csv", "ncmon-run_x_1-1.csv"]
    assert first.parent == tmp_path
    rows = list(csv.reader(first.read_text().splitlines()))
    assert rows == [["name", "value"], ["a�[2J", "0.1"], ["'=1+1", ""], ["-0.5", ""], ["'+evil", "1"]]
    assert sheets.tabbed(sheet).splitlines()[1] == "a�[2J\t0.1"


def test_smoothing_is_the_mean_of_the_last_values_and_keeps_gaps() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=40))
    values[7] = np.nan
    for log in (False, True):
        found = smoothed(values, 5, log=log)
        for i in range(40):
            part = [v for v in values[max(0, i - 4) : i + 1] if not np.isnan(v)]
            expected = math.exp(np.mean(np.log(part))) if log else np.mean(part)
            assert np.isnan(found[i]) if i == 7 else found[i] == pytest.approx(expected)
    assert smoothed(values, 1) is values
    assert smoothed(np.array([]), 5).size == 0


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("kind", [palette.DARK, palette.LIGHT])
def test_every_ink_can_be_read_on_its_ground(kind: str) -> None:
    theme = next(theme for theme in palette.themes() if theme.name == kind)
    assert theme.background is not None
    ground = luminance(theme.background)
    for color in (palette.ORANGE, palette.SKY, palette.GREEN, palette.VERMILION, palette.PURPLE, palette.YELLOW):
        shown = palette.inked(Style(color=color), kind).color
        assert shown is not None
        light, dark = sorted((luminance(shown.name), ground), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= (4.5 if kind == palette.LIGHT else 3.0)


def test_inks_follow_the_theme() -> None:
    style = Style(color=palette.ORANGE, bgcolor=palette.HEAT[0], bold=True)
    assert palette.inked(style, palette.DARK) is style
    mono = palette.inked(style, palette.MONO)
    assert (mono.color, mono.bgcolor, mono.bold) == (None, None, True)
    ansi = palette.inked(Style(color=palette.GREEN), palette.ANSI).color
    assert ansi is not None
    assert ansi.name == "green"
    light = palette.inked(style, palette.LIGHT).bgcolor
    assert light is not None
    assert light.name.upper() == palette.HEAT_ON_LIGHT[palette.HEAT[0]]
    kinds = {theme.name: palette.kind_of(theme) for theme in palette.themes()}
    assert kinds == {"dark": "dark", "light": "light", "ansi": "ansi", "mono": "mono"}
    assert palette.kind_of(BUILTIN_THEMES["solarized-light"]) == palette.LIGHT


def test_a_heat_map_grows_lighter_evenly() -> None:
    steps = np.diff([luminance(color) for color in palette.HEAT])
    assert (steps > 0).all()
    on_light = np.diff([luminance(palette.HEAT_ON_LIGHT[color]) for color in palette.HEAT])
    assert (on_light < 0).all()  # on white the far end is the faint one, too
