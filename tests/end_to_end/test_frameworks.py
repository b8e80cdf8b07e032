"""A real framework, a real daemon, a real database: what the script shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.sockets
@pytest.mark.training
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("package", "which"), [("lightning", "lightning"), ("transformers", "transformers")])
def test_a_frameworks_run_is_stored_with_exact_counts(package: str, which: str) -> None:
    pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "frameworks"), "--only", which, "--epochs", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=230,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert f"{which}: 2 epochs of 6 batches and 120 samples" in done.stdout
    assert "finished" in done.stdout
