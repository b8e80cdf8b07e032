"""A database with three runs, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.ncmon.tui.stage import make_store

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cli") / "runs.db", epochs=12, hostile=True)


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line on the database; nothing of the user's own is near."""
    from ncmon.cli import main

    monkeypatch.setenv("NCMON_DB", str(made))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NCMON_ENDPOINT", raising=False)
    runner = CliRunner()
    return lambda *arguments, **options: runner.invoke(main, list(arguments), prog_name="ncmon", **options)
