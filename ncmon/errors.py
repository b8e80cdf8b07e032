"""What can go wrong in ncmon, with the exit code that a command ends with.

A message is one line: what was expected, what came, what to do. Commands print it on stderr without a traceback
(`ncmon.cli.diagnostics` is the one place that does).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NcmonError(Exception):
    """Base of all errors that a user can meet; `exit_code` 1 is a failure."""

    exit_code = 1


class UsageError(NcmonError):
    """What was typed cannot be right."""

    exit_code = 2


class NotFound(NcmonError):
    """No run, layer, metric or database of that name; the text offers near ones."""


class StoreError(NcmonError):
    """The database is missing, foreign, newer than this ncmon, locked or damaged."""


class NotInstalled(NcmonError):
    """Something asked for needs a package that ncmon itself does not; the text says how to install it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}: pip install 'ncmon[{extra}]'")


class ListenError(NcmonError):
    """An endpoint cannot be used: taken by another daemon, not allowed, or not well-formed."""


class Rejected(NcmonError):
    """A message that can never become a window; `code` is a short stable word, the text says what was expected."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def near(name: str, known: Iterable[str]) -> str:
    """Return how a message about an unknown name ends: with near names, or with all of them where they are few."""
    candidates = list(known)
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    if close:
        return f", did you mean {' or '.join(close)}?"
    return f"; there is {', '.join(candidates)}" if 0 < len(candidates) <= 10 else ""
