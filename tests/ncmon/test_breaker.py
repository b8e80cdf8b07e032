"""The breaker: when it trips, and that it does not trip again for what a cut cannot cure."""

from __future__ import annotations

import ctypes

from ncmon.breaker import LOOK_S, MARGIN_BYTES, Breaker
from ncmon.process import give_back_memory, resident_bytes

MB = 1024**2


class Memory:
    """Some is held, some only kept by the allocator."""

    def __init__(self) -> None:
        self.held = self.kept = 0

    def resident(self) -> int:
        return self.held + self.kept

    def give_back(self) -> None:
        self.kept = 0


def test_it_looks_every_now_and_then() -> None:
    looks = []
    breaker = Breaker(100, resident=lambda: looks.append(1) or 0, give_back=lambda: None)  # type: ignore[func-returns-value]
    for millisecond in range(1000):
        breaker.trips(millisecond / 1000)
    assert 0.8 / LOOK_S < len(looks) <= 1.0 / LOOK_S


def test_what_the_allocator_only_keeps_is_given_back_and_no_reason() -> None:
    memory = Memory()
    breaker = Breaker(400 * MB, resident=memory.resident, give_back=memory.give_back)
    memory.held, memory.kept = 100 * MB, 500 * MB
    assert breaker.trips(1.0) == 0
    assert memory.kept == 0


def test_the_limit_comes_down_with_what_is_let_go_of_after_a_cut() -> None:
    memory = Memory()
    breaker = Breaker(400 * MB, resident=memory.resident, give_back=memory.give_back)
    memory.held = 500 * MB
    assert breaker.trips(1.0) == 500 * MB
    # The library closes in the background: at this moment hardly anything has been given back.
    breaker.cut()
    memory.held = 450 * MB
    assert breaker.trips(2.0) == 0
    memory.held = 100 * MB
    assert breaker.trips(3.0) == 0
    memory.held = 401 * MB
    assert breaker.trips(4.0) == 401 * MB


def test_it_trips_again_for_a_second_flood_and_not_for_what_remains() -> None:
    memory = Memory()
    breaker = Breaker(400 * MB, resident=memory.resident, give_back=memory.give_back)
    memory.held = 500 * MB
    assert breaker.trips(1.0) == 500 * MB
    memory.held = 50 * MB
    breaker.cut()
    memory.held = 390 * MB
    assert breaker.trips(2.0) == 0
    memory.held = 401 * MB
    assert breaker.trips(3.0) == 401 * MB
    # Parts of several ranks, an evaluation: closing the socket does not make them less.
    breaker.cut()
    assert breaker.trips(4.0) == 0
    memory.held += MARGIN_BYTES + 101 * MB
    assert breaker.trips(5.0) > 0
    memory.held = 10 * MB
    breaker.cut()
    memory.held = 401 * MB
    assert breaker.trips(6.0) > 0


def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    """Chunks below the allocator's threshold for mappings of their own, with a live one behind each."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    chunks, live = [], []
    for _ in range(2000):
        chunks.append(libc.malloc(65536))
        ctypes.memset(chunks[-1], 1, 65536)
        live.append(libc.malloc(64))
    full = resident_bytes()
    for chunk in chunks:
        libc.free(chunk)
    give_back_memory()
    assert full - resident_bytes() > 100 * MB
    for one in live:
        libc.free(one)
