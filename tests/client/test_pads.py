"""Memory that is lent: to one holder at a time, and to the next one only when all have let go."""

from __future__ import annotations

import queue
import threading

import pytest
import torch

from ncmon_client import pads
from ncmon_client.pads import Pad, Pads

CPU = torch.device("cpu")


def take(lender: Pads, rows: int = 10, features: int = 64, dtype: torch.dtype = torch.float32) -> Pad:
    return lender.take(rows, features, dtype=dtype, device=CPU)


def test_a_pad_that_came_back_is_lent_again() -> None:
    lender = Pads()
    first = take(lender)
    where = first.tensor.data_ptr()
    first.drop()
    assert take(lender).tensor.data_ptr() == where


def test_what_is_held_is_lent_to_nobody_else() -> None:
    lender = Pads()
    first = take(lender)
    first.hold()
    first.drop()
    second = take(lender)
    assert second.tensor.data_ptr() != first.tensor.data_ptr()
    first.drop()
    assert take(lender).tensor.data_ptr() == first.tensor.data_ptr()


def test_a_pad_comes_back_once() -> None:
    lender = Pads()
    first = take(lender)
    first.drop()
    first.drop()
    assert take(lender).tensor.data_ptr() != take(lender).tensor.data_ptr()


def test_pads_have_the_shape_and_the_numbers_that_were_asked_for() -> None:
    lender = Pads()
    for rows, features in ((1, 1), (3, 5), (127, 511), (128, 512), (0, 7)):
        for dtype in (torch.float32, torch.float64):
            pad = take(lender, rows, features, dtype)
            assert (pad.tensor.shape, pad.tensor.dtype) == ((rows, features), dtype)
            pad.drop()


def test_batches_of_nearly_one_size_share_pads() -> None:
    lender = Pads()
    first = take(lender, 128, 512)
    first.drop()
    assert take(lender, 127, 512).tensor.data_ptr() == first.tensor.data_ptr()


def test_more_than_enough_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    lender = Pads()
    monkeypatch.setattr(pads, "MAX_BYTES", 3 * 10 * 64 * 4)
    lent = [take(lender) for _ in range(8)]
    for pad in lent:
        pad.drop()
    known = {pad.tensor.data_ptr() for pad in lent}
    del lent, pad
    again = [take(lender) for _ in range(8)]
    assert sum(pad.tensor.data_ptr() in known for pad in again[:3]) == 3
    assert [len(free) for free in lender._free.values()] == [0]


def test_batches_of_every_other_size_do_not_keep_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    lender = Pads()
    monkeypatch.setattr(pads, "MAX_BYTES", 45_000)
    for rows in (*range(1, 200, 7), 3, 150):
        first, second = take(lender, rows), take(lender, rows)
        first.drop()
        second.drop()
        take(lender, 1, 1).drop()
        assert sum(whole.nbytes for free in lender._free.values() for whole in free) <= 45_000
    # What was asked for last is what was kept: there is room for one, with what it is rounded up to.
    kept = [size for (size, _), free in lender._free.items() if free]
    assert max(kept) >= 150 * 64


def test_what_another_thread_gives_back_is_never_lent_twice() -> None:
    lender, wrong = Pads(), []
    used: queue.SimpleQueue[Pad | None] = queue.SimpleQueue()

    def give_back() -> None:
        while (pad := used.get()) is not None:
            pad.drop()

    thread = threading.Thread(target=give_back)
    thread.start()
    held: list[tuple[int, Pad]] = []
    for turn in range(3_000):
        pad = take(lender, 4 + turn % 3, 16)
        pad.tensor.fill_(turn)
        held.append((turn, pad))
        if len(held) > 5:
            mark, oldest = held.pop(0)
            if not bool((oldest.tensor == mark).all()):
                wrong.append(mark)
            used.put(oldest)
    used.put(None)
    thread.join()
    assert wrong == []
