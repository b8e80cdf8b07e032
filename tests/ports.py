"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

FIRST, LAST = 20_000, 32_000
"""Below what the system gives to outgoing connections (from 32,768): nobody takes one between the look and the bind."""


def free_ports(count: int = 1) -> int:
    """Return the first of `count` ports in a row on which nobody on 127.0.0.1 listens."""
    for _ in range(200):
        first = random.SystemRandom().randrange(FIRST, LAST)
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    one = stack.enter_context(socket.socket())
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise OSError(f"expected {count} free ports between {FIRST} and {LAST}, found none in 200 tries")
