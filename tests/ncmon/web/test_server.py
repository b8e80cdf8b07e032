"""The page with a plain client: who is let in, one process a tab, and none that outlives its server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from ncmon.web import access
from ncmon.web.server import HIGHEST
from tests.ncmon.web.site import Site, alive, site, wait_for

pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Site]:
    with site() as made:
        yield made


def headers(place: Site, **changes: str | None) -> dict[str, str]:
    """Return what the page's own script sends; None leaves one out."""
    sent: dict[str, str | None] = {"Origin": place.url.rstrip("/"), "Cookie": f"{access.COOKIE}={place.token}"}
    return {name: value for name, value in (sent | changes).items() if value is not None}


@asynccontextmanager
async def tab(place: Site, size: str = "width=100&height=30") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{place.url}ws?{size}", headers=headers(place), max_msg_size=0) as socket,
    ):
        yield socket


async def drawn(socket: aiohttp.ClientWebSocketResponse, *texts: str) -> str:
    """Read until all of the texts were drawn."""
    found = b""
    while True:
        message = await socket.receive(timeout=40)
        if message.type is aiohttp.WSMsgType.TEXT:
            assert message.json() == ["pong", 7]
            continue
        assert message.type is aiohttp.WSMsgType.BINARY, (message, found[-300:])
        found += message.data
        plain = re.sub(r"\x1b\[[0-9;?=<>]*[a-zA-Z]", "", found.decode("utf-8", "replace"))
        if all(text in plain for text in texts):
            return plain


async def until(condition: Any, what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what)


