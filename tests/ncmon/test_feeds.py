"""Several targets in one snapshot: real daemons on a socket and on tcp beside a file, and what each of them does."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ncmon.config import view_endpoint
from ncmon.feed import Feed, Selection, Snapshot, SourceState, open_feed
from ncmon.feeds import Feeds, labels, open_feeds
from ncmon.transport import status
from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.factories import make_window
from tests.messages import Prepared, make_info, to_wire
from tests.ncmon.tui.stage import make_store
from tests.ports import free_ports


def wait_for(condition: Callable[[], object], what: str, *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.02)


class Place:
    """Daemons as processes, each with a database and an endpoint of its own, and keys for the one on tcp."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "NCMON_KEYS": str(path / "keys"), "XDG_CONFIG_HOME": str(path / "none")}

    def ncmon(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ncmon.cli", *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60, env=self.environment)

    def daemon(self, name: str, *listen: str) -> str:
        """Start a daemon (again) and wait until it is ready; return the socket that trainings of this machine use."""
        local = f"ipc://{self.path}/{name}.sock"
        log = self.path / f"{name}.log"
        log.unlink(missing_ok=True)
        ends = [part for end in (local, *listen) for part in ("--listen", end)]
        with open(log, "ab") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "ncmon.cli", "serve", "--headless", "--db", f"{self.path}/{name}.db", *ends],
                stdout=file,
                stderr=file,
                env=self.environment,
            )
        self.children[name] = child
        wait_for(lambda: child.poll() is not None or "ready endpoint=" in log.read_text(), "the daemon")
        assert child.poll() is None, log.read_text()
        return local

    def kill(self, name: str) -> None:
        self.children[name].kill()
        self.children[name].wait()


@pytest.fixture
def place() -> Iterator[Place]:
    path = Path(tempfile.mkdtemp(prefix="nc"))
    made = Place(path)
    try:
        yield made
    finally:
        for child in made.children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.kill()
            child.wait()
        shutil.rmtree(path, ignore_errors=True)


def deliver(endpoint: str, steps: range, *, run_id: str, name: str, started: float = 1_800_000_000.0) -> None:
    """Send windows as a training would, and wait until they can be read."""
    outbox = Outbox()
    run = make_info(run_id=run_id, name=name, started=started)
    sender = Sender(endpoint=endpoint, run=run, outbox=outbox, log=logging.getLogger("t"))
    for step in steps:
        made = make_window(layers=1, n_features=6, per_class=4, step=step, epoch=step)
        meta, blob = to_wire(dataclasses.replace(made, run_id=run_id))
        assert outbox.offer(Prepared(meta, blob), len(blob))
        sender.start()
        sender.wake()
    assert sender.close(30.0), sender.status()

    def waiting() -> int:
        found = status(view_endpoint(endpoint), timeout_s=1.0)
        return 1 if found is None else found["counters"]["waiting"]

    wait_for(lambda: waiting() == 0, "everything to be evaluated")


def state_of(snapshot: Snapshot, label: str) -> SourceState:
    return next(source.state for source in snapshot.sources if source.label == label)


