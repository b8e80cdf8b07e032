"""The daemon dies at every commit and at every answer, one after the other: nothing is lost, nothing is stored twice.

Real sessions and outboxes of clients, a real store in a file, the real loop; between them a network in memory that dies
with the daemon. What a death takes with it is what a SIGKILL would: the transaction that is open, everything in memory,
every message on the way.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import random
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncmon.breaker import Breaker
from ncmon.collector import RANK_TIMEOUT_S
from ncmon.daemon import Daemon
from ncmon.intake import Intake
from ncmon.model import Evaluation, Window
from ncmon.store.streams import Streams
from ncmon.store.writer import Stored, Writer
from ncmon.transport import Delivery, Heard
from ncmon_client import wire
from ncmon_client.outbox import Outbox
from ncmon_client.session import Dial, HangUp, Send, Session
from tests.factories import make_window
from tests.messages import Prepared, make_gap, make_info, to_wire

EVALUATING_S = 0.012
"""By the clock of these tests: two of them do not fit before a commit, so that some windows wait in the inbox."""


NUMBERS = itertools.count()


class Died(BaseException):
    """The process is gone; nothing may catch it."""


class Fate:
    """Counts the steps of all daemons of one test, and ends the one that makes a step it is told of."""

    def __init__(self, *deaths: int) -> None:
        self.deaths = frozenset(deaths)
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps in self.deaths:
            raise Died


class MortalConnection:
    """A connection whose process may end before and after each begin and each commit."""

    def __init__(self, connection: sqlite3.Connection, fate: Fate) -> None:
        self._connection = connection
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *parameters: Any) -> Any:
        if sql not in ("BEGIN IMMEDIATE", "COMMIT"):
            return self._connection.execute(sql, *parameters)
        self._fate.step()
        result = self._connection.execute(sql, *parameters)
        self._fate.step()
        return result


class Network:
    """What the daemon takes for its sockets; clients are called as it answers."""

    endpoints = ("ipc:///x/s",)
    gate = None

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.now = 0.0
        self.incoming: collections.deque[Delivery] = collections.deque()
        self.clients: dict[bytes, Client] = {}

    @property
    def connected(self) -> int:
        return len(self.clients)

    def wait(self, timeout_s: float, *, clients: bool = True) -> Heard:
        self.now += 0.0 if clients and self.incoming else min(max(timeout_s, 1e-6), 0.01)
        return Heard(clients=clients and bool(self.incoming), viewers=False, woken=False)

    def receive(self) -> Delivery | None:
        return self.incoming.popleft() if self.incoming else None

    def send(self, peer: bytes, frames: Sequence[bytes]) -> None:
        self.fate.step()
        if peer in self.clients:
            self.clients[peer].session.received(self.now, list(frames))
        self.fate.step()

    def publish(self, revision: int) -> None:
        self.fate.step()

    def new_listeners(self) -> bool:
        return False


class Client:
    """A training: an outbox and a session, as the client's own thread would use them."""

    def __init__(self, run: wire.RunInfo, messages: Sequence[Prepared]) -> None:
        self.outbox = Outbox()
        self.session = Session(endpoint="x", run=run, outbox=self.outbox, rng=random.Random(1), now=0.0)
        self.connections = itertools.count()
        self.peer = b""
        for message in messages:
            assert self.outbox.offer(message, len(message.blob))

    def speak(self, network: Network) -> None:
        """Do what the session says until it has to wait."""
        for _ in range(1000):
            match self.session.next(network.now):
                case Dial():
                    network.clients.pop(self.peer, None)
                    self.peer = b"%s %d" % (self.session.stream[:4], next(self.connections))
                    network.clients[self.peer] = self
                    self.session.connected(network.now)
                case HangUp():
                    network.clients.pop(self.peer, None)
                case Send(frames=frames):
                    network.incoming.append(Delivery(peer=self.peer, frames=frames))
                    self.session.sent(network.now)
                case _:
                    return