async def test_who_is_let_in(shared: Site) -> None:
    async with aiohttp.ClientSession() as session:

        async def status(path: str, **changes: str | None) -> int:
            address = f"{shared.url}{path}"
            async with session.get(address, headers=headers(shared, **changes), allow_redirects=False) as answer:
                return answer.status

        assert await status("") == 200
        assert await status("static/js/textual.js") == 200
        for path in ("", "static/js/textual.js", "page.css", "download/x", "ws"):
            assert await status(path, Cookie=None) == 403
            assert await status(path, Cookie=f"{access.COOKIE}={'x' * 32}") == 403
            assert await status(path, Host="evil.example") == 403  # DNS rebinding
        assert await status("download/x") == 404
        assert await status("static/../../../../etc/passwd") in (403, 404)
        # The token in the address is good for the page alone, and moves into a cookie at once.
        assert await status(f"ws?token={shared.token}", Cookie=None) == 403
        url = f"{shared.url}?token={shared.token}"
        async with session.get(url, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/")
            cookie = answer.headers["Set-Cookie"]
        assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", shared.token))
        before = len(shared.tabs())
        for changes in (
            {"Origin": "http://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "null"},
            {"Origin": None},
            {"Cookie": None},
            {"Host": "evil.example", "Origin": "http://evil.example"},
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with session.ws_connect(f"{shared.url}ws", headers=headers(shared, **changes)):
                    pass
            assert refused.value.status == 403, changes
        assert len(shared.tabs()) == before


async def test_the_page_names_no_other_place(shared: Site) -> None:
    async with aiohttp.ClientSession(headers=headers(shared)) as session:
        for path in ("", "page.js", "page.css", "static/css/xterm.css"):
            async with session.get(f"{shared.url}{path}") as answer:
                text = re.sub(r"/\*.*?\*/|// [^\n]*", "", await answer.text(), flags=re.DOTALL)
                assert not re.search(r"https?://|//[a-z]", text), path
                policy = answer.headers.get("Content-Security-Policy", "")
                if path == "":
                    assert "default-src 'none'" in policy
                    assert "frame-ancestors 'none'" in policy
                    linked = re.findall(r'(?:href|src)="([^"]+)"', text)
        for path in [path for path in linked if not path.startswith("data:")]:
            async with session.get(f"{shared.url}{path}") as answer:
                assert answer.status == 200, path


async def test_every_tab_has_a_process_of_its_own_which_ends_with_it(shared: Site) -> None:
    async with tab(shared) as first, tab(shared) as second:
        for socket in (first, second):
            await drawn(socket, "digits-bn", "● LIVE")
        pids = shared.tabs()
        assert len(pids) == 2
        await second.send_json(["stdin", "2"])
        await drawn(second, "NC1")
        await second.send_json(["resize", {"width": 60, "height": 15}])
        await second.send_json(["ping", 7])
        # Quitting one tab ends its process and leaves the other alone.
        await first.send_json(["stdin", "q"])
        async for message in first:
            assert message.type is aiohttp.WSMsgType.BINARY
        await until(lambda: len(shared.tabs()) == 1, "the process of the tab that was quit")
        await second.send_json(["stdin", "1"])
        await drawn(second, "RUN")
    await until(lambda: not shared.tabs(), "the process of the tab that was closed")


@pytest.mark.parametrize(
    "message", ["", "nonsense", "[]", "{}", '["resize"]', '["resize", 7]', '["stdin", null, 1', "[" * 5000, "null"]
)
async def test_what_is_no_message_closes_the_tab_and_nothing_else(shared: Site, message: str) -> None:
    async with tab(shared) as socket:
        await socket.send_str(message)
        async for _ in socket:
            pass
    await until(lambda: not shared.tabs(), "its process")
    assert alive(shared.server)
    assert shared.daemon.poll() is None


async def test_sizes_that_make_no_sense_are_bounded(shared: Site) -> None:
    async with tab(shared, "width=1e9&height=24") as socket:
        await drawn(socket, "digits-bn")
        await socket.send_json(["resize", {"width": 10**9, "height": 10**9}])
        rows: list[str] = []
        while len(rows) <= 100:  # what was drawn before the new size is still on its way
            rows = (await drawn(socket, "? help")).splitlines()
        assert len(rows) <= HIGHEST + 2
        await socket.send_json(["resize", {"width": -1, "height": "x"}])
        await socket.send_json(["resize", {"width": 80, "height": 24}])
        await drawn(socket, "digits-bn")
    await until(lambda: not shared.tabs(), "its process")


async def test_a_process_that_hears_nothing_is_killed_with_its_tab(shared: Site) -> None:
    async with tab(shared) as socket:
        await drawn(socket, "digits-bn")
        (pid,) = shared.tabs()
        os.kill(pid, signal.SIGSTOP)
    await until(lambda: not alive(pid), "the stopped process")


async def test_a_table_comes_to_the_browser_as_a_file(shared: Site) -> None:
    async with tab(shared) as socket:
        await drawn(socket, "digits-bn")
        await socket.send_json(["stdin", "e"])
        key = ""
        while not key:
            message = await socket.receive(timeout=40)
            if message.type is aiohttp.WSMsgType.TEXT and "deliver_file_start" in message.data:
                key = message.json()[1]
        read = asyncio.create_task(_read_on(socket))
        async with (
            aiohttp.ClientSession(headers=headers(shared)) as session,
            session.get(f"{shared.url}download/{key}") as answer,
        ):
            assert answer.status == 200
            assert 'filename="ncmon-digits-bn-overview.csv"' in answer.headers["Content-Disposition"]
            text = await answer.text()
        read.cancel()
    assert text.splitlines()[0].startswith("run,name,state,epoch")
    assert "digits-bn" in text.splitlines()[1]
    assert not list(shared.path.rglob("*.csv"))


async def _read_on(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_nothing_outlives_the_daemon(own: Site, number: signal.Signals) -> None:
    """One tab is read from, one is not: its process hangs in a write, where it hears neither the pipe nor SIGTERM."""
    async with tab(own) as first, tab(own) as second:
        for socket in (first, second):
            await drawn(socket, "digits-bn")
        pids = own.tabs()
        assert len(pids) == 2
        reading = asyncio.create_task(_read_on(first))
        second._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        for wide in range(60):
            await second.send_json(["resize", {"width": 200 + wide % 2 * 100, "height": 80}])
        own.daemon.send_signal(number)
        await asyncio.to_thread(own.daemon.wait, 30)
        await until(lambda: not alive(own.server), "the web server")
        await until(lambda: not own.tabs(), "the tabs")
        reading.cancel()
        second._response.connection.transport.resume_reading()  # type: ignore[union-attr]
    assert not any(map(alive, pids))


async def test_tabs_end_when_their_server_is_killed_and_the_daemon_goes_on(own: Site) -> None:
    async with tab(own) as socket:
        await drawn(socket, "digits-bn")
        (pid,) = own.tabs()
        os.kill(own.server, signal.SIGKILL)
        await until(lambda: not alive(pid), "the tab")
    assert own.daemon.poll() is None
    own.daemon.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(own.daemon.wait, 30) == 0
