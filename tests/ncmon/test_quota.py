"""The quota: room for the next transaction before it comes, and no more work at a time than trainings can wait for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ncmon.quota import RECEIVE_BYTES, RESERVE_BYTES, Quota
from ncmon.reception import Complaints
from ncmon.store.trim import Trimmed
from ncmon.store.writer import Writer
from tests.ncmon.store.test_trim import fill


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """A writer whose every slice takes a second and frees ten bytes."""

    def __init__(self, clock: Clock, nbytes: int, *, stuck: bool = False) -> None:
        self.clock, self.nbytes, self.stuck, self.asked = clock, nbytes, stuck, []

    def trim(self, max_bytes: int) -> Trimmed:
        self.clock.now += 1.0
        self.asked.append(max_bytes)
        if self.stuck or self.nbytes <= max_bytes:
            return Trimmed()
        self.nbytes -= 10
        return Trimmed(windows=1)


def make(max_bytes: int, writer: object, clock: Clock | None = None) -> Quota:
    clock = clock or Clock()
    complaints = Complaints(logging.getLogger("test.quota"), clock)
    return Quota(max_bytes, writer=writer, complaints=complaints, database=Path("r.db"), monotonic=clock)


@pytest.mark.parametrize("limit", [2**20, 2 * 2**20, 100 * 2**20, 20 * 2**30])
def test_a_transaction_fits_into_what_is_kept_free(limit: int) -> None:
    quota = make(limit, Slow(Clock(), 0))
    kept = min(limit // 6, RESERVE_BYTES)
    # What is received at once, and results of the inbox at the 8 kB that a window of a small run takes.
    assert quota.receive_bytes + min(quota.results, 64) * 8192 <= kept
    assert quota.receive_bytes <= RECEIVE_BYTES
    assert quota.inbox_bytes <= limit // 4


def test_a_real_file_is_brought_below_and_leaves_room(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with Writer.open(path) as writer:
        fill(writer, 300)
        limit = writer.nbytes
        quota = make(limit, writer)
        for _ in range(20):
            quota.keep()
        writer.fold_journal()
        before = path.stat().st_size
        assert before <= limit - limit // 6
        quota.keep()
        writer.fold_journal()
        assert path.stat().st_size == before


def test_trainings_wait_for_a_slice_and_not_for_all_of_it() -> None:
    clock = Clock()
    writer = Slow(clock, 950)
    make(1000, writer, clock).keep()
    assert len(writer.asked) == 1


def test_room_is_kept_for_as_much_as_one_transaction_was_seen_to_take() -> None:
    writer = Slow(Clock(), 600)
    quota = make(1000, writer)
    quota.keep()
    assert not writer.asked
    writer.nbytes += 240  # more than a sixth
    for _ in range(40):
        quota.keep()
    assert writer.nbytes + 240 <= 1000
    kept = writer.nbytes
    # Forgotten again, where nothing of that size comes any more.
    for _ in range(400):
        quota.keep()
    writer.nbytes = kept + 150
    writer.asked.clear()
    quota.keep()
    assert not writer.asked


def test_where_the_limit_is_passed_they_do_wait_for_a_while() -> None:
    clock = Clock()
    writer = Slow(clock, 1020)
    make(1000, writer, clock).keep()
    assert writer.nbytes <= 1000
    clock.now, writer.nbytes, writer.asked = 0.0, 10_000, []
    make(1000, writer, clock).keep()
    assert len(writer.asked) == 5


def test_a_file_of_which_nothing_may_go_is_told(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    make(2 * 2**20, Slow(clock, 3 * 2**20, stuck=True), clock).keep()
    assert "r.db cannot be kept below 2 MB: ncmon prune" in caplog.text
