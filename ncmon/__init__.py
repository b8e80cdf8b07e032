"""ncmon: watch neural collapse while a network trains.

    import ncmon

    with ncmon.open("ncmon.db") as store:            # read-only, safe beside a live daemon
        run = store.run("latest")
        run.history("intra_cos_min", layer="classifier-input", split="train")

Importing this package loads nothing else; `open` does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ncmon.store.queries import Store

__version__ = "0.1.0"


def open(path: str | os.PathLike[str]) -> Store:
    """Open a database for reading; raises `ncmon.errors.StoreError` when it is none of ncmon's, or missing."""
    # Here, so that `import ncmon`, and with it the start of every command, stays free of numpy and SQLite.
    from pathlib import Path

    from ncmon.store.queries import Store

    return Store.open(Path(path))


__all__ = ("__version__", "open")
