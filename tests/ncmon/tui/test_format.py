"""Numbers, ages and names as text."""

from __future__ import annotations

import pytest

from ncmon.tui.format import age, ago, fit, moment, number, percent, printable, tick


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
        (0.0, "0"),
        (0.91234, "0.9123"),
        (-0.1111, "-0.1111"),
        (12.3456, "12.35"),
        (123.456, "123.5"),
        (12345.6, "12346"),
        (0.00123, "1.2e-3"),
        (-4.2e-9, "-4.2e-9"),
        (3.14e12, "3.1e12"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text
    assert len(number(value)) <= 8


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100"), (0.99999, "99.9"), (0.9778, "97.7"), (0.0, "0.0"), (None, "-")]
)
def test_a_share_is_100_only_when_it_is_all(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (42, "42 s"), (119, "119 s"), (180, "3 m"), (3_600, "1 h"), (200_000, "2 d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "less than a minute ago"),
        (59.9, "less than a minute ago"),
        (60, "1 m ago"),
        (3_599, "59 m ago"),
        (3_600, "1 h ago"),
        (86_399, "23 h ago"),
        (200_000, "2 d ago"),
    ],
)
def test_what_is_said_to_be_some_time_ago_is_no_less(seconds: float, text: str) -> None:
    assert ago(seconds) == text


def test_times_of_another_day_have_their_date() -> None:
    noon = 1_800_014_400.0  # 2027-01-15, 12:00 UTC
    assert moment(noon, noon + 3_600) == "12:00:00"
    assert moment(noon, noon + 86_400) == "15 Jan 12:00:00"


def test_ticks() -> None:
    assert tick(0.001, log=True) == "1e-3"
    assert tick(0.05, log=True) == "5e-2"
    assert tick(0.5) == "0.5"
    assert tick(0) == "0"
    assert tick(1500, digits=6) == "1500"


def test_a_text_is_cut_with_a_mark_and_filled_up() -> None:
    assert fit("abcdef", 4) == "abc…"
    assert fit("ab", 4) == "ab  "
    assert fit("ab", 0) == ""


def test_control_characters_do_not_reach_a_terminal() -> None:
    hostile = "a\x1b[2J\x07\u202eb\r\n"
    shown = printable(hostile)
    assert shown.isprintable() or "�" in shown
    assert not any(ord(c) < 32 or c in "\x7f\u202e" for c in shown)
