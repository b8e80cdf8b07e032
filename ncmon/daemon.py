"""The daemon: one thread, one poller, the only clock. Messages in, commits, acknowledgements, news out.

    transport -> reception -> ingest -> collector -> evaluate -> one commit a batch -> ACK -> publish

Rules of this module
- Store first, acknowledge second, publish third.
- Nothing that a client sends ends the daemon or holds up another client; whatever goes wrong with one message stays
  with that message.
- What is committed, and what a failing store means, is the business of `intake`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

import ncmon
from ncmon import config, disk, logs, packing, prometheus, security
from ncmon.alerts import Limits
from ncmon.bell import Bell
from ncmon.breaker import Breaker
from ncmon.collector import Collector
from ncmon.desk import Desk
from ncmon.errors import ListenError, StoreError
from ncmon.evaluate import evaluate
from ncmon.gate import Proof
from ncmon.intake import Intake
from ncmon.keyring import Keyring
from ncmon.lookout import Lookout
from ncmon.model import Evaluation, Window
from ncmon.process import StopSignal
from ncmon.quota import Quota
from ncmon.reception import Complaints, Reception
from ncmon.store.checkpoint import WRITER_PAGES, Checkpoints
from ncmon.store.migrate import library
from ncmon.store.writer import Writer
from ncmon.sweep import Sweep
from ncmon.transport import Delivery, Transport
from ncmon.workshop import Bench, Workplace, Workshop
from ncmon_client import wire

BATCH_MESSAGES = 512
BATCH_BYTES = 32 * 1024 * 1024
BATCH_S, LONG_BATCH_S = 0.020, 0.080
"""A batch takes the shorter time, and up to the longer where a commit takes as long: then there is more in each."""
LULL_S, LONG_LULL_S = 0.002, 0.010
"""A batch also ends when nothing has come for this long: the library refills its queues in less. In a flood the longer
time counts, because a commit costs more than that."""
FLOOD_MESSAGES = 32
"""A batch that has so many is taken for part of a flood."""
IDLE_S = 1.0
"""Longest wait; also how often waiting streams are reminded."""
FREED_S, FREED_LOOKS = 0.02, 10
"""After a cut: how often it is looked whether the memory has come back, and how many times."""

log = logging.getLogger("ncmon.daemon")


class Daemon:
    """The loop between one transport and one writer. `monotonic` and `wall` are its clocks, in seconds."""

    def __init__(
        self,
        *,
        writer: Writer,
        transport: Transport,
        database: Path,
        collector: Collector | None = None,
        compute: Callable[[Window], Evaluation] = evaluate,
        workplace: Workplace | None = None,
        keyring: Keyring | None = None,
        space: Callable[[Path], disk.Space | None] = disk.space,
        max_bytes: int | None = None,
        lookout: Lookout | None = None,
        breaker: Breaker | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._transport = transport
        self._database = database
        self._collector = collector if collector is not None else Collector()
        self._keyring = keyring
        self._keys_stamp = keyring.stamp() if keyring is not None else ()
        self._allowed = {(one.public, role) for one in keyring.allowed() for role in one.roles} if keyring else set()
        self._monotonic = monotonic
        self._wall = wall
        self._complaints = Complaints(log, monotonic)
        self._reception = Reception(ledger=writer, collector=self._collector, log=log, complaints=self._complaints)
        self._workplace = workplace or Bench(writer.messages, compute=compute, monotonic=monotonic, wall=wall)
        if self._workplace.fileno() >= 0:
            transport.watch(self._workplace.fileno())
        self._quota: Quota | None = None
        if max_bytes is not None:
            self._quota = Quota(
                max_bytes, writer=writer, complaints=self._complaints, database=database, monotonic=monotonic
            )
        self._intake = Intake(
            writer=writer,
            collector=self._collector,
            reception=self._reception,
            complaints=self._complaints,
            database=database,
            compute=compute,
            workplace=self._workplace,
            space=space,
            monotonic=monotonic,
            wall=wall,
            quota=self._quota,
        )
        self._busy = False
        """Whether there was more to receive when the last batch was full."""
        self._connected_runs: frozenset[str] = frozenset()
        self.counters: dict[str, float] = {}
        """As of the last second; for other threads."""
        self._desk = Desk(database)
        self._lookout = lookout
        self._started = wall()
        self._next_care = monotonic() + IDLE_S
        self._breaker = breaker if breaker is not None else Breaker()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Wait for something to do and do it: a batch of messages, and a little of what waits to be evaluated.

        Of what was received nothing is left uncommitted when it returns.
        """
        now = self._monotonic()
        if self._intake.resume():
            self._send_answers()
        until = [self._next_care]
        if self._transport.connected:
            until.append(self._breaker.next_look)
        if self._intake.paused_until is not None:
            until.append(self._intake.paused_until)
        elif (deadline := self._collector.next_deadline()) is not None:
            until.append(deadline)
        if (due := self._intake.next_work(busy=self._busy)) is not None:
            until.append(due)
        receiving = self._intake.paused_until is None and not self._intake.full
        heard = self._transport.wait(max(0.0, min(until) - now), clients=receiving)
        if heard.viewers:
            self._guard("a viewer's request", self._serve_viewers)
        self._busy = heard.clients and self._receive_batch()
        if self._intake.paused_until is None:
            self._store()
        self._watch_memory()
        due = self._intake.next_work(busy=self._busy)
        if heard.finished or (due is not None and due <= self._monotonic()):
            self._intake.work()
        if self._monotonic() >= self._next_care:
            self._care()
        self._send_answers()

    def _receive_batch(self) -> bool:
        """Take what is there, up to one batch; return whether there is more."""
        end = self._monotonic() + min(max(BATCH_S, self._intake.commit_s), LONG_BATCH_S)
        lull = min(max(LULL_S, self._intake.commit_s / 2), LONG_LULL_S)
        nbytes, most = 0, BATCH_BYTES if self._quota is None else self._quota.receive_bytes
        self._reception.crowd = self._transport.connected
        for number in range(BATCH_MESSAGES):
            delivery = self._transport.receive()
            if delivery is None:
                if not self._transport.wait(lull if number >= FLOOD_MESSAGES else LULL_S).clients:
                    return False
                continue
            if not self._guard("a message", self._take, delivery):
                # It may have been taken halfway; what is not committed is asked for again.
                self._intake.pause()
                return False
            nbytes += sum(map(len, delivery.frames))
            if nbytes >= most or self._monotonic() >= end:
                return True
        return True

    def _take(self, delivery: Delivery) -> None:
        now, wall = self._monotonic(), self._wall()
        self._intake.gather(
            self._reception.receive(delivery.peer, delivery.frames, now=now, wall=wall, user=delivery.user)
        )

    def _guard(self, what: str, act: Callable[..., None], *arguments: Any) -> bool:
        """Return whether it went well; integers that no field expects, text that no codec takes, a bug: log it."""
        try:
            act(*arguments)
        except Exception as error:
            self._complaints.say("internal", f"{what} could not be handled: {type(error).__name__}: {error}")
            log.debug("traceback", exc_info=True)
            return False
        return True

    def _send_answers(self) -> None:
        answers, self._reception.answers = self._reception.answers, []
        for peer, frames in answers:
            self._transport.send(peer, frames)

    def _store(self) -> None:
        """Commit what is ready, acknowledge it, publish it."""
        committed = self._intake.commit()
        if committed.acknowledge:
            self._reception.stored(committed.acknowledge)
            self._send_answers()
        if committed:
            self._keep_size()
        if committed.stored:
            if self._lookout is not None:
                self._guard("alerts", self._lookout.committed, [record.item for record in committed.stored])
            self._guard("news", self._publish)

    def _publish(self) -> None:
        self._transport.publish(self._writer.revision)

    def close(self) -> None:
        """Let go of what was opened here; writer and transport belong to the caller."""
        self._desk.close()

    # -- viewers, and care --------------------------------------------------------------------------------------------

    def _serve_viewers(self) -> None:
        for envelope, request, user in self._transport.requests():
            if request == b"status":
                self._transport.answer(envelope, msgspec.msgpack.encode(self.status()))
            elif (seen := self._desk.seen(request)) is not None:
                self._transport.answer(envelope, self._acknowledge(seen, user))
            else:
                self._transport.answer(envelope, self._desk.answer(request, self.status()))
        if self._transport.new_listeners():
            self._publish()

    def _acknowledge(self, ids: Sequence[int], user: str) -> bytes:
        """Mark alerts as seen for a viewer who may write; return the answer."""
        writers = {one.name for one in self._keyring.allowed() if "write" in one.roles} if self._keyring else set()
        problem = ""
        if user and user not in writers:
            problem = f"the key {user} may look and not write: `ncmon keys new NAME --view --write` makes one that may"
        else:
            try:
                self._writer.acknowledge(ids, now=self._wall())
                self._publish()
            except StoreError as error:
                problem = str(error)
        return msgspec.msgpack.encode(packing.Done(problem=problem))

    def status(self) -> dict[str, Any]:
        """Return the answer to a viewer's request `status`."""
        counters = self._reception.counters
        return {
            "version": ncmon.__version__,
            "protocol": wire.PROTOCOL,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "database": str(self._database),
            "endpoint": self._transport.endpoints[0],
            "started": self._started,
            "revision": self._writer.revision,
            "trouble": self._intake.trouble,
            "lag_s": self._intake.lag_s(),
            "counters": {
                "accepted": counters.accepted,
                "stored": self._intake.stored,
                "rejected": self._intake.rejected,
                "waiting": self._collector.held_messages + self._intake.backlog.messages,
                "inbox": self._intake.backlog.messages,
                "inbox_bytes": self._intake.backlog.nbytes,
                "deleted": self._intake.backlog.deleted,
                "duplicates": counters.duplicates,
                "refused": counters.refused + (self._transport.gate.refused if self._transport.gate else 0),
                "connected": self._transport.connected,
                "alerts": self._lookout.raised if self._lookout is not None else 0,
            },
        }

    @property
    def connected_runs(self) -> frozenset[str]:
        """Which runs are connected, as of the last second; read by other threads."""
        return self._connected_runs

    def _care(self) -> None:
        now = self._monotonic()
        self._next_care = now + IDLE_S
        self._intake.look()
        self._intake.work()
        found = self.status()
        self.counters = {**found["counters"], "lag_s": found["lag_s"]}
        self._connected_runs = self._reception.connected_runs(self._transport.connected)
        self._reception.remind(everybody=self._busy or self._intake.full or self._intake.paused_until is not None)
        self._guard("the list of keys", self._watch_keys)
        if self._lookout is not None:
            self._guard("alerts", self._lookout.tick)
        if not self._intake.trouble:
            self._keep_size()
            if not self._intake.backlog.messages:
                self._guard("free pages", self._writer.give_back)

    def _keep_size(self) -> None:
        # After every commit too: what comes in at once may be a good part of a small limit.
        if self._quota is not None:
            self._guard("the size of the store", self._quota.keep)

    def _watch_memory(self) -> None:
        held = self._breaker.trips(self._monotonic())
        if not held:
            return
        log.error("%d MB of memory are in use: every client is asked for a new session", held >> 20)
        with security.private_files():
            self._transport.rebind()
        for _ in range(FREED_LOOKS):
            if self._breaker.freed():
                break
            time.sleep(FREED_S)
        self._breaker.cut()

    def _watch_keys(self) -> None:
        """Follow the list of keys; whose key is no longer on it is cut off, and everybody else comes back at once."""
        gate = self._transport.gate
        if self._keyring is None or gate is None or (stamp := self._keyring.stamp()) == self._keys_stamp:
            return
        self._keys_stamp = stamp
        allowed = self._keyring.allowed()
        gate.let(allowed)
        now = {(one.public, role) for one in allowed for role in one.roles}
        gone, self._allowed = self._allowed - now, now
        log.info("%d keys may come in%s", len(allowed), f", {len(gone)} rights were revoked" if gone else "")
        if gone:
            with security.private_files():
                self._transport.cut()


