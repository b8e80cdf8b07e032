"""Memory that is lent: to one holder at a time, and to the next one only when all have let go."""

from __future__ import annotations

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


def test_two_threads_never_hold_the_same_pad() -> None:
    lender, wrong = Pads(), []

    def work(mark: float) -> None:
        for _ in range(2_000):
            pad = take(lender, 4, 16)
            pad.tensor.fill_(mark)
            if not bool((pad.tensor == mark).all()):
                wrong.append(mark)
            pad.drop()

    threads = [threading.Thread(target=work, args=(float(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
