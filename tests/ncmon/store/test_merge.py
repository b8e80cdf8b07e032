"""Merging databases: nothing lost, nothing twice, nothing altered; once, again, in any order, beside a writer."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ncmon.errors import StoreError
from ncmon.model import Gap, RunEnd
from ncmon.store.edit import Editor
from ncmon.store.merge import merge
from ncmon.store.queries import Store
from ncmon.store.writer import Writer
from tests.factories import make_evaluation, make_run, make_window
from tests.ncmon.store.batches import stored

KEYS = {"run_key", "layer_key", "window_key", "stream_key", "gap_key", "received", "note", "last_seen"}


def write(path: Path, run_id: str, epochs: range, *, stream: bytes = b"s" * 16, first: int = 0, **run: Any) -> None:
    with Writer.open(path) as writer:
        writer.put_run(make_run(run_id=run_id, class_names=tuple("abcd"), **run), stream, now=float(epochs.stop))
        for seq, epoch in enumerate(epochs, start=first):
            item = make_evaluation(run_id=run_id, epoch=epoch, seed=epoch)
            writer.commit([stored(seq, item, stream)], now=float(epochs.stop))


def content(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything of a database but its keys, in an order that does not depend on them."""
    parts = {
        "run": "run t",
        "layer": "layer t JOIN run r USING (run_key)",
        "window": "window t JOIN run r USING (run_key)",
        "reading": "reading t JOIN window w USING (window_key) JOIN layer l USING (layer_key) JOIN run r ON"
        " r.run_key = w.run_key",
        "reason": "reason t JOIN window w USING (window_key) JOIN layer l USING (layer_key) JOIN run r ON"
        " r.run_key = w.run_key",
        "array": "array t JOIN window w USING (window_key) JOIN layer l USING (layer_key) JOIN run r ON"
        " r.run_key = w.run_key",
        "class_reading": "class_reading t JOIN window w USING (window_key) JOIN run r ON r.run_key = w.run_key",
        "class_label": "class_label t JOIN run r USING (run_key)",
        "gap": "gap t",
        "stream": "stream t",
        "origin": "origin t JOIN stream s USING (stream_key)",
        "definition": "definition t",
    }
    where = {"w": "w.split, w.step, w.exact", "l": "l.name", "r": "r.run_id", "s": "s.stream"}
    found = {}
    with closing(sqlite3.connect(path)) as connection:
        for table, joined in parts.items():
            names = [name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
            kept = ", ".join(f't."{name}"' for name in names if name not in KEYS and name != "first_seen")
            more = "".join(f", {text}" for letter, text in where.items() if f" {letter} " in joined + " ")
            rows = connection.execute(f"SELECT {kept}{more} FROM {joined}").fetchall()
            found[table] = sorted(rows, key=repr)
    return found


def test_a_merged_database_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    write(source, "one", range(14))
    write(source, "two", range(3), stream=b"t" * 16)
    with Writer.open(source) as writer:
        gap = Gap(run_id="one", split="train", epoch=14, step=1500, time=7.0, reason="refused")
        end = RunEnd(run_id="one", status="failed", text="nan", time=9.0)
        exact = make_evaluation(make_window(run_id="one", epoch=13, exact=True))
        writer.commit([stored(14, gap), stored(15, end), stored(16, exact)], now=3.0)
    assert [(one.outcome, one.added) for one in merge(source, target)] == [("new", 15), ("new", 3)]
    assert content(target) == content(source)
    with Store.open(source) as one, Store.open(target) as other:
        assert (
            one.run("one").history("nc1_pinv").value.tobytes() == other.run("one").history("nc1_pinv").value.tobytes()
        )
        assert one.run("one").matrix("inter_cos").tobytes() == other.run("one").matrix("inter_cos").tobytes()


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    write(source, "one", range(5))
    merge(source, target)
    before = content(target)
    assert [one.outcome for one in merge(source, target)] == ["known"]
    assert content(target) == before
    write(source, "one", range(5, 8), first=5)
    assert [(one.outcome, one.added, one.replaced) for one in merge(source, target)] == [("more", 3, 0)]
    assert content(target) == content(source)


def test_the_order_does_not_matter(tmp_path: Path) -> None:
    """A run that was begun on one node and resumed on another, two epochs back."""
    first, second = tmp_path / "a.db", tmp_path / "b.db"
    write(first, "one", range(6))
    with Writer.open(second) as writer:
        writer.put_run(make_run(run_id="one", class_names=tuple("abcd")), b"t" * 16, now=99.0)
        for seq, epoch in enumerate(range(4, 9)):
            window = make_window(run_id="one", epoch=epoch, seed=50 + epoch, time=1.9e9 + epoch)
            writer.commit([stored(seq, make_evaluation(window), b"t" * 16)], now=99.0)
    results = []
    for order in ([first, second], [second, first], [second, first, second, first]):
        target = tmp_path / f"{len(results)}.db"
        for source in order:
            merge(source, target)
        results.append(content(target))
    assert results[0] == results[1] == results[2]
    with Store.open(tmp_path / "0.db") as store, Store.open(second) as resumed:
        history = store.run("one").history("nc1_pinv")
        assert history.epoch.tolist() == list(range(9))
        assert history.value[4:].tolist() == resumed.run("one").history("nc1_pinv").value.tolist()


def test_what_the_user_said_here_stays_and_a_deleted_run_stays_away(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    write(source, "one", range(3))
    write(source, "two", range(3), stream=b"t" * 16)
    merge(source, target)
    with Editor.open(target) as editor:
        editor.rename("one", "best")
        editor.tag("one", add=["good"])
        editor.set_note("one", "mine")
        editor.delete("two")
    write(source, "one", range(3, 4), first=3)
    assert [one.outcome for one in merge(source, target)] == ["more", "deleted here"]
    with Store.open(target) as store:
        (run,) = store.runs()
        assert (run.name, run.run.tags, run.run.note) == ("best", ("good",), "mine")


def test_a_stream_is_never_promised_what_is_not_here(tmp_path: Path) -> None:
    """Its trainer still holds messages 2 and 3 for the target; the source has 4 and 5."""
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    write(target, "one", range(2))
    with Writer.open(source) as writer:
        writer.put_run(make_run(run_id="one"), b"s" * 16, now=1.0)
        for seq in (4, 5):
            writer.commit([stored(seq, make_evaluation(run_id="one", epoch=seq))], now=1.0)
    merge(source, target)
    with Writer.open(target) as writer:
        assert writer.stream_next(b"s" * 16) == 2
        for seq in (2, 3):
            writer.commit([stored(seq, make_evaluation(run_id="one", epoch=seq))], now=1.0)
    with Store.open(target) as store:
        assert store.run("one").history("nc1_pinv").epoch.tolist() == list(range(6))


def test_metrics_of_another_version_come_along(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    write(source, "one", range(2))
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE reading ADD COLUMN nc9_new REAL")
        connection.execute("UPDATE reading SET nc9_new = 0.1 + layer_key")
    merge(source, target)
    with Store.open(target) as store:
        assert store.run("one").history("nc9_new").value.tolist() == [3.1, 3.1]
        assert store.sql("SELECT count(*) FROM history WHERE metric = 'nc9_new'").rows == ((6,),)


def test_only_the_runs_that_were_asked_for(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    write(source, "one", range(2))
    write(source, "two", range(2), stream=b"t" * 16)
    assert [one.run_id for one in merge(source, target, runs=["two"])] == ["two"]
    with Store.open(target) as store:
        assert [run.run_id for run in store.runs()] == ["two"]


def test_a_merge_beside_two_writers_is_completed_by_the_next(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    write(source, "far", range(1))
    write(target, "near", range(1), stream=b"t" * 16)
    failures = []

    def go_on(path: Path, run_id: str, stream: bytes) -> None:
        try:
            write(path, run_id, range(1, 40), stream=stream, first=1)
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=go_on, args=(source, "far", b"s" * 16)),
        threading.Thread(target=go_on, args=(target, "near", b"t" * 16)),
    ]
    for thread in threads:
        thread.start()
    merges = 0
    while any(thread.is_alive() for thread in threads):
        merge(source, target)
        merges += 1
    for thread in threads:
        thread.join()
    merge(source, target)
    assert failures == []
    assert merges > 1
    with Store.open(target) as store:
        for run_id in ("far", "near"):
            assert store.run(run_id).history("nc1_pinv").epoch.tolist() == list(range(40))
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_what_cannot_be_merged_is_one_line(tmp_path: Path) -> None:
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    with pytest.raises(StoreError, match="no such database"):
        merge(source, target)
    assert not target.exists()
    write(source, "one", range(1))
    with pytest.raises(StoreError, match="into itself"):
        merge(source, source)
    target.write_text("something else entirely, long enough to be no database" * 40)
    with pytest.raises(StoreError, match="not an SQLite database"):
        merge(source, target)
    torn = tmp_path / "torn.db"
    torn.write_bytes(source.read_bytes()[:20_000])
    with pytest.raises(StoreError, match=r"damaged|not an SQLite"):
        merge(torn, tmp_path / "c.db")
