"""Names that mean no good: in every screen and every listing they move nothing and hide nothing."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from textual.pilot import Pilot

from ncmon.cells import cut, fit, lanes, printable, width
from ncmon.model import StreamSeq
from ncmon.store.queries import Store
from ncmon.store.writer import Stored, Writer
from ncmon.tui.app import NcmonApp
from ncmon.tui.widgets.lines import Lines
from tests.factories import make_evaluation, make_features, make_run, window_from_features
from tests.ncmon.tui.stage import NOW, settle, with_app

NAMES = {
    "escapes": "evil\x1b[2J\x1b]0;title\x07\x1b[31m\r\n\t\x9b31m",
    "direction": "\u202eabc\u2066def\u200f\u200bghi",
    "hebrew": "שלום עולם",
    "wide": "神経崩壊の実験その一二三四五六七八九十",
    "marks": "z" + "\u0335\u0321\u034f\u0489" * 40 + "algo",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 run",
    "long": "x" * 10_000,
    "long wide": "漢" * 10_000,
    "blank": "   ",
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "h.db"
    names = list(NAMES.values())
    made = make_features(seed=1, collapse=0.8)
    (features,) = list(made.layers.values())[-1:]
    with Writer.open(path) as writer:
        for number, name in enumerate(names):
            # Layers, classes, tags and the configuration have the same names.
            layers = {names[(number + i) % len(names)][:200]: features for i in range(2)} | {
                "classifier-input": features
            }
            run = make_run(
                run_id=f"run{number}",
                name=name,
                started=NOW - 700 + number,
                class_names=tuple(names[(number + i) % len(names)][-300:] for i in range(4)),
                tags=(name,),
                config={name[:200]: name},
            )
            stream = bytes([number]) * 16
            writer.put_run(run, stream, now=NOW - 5)
            batch = []
            for epoch in range(3):
                window = window_from_features(
                    layers, made.labels, made.weight, made.bias, epoch=epoch, step=10 * (epoch + 1), run_id=run.run_id
                )
                origin = StreamSeq(stream=stream, seq=epoch)
                batch.append(Stored(origins=(origin,), item=make_evaluation(window)))
            writer.commit(batch, now=NOW - 5)
    return path


def harmless(text: str) -> bool:
    """Whether a terminal only moves to the right while it shows this."""
    return all(letter in "\n" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_are_cut_and_filled_by_cells(name: str) -> None:
    shown = printable(name)
    assert harmless(shown)
    assert printable(shown) == shown
    for room in (0, 1, 2, 3, 16, 80):
        assert width(fit(name, room)) == room
        assert width(cut(shown, room)) <= room
    assert len(lanes(shown)) == width(shown)
    assert "".join(lanes(shown)) == shown


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_every_screen_keeps_its_columns(database: Path, size: tuple[int, int]) -> None:
    async def act(pilot: Pilot[None], app: NcmonApp) -> None:
        # Each run has layers and classes of its neighbours' names: with two of them all have been seen.
        for place in (1, 7):
            await pilot.press("1", "g", *"j" * place)
            await settle(pilot, app)
            for key in "123456":
                await pilot.press(key)
                if key == "2":
                    await pilot.press("left_square_bracket")
                await settle(pilot, app)
                check(app, key, size)

    await with_app(database, act, size=size)


def check(app: NcmonApp, key: str, size: tuple[int, int]) -> None:
    for widget in app.screen.query(Lines):
        if not widget.display:
            continue
        for row in widget._rows:
            text = "".join(part for part, _ in row)
            assert harmless(text), (key, text)
        for y in range(widget.size.height):
            assert widget.render_line(y).cell_length == widget.size.width
    if key == "1" and size[0] >= 80:
        rows = ["".join(part for part, _ in row) for row in app.screen.query_one("#runs")._rows]
        found = {width(row[: row.index(" live ")]) for row in rows if " live " in row}
        assert len(found) == 1, rows
    if key in "2345":
        status = "".join(part for part, _ in app.screen.query_one("#status")._rows[0])
        assert "LIVE" in status  # whatever the name is, it is said how fresh this is


Ncmon = Callable[..., Result]


@pytest.fixture
def ncmon(database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ncmon:
    from ncmon.cli import main

    monkeypatch.setenv("NCMON_DB", str(database))
    for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    runner = CliRunner()
    return lambda *arguments: runner.invoke(main, list(arguments), prog_name="ncmon")


LISTINGS = (
    ("runs",),
    ("show", "run*"),
    ("history", "run*", "--metric", "nc1_pinv"),
    ("bounds", "run*"),
    ("bounds", "run*", "--per-class"),
    ("compare", "run*", "run0"),
    ("conjectures", "run*"),
    ("query", "SELECT name, config FROM runs"),
    ("watch", "--once"),
    ("show", "nosuch"),
    ("doctor",),
)


@pytest.mark.parametrize("arguments", LISTINGS, ids=" ".join)
def test_every_listing_is_harmless_and_no_line_floods_the_terminal(ncmon: Ncmon, arguments: tuple[str, ...]) -> None:
    for number in range(len(NAMES) if "run*" in arguments else 1):
        done = ncmon(*(word.replace("*", str(number)) for word in arguments))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert harmless(done.stdout), (arguments, number)
        assert harmless(done.stderr)
        longest = max(map(width, (done.stdout + done.stderr).splitlines()), default=0)
        assert longest <= 2_000, (arguments, number, longest)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_what_changes_and_writes_runs_is_harmless_too(
    ncmon: Ncmon, database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    copy, out = tmp_path / "h.db", tmp_path / "out"
    out.mkdir()
    shutil.copy(database, copy)
    monkeypatch.setenv("NCMON_DB", str(copy))
    run, name = f"run{number}", list(NAMES.values())[number]
    # As a tag, a note or a name some of them are refused, in one line; everything else has to go through.
    for arguments in (
        ("tag", run, name),
        ("note", run, name),
        ("rename", run, name),
        ("alerts", run),
        ("export", run, "-o", str(out / "h.csv")),
        ("export", run, "-o", str(out / "h.jsonl")),
        ("export", run, "--parquet", str(out / "parquet")),
        ("export", run, "--tensorboard", str(out / "events")),
        ("export", run, "-o", str(out / "one.db")),
        ("plot", run, "-o", str(out / "h.png")),
        ("plot", run, "-o", str(out / "c.svg"), "--kind", "classes"),
        ("report", run, "-o", str(out / "h.html")),
        ("merge", str(out / "one.db"), "--db", str(out / "other.db")),
        ("prune", run, "--arrays", "--yes"),
        ("delete", run, "--yes"),
    ):
        done = ncmon(*arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
        assert done.exit_code in ((0, 2) if arguments[0] in ("tag", "note", "rename") else (0,)), done.stderr
        assert harmless(done.stdout), (arguments, done.stdout)
        assert harmless(done.stderr)
        assert max(map(width, (done.stdout + done.stderr).splitlines()), default=0) <= 2_000
    # Nothing was written but in the places that were asked for, whatever a name looks like as a path.
    assert {path.name for path in tmp_path.iterdir()} <= {
        "h.db",
        "h.db-wal",
        "h.db-shm",
        "h.db.lock",
        "out",
        "ncmon",
        "matplotlib",
    }
    with Store.open(out / "other.db") as store:
        assert [found.run_id for found in store.runs()] == [run]


def test_a_name_is_text_in_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ncmon: Ncmon) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    path = tmp_path / "e.db"
    with Writer.open(path) as writer:
        writer.put_run(make_run(name=evil, tags=(evil,), config={evil: evil}), b"s" * 16, now=NOW)
        writer.commit([Stored(origins=(StreamSeq(stream=b"s" * 16, seq=0),), item=make_evaluation())], now=NOW)
    monkeypatch.setenv("NCMON_DB", str(path))
    assert ncmon("report", "run", "-o", str(tmp_path / "e.html")).exit_code == 0
    page = (tmp_path / "e.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
