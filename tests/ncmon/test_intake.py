"""The inbox has an end: what does not fit stays with the clients, and comes when there is room again."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from ncmon.daemon import Daemon
from ncmon.evaluate import evaluate
from ncmon.store.inbox import Entry
from ncmon.store.writer import Writer
from ncmon.workshop import Bench, Done
from ncmon_client import wire
from tests.factories import make_window
from tests.messages import STREAM, make_info, window_frames
from tests.ncmon.test_daemon import FakeTransport

WINDOWS = 40


class Asleep(Bench):
    """A workplace that does nothing until it is woken."""

    aside = True
    awake = False

    def room(self) -> bool:
        return self.awake and super().room()

    def give(self, entry: Entry) -> None:
        assert self.awake
        super().give(entry)

    def done(self) -> list[Done]:
        return super().done() if self.awake else []


def rows(database: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_full_inbox_takes_no_more_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [window_frames(make_window(layers=1, step=100 + seq), seq=seq) for seq in range(WINDOWS)]
    limit = 10 * sum(map(len, messages[0]))
    monkeypatch.setattr("ncmon.intake.MAX_INBOX_BYTES", limit)
    # Nothing is cheap enough to be evaluated at once, and little comes at a time.
    monkeypatch.setattr("ncmon.intake.AT_ONCE_S", -1.0)
    monkeypatch.setattr("ncmon.daemon.BATCH_MESSAGES", 4)
    database = tmp_path / "t.db"
    with Writer.open(database) as writer:
        transport = FakeTransport()
        workplace = Asleep(writer.messages, compute=evaluate)
        daemon = Daemon(
            writer=writer,
            transport=transport,  # type: ignore[arg-type]
            database=database,
            workplace=workplace,
            monotonic=lambda: transport.now,
            wall=lambda: 1000.0 + transport.now,
        )
        transport.inbox.append(wire.encode(wire.Hello(versions=[1], run=make_info()), stream=STREAM))
        transport.inbox.extend(messages)
        for _ in range(WINDOWS):
            daemon.turn()
        counters = daemon.status()["counters"]
        waiting = rows(database, "inbox")
        # As many as it takes to pass the limit, and at most a batch more; the rest was not even read.
        assert limit <= counters["inbox_bytes"] < limit + 4 * sum(map(len, messages[0]))
        assert (waiting, counters["inbox"]) == (counters["accepted"] - counters["stored"],) * 2
        assert len(transport.inbox) == WINDOWS - counters["accepted"] > 0
        acknowledged = [answer.next for answer in transport.sent if isinstance(answer, wire.Ack)]
        assert acknowledged[-1] == counters["accepted"]
        # A viewer is served all the same.
        transport.asked.append(b"status")
        daemon.turn()
        assert transport.answered
        assert len(transport.inbox) == WINDOWS - counters["accepted"]

        workplace.awake = True
        for _ in range(4 * WINDOWS):
            daemon.turn()
        counters = daemon.status()["counters"]
        assert (counters["accepted"], counters["stored"], counters["inbox"]) == (WINDOWS, WINDOWS, 0)
        daemon.close()
    assert (rows(database, "inbox"), rows(database, "window"), rows(database, "rejected")) == (0, WINDOWS, 0)
