"""The web server beside a daemon: its address checked and bound before the daemon begins, its process begun after."""

from __future__ import annotations

import importlib.util
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ncmon.cli.children import Child
from ncmon.errors import NotInstalled
from ncmon.web import access

log = logging.getLogger("ncmon.web")


class Page:
    """A page that shows one daemon."""

    def __init__(self, text: str, *, public: bool) -> None:
        """Check the address; `UsageError` where it cannot be, `NotInstalled` where the extra is missing."""
        self._host, self._port = access.address(text, public=public)
        if importlib.util.find_spec("textual_serve") is None:
            raise NotInstalled("--web", "textual-serve", "web")
        self._child: Child | None = None
        self._listening: socket.socket | None = None
        self._endpoint, self._log = "", Path()

    @property
    def link(self) -> str:
        """What to open in a browser."""
        return access.link(self._host, self._port, access.token(access.token_file()))

    @contextmanager
    def open(self, endpoint: str, *, log: Path) -> Iterator[None]:
        """Take the address, and end the server in the end; `ListenError` where it is taken."""
        self._endpoint, self._log = endpoint, log
        self._listening = access.listen(self._host, self._port)
        self._port = self._listening.getsockname()[1]
        try:
            yield
        finally:
            self._listening.close()
            if self._child is not None:
                self._child.stop()

    def begin(self, endpoints: tuple[str, ...]) -> None:
        """Start the server: the daemon is there."""
        assert self._listening is not None
        descriptor = self._listening.fileno()
        arguments = ["--fd", str(descriptor), "--host", self._host, "--", self._endpoint]
        self._child = Child("web server", "ncmon.web.server", arguments, log=self._log, hand_down=[descriptor])
        log.info(
            "in a browser: %s (from elsewhere: ssh -L %d:127.0.0.1:%d %s)",
            self.link,
            self._port,
            self._port,
            socket.gethostname(),
        )
