"""The only stdout: listings as aligned text for people, or as JSON, JSON lines and CSV for machines.

Machine formats have every column at full precision and the missing as null (an empty field in CSV). Text has short
numbers, `-` for the missing, no escape sequences ever, and no control character out of anybody's names.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ncmon.cells import fit, middle, printable
from ncmon.cells import width as cell_width
from ncmon.cli.diagnostics import Unread

Format = Literal["table", "json", "jsonl", "csv"]
FORMATS: tuple[str, ...] = get_args(Format)

LONGEST_NAME = 60
PLAIN_WIDTH = 80
"""Of text that does not go to a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a listing."""

    key: str
    """Name in machine formats."""
    heading: str = ""
    """Name in text; empty keeps the column out of it."""
    right: bool = False
    show: Callable[[Any], str] | None = None
    """How text shows a value; by default numbers short, times untouched."""
    clip: int = 0
    """Longest width in text, 0 for any. The last column is wrapped instead, where the line would be too long."""
    grow: bool = False
    """Whether it may be wider than `clip` where the line has room; then what is too long loses its middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Rows of values under columns."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    empty: str = ""
    """What text says when there are no rows."""


def emit(listing: Listing, form: str) -> None:
    """Write a listing in one of `FORMATS`."""
    if form == "table":
        write(table(listing))
    elif form == "json":
        write(json.dumps([_record(listing, row) for row in listing.rows], indent=2) + "\n")
    elif form == "jsonl":
        write("".join(json.dumps(_record(listing, row)) + "\n" for row in listing.rows))
    else:
        write(csv_text(listing))


def write(text: str) -> None:
    """Write text as it is, letters that the terminal's encoding lacks as `?`."""
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding or "ascii"
            sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # By a name of our own: click would make a failure of it.
        raise Unread from None


def csv_text(listing: Listing, *, head: bool = True) -> str:
    """Return a listing as CSV with a line of names."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if head:
        writer.writerow([column.key for column in listing.columns])
    for row in listing.rows:
        writer.writerow([_field(value) for value in row])
    text = buffer.getvalue()
    return clean(text, keep="\n") if sys.stdout.isatty() else text


def table(listing: Listing, *, head: bool = True) -> str:
    """Return a listing as aligned text, its last column wrapped to the width of the terminal, or 80 without one."""
    places = [place for place, column in enumerate(listing.columns) if column.heading]
    columns = [listing.columns[place] for place in places]
    if not listing.rows:
        return listing.empty + "\n" if listing.empty else ""
    cells = [[_cell(column, row[place]) for place, column in zip(places, columns, strict=True)] for row in listing.rows]
    titles = [column.heading for column in columns]
    widths = [max(map(cell_width, lane)) for lane in zip(titles, *cells, strict=True)]
    for place, column in enumerate(columns):
        if column.grow:
            # What the other columns leave, and not less than `clip`.
            left = line_width() - sum(widths) + widths[place] - 2 * (len(columns) - 1)
            for row in cells:
                row[place] = middle(row[place], max(column.clip, left))
            widths[place] = max(len(column.heading), *(cell_width(row[place]) for row in cells))
    room = max(line_width() - sum(widths[:-1]) - 2 * (len(columns) - 1), 20)
    lines = []
    for cell_row in [titles, *cells] if head else cells:
        *most, last = cell_row
        begin = "".join(
            (padding(text, width) + text if column.right else text + padding(text, width)) + "  "
            for text, width, column in zip(most, widths, columns, strict=False)
        )
        if columns[-1].right:
            lines.append((begin + padding(last, widths[-1]) + last).rstrip())
            continue
        wrapped = textwrap.wrap(last, room) or [""]
        lines.append((begin + wrapped[0]).rstrip())
        lines += [" " * len(begin) + more for more in wrapped[1:]]
    return "\n".join(lines) + "\n"


def brief(name: str) -> str:
    """Return a name as it stands in a sentence: one of ten thousand letters would hide the rest of it."""
    return middle(name, LONGEST_NAME)


def padding(text: str, width: int) -> str:
    """Return the blanks that fill a text up to a width in cells."""
    return " " * (width - cell_width(text))


def line_width() -> int:
    """Return the columns of the terminal, 80 without one."""
    return shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if sys.stdout.isatty() else PLAIN_WIDTH


def number(value: float | None) -> str:
    """Return a number in at most nine letters, four digits that count; `-` for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"


def moment(value: float | None) -> str:
    """Return unix seconds as local date and time."""
    try:
        return "-" if value is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    except (OverflowError, ValueError, OSError):
        return "-"


def clean(text: str, *, keep: str = "") -> str:
    """Return text without control characters, which could move a terminal's cursor."""
    return keep.join(map(printable, text.split(keep))) if keep else printable(text)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinities as None, bytes as hexadecimal text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def _record(listing: Listing, row: Sequence[Any]) -> dict[str, Any]:
    return {column.key: plain(value) for column, value in zip(listing.columns, row, strict=True)}


def _field(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def _cell(column: Column, value: Any) -> str:
    if column.show is not None:
        text = column.show(value)
    elif value is None or isinstance(value, (int, float)):
        text = number(value)
    elif isinstance(value, bytes):
        text = f"{len(value)} bytes"
    else:
        text = str(value)
    text = clean(text)
    too_wide = column.clip and not column.grow and cell_width(text) > column.clip
    return fit(text, column.clip).rstrip() if too_wide else text


def lines(parts: Iterable[str]) -> str:
    """Return lines as one text."""
    return "".join(part + "\n" for part in parts)
