"""The page in a headless Chromium that can reach this machine and nothing else."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tests.ncmon.web.browser import CHROMIUM, DRIVER, Browser
from tests.ncmon.web.site import site, wait_for

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (apt-get install chromium-driver)"
    ),
]


def test_the_page_draws_takes_keys_and_says_when_it_has_ended(tmp_path: Path) -> None:
    with site() as place, Browser(tmp_path / "profile") as browser:
        browser.go(f"{place.url}?token={place.token}")
        browser.wait_for("document.body.classList.contains('-first-byte')")
        assert browser.run("return location.search") == ""  # the token is no longer in sight
        assert browser.wait_for("document.fonts.check('15px \"Roboto Mono\"')")
        wait_for(lambda: len(place.tabs()) == 1, "one process")
        (pid,) = place.tabs()
        wait_for(lambda: colours(browser.picture()) > 20, "something on the screen")
        # Everything came from here, and nothing that the page's own policy forbids was asked for.
        loaded = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded
        assert all(name.startswith(place.url) for name in loaded), loaded
        assert not [line for line in browser.console() if "Refused" in line or "violates" in line]
        before = browser.picture()
        browser.press("2")
        wait_for(lambda: browser.picture() != before, "the Run screen")
        browser.press("qq")
        assert browser.wait_for("document.body.classList.contains('-closed')")
        wait_for(lambda: not place.tabs(), "the end of its process")
        browser.run("document.getElementById('again').click()")
        wait_for(lambda: len(place.tabs()) == 1, "a new process")
        assert place.tabs() != [pid]
        browser.go("about:blank")
        wait_for(lambda: not place.tabs(), "the end of the second")


def colours(picture: bytes) -> int:
    """Return how many different bytes a picture's pixels are made of: an empty page has three or four."""
    at, data = 8, b""
    while at < len(picture):
        size = int.from_bytes(picture[at : at + 4], "big")
        if picture[at + 4 : at + 8] == b"IDAT":
            data += picture[at + 8 : at + 8 + size]
        at += size + 12
    return len(set(zlib.decompress(data)))