@pytest.mark.sockets
def test_two_daemons_and_a_file_in_one_snapshot(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One daemon on a socket, one over tcp with a key, one file; one run id in two of them."""
    tcp = f"tcp://127.0.0.3:{free_ports(3)}"
    place.ncmon("keys", "init")
    place.ncmon("keys", "new", "viewer", "--view", "--out", f"{place.path}/viewer.key")
    monkeypatch.setenv("NCMON_KEY", f"{place.path}/viewer.key")
    first = place.daemon("first")
    second = place.daemon("second", tcp)
    deliver(first, range(3), run_id="same", name="here", started=1_800_000_001.0)
    deliver(second, range(5), run_id="same", name="there", started=1_800_000_002.0)
    file = make_store(place.path / "old.db", epochs=4, others=False)

    feeds = open_feeds([first, tcp, str(file)])
    assert isinstance(feeds, Feeds)
    try:
        assert feeds.labels == ("first", "127.0.0.3", "old")

        def read(**fields: object) -> Snapshot:
            return feeds.read(Selection(**fields))  # type: ignore[arg-type]

        wait_for(lambda: len(read().runs) == 3, "the runs of all three")
        snapshot = read()
        names = {summary.run.run_id: summary.run.name for summary in snapshot.runs}
        assert names["same@first"] == "here"
        assert names["same@127.0.0.3"] == "there"
        assert {name.rpartition("@")[2] for name in names} == {"first", "127.0.0.3", "old"}
        assert state_of(snapshot, "first") is SourceState.LIVE
        assert state_of(snapshot, "127.0.0.3") is SourceState.LIVE
        assert state_of(snapshot, "old") is SourceState.REPLAY

        # The same id twice: each is shown with what its own daemon stored.
        for run_id, windows in (("same@first", 3), ("same@127.0.0.3", 5)):
            snapshot = read(run_id=run_id)
            wait_for(lambda run_id=run_id: read(run_id=run_id).selection.run_id == run_id, "the run")
            snapshot = read(run_id=run_id)
            assert snapshot.detail is not None
            assert snapshot.detail.run.run_id == run_id
            assert snapshot.detail.series["train"]["intra_cos_min"].step.tolist() == list(range(windows))
        marked = ("run0@old", "same@127.0.0.3", "same@first")
        asked: dict[str, object] = {"view": "compare", "marked": marked, "run_id": "same@first"}
        wait_for(lambda: len(read(**asked).compared) == 3, "the comparison")
        assert [one.run.run_id for one in read(**asked).compared] == list(marked)
        assert read(**asked).compared[1].run.name == "there @127.0.0.3"

        # What does not change is the same version; what comes is a new one.
        before = read(run_id="same@first")
        assert read(run_id="same@first").version == before.version
        deliver(first, range(10, 11), run_id="late", name="late", started=1_800_000_009.0)
        wait_for(lambda: "late@first" in {s.run.run_id for s in read(run_id="same@first").runs}, "the new run")
        assert read(run_id="same@first").version > before.version
        wait_for(lambda: read().selection.run_id is None and read().detail is not None, "the newest of all")

        # A daemon that is stopped dead is DOWN at once with what it has stored, and LIVE again when it is back.
        place.kill("first")
        wait_for(lambda: state_of(read(run_id="same@127.0.0.3"), "first") is SourceState.DOWN, "DOWN")
        assert state_of(read(run_id="same@127.0.0.3"), "127.0.0.3") is SourceState.LIVE
        place.daemon("first")
        wait_for(lambda: state_of(read(run_id="same@127.0.0.3"), "first") is SourceState.LIVE, "LIVE again")
        assert "same@first" in {s.run.run_id for s in read(run_id="same@127.0.0.3").runs}
    finally:
        feeds.close()


@pytest.mark.sockets
def test_one_daemon_has_any_number_of_viewers_and_they_find_it_again(place: Place) -> None:
    endpoint = place.daemon("d")
    deliver(endpoint, range(2), run_id="r", name="r")
    viewers = [open_feed(endpoint) for _ in range(24)]
    found: list[Snapshot] = []

    def look(feed: Feed) -> None:
        for _ in range(3):
            found.append(feed.read(Selection()))

    def look_all() -> None:
        threads = [threading.Thread(target=look, args=(feed,)) for feed in viewers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    look_all()
    assert len(found) == 72
    assert sum(snapshot.source is SourceState.LIVE for snapshot in found) > 48  # a busy machine may miss some
    assert {snapshot.runs[0].step for snapshot in found if snapshot.runs} == {1}
    place.kill("d")
    wait_for(lambda: viewers[0].read(Selection()).source is SourceState.DOWN, "DOWN")
    place.daemon("d")
    deliver(endpoint, range(2, 3), run_id="r", name="r")
    for feed in viewers:
        wait_for(lambda feed=feed: feed.read(Selection()).source is SourceState.LIVE, "LIVE again")
        assert feed.read(Selection()).runs[0].step == 2
        feed.close()


class Slow:
    """A target that does not answer until it is let go."""

    def __init__(self, path: Path, now: list[float]) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self._feed = Feed(endpoint=None, database=path, clock=lambda: now[0])

    def read(self, selection: Selection) -> Snapshot:
        self.gate.wait(30)
        return self._feed.read(selection)

    def close(self) -> None:
        self._feed.close()


def test_a_target_that_does_not_answer_is_stale_and_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    quick, slow = (Slow(make_store(tmp_path / f"{name}.db", epochs=2, others=False), now) for name in ("quick", "slow"))
    made = iter((quick, slow))
    monkeypatch.setattr("ncmon.feeds.open_feed", lambda target, clock: next(made))
    feeds = Feeds(["quick.db", "slow.db"], clock=lambda: now[0], patience_s=2.0)
    try:
        assert {state_of(feeds.read(Selection()), label) for label in ("quick", "slow")} == {SourceState.REPLAY}
        slow.gate.clear()
        feeds._patience_s = 0.05
        now[0] += 1
        feeds.read(Selection(run_id="run0@quick"))
        now[0] += 10
        begun = time.monotonic()
        snapshot = feeds.read(Selection(run_id="run0@quick"))
        assert time.monotonic() - begun < 1.5
        assert state_of(snapshot, "slow") is SourceState.STALE
        assert snapshot.sources[1].heard == 1_000.0
        assert len(snapshot.runs) == 2  # what it said last stays on view
        # A run of it that was not there before cannot be shown yet: the picture says what it is of.
        late = feeds.read(Selection(run_id="run0@slow"))
        assert late.selection.run_id != "run0@slow"
        slow.gate.set()
        wait_for(lambda: feeds.read(Selection(run_id="run0@slow")).selection.run_id == "run0@slow", "the slow one")
        assert state_of(feeds.read(Selection(run_id="run0@slow")), "slow") is SourceState.REPLAY
    finally:
        feeds.close()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["a.db", "b.db"], ["a", "b"]),
        (["/x/runs.db", "/y/runs.db"], ["x/runs.db", "y/runs.db"]),
        (["tcp://gpu07:7070", "tcp://gpu08:7070"], ["gpu07", "gpu08"]),
        (["tcp://gpu07:7070", "tcp://gpu07:8080"], ["gpu07:7070", "gpu07:8080"]),
        (["ipc:///run/a.sock", "a.db"], ["a.sock", "a.db"]),
        (["w@home.db", "b.db"], ["w_home", "b"]),
    ],
)
def test_labels_are_short_and_tell_targets_apart(targets: list[str], expected: list[str]) -> None:
    assert labels(targets) == expected


def test_labels_differ_whatever_the_targets_are() -> None:
    long = ["/" + "x" * 60 + f"/{n}/" + "y" * 60 + ".db" for n in range(3)]
    assert len(set(labels(long))) == 3


def test_a_target_given_twice_is_one(tmp_path: Path) -> None:
    path = str(make_store(tmp_path / "a.db", epochs=1, others=False))
    feed = open_feeds([path, path])
    assert isinstance(feed, Feed)
    feed.close()
