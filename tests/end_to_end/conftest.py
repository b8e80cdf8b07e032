"""The place in which an end-to-end test runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.site import Site


@pytest.fixture
def site() -> Iterator[Site]:
    # Short on purpose: the path of a Unix socket has at most 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="nc"))
    here = Site(path)
    try:
        yield here
    finally:
        here.end()
        shutil.rmtree(path, ignore_errors=True)
