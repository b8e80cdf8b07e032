"""The benchmark of metrics and bounds runs and prints what it says it prints; its figures are for quiet machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_benchmark_prints_a_row_a_shape() -> None:
    command = [sys.executable, str(ROOT / "scripts/bench/metrics"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    head, row = done.stdout.splitlines()
    assert head.split()[:4] == ["C", "d", "all", "ms"]
    n_classes, width, *spent = row.split()[:5]
    assert (int(n_classes), int(width)) == (10, 512)
    whole, metrics, bounds = map(float, spent)
    assert 0 < metrics < whole * 3
    assert 0 < bounds < whole * 3
