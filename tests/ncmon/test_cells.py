"""Names in cells: whatever they hold, they take the room that there is and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ncmon.cells import fit, middle, printable, width

NAMES = (st.text(max_size=40) | st.text(alphabet="ab-数据\u0301\u200b\x1b\u202e", max_size=40)).map(
    lambda text: text.replace("…", "")
)


@given(text=NAMES, room=st.integers(0, 30))
def test_a_fitted_name_has_exactly_the_room(text: str, room: int) -> None:
    assert width(fit(text, room)) == room


@given(text=NAMES, room=st.integers(0, 30))
def test_what_is_too_long_loses_its_middle(text: str, room: int) -> None:
    shown, whole = middle(text, room), printable(text)
    assert width(shown) <= room
    if width(whole) <= room:
        assert shown == whole
    elif room >= 2:
        head, mark, tail = shown.partition("…")
        assert mark
        assert whole.startswith(head)
        assert whole.endswith(tail)
        # As much as fits: a wide letter on either side may be one cell too many.
        assert width(shown) >= room - 2


def test_runs_of_a_sweep_are_told_apart_by_the_ends_of_their_names() -> None:
    names = [f"resnet18-cifar100-long-warmup-wd{decay}" for decay in ("1e-4", "5e-4")]
    assert [middle(name, 17) for name in names] == ["resnet18…p-wd1e-4", "resnet18…p-wd5e-4"]
