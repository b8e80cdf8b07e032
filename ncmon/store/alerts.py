"""Alerts in the store: written by the daemon, acknowledged by whoever may write, read by every viewer.

What is open is never stored a second time, whoever asks for it: the table is asked first. Alerts go with their run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ncmon.alerts.spec import named
from ncmon.model import Alert
from ncmon.store.schema import Executes

COLUMNS = (
    "a.alert_key, r.run_id, a.rule, a.severity, a.split, a.exact, a.layer, a.class, a.epoch, a.step, a.since,"
    " a.cleared, a.acknowledged, a.value, a.text"
)
_FROM = "FROM alert a JOIN run r USING (run_key)"
_SAME = (
    "run_key = :run_key AND rule = :rule AND split = :split AND exact = :exact AND layer = :layer AND class IS :class"
)


def put(connection: sqlite3.Connection, changes: Sequence[Alert]) -> tuple[Alert, ...]:
    """Store what was raised and close what is over; return the raised ones with their ids and their classes named.

    Alerts of runs that are not in the store (any more) are left out.
    """
    raised = []
    for alert in changes:
        found = connection.execute("SELECT run_key FROM run WHERE run_id = ?", (alert.run_id,)).fetchone()
        if found is None:
            continue
        fields = _fields(alert, found[0])
        if alert.cleared is not None:
            # One alert of a place is open; its class may be another one by now.
            where = "alert_key = :alert_id" if alert.alert_id else f"{_SAME} AND cleared IS NULL"
            connection.execute(f"UPDATE alert SET cleared = :cleared WHERE {where}", fields)  # noqa: S608 fixed text
            continue
        known = connection.execute(
            f"SELECT 1 FROM alert WHERE {_SAME} AND cleared IS NULL",  # noqa: S608 fixed text
            fields,
        ).fetchone()
        if known is not None:
            continue
        labels = dict(connection.execute("SELECT class, name FROM class_label WHERE run_key = ?", found))
        fields["text"] = named(alert.text, labels)
        cursor = connection.execute(
            """INSERT INTO alert (run_key, rule, severity, split, exact, layer, class, epoch, step, since, value, text)
VALUES (:run_key, :rule, :severity, :split, :exact, :layer, :class, :epoch, :step, :since, :value, :text)""",
            fields,
        )
        raised.append(replace(alert, alert_id=int(cursor.lastrowid or 0), text=str(fields["text"])))
    return tuple(raised)


def remember(connection: sqlite3.Connection, memories: Mapping[str, str]) -> None:
    """Replace what rules remember of these runs."""
    connection.executemany(
        """INSERT INTO alert_memory (run_key, memory) SELECT run_key, :memory FROM run WHERE run_id = :run_id
ON CONFLICT (run_key) DO UPDATE SET memory = excluded.memory""",
        [{"run_id": run_id, "memory": memory} for run_id, memory in memories.items()],
    )


def acknowledge(connection: sqlite3.Connection, ids: Sequence[int], now: float) -> int:
    """Mark alerts as seen; return how many were not marked before."""
    cursor = connection.executemany(
        "UPDATE alert SET acknowledged = ? WHERE alert_key = ? AND acknowledged IS NULL",
        [(now, number) for number in ids],
    )
    return max(cursor.rowcount, 0)


def state(connection: sqlite3.Connection, since: float) -> tuple[tuple[Alert, ...], tuple[tuple[str, str], ...]]:
    """Return open alerts and those raised after `since`, oldest first, and what rules remember of live runs."""
    rows = connection.execute(
        f"SELECT {COLUMNS} {_FROM} WHERE a.cleared IS NULL OR a.since > ? ORDER BY a.alert_key",
        (since,),
    )
    memories = connection.execute(
        "SELECT r.run_id, m.memory FROM alert_memory m JOIN run r USING (run_key) WHERE r.status = 'live'"
    )
    return tuple(alert_of(row) for row in rows), tuple(memories.fetchall())


def read(
    reader: Executes, *, run_id: str | None = None, only_open: bool = False, limit: int | None = None
) -> tuple[Alert, ...]:
    """Return alerts: open ones first, of those the ones that press; each kind the newest first."""
    rows = reader.execute(
        f"""SELECT {COLUMNS} {_FROM} WHERE (:run IS NULL OR r.run_id = :run) AND (NOT :open OR a.cleared IS NULL)
ORDER BY a.cleared IS NOT NULL, a.acknowledged IS NOT NULL OR a.severity = 'info', a.since DESC, a.alert_key DESC
LIMIT :limit""",
        {"run": run_id, "open": only_open, "limit": -1 if limit is None else limit},
    )
    return tuple(alert_of(row) for row in rows)


def alert_of(row: Sequence[Any]) -> Alert:
    """Return the alert of a row of `COLUMNS`."""
    return Alert(
        alert_id=row[0],
        run_id=row[1],
        rule=row[2],
        severity=row[3] if row[3] in ("alert", "warning", "info") else "warning",
        split=row[4],
        exact=bool(row[5]),
        layer=row[6],
        class_index=row[7],
        epoch=row[8],
        step=row[9],
        since=row[10],
        cleared=row[11],
        acknowledged=row[12],
        value=row[13],
        text=row[14],
    )


def _fields(alert: Alert, run_key: int) -> dict[str, Any]:
    return {
        "run_key": run_key,
        "alert_id": alert.alert_id,
        "rule": alert.rule,
        "severity": alert.severity,
        "split": alert.split,
        "exact": int(alert.exact),
        "layer": alert.layer,
        "class": alert.class_index,
        "epoch": alert.epoch,
        "step": alert.step,
        "since": alert.since,
        "cleared": alert.cleared,
        "value": alert.value,
        "text": alert.text,
    }
