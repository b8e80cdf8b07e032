"""One store for all tests of screens: it is only read."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.ncmon.tui.stage import make_store


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make_store(tmp_path_factory.mktemp("tui") / "runs.db")
    # Workers share what the first of them makes.
    folder = tmp_path_factory.getbasetemp().parent
    path = folder / "tui.db"
    with (folder / "tui.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make_store(folder / "tui-part.db").rename(path)
    return path


@pytest.fixture(autouse=True)
def _local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
