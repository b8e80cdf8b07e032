"""The keys of a daemon: its own pair, and the list of those who may come in. Files only, no sockets.

    keys/server.key         the daemon's pair; its secret never leaves this machine
    keys/clients/NAME.pub   one file for everybody who may come in: public key and roles

`write` may send windows, `view` may look; nobody may do what the list does not say. Revoking is removing the file. The
client's own secret is made here, written once into a file of mode 0600 for its owner to carry away, and not kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ncmon import config
from ncmon.errors import ListenError, NotFound, UsageError, near
from ncmon_client.keys import KeyProblem, read_private

ROLES = ("write", "view")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKey:
    """The daemon's pair, in Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Somebody who may come in."""

    name: str
    public: str
    roles: tuple[str, ...]
    created: float
    """Unix seconds."""


class Keyring:
    """The key directory of one user."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = config.keys_directory() if directory is None else directory
        self._clients = self.directory / "clients"

    def init(self, public: str, secret: str) -> Path:
        """Keep the daemon's own pair; an existing one is never replaced."""
        path = self.directory / "server.key"
        if path.exists():
            raise UsageError(f"{path} is there already: remove it first, and every key that was made with it is void")
        with _said(path):
            self._clients.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.directory.chmod(0o700)
            write_private(path, f'# The secret of an ncmon daemon.\npublic = "{public}"\nsecret = "{secret}"\n')
        return path

    def server(self) -> ServerKey:
        """Return the daemon's own pair; `ListenError` says how to get one."""
        path = self.directory / "server.key"
        if not path.exists():
            raise ListenError(
                "tcp needs keys: `ncmon keys init`, then `ncmon keys new NAME --write` for every machine that trains"
            )
        try:
            content = read_private(path, "the daemon's key from `ncmon keys init`")
        except KeyProblem as error:
            raise ListenError(str(error)) from None
        return ServerKey(public=str(content.get("public")), secret=str(content.get("secret")))

    def add(self, name: str, roles: tuple[str, ...], public: str, secret: str, target: Path) -> None:
        """Let somebody in, and write their key file to `target`."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"expected a name of letters, digits, dots, dashes and underscores, got {name!r}")
        if not roles or not set(roles) <= set(ROLES):
            raise UsageError("expected --write, --view or both")
        path = self._clients / f"{name}.pub"
        if path.exists():
            raise UsageError(f"{name} has a key already: `ncmon keys revoke {name}` first, or choose another name")
        server = self.server().public
        head = f'name = "{name}"\nroles = "{" ".join(roles)}"\npublic = "{public}"\n'
        with _said(target):
            write_private(
                target, f'# A key of ncmon, for {name} alone.\n{head}secret = "{secret}"\nserver = "{server}"\n'
            )
        with _said(path):
            write_private(path, f"{head}created = {time.time()!r}\n")

    def revoke(self, name: str) -> None:
        """Let somebody in no more; a daemon that runs notices within a second."""
        path = self._clients / f"{name}.pub"
        if not _NAME.fullmatch(name) or not path.exists():
            raise NotFound(f"no key is named {name!r}{near(name, [one.name for one in self.allowed()])}")
        with _said(path):
            path.unlink()

    def allowed(self) -> tuple[Allowed, ...]:
        """Return who may come in. A file that cannot be read lets nobody in."""
        found = []
        for path in sorted(self._clients.glob("*.pub")):
            try:
                content = read_private(path, "a public key from `ncmon keys new`")
            except KeyProblem:
                continue
            public, created = str(content.get("public", "")), content.get("created", 0.0)
            roles = tuple(role for role in str(content.get("roles", "")).split() if role in ROLES)
            if len(public) == 40 and roles:
                when = float(created) if isinstance(created, (int, float)) else 0.0
                found.append(Allowed(name=path.stem, public=public, roles=roles, created=when))
        return tuple(found)

    def stamp(self) -> tuple[object, ...]:
        """Return what changes whenever the list does."""
        with contextlib.suppress(OSError):
            return tuple(
                sorted((one.name, one.stat().st_mtime_ns, one.stat().st_mode) for one in self._clients.glob("*.pub"))
            )
        return ()


def write_private(path: Path, text: str) -> None:
    """Write a new file that its owner alone can read, from its first moment; `FileExistsError` where there is one."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise UsageError(f"{path} is there already: move it away, or name another file") from None
    except OSError as error:
        raise ListenError(f"{path}: {error.strerror}") from None
