"""Changing stored runs: what stays, what goes, and that a daemon that writes at the same time loses nothing."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ncmon.errors import NotFound, StoreError, UsageError
from ncmon.store.edit import Editor
from ncmon.store.queries import Store
from ncmon.store.rows import KEPT_EPOCHS
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run, make_window
from tests.ncmon.store.batches import STREAM, stored


def fill(writer: Writer, run_id: str, stream: bytes, epochs: int, *, name: str = "digits") -> None:
    writer.put_run(make_run(run_id=run_id, name=name, tags=("sweep",)), stream, now=1.0)
    for epoch in range(epochs):
        item = make_evaluation(run_id=run_id, epoch=epoch, seed=epoch)
        writer.commit([stored(epoch, item, stream)], now=2.0)


def counts(path: Path) -> dict[str, int]:
    tables = ("run", "layer", "window", "reading", "reason", "class_label", "class_reading", "array", "gap")
    with closing(sqlite3.connect(path)) as connection:
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_name_tags_and_note_stay_when_the_training_resumes(path: Path, writer: Writer) -> None:
    fill(writer, "r", STREAM, 1)
    with Editor.open(path) as editor:
        editor.rename("r", " best ")
        assert editor.tag("r", add=["good", "sweep"]) == ("sweep", "good")
        assert editor.tag("r", remove=["sweep"]) == ("good",)
        editor.set_note("r", "line\nline")
    writer.put_run(make_run(run_id="r", name="digits", tags=("sweep",), config={"lr": 7}), b"t" * 16, now=3.0)
    with Store.open(path) as store:
        run = store.run("best").run
    assert (run.name, run.tags, run.note, run.config) == ("best", ("good",), "line\nline", {"lr": 7})


def test_what_the_user_did_not_give_is_the_trainers(path: Path, writer: Writer) -> None:
    fill(writer, "r", STREAM, 1)
    with Editor.open(path) as editor:
        editor.set_note("r", "n")
    writer.put_run(make_run(run_id="r", name="other", tags=("b",)), b"t" * 16, now=3.0)
    with Store.open(path) as store:
        run = store.run("r").run
    assert (run.name, run.tags, run.note) == ("other", ("b",), "n")


def test_every_change_increments_the_revision(path: Path, writer: Writer) -> None:
    fill(writer, "r", STREAM, 3)
    with Editor.open(path) as editor:
        for change in (
            lambda: editor.rename("r", "x"),
            lambda: editor.tag("r", add=["y"]),
            lambda: editor.set_note("r", "z"),
            lambda: editor.thin("r", 2),
            lambda: editor.delete("r"),
        ):
            before = writer.revision
            change()
            assert writer.revision > before


def test_delete_takes_everything_of_the_run_and_nothing_else(path: Path, writer: Writer) -> None:
    fill(writer, "keep", STREAM, 4)
    alone = counts(path)
    fill(writer, "gone", b"t" * 16, 60, name="other")
    with Editor.open(path) as editor:
        assert editor.delete("gone") == 60
        assert editor.compact() > 0
        assert editor.compact() == 0
    assert counts(path) == alone
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    # Its trainer's messages stay known: the next one is the sixtieth, an earlier one is a duplicate.
    assert writer.stream_next(b"t" * 16) == 60
    writer.commit([stored(59, make_evaluation(run_id="gone", epoch=59), b"t" * 16)], now=3.0)
    assert counts(path) == alone


def test_delete_takes_what_refers_to_the_run_in_tables_of_other_versions(path: Path, writer: Writer) -> None:
    fill(writer, "keep", STREAM, 2)
    fill(writer, "gone", b"t" * 16, 2, name="other")
    with closing(sqlite3.connect(path)) as connection:
        for parent in ("run", "layer", "window"):
            connection.execute(f"CREATE TABLE of_{parent} (a INTEGER REFERENCES {parent} ON DELETE CASCADE)")
            connection.execute(f"INSERT INTO of_{parent} SELECT {parent}_key FROM {parent}")
        connection.commit()
    with Editor.open(path) as editor:
        editor.delete("gone")
        assert editor._connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for parent in ("run", "layer", "window"):
            kept = connection.execute(f"SELECT count(*) FROM {parent}").fetchone()
            assert connection.execute(f"SELECT count(*) FROM of_{parent}").fetchone() == kept


def test_a_run_that_is_deleted_under_its_trainer_begins_anew(path: Path, writer: Writer) -> None:
    fill(writer, "r", STREAM, 3)
    with Editor.open(path) as editor:
        editor.delete("r")
    writer.commit([stored(3, make_evaluation(run_id="r", epoch=3), STREAM)], now=3.0)
    with Store.open(path) as store:
        assert store.run("r").history("nc1_pinv").epoch.tolist() == [3]


def test_thin_keeps_first_every_nth_and_last(path: Path, writer: Writer) -> None:
    fill(writer, "r", STREAM, 12)
    for place in range(3):
        window = make_window(run_id="r", epoch=place, exact=True)
        writer.commit([stored(12 + place, make_evaluation(window))], now=2.0)
    with Editor.open(path) as editor:
        assert editor.thin("r", 5) == 8 + 1
        with pytest.raises(UsageError, match="every 2nd"):
            editor.thin("r", 1)
    with Store.open(path) as store:
        history = store.run("r").history("nc1_pinv")
    assert history.epoch[~history.exact].tolist() == [0, 5, 10, 11]
    assert history.epoch[history.exact].tolist() == [0, 2]


def test_dropping_arrays_keeps_every_number_and_the_last_matrix(path: Path, writer: Writer) -> None:
    fill(writer, "r", STREAM, KEPT_EPOCHS + 15)
    with Store.open(path) as store:
        run = store.run("r")
        before = (run.history("nc1_pinv").value, run.classes("cert_intra").values, run.matrix("inter_cos"))
        with Editor.open(path) as editor:
            assert editor.drop_arrays("r") > 5
            assert editor.drop_arrays("r") == 0
        after = (run.history("nc1_pinv").value, run.classes("cert_intra").values, run.matrix("inter_cos"))
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)
        with pytest.raises(NotFound, match="keeps no inter_cos"):
            run.matrix("inter_cos", step=100 * (KEPT_EPOCHS + 13))


def test_editing_beside_a_writer_loses_nothing_of_either(path: Path) -> None:
    """Two runs are written, window by window, while a third is deleted and the two are renamed and tagged."""
    epochs, failures = 40, []
    ready = threading.Event()

    def write() -> None:
        try:
            with Writer.open(path) as writer:
                fill(writer, "gone", b"g" * 16, 30)
                for number in range(2):
                    writer.put_run(make_run(run_id=f"r{number}"), bytes([number]) * 16, now=1.0)
                ready.set()
                for epoch in range(epochs):
                    for number in range(2):
                        item = make_evaluation(run_id=f"r{number}", epoch=epoch, seed=epoch)
                        writer.commit([stored(epoch, item, bytes([number]) * 16)], now=2.0)
        except Exception as error:
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert ready.wait(60)
    edits = 0
    with Editor.open(path) as editor:
        editor.delete("gone")
        editor.compact()
        while thread.is_alive():
            editor.tag(f"r{edits % 2}", add=[f"t{edits}"])
            editor.set_note(f"r{edits % 2}", str(edits))
            edits += 1
            time.sleep(0.01)
    thread.join()
    assert failures == []
    assert edits > 3
    with Store.open(path) as store:
        assert {run.run_id for run in store.runs()} == {"r0", "r1"}
        for number in range(2):
            run = store.run(f"r{number}")
            assert run.history("nc1_pinv").epoch.tolist() == list(range(epochs))
            assert list(run.run.tags) == [f"t{edit}" for edit in range(number, edits, 2)]


@pytest.mark.parametrize(("call", "says"), [("rename", "cannot be a name"), ("tag", "cannot be a tag")])
@pytest.mark.parametrize("text", ["", "  ", "a\nb", "\x1b[2J", "x" * 500])
def test_a_name_is_one_line(path: Path, writer: Writer, call: str, says: str, text: str) -> None:
    fill(writer, "r", STREAM, 1)
    with Editor.open(path) as editor, pytest.raises(UsageError, match=says):
        if call == "tag":
            editor.tag("r", add=[text])
        else:
            editor.rename("r", text)


def test_what_is_not_there_is_one_line(path: Path, writer: Writer, tmp_path: Path) -> None:
    with Editor.open(path) as editor:
        for change in (
            lambda: editor.rename("nosuch", "x"),
            lambda: editor.tag("nosuch", add=["x"]),
            lambda: editor.delete("nosuch"),
        ):
            with pytest.raises(NotFound, match="no longer"):
                change()
        fill(writer, "r", STREAM, 1)
        with pytest.raises(NotFound, match="has no tag 'x'"):
            editor.tag("r", remove=["x"])
    with pytest.raises(StoreError, match="no such database"):
        Editor.open(tmp_path / "nosuch.db")
    assert not (tmp_path / "nosuch.db").exists()


def test_a_lock_that_is_not_let_go_is_one_line(path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(writer, "r", STREAM, 1)
    with Editor.open(path) as editor, closing(sqlite3.connect(path, isolation_level=None)) as other:
        editor._connection.execute("PRAGMA busy_timeout = 50")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="has been writing"):
            editor.rename("r", "x")
        other.execute("ROLLBACK")
        editor.rename("r", "x")
