"""The process behind one tab: the terminal UI, drawing into the pipe to the server.

python -m ncmon.web.tab [TARGET]...
"""

from __future__ import annotations

import sys


def main(targets: list[str]) -> int:
    """Run until the tab is closed, or the server is gone; return the exit code."""
    from ncmon.errors import NcmonError
    from ncmon.tui.app import run_ui

    try:
        return run_ui(*targets)
    except NcmonError as error:
        print(f"ncmon: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
