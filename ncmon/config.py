"""Where things are: the default database and the endpoints that belong together. Pure functions of the environment.

A daemon listens for trainers on its *ingest* endpoint; viewers meet it on two more that are named after it:

    ipc:///run/user/1000/ncmon/ncmon.sock        trainers
    ipc:///run/user/1000/ncmon/ncmon.sock.view   requests of viewers
    ipc:///run/user/1000/ncmon/ncmon.sock.news   hints to viewers, lossy

Over tcp, for other machines and with keys alone, they are three ports in a row: tcp://HOST:7070, 7071 and 7072.

Nothing here opens, creates or locks anything.
"""

from __future__ import annotations

import os
from pathlib import Path

from ncmon.errors import ListenError

MAX_IPC_BYTES = 100
"""Unix socket paths end at 107 bytes, and the viewers' suffix has to fit as well."""

MAX_PORT = 65_533
"""Two more ports follow."""

_VIEW = ".view"
_NEWS = ".news"


def default_database() -> Path:
    """Return `$NCMON_DB`, else `ncmon/ncmon.db` in the XDG data directory."""
    named = os.environ.get("NCMON_DB")
    return Path(named).expanduser() if named else data_directory() / "ncmon.db"


def data_directory() -> Path:
    """Return `$XDG_DATA_HOME/ncmon`, by default `~/.local/share/ncmon`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "ncmon"


def log_path(database: Path) -> Path:
    """Return the log of the daemon that writes this database: `ncmon.log` beside `ncmon.db`."""
    return database.with_suffix(".log")


def default_endpoint() -> str:
    """Return where trainers meet the daemon of this user on this node (`$NCMON_ENDPOINT`, else an ipc socket)."""
    # Called by few commands; the wire needs numpy and msgspec, which are most of a command's start.
    from ncmon_client import wire

    return wire.default_endpoint()


def ipc_path(endpoint: str) -> Path | None:
    """Return the socket file of an `ipc://` endpoint, None for other transports and abstract sockets."""
    scheme, _, address = endpoint.partition("://")
    return Path(address) if scheme == "ipc" and address.startswith("/") else None


def keys_directory() -> Path:
    """Return where a daemon's keys lie: `$NCMON_KEYS`, else `ncmon/keys` in the XDG configuration directory."""
    named = os.environ.get("NCMON_KEYS")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "ncmon" / "keys"


def is_tcp(endpoint: str) -> bool:
    """Whether an endpoint can be reached from other machines, and so needs keys."""
    return endpoint.startswith("tcp://")


def check_endpoint(endpoint: str) -> str:
    """Return an ingest endpoint as it is; `ListenError` says in one line why it cannot be one."""
    if is_tcp(endpoint):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= MAX_PORT:
            raise ListenError(f"{endpoint}: expected tcp://HOST:PORT, with a port from 1 to {MAX_PORT}")
        return endpoint
    path = ipc_path(endpoint)
    if path is None:
        raise ListenError(f"{endpoint}: expected ipc:///absolute/path/to.sock or tcp://HOST:PORT")
    length = len(os.fsencode(path))
    if length > MAX_IPC_BYTES:
        raise ListenError(f"{endpoint}: the path has {length} bytes, sockets allow {MAX_IPC_BYTES}: use a shorter one")
    return endpoint


def view_endpoint(ingest: str) -> str:
    """Return where a viewer of the daemon at this ingest endpoint asks."""
    return _port_after(ingest, 1) if is_tcp(ingest) else ingest + _VIEW


def news_endpoint(ingest: str) -> str:
    """Return where a viewer of the daemon at this ingest endpoint listens."""
    return _port_after(ingest, 2) if is_tcp(ingest) else ingest + _NEWS


def _port_after(endpoint: str, places: int) -> str:
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{int(port) + places}"
