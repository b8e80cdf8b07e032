"""An empty store to write to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ncmon.store.writer import Writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with Writer.open(path) as opened:
        yield opened
