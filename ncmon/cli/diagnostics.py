"""The only stderr and the only exit codes: one line a problem, no traceback for what a user can meet.

0    done          1    failed          2    what was typed cannot be right          130    Ctrl-C
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from ncmon.cells import cut, printable
from ncmon.errors import NcmonError

INTERRUPTED = 130
LONGEST_LINE = 1000
"""In cells: a name in it may have any length."""


class Unread(Exception):
    """Whoever read our output has seen enough."""


def exit_after(run: Callable[[], object]) -> NoReturn:
    """Run a command and leave the process with its exit code, saying what went wrong on one line."""
    try:
        result = run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = context.command_path if context is not None else "ncmon"
        text = one_line(error.format_message()).rstrip(".")
        if isinstance(error, click.UsageError):
            text += f"{'' if text.endswith('?') else ';'} see `{where} --help`"
        say(text, where=where)
        sys.exit(error.exit_code)
    except NcmonError as error:
        say(str(error))
        sys.exit(error.exit_code)
    except (Unread, BrokenPipeError):
        # `| head` is no failure. What is still buffered must not fail once more at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(result if isinstance(result, int) and not isinstance(result, bool) else 0)


def say(text: str, *, where: str = "ncmon") -> None:
    """Write one line."""
    with contextlib.suppress(BrokenPipeError):
        print(f"{where}: {one_line(text)}", file=sys.stderr, flush=True)


def ask(question: str) -> bool | None:
    """Ask yes or no on the terminal; no is the default, None means that nobody is there to answer."""
    try:
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    except (OSError, ValueError, KeyboardInterrupt):
        return None
    return answer.strip().lower() in ("y", "yes") if answer else None


def one_line(text: str) -> str:
    """Return a text on one line that can be read, without control characters, which could move a terminal's cursor."""
    return cut(printable(" ".join(text.split())), LONGEST_LINE)
