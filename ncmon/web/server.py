"""The web server: a page, its files, and a websocket that has one process of the terminal UI behind it.

    python -m ncmon.web.server --fd 5 --host 127.0.0.1 -- [TARGET]...

It is a process of its own: what becomes of it touches neither the daemon nor data. Whoever starts it binds the socket
and hands it down. It ends on SIGTERM and when whoever started it is gone, and takes all tabs with it; tabs whose server
was killed see their pipe close and end by themselves (`tui.leaving`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path

import textual_serve
from aiohttp import WSMsgType, web
from textual_serve.download_manager import DownloadManager

from ncmon.web import access
from ncmon.web.session import Session

log = logging.getLogger("ncmon.web")

MOST_TABS = 12
"""Each is a process of 60 MB or more."""
WIDEST, HIGHEST = 500, 200
MOST_BYTES = 64 * 1024
"""Of one message from a browser: a pasted text."""
HEARTBEAT_S = 15.0
END_S = 4.0
"""All tabs together have this long to end."""

_HEADERS = {
    # Nothing is loaded from elsewhere, and no other page may show this one in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PAGE = files("ncmon.web") / "page"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The page of one set of targets."""

    def __init__(self, targets: Sequence[str], *, host: str, token: str) -> None:
        self.sessions: set[Session] = set()
        self._targets = tuple(targets)
        self._names = access.own_names(host)
        self._token = token
        self._downloads = DownloadManager()
        self._sockets: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        """Return what answers requests."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/ws", self._drive)
        app.router.add_get("/download/{key}", self._download)
        app.router.add_static("/static", Path(textual_serve.__file__).parent / "static")
        for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css")):
            app.router.add_get(f"/{name}", _file(name, kind))
        return app

    async def close(self) -> None:
        """End all tabs."""
        stopping = [session.stop() for session in self.sessions]
        stopping += [socket.close(message=b"the server ends") for socket in set(self._sockets)]  # type: ignore[misc]
        await asyncio.gather(*stopping, return_exceptions=True)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who calls us by our name and has the token; it may come in the address once, then in a cookie."""
        if not access.host_allowed(request.headers.get("Host"), self._names):
            log.warning("refused: Host %.80r is no name of this machine", request.headers.get("Host"))
            raise web.HTTPForbidden(text="This name does not belong to this machine.\n", headers=_HEADERS)
        if not access.token_allowed(request.cookies.get(access.COOKIE), self._token):
            if request.path == "/" and access.token_allowed(request.query.get("token"), self._token):
                came = web.HTTPSeeOther("/", headers=_HEADERS)
                came.set_cookie(
                    access.COOKIE, self._token, httponly=True, samesite="Strict", path="/", max_age=30 * 86_400
                )
                raise came
            raise web.HTTPForbidden(
                text="Open the link that `ncmon serve --web` printed: it ends with the token.\n", headers=_HEADERS
            )
        response = await handler(request)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def _index(self, request: web.Request) -> web.StreamResponse:
        size = request.query.get("fontsize", "15")
        size = size if size.isdecimal() and 6 <= int(size) <= 40 else "15"
        text = (_PAGE / "index.html").read_text().replace("FONT_SIZE", size)
        return web.Response(text=text, content_type="text/html")

    async def _download(self, request: web.Request) -> web.StreamResponse:
        """Hand a file that a tab exports to the browser."""
        key = request.match_info["key"]
        try:
            found = await self._downloads.get_download_metadata(key)
        except KeyError:
            raise web.HTTPNotFound(text="There is no such file, or it was fetched already.\n") from None
        name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in found.file_name)
        headers = {**_HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
        response = web.StreamResponse(headers=headers)
        response.content_type = "text/csv" if name.endswith(".csv") else "application/octet-stream"
        await response.prepare(request)
        async for chunk in self._downloads.download(key):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _drive(self, request: web.Request) -> web.StreamResponse:
        """Give a tab its process, for as long as it is open."""
        if not access.origin_allowed(request.headers.get("Origin"), request.headers.get("Host")):
            log.warning("refused: a page of %.80r wants to drive the UI", request.headers.get("Origin"))
            raise web.HTTPForbidden(text="Only its own page may drive the UI.\n", headers=_HEADERS)
        if len(self.sessions) >= MOST_TABS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_TABS} tabs are open: close one.\n", headers=_HEADERS)
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MOST_BYTES)
        session = Session(
            self._targets,
            write_bytes=socket.send_bytes,
            write_str=socket.send_str,
            close=socket.close,  # type: ignore[arg-type]
            download_manager=self._downloads,
        )
        self.sessions.add(session)
        self._sockets.add(socket)
        try:
            await socket.prepare(request)
            await session.start(
                _whole(request.query.get("width"), 80, WIDEST), _whole(request.query.get("height"), 24, HIGHEST)
            )
            await _pass_on(socket, session)
        finally:
            await session.stop()
            self.sessions.discard(session)
            self._sockets.discard(socket)
            with contextlib.suppress(Exception):
                await socket.close()
        return socket


async def _pass_on(socket: web.WebSocketResponse, session: Session) -> None:
    """Give the process what the browser sends, as long as it makes sense."""
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            continue
        try:
            kind, *rest = json.loads(message.data)
            match kind:
                case "stdin":
                    await session.send_bytes(str(rest[0]).encode("utf-8", "replace"))
                case "resize":
                    width, height = rest[0]["width"], rest[0]["height"]
                    await session.set_terminal_size(_whole(width, 80, WIDEST), _whole(height, 24, HIGHEST))
                case "ping":
                    await socket.send_json(["pong", rest[0]])
                case "blur":
                    await session.blur()
                case "focus":
                    await session.focus()
        except (ValueError, TypeError, LookupError):
            log.warning("a browser sent what is no message of the page")
            return


def _whole(value: object, default: int, most: int) -> int:
    """Return a size in cells that makes sense, whatever was sent."""
    try:
        return min(max(int(str(value)), 1), most)
    except ValueError:
        return default


def _file(name: str, kind: str) -> Handler:
    text = (_PAGE / name).read_text()

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type=kind)

    return answer


async def serve(listening: socket.socket, targets: Sequence[str], *, host: str, token: str) -> None:
    """Answer until SIGTERM or SIGINT, or until the process that started this one is gone."""
    parent, stop = os.getppid(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    server = Server(targets, host=host, token=token)
    runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    log.info("ready pid=%d", os.getpid())
    while not stop.is_set() and os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.3)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.close(), END_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(runner.cleanup(), 2.0)


def main(arguments: Sequence[str]) -> int:
    """Serve on an inherited socket; return the exit code."""
    parser = argparse.ArgumentParser(prog="ncmon.web.server")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    listening = socket.socket(fileno=options.fd)
    asyncio.run(serve(listening, options.targets, host=options.host, token=access.token(access.token_file())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
