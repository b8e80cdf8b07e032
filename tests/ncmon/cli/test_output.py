"""Tables: names that are too long keep both ends, in as much room as the line has."""

from __future__ import annotations

import pytest

from ncmon.cli.output import PLAIN_WIDTH, Column, Listing, middle, table


@pytest.mark.parametrize(
    ("most", "shown"), [(20, "sweep-wide-1e-3"), (15, "sweep-wide-1e-3"), (9, "swee…1e-3"), (8, "swe…1e-3"), (2, "…3")]
)
def test_the_middle_goes(most: int, shown: str) -> None:
    assert middle("sweep-wide-1e-3", most) == shown
    assert len(shown) <= most


def _names(filler: int) -> list[str]:
    columns = (Column(key="n", heading="NAME", clip=10, grow=True), Column(key="v", heading="VALUE"))
    rows = [(f"{'long-name-' * 4}{end}", "x" * filler) for end in ("one", "two")]
    text = table(Listing(columns=columns, rows=rows)).splitlines()
    assert all(len(line) <= PLAIN_WIDTH for line in text)
    return [line.split()[0] for line in text[1:]]


def test_a_name_takes_the_room_that_is_left_and_no_less_than_its_own() -> None:
    assert _names(20) == ["long-name-" * 4 + "one", "long-name-" * 4 + "two"]
    narrow = _names(60)
    assert [len(name) for name in narrow] == [18, 18]
    assert [name[-3:] for name in narrow] == ["one", "two"]
    assert [len(name) for name in _names(68)] == [10, 10]
