"""A database with three runs to draw, opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ncmon.store.queries import Store
from tests.ncmon.tui.stage import make_store


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("plot") / "runs.db", epochs=12, hostile=True)


@pytest.fixture
def store(made: Path) -> Iterator[Store]:
    with Store.open(made) as opened:
        yield opened
