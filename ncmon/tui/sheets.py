"""What a screen shows, as a table for a clipboard or a file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ncmon.cells import printable

Sheet = tuple[Sequence[str], Sequence[Sequence[object]]]


def tabbed(sheet: Sheet) -> str:
    """Return the table with tabs in between, as spreadsheets take it."""
    head, rows = sheet
    return "\n".join("\t".join(_text(cell) for cell in row) for row in (head, *rows))


def file_name(name: str) -> str:
    """Return a name without an ending for a file about this."""
    return "ncmon-" + (re.sub(r"[^\w.-]+", "_", name).strip("_.")[:60] or "run")


def csv_text(sheet: Sheet) -> str:
    """Return the table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(sheet[0])
    writer.writerows([_text(cell) for cell in row] for row in sheet[1])
    return buffer.getvalue()


def write(sheet: Sheet, directory: Path, name: str) -> Path:
    """Write a new CSV file and return its path; never over another file."""
    stem = file_name(name)
    number = 0
    while True:
        path = directory / (f"{stem}.csv" if not number else f"{stem}-{number}.csv")
        try:
            with path.open("x", newline="") as file:
                file.write(csv_text(sheet))
            return path
        except FileExistsError:
            number += 1


def _text(cell: object) -> str:
    """Return a cell: numbers in full, nothing for none."""
    if cell is None:
        return ""
    if isinstance(cell, float | np.floating):
        return "" if np.isnan(cell) else repr(float(cell))
    text = printable(str(cell))
    # A name that a spreadsheet would take for a formula.
    return f"'{text}" if text[:1] in "=+-@" and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
