"""A real training process, a real daemon process, and what happens to them."""

from __future__ import annotations

import collections
import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

import ncmon
from tests.end_to_end.site import Site, wait_for

pytestmark = [pytest.mark.sockets, pytest.mark.training, pytest.mark.timeout(180)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path)


def last_json(text: str) -> dict[str, float]:
    return json.loads(text.strip().splitlines()[-1])


def stored(site: Site) -> collections.Counter[tuple[str, int]]:
    with ncmon.open(site.database) as store:
        rows = store.sql("SELECT split, step FROM window", max_rows=100_000, timeout_s=10).rows
    return collections.Counter((str(split), int(step)) for split, step in rows)


def test_a_daemon_killed_three_times_loses_and_doubles_nothing(site: Site) -> None:
    """SIGKILL in the middle of a run, three times; and the weights are those of a run without ncmon, bit for bit."""
    windows = 80
    plain = site.trainer("--weights", str(site.path / "plain.pt"), "--windows", str(windows), log="plain")
    daemon = site.daemon()
    trainer = site.trainer(
        "--weights",
        str(site.path / "watched.pt"),
        "--windows",
        str(windows),
        "--pause",
        "0.1",
        "--endpoint",
        site.endpoint,
    )
    for already in (10, 40, 70):
        wait_for(
            lambda already=already: sum(stored(site).values()) >= already,
            f"{already} windows in the store",
            deadline_s=60,
        )
        assert trainer.poll() is None, "training ended before the daemon could be killed"
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        time.sleep(0.5)
        daemon = site.daemon()
    assert trainer.wait(timeout=90) == 0, site.read("trainer.err")
    assert plain.wait(timeout=60) == 0, site.read("plain.err")

    report = last_json(site.read("trainer.out"))
    expected = collections.Counter(
        [("train", 8 * (epoch + 1)) for epoch in range(windows)]
        + [("test", 8 * (epoch + 1)) for epoch in range(1, windows, 2)]
    )
    # One more message than windows: the run's END. Where the last daemon took longer to begin than training to end, the
    # rest is in the spool, and the daemon fetches it.
    assert report["accepted"] == sum(expected.values()) + 1
    assert report["refused"] == 0
    wait_for(lambda: sum(stored(site).values()) >= sum(expected.values()), "all windows", deadline_s=60)
    site.settle()
    assert stored(site) == expected

    def finished() -> bool:
        with ncmon.open(site.database) as store:
            return store.run("latest").run.status == "finished"

    wait_for(finished, "the run's end", deadline_s=30)
    with closing(sqlite3.connect(site.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    with_ncmon, without = weights(site.path / "watched.pt"), weights(site.path / "plain.pt")
    assert with_ncmon.keys() == without.keys()
    assert all(torch.equal(with_ncmon[name], without[name]) for name in without)

    daemon.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert daemon.wait(timeout=10) == 0
    assert time.monotonic() - started < 2.0


def test_without_a_daemon_training_runs_as_usual_and_says_so_once(site: Site) -> None:
    trainer = site.trainer(
        "--weights",
        str(site.path / "w.pt"),
        "--windows",
        "30",
        "--pause",
        "0.1",
        "--endpoint",
        f"ipc://{site.path}/nobody",
    )
    assert trainer.wait(timeout=60) == 0, site.read("trainer.err")
    ended = time.time()
    lines = site.read("trainer.err").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("WARNING")
    assert str(site.path) in lines[0]
    trained = json.loads(site.read("trainer.out").splitlines()[0])["trained"]
    plain = site.trainer("--weights", str(site.path / "plain.pt"), "--windows", "30", log="plain")
    assert plain.wait(timeout=60) == 0
    # From the last training step to the end of the process, beside the same without ncmon: an interpreter with torch
    # in it takes its time to end, on a busy machine the more.
    alone = time.time() - json.loads(site.read("plain.out").splitlines()[0])["trained"]
    assert ended - trained < alone + 1.0
    with_ncmon, without = weights(site.path / "w.pt"), weights(site.path / "plain.pt")
    assert all(torch.equal(with_ncmon[name], without[name]) for name in without)
