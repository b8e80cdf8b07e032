"""Scripts need what .venv holds: one that was started by another Python goes on in .venv, or says what is missing."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parents[1] / ".venv"
NEEDED = ("msgspec", "numpy", "sqlite_utils", "textual", "torch", "zmq")


def settle() -> None:
    """Return where everything can be imported; otherwise begin again in .venv, or end with one line and code 1."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python = VENV / "bin" / "python"
    # By its full path: argv[0] is what tells Python where its packages are.
    if python.exists() and Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(str(python), [str(python), *sys.argv])
    sys.exit(
        f"{sys.argv[0]}: expected {', '.join(missing)} to be installed for {sys.executable}; "
        "`scripts/venv dev` makes .venv, which has it, and this script then finds it"
    )
