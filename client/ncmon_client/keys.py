"""The key of a client: one small file, read where a daemon on another machine is to be reached.

`ncmon keys new` writes it beside the daemon; its owner carries it to the machine that trains or watches. It holds the
secret of this client, so that a file that others may read is refused. It is named by path alone: `$NCMON_KEY`, else
`ncmon/client.key` in the XDG configuration directory. No key is ever an argument, an environment variable or a line in
a log.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from ncmon_client.errors import ClientError

_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


class KeyProblem(ClientError):
    """There is no key where one is needed, or it cannot be used: one line that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """What a client needs to be let in, in Z85."""

    name: str
    public: str
    secret: str = field(repr=False)
    server: str
    """Public key of the daemon: nobody else can pretend to be it."""


def path() -> Path:
    """Return where the key of this user lies."""
    named = os.environ.get("NCMON_KEY")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "ncmon" / "client.key"


def read(file: Path | None = None) -> ClientKey:
    """Return the key of this user, or that of a file; raises `KeyProblem`."""
    chosen = path() if file is None else file
    content = read_private(chosen, "a key from `ncmon keys new` on the daemon's machine, named by NCMON_KEY")
    found = {name: content.get(name) for name in ("name", "public", "secret", "server")}
    for name in ("public", "secret", "server"):
        value = found[name]
        if not isinstance(value, str) or not _Z85.fullmatch(value):
            raise KeyProblem(
                f"{chosen} is not a key file: {name!r} is missing or not a key; make one with `ncmon keys new`"
            )
    return ClientKey(**{name: str(value) for name, value in found.items()})


def read_private(file: Path, expected: str) -> dict[str, object]:
    """Return a file of names and values that nobody else may read; raises `KeyProblem`."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise KeyProblem(f"{file}: {error.strerror}; expected {expected}") from None
    with os.fdopen(handle, "rb") as opened:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > 4096:
            raise KeyProblem(f"{file} is not a key file; expected {expected}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise KeyProblem(
                f"{file} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {file}"
            )
        if status.st_uid != os.geteuid():
            raise KeyProblem(f"{file} belongs to user {status.st_uid}, you are {os.geteuid()}")
        try:
            return tomllib.loads(opened.read().decode())
        except (tomllib.TOMLDecodeError, UnicodeError):
            raise KeyProblem(f"{file} is not a key file; expected {expected}") from None