def run_daemon(
    database: Path,
    listen: Sequence[str] = (),
    *,
    ready: Callable[[tuple[str, ...]], None] | None = None,
    stop: StopSignal | None = None,
    metrics: str | None = None,
    max_bytes: int | None = None,
    limits: Limits | None = None,
    on_alert: Sequence[str] = (),
    log_format: logs.Form = "text",
) -> int:
    """Serve `database` at the endpoints `listen` (by default the user's own) until SIGTERM or SIGINT; return 0.

    `ready` is called with the endpoints once clients can connect; a line in the log that begins with `ready` says the
    same. `metrics` is HOST:PORT for Prometheus; `max_bytes` the size that arrays may fill.
    `limits` are those of the alerts' rules; `on_alert` is a command that gets every alert as JSON.

    Raises `ListenError` or `StoreError` where it cannot begin: another daemon serves the database or a socket, an
    endpoint is not allowed, keys are missing, a directory is open to others, the database is not ours.
    """
    logs.set_up(log_format)
    endpoints = tuple(dict.fromkeys(map(config.check_endpoint, listen or (config.default_endpoint(),))))
    keyring = Keyring() if any(map(config.is_tcp, endpoints)) else None
    key = keyring.server() if keyring is not None else None
    if keyring is not None and not keyring.allowed():
        raise ListenError("tcp needs keys, and nobody has one: `ncmon keys new NAME --write` for a machine that trains")
    kind = disk.network_kind(database.parent)
    if kind and os.environ.get("NCMON_NETWORK_DISK") != "1":
        raise StoreError(
            f"{database} is on a network file system ({kind}), where SQLite's journal is not safe: put it on a local "
            "disk with --db, or set NCMON_NETWORK_DISK=1 where only this machine ever opens it"
        )
    version, sound = library()
    if not sound:
        log.warning("SQLite %s has a rare bug that can damage a database; 3.51.3, 3.50.7 and 3.44.6 are cured", version)
    at = prometheus.address(metrics) if metrics is not None else None
    sockets = [path for path in map(config.ipc_path, endpoints) if path is not None]
    with ExitStack() as stack:
        for path in sockets:
            security.prepare_socket_directory(path)
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the directory of {database} cannot be made: {error.strerror}") from None
        stack.enter_context(security.lock_database(database))
        for path in sockets:
            stack.enter_context(security.lock_socket(path))
        stop = stack.enter_context(stop if stop is not None else StopSignal())
        writer = stack.enter_context(Writer.open(database, checkpoint_pages=WRITER_PAGES))
        stack.enter_context(Checkpoints(database))
        with security.private_files():
            allowed = keyring.allowed() if keyring is not None else ()
            transport = Transport(endpoints, wake_fd=stop.fileno(), key=key, allowed=allowed)
        stack.enter_context(transport)
        transport.prove()
        bell = stack.enter_context(Bell(on_alert)) if on_alert else None
        lookout = Lookout(writer, limits=limits, ring=bell.ring if bell is not None else None)
        stack.callback(lookout.close)
        workshop = Workshop(database)
        stack.callback(workshop.close)
        daemon = Daemon(
            writer=writer,
            transport=transport,
            database=database,
            workplace=workshop,
            keyring=keyring,
            max_bytes=max_bytes,
            lookout=lookout,
        )
        stack.callback(daemon.close)
        proof: Proof | None = None
        if transport.gate is not None and key is not None:
            proof = stack.enter_context(Proof(transport.gate, transport.guarded(), key.public))
        log.info("ready endpoint=%s database=%s pid=%d", ",".join(endpoints), database, os.getpid())
        if ready is not None:
            ready(endpoints)
        if at is not None:
            stack.callback(prometheus.serve(at, database, lambda: daemon.counters))
        local = [endpoint for endpoint in endpoints if config.ipc_path(endpoint) is not None]
        stack.enter_context(Sweep(local, connected=lambda: daemon.connected_runs))
        while not stop.stopped:
            daemon.turn()
            if proof is not None and proof.breach:
                raise ListenError(f"stopped: {proof.breach}")
        log.info("stopped: %s", daemon.status()["counters"])
    return 0