class World:
    """Four clients of three runs, a store, and one daemon after another."""

    def __init__(self, empty: Path, fate: Fate) -> None:
        self.path = path = empty.with_name(f"{next(NUMBERS)}.db")
        self.fate = fate
        self.network = Network(fate)
        self.clients = [
            self.client("a", [window("a", step) for step in range(6)] + [poison("a", 6), window("a", 7), end("a")]),
            self.client("b", [gap("b", 0), *(window("b", step) for step in range(1, 5)), end("b")]),
            *(
                self.client(
                    "c",
                    [window("c", step, rank=rank, world_size=2) for step in range(3)] + [end("c")],
                    rank=rank,
                    world_size=2,
                )
                for rank in range(2)
            ),
        ]
        self.accepted = sum(client.outbox.counts().accepted for client in self.clients)
        self.deaths = 0
        self.waiting: list[int] = []
        """How many messages each daemon found in the inbox."""
        shutil.copy(empty, path)

    def client(self, run_id: str, messages: Sequence[Prepared], **fields: Any) -> Client:
        return Client(make_info(run_id=run_id, **fields), messages)

    def live(self) -> dict[str, Any]:
        """Let daemons live and die until everything has arrived and nothing waits; return the last one's counters."""
        while True:
            writer = Writer.open(self.path)
            connection = writer._connection
            connection.execute("PRAGMA synchronous = OFF")  # the machine does not crash, only the process
            writer._connection = MortalConnection(connection, self.fate)  # type: ignore[assignment]
            self.waiting.append(sum(queue.messages for queue in writer.queues().values()))
            try:
                return self.one_life(writer)
            except Died:
                self.deaths += 1
                self.network.incoming.clear()
                for client in self.clients:
                    client.session.lost(self.network.now, "the daemon died", wait_s=0.0)
            finally:
                connection.close()

    def one_life(self, writer: Writer) -> dict[str, Any]:
        born = self.network.now
        daemon = Daemon(
            writer=writer,
            transport=self.network,  # type: ignore[arg-type]
            database=self.path,
            compute=self.compute,
            # What this test process has loaded is no flood.
            breaker=Breaker(resident=lambda: 0),
            monotonic=lambda: self.network.now,
            wall=lambda: 1000.0 + self.network.now,
        )
        # Long enough for the collector to give up on a rank whose part a broken promise lost.
        while self.network.now < born + 3 * RANK_TIMEOUT_S:
            for client in self.clients:
                client.speak(self.network)
            daemon.turn()
            delivered = all(client.outbox.counts().held == 0 for client in self.clients)
            counters: dict[str, Any] = daemon.status()["counters"]
            if delivered and counters["waiting"] == 0:
                return counters
        pytest.fail(f"it does not come to an end: {counters}")

    def compute(self, window: Window) -> Evaluation:
        self.network.now += EVALUATING_S
        return Evaluation(window=window, layers=())

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    def harm(self) -> list[str]:
        """Return what was lost and what came twice."""
        harm = []
        expected = {"a": [0, 1, 2, 3, 4, 5, 7], "b": [1, 2, 3, 4], "c": [0, 1, 2]}
        for run_id, steps in expected.items():
            found = self.rows(f"SELECT step FROM written JOIN run USING (run_key) WHERE run_id = '{run_id}'")
            if sorted(step for (step,) in found) != steps:
                harm.append(f"windows of {run_id}: {found}")
        for query, answer in (
            ("SELECT run_id, step FROM gap", [("b", 0)]),
            ("SELECT run_id, code FROM rejected", [("a", "nonfinite")]),
            ("SELECT run_id, status FROM run ORDER BY run_id", [(run_id, "finished") for run_id in "abc"]),
            ("SELECT count(*) FROM inbox", [(0,)]),
            ("SELECT count(*) FROM origin", [(self.accepted,)]),
            ("SELECT sum(next) FROM stream", [(self.accepted,)]),
            ("SELECT count(*) FROM window WHERE partial", [(0,)]),
            ("PRAGMA integrity_check", [("ok",)]),
        ):
            if (found := self.rows(query)) != answer:
                harm.append(f"{query}: {found}")
        return harm


