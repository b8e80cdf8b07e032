"""The daemon's log: lines for people, or one JSON object a line for what collects logs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

Form = Literal["text", "json"]
FORMS: tuple[Form, ...] = ("text", "json")


class JsonLines(logging.Formatter):
    """One object a line: `time` (UTC, ISO 8601), `level`, `logger`, `message`, `pid`, and `exception` if there is one.

    What a client called itself may stand in a message; as JSON it cannot end a line or move a cursor.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up(form: Form) -> None:
    """Send the log to stderr, unless the process that runs the daemon has its own arrangements."""
    if logging.getLogger().hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO)
