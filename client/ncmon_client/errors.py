"""What can go wrong in the client, and whose fault it is.

Only `ConfigError` ever reaches the user's code, and only out of `watch` itself: an argument that cannot be right is
better said at once than after a night of training. Everything else stays inside the library, where the monitor catches
it, counts it and says it once in the log; nothing here may reach the training loop.
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of all errors that `ncmon_client` defines."""


class ConfigError(ClientError, ValueError):
    """The caller's arguments cannot be right: what was expected, what came, what to do."""


class WireError(ClientError):
    """Bytes that are not a message of this protocol, or a message that breaks its rules.

    `code` is a short stable word for counters and tests; the text says what was expected and what came.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Refused(ClientError):
    """The daemon refused the session (unknown version, foreign stream): it will not help to try the same again soon."""
