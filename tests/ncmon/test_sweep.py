"""What a dead process left is delivered by the daemon of its machine, and everything else is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncmon.sweep import Sweep
from ncmon_client import spool
from tests.client.test_sender import place, running, wait_for
from tests.client.test_spool import label, packed, written
from tests.messages import make_info

__all__ = ("place",)  # the fixture

pytestmark = pytest.mark.sockets


def left(place: Path, number: int, *, run_id: str = "run", endpoint: str | None = None) -> Path:
    return written(
        place / "spool",
        3,
        stream=bytes([number] * 16),
        endpoint=endpoint or f"ipc://{place}/s",
        run=make_info(run_id=run_id),
    )


def test_a_file_is_delivered_and_others_are_left_alone(place: Path) -> None:
    mine = left(place, 1)
    another_daemons = left(place, 2, endpoint="ipc:///nowhere/s")
    of_a_run_that_is_connected = left(place, 3, run_id="busy")
    broken = place / "spool" / f"x{spool.SUFFIX}"
    broken.write_bytes(b"noise")
    living = spool.SpoolFile.create(label(endpoint=f"ipc://{place}/s"), place=place / "spool")
    living.append(0, packed(0))
    with running(place) as daemon:
        sweep = Sweep([f"ipc://{place}/s"], connected=lambda: frozenset({"busy"}), place=place / "spool")
        assert sweep.once() == 3
        assert sweep.once() == 0
        assert daemon.messages() == [0, 1, 2]
    assert not mine.exists()
    kept = {path.name for path in (place / "spool").iterdir()}
    assert kept == {
        another_daemons.name,
        of_a_run_that_is_connected.name,
        living.path.name,
        broken.name + spool.CORRUPT,
    }
    living.close()


def test_the_thread_comes_and_goes(place: Path) -> None:
    path = left(place, 1)
    with (
        running(place) as daemon,
        Sweep([f"ipc://{place}/s"], connected=frozenset, place=place / "spool", first_s=0.05, every_s=0.05) as sweep,
    ):
        wait_for(lambda: not path.exists(), "the first file")
        again = left(place, 2)
        wait_for(lambda: not again.exists(), "the second file")
        assert len(daemon.messages()) == 6
    assert not sweep._thread.is_alive()
