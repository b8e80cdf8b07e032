"""CSV and JSON lines: every number with as many digits as bring it back bit for bit."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ncmon.export.rows import TABLES, Choice, complete, table_rows
from ncmon.store.runs import StoredRun


def write_csv(path: Path, runs: Sequence[StoredRun], table: str, choice: Choice) -> int:
    """Write one table as CSV with a line of names, the missing as an empty field; return how many rows."""
    count = 0
    with complete(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TABLES[table])
        for run in runs:
            for row in table_rows(run, table, choice):
                writer.writerow([_field(value) for value in row])
                count += 1
    return count


def write_jsonl(path: Path, runs: Sequence[StoredRun], table: str, choice: Choice) -> int:
    """Write one table as one JSON object a line; return how many rows."""
    count = 0
    names = TABLES[table]
    with complete(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for run in runs:
            for row in table_rows(run, table, choice):
                file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")
                count += 1
    return count


def _field(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value
