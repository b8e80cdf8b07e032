"""Who may reach the page: at which address, under which names, from which pages, with which token. Pure but for a file.

Three things are kept out. Other machines, by listening on a loopback address unless somebody says otherwise. Other
users of this machine, who can reach its loopback as well, by a token. Other pages in the user's browser: their requests
carry an Origin that is not ours; and a page that lets its own name point to 127.0.0.1 (DNS rebinding), to whose
browser it is all one origin, comes with a Host that is no name of this machine.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Collection
from pathlib import Path

from ncmon.errors import ListenError, UsageError

COOKIE = "ncmon-web"
TOKEN_LETTERS = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")


def address(text: str, *, public: bool = False) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; of a port alone the host is 127.0.0.1.

    Raises `UsageError` for anything else, and for an address that other machines can reach unless it is `public`.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not port.isascii() or int(port) > 65_535:
        raise UsageError(f"--web: expected HOST:PORT or PORT, got {text!r}")
    host = host.strip("[]") or "127.0.0.1"
    if not public and not is_loopback(host):
        raise UsageError(
            f"--web: {host} can be reached from other machines, and what is sent there can be read on the way: use "
            f"127.0.0.1:{port} and `ssh -L {port}:127.0.0.1:{port} THIS_MACHINE`, or say --web-public"
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether an address or `localhost` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; `ListenError` where that cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(64)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ListenError(f"--web: {host}:{port} cannot be used: {error.strerror or error}") from None
    return listening


def own_names(host: str) -> frozenset[str]:
    """Return under which names a browser may call this machine, beside its addresses."""
    named = {host, "localhost"}
    if not is_loopback(host):
        named |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower() for name in named if name)


def host_allowed(header: str | None, names: Collection[str]) -> bool:
    """Whether a Host is a name of ours, or an address: only a name can be made to point here by somebody else.

    The port may be any: `ssh -L` has one of its own.
    """
    host = _host_of(header or "")
    if host is None:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host in names
    return True


def origin_allowed(origin: str | None, host: str | None) -> bool:
    """Whether a request that drives the UI comes from our own page: browsers always say so."""
    return host is not None and origin in (f"http://{host}", f"https://{host}")


def _host_of(header: str) -> str | None:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", header)
    return found[1].strip("[]").lower().rstrip(".") if found else None


def token_allowed(given: str | None, token: str) -> bool:
    """Whether this is the token, in a time that says nothing about how much of it is right."""
    return hmac.compare_digest((given or "").encode("utf-8", "replace"), token.encode())


def token_file() -> Path:
    """Return where the token is kept: a bookmark shall work tomorrow."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(root) / "ncmon" / "web-token"


def token(path: Path) -> str:
    """Return the token of the file, which is made where there is none; another one if others could read it."""
    with contextlib.suppress(OSError, UnicodeError):
        status = path.stat()
        found = path.read_text().strip()
        if _TOKEN.fullmatch(found) and not status.st_mode & 0o077 and status.st_uid == os.geteuid():
            return found
    made = secrets.token_urlsafe(3 * TOKEN_LETTERS // 4)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(made + "\n")
        part.replace(path)
    except OSError as error:
        raise ListenError(f"--web: the token cannot be kept in {path}: {error.strerror}") from None
    return made


def link(host: str, port: int, token: str) -> str:
    """Return what to open in a browser."""
    shown = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        shown = socket.gethostname()
    return f"http://{shown}:{port}/?token={token}"
