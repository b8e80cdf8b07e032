"""The classes of a batch's samples: what counts, and what is kept of it."""

from __future__ import annotations

import pytest
import torch

from ncmon_client.rows import Rows, rows_of


@pytest.mark.parametrize(
    ("labels", "ignore_index", "rows"),
    [
        ([0, 1, 2], -100, [0, 1, 2]),
        ([0, -100, 2], -100, [0, 3, 2]),
        ([0, 3, 99], -100, [0, 3, 3]),
        ([-1, 2**40, 1], -100, [3, 3, 1]),
        ([0, 1, 2], 1, [0, 3, 2]),
        ([255, 0, 1], 255, [3, 0, 1]),
        ([], -100, []),
    ],
)
def test_what_has_no_class_goes_to_the_trash_row(labels: list[int], ignore_index: int, rows: list[int]) -> None:
    given = torch.tensor(labels, dtype=torch.int64)
    found = rows_of(given, 3, ignore_index)
    assert found.tolist() == rows
    # A loader that uses its memory again must not change what was added up.
    given.fill_(2)
    assert found.tolist() == rows


def test_samples_are_counted_and_sorted_by_row() -> None:
    rows = torch.randint(0, 71, (500,), generator=torch.Generator().manual_seed(0))
    batch = Rows(rows, 70)
    assert not batch.all_count
    assert batch.sizes.tolist() == torch.bincount(rows, minlength=71).tolist()
    listed = rows.tolist()
    assert batch.order.tolist() == sorted(range(500), key=lambda place: (listed[place], place))
    samples, begins = batch.bags(3)
    for bag, (start, end) in enumerate(zip(begins.tolist(), [*begins.tolist()[1:], len(samples)], strict=True)):
        layer, row = bag // 71 % 3, bag % 71
        wanted = [layer * 500 + place for place in range(500) if listed[place] == row]
        assert samples[start:end].tolist() == wanted
