"""What starting the terminal UI brings into memory, and what the collector of cycles is spared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.ncmon.tui.stage import make_store


def said(code: str, *arguments: str) -> list[object]:
    """Return what a fresh interpreter prints: this one has loaded everything already."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return list(json.loads(done.stdout))


def test_a_viewer_of_a_database_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    path = make_store(tmp_path / "runs.db", epochs=2, others=False)
    code = """
import json, sys
import ncmon.tui.app
from ncmon.feed import Selection, open_feed
with open_feed(sys.argv[1]) as feed:
    assert len(feed.read(Selection(view="layers")).runs) == 1
heavy = ("pandas", "pyarrow", "sqlite_utils", "torch", "zmq", "matplotlib", "prometheus_client", "aiohttp", "scipy")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    assert said(code, str(path)) == []


def test_what_is_there_when_the_screen_is_up_is_set_aside() -> None:
    code = """
import gc, json
from ncmon.tui import garbage
garbage.wait()
waiting = gc.isenabled()
import textual.app
garbage.begin()
class Cycle:
    pass
made = Cycle()
made.itself = made
del made
print(json.dumps([waiting, gc.isenabled(), gc.get_freeze_count() > 20_000, gc.collect() > 0]))
"""
    assert said(code) == [False, True, True, True]
