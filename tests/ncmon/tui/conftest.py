"""One store for all tests of screens: it is only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ncmon.tui.stage import make_store


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("tui") / "runs.db")


@pytest.fixture(autouse=True)
def _local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