BASE = make_window(layers=1, n_features=5, per_class=3, scatter=True)


def window(run_id: str, step: int, *, rank: int = 0, world_size: int = 1) -> Prepared:
    made = dataclasses.replace(BASE, run_id=run_id, step=step, ranks=(rank,), world_size=world_size)
    return Prepared(*to_wire(made))


def poison(run_id: str, step: int) -> Prepared:
    """A window that is legible, and whose numbers can never be."""
    layer = dataclasses.replace(BASE.layers[0], class_means=np.full_like(BASE.layers[0].class_means, np.nan))
    return Prepared(*to_wire(dataclasses.replace(BASE, run_id=run_id, step=step, layers=(layer,))))


def gap(run_id: str, step: int) -> Prepared:
    return Prepared(make_gap(run_id=run_id, step=step))


def end(run_id: str) -> Prepared:
    return Prepared(wire.End(run_id=run_id, status="finished", text="", time=2_000_000_000.0))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A store without a run, which counts every write of a window."""
    path = tmp_path / "empty.db"
    Writer.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        # Also what is stored in the place of its first copy counts as twice.
        connection.execute("CREATE TABLE written (run_key INTEGER, step INTEGER)")
        connection.execute(
            "CREATE TRIGGER count_written AFTER INSERT ON window"
            " BEGIN INSERT INTO written VALUES (new.run_key, new.step); END"
        )
        connection.commit()
    return path


def test_a_death_at_any_step_loses_nothing_and_doubles_nothing(empty: Path) -> None:
    whole = World(empty, Fate())
    counters = whole.live()
    assert whole.harm() == []
    assert counters["accepted"] == counters["stored"] + counters["rejected"] == whole.accepted
    steps = whole.fate.steps
    assert steps > 40
    waited = 0
    for step in range(1, steps + 1):
        world = World(empty, Fate(step))
        counters = world.live()
        assert world.deaths == 1
        assert world.harm() == [], f"died at step {step} of {steps}"
        # What a daemon finds in the inbox is in its books.
        assert counters["accepted"] == counters["stored"] + counters["rejected"] >= world.waiting[1]
        waited += world.waiting[1] > 0
    # Otherwise this would say nothing of what waits.
    assert waited > steps / 4


def test_daemons_that_die_again_and_again_lose_nothing(empty: Path) -> None:
    for every in (7, 11, 17):
        world = World(empty, Fate(*range(every, 400, every)))
        world.live()
        assert world.deaths >= 3
        assert world.harm() == [], f"died every {every} steps"


@pytest.mark.parametrize("promise", ["acknowledged before the commit", "no numbers in the store", "left in the inbox"])
def test_a_broken_promise_shows(empty: Path, monkeypatch: pytest.MonkeyPatch, promise: str) -> None:
    """Where these tests found no harm, the ones above would prove nothing."""
    if promise == "acknowledged before the commit":
        store = Daemon._store

        def early(self: Daemon) -> None:
            self._reception.stored([origin for record in self._intake._batch for origin in record.origins])
            self._send_answers()
            store(self)

        monkeypatch.setattr(Daemon, "_store", early)
    elif promise == "no numbers in the store":
        monkeypatch.setattr(Writer, "stream_next", lambda self, stream: None)
        monkeypatch.setattr(Streams, "take", lambda self, origins, *, waited: True)
    else:
        written = Intake._written

        def forgetful(self: Intake, batch: Sequence[Any]) -> Any:
            for record in batch:
                if isinstance(record, Stored) and record.entry is not None:
                    # Stored, and taken out of the inbox by a second transaction.
                    written(self, [dataclasses.replace(record, entry=None)])
            return written(self, batch)

        monkeypatch.setattr(Intake, "_written", forgetful)
        monkeypatch.setattr(Streams, "take", lambda self, origins, *, waited: True)
    assert any(broken(World(empty, Fate(step))) for step in range(1, 60, 2))


def broken(world: World) -> bool:
    world.live()
    return bool(world.harm())
