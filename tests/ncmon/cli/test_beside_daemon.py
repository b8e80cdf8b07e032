"""Runs are edited, merged and exported under a real daemon while a training sends: nothing of it is lost."""

from __future__ import annotations

import collections
import json
import signal
import subprocess
import sys

import pytest

import ncmon
from ncmon.errors import NotFound
from ncmon.store.merge import merge
from ncmon.store.queries import Store
from tests.end_to_end.conftest import site as site  # A fixture.
from tests.end_to_end.site import Site, wait_for
from tests.ncmon.made import make_store

pytestmark = [pytest.mark.sockets, pytest.mark.training, pytest.mark.timeout(180)]

WINDOWS = 60


def test_editing_under_a_daemon_loses_nothing(site: Site) -> None:
    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ncmon.cli", *arguments, "--db", str(site.database)],
            capture_output=True,
            text=True,
            env=site.environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def windows() -> int:
        try:
            with Store.open(site.database) as store:
                return store.run("kill").windows()
        except NotFound:
            return 0

    other = make_store(site.path / "other.db", epochs=6)
    daemon = site.daemon()
    merge(other, site.database)
    options = ("--windows", str(WINDOWS), "--pause", "0.4", "--endpoint", site.endpoint)
    trainer = site.trainer("--weights", str(site.path / "w.pt"), *options)
    wait_for(lambda: windows() > 0, "the first window", deadline_s=60)
    run_id = json.loads(command("runs", "--name", "kill", "--format", "jsonl"))["run_id"]
    command("rename", run_id, "mine")
    command("tag", run_id, "watched")
    command("note", run_id, "while it trains")
    command("delete", "run0", "--yes")
    command("prune", "run1", "--thin", "2", "--yes")
    command("merge", str(other))
    command("export", run_id, "-o", str(site.path / "part.jsonl"))
    assert trainer.poll() is None, "training ended before all was edited"
    assert trainer.wait(timeout=90) == 0, site.read("trainer.err")
    with ncmon.open(site.database) as store:
        run = store.run(run_id)
        assert (run.name, run.run.note, run.run.status) == ("mine", "while it trains", "finished")
        assert "watched" in run.run.tags
        assert {one.run_id for one in store} == {run_id, "run1", "run2"}
        counts = collections.Counter(
            (split, step) for split in run.splits for step in run.window_columns(split).step.tolist()
        )
        assert run.gaps() == ()
        assert store.rejected() == ()
    train = [("train", 8 * (epoch + 1)) for epoch in range(WINDOWS)]
    test = [("test", 8 * (epoch + 1)) for epoch in range(1, WINDOWS, 2)]
    assert counts == collections.Counter([*train, *test])
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=10) == 0
