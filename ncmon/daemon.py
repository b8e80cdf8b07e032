"""The daemon: one thread, one poller, the only clock. Messages in, commits, acknowledgements, news out.

    transport -> reception -> ingest -> collector -> evaluate -> one commit a batch -> ACK -> publish

Rules of this module
- Store first, acknowledge second, publish third.
- Nothing that a client sends ends the daemon or holds up another client; whatever goes wrong with one message stays
  with that message.
- When the store fails nothing is acknowledged. What was received since the last commit is forgotten, because the
  clients still hold it, and asked for again after a pause.
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
from ncmon import config, disk, ingest, logs, prometheus, security
from ncmon.breaker import Breaker
from ncmon.collector import Collector, Ready
from ncmon.desk import Desk
from ncmon.errors import ListenError, Rejected, StoreError
from ncmon.evaluate import evaluate
from ncmon.gate import Proof
from ncmon.keyring import Keyring
from ncmon.model import Evaluation, Gap, Rejection, RunEnd, StreamSeq, Window
from ncmon.process import StopSignal, openers
from ncmon.reception import Complaints, Reception
from ncmon.store.migrate import library
from ncmon.store.writer import Stored, Writer
from ncmon.sweep import Sweep
from ncmon.transport import Delivery, Transport
from ncmon_client import wire

BATCH_MESSAGES = 64
BATCH_S = 0.020
LULL_S = 0.002
"""A batch also ends when nothing has come for this long: the library refills its queues in less."""
IDLE_S = 1.0
"""Longest wait; also how often waiting streams are reminded."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.25, 2.0
"""Between attempts to commit. Below the clients' ack timeout, so that they need no new session."""
BATCH_BYTES = 32 * 1024**2
"""A batch also ends behind the message that reaches this: it is in memory several times while it is worked on."""
FREED_S, FREED_LOOKS = 0.02, 10
"""After a cut: how often it is looked whether the memory has come back, and how many times."""
TRIM_ABOVE, TRIM_BELOW, TRIM_S = 0.97, 0.95, 0.25
"""Of `--max-bytes`: what makes it drop something, and down to where; and how long it may take at a time."""
JOURNAL_LIMIT_BYTES = 1024**3
"""Sixteen times what SQLite is told to keep. Somebody reads for so long that it cannot be folded back."""

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
        keyring: Keyring | None = None,
        space: Callable[[Path], disk.Space | None] = disk.space,
        max_bytes: int | None = None,
        breaker: Breaker | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._transport = transport
        self._database = database
        self._collector = collector if collector is not None else Collector()
        self._compute = compute
        self._keyring = keyring
        self._keys_stamp = keyring.stamp() if keyring is not None else ()
        self._allowed = {(one.public, role) for one in keyring.allowed() for role in one.roles} if keyring else set()
        self._monotonic = monotonic
        self._wall = wall
        self._complaints = Complaints(log, monotonic)
        self._reception = Reception(ledger=writer, collector=self._collector, log=log, complaints=self._complaints)
        self._connected_runs: frozenset[str] = frozenset()
        self.counters: dict[str, int] = {}
        """As of the last second; for other threads."""
        self._desk = Desk(database)
        self._space = space
        self._next_look = monotonic()
        self._max_bytes = max_bytes
        self._trouble = ""
        """Why nothing is stored at present; empty while the store works."""
        self._batch: list[Stored] = []
        self._stored = self._rejected = 0
        self._started = wall()
        self._paused_until: float | None = None
        self._pause_s = PAUSE_MIN_S
        self._next_care = monotonic() + IDLE_S
        self._breaker = breaker if breaker is not None else Breaker()
        self._behind = False
        """Whether the last batch ended before there was nothing more to receive."""

    # -- the loop -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Wait for something to do and do it, up to one batch; nothing is left uncommitted when it returns."""
        now = self._monotonic()
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._reception.ask_again()
            self._send_answers()
        until = [self._next_care]
        if self._transport.connected:
            until.append(self._breaker.next_look)
        if self._paused_until is not None:
            until.append(self._paused_until)
        elif (deadline := self._collector.next_deadline()) is not None:
            until.append(deadline)
        heard = self._transport.wait(max(0.0, min(until) - now), clients=self._paused_until is None)
        if heard.viewers:
            self._guard("a viewer's request", self._serve_viewers)
        if heard.clients:
            self._receive_batch()
        if self._paused_until is None:
            self._store()
        self._watch_memory()
        if self._monotonic() >= self._next_care:
            self._care()
        self._send_answers()

    def _receive_batch(self) -> None:
        end, left = self._monotonic() + BATCH_S, BATCH_BYTES
        self._reception.crowd, self._behind = self._transport.connected, True
        for _ in range(BATCH_MESSAGES):
            delivery = self._transport.receive()
            if delivery is None:
                if not self._transport.wait(LULL_S).clients:
                    self._behind = False
                    return
                continue
            if not self._guard("a message", self._take, delivery):
                # It may have been taken halfway; what is not committed is asked for again.
                self._pause()
                return
            left -= sum(map(len, delivery.frames))
            if left <= 0 or self._monotonic() >= end:
                return

    def _take(self, delivery: Delivery) -> None:
        now, wall = self._monotonic(), self._wall()
        self._gather(self._reception.receive(delivery.peer, delivery.frames, now=now, wall=wall, user=delivery.user))

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

    # -- the store ----------------------------------------------------------------------------------------------------

    def _gather(self, ready: Sequence[Ready]) -> None:
        for one in ready:
            item: Evaluation | Gap | RunEnd | Rejection
            item = self._evaluated(one.item, one.origins[0]) if isinstance(one.item, Window) else one.item
            self._batch.append(Stored(origins=one.origins, item=item))

    def _evaluated(self, window: Window, origin: StreamSeq) -> Evaluation | Rejection:
        try:
            return self._compute(window)
        except Exception as error:
            log.debug("traceback", exc_info=True)
            why = Rejected("evaluate", f"step {window.step} ({window.split}): {type(error).__name__}: {error}")
            return self._rejection(window.run_id, origin, why)

    def _rejection(self, run_id: str, origin: StreamSeq, why: Rejected) -> Rejection:
        self._reception.counters.rejected += 1
        self._complaints.say(why.code, f"run {run_id}: message {origin.seq} is rejected ({why.code}): {why}")
        return ingest.to_rejection((), stream=origin.stream, seq=origin.seq, run_id=run_id, error=why, now=self._wall())

    def _store(self) -> None:
        """Commit what is ready, acknowledge it, publish it."""
        try:
            self._gather(self._collector.tick(now=self._monotonic()))
            batch, self._batch = self._batch, []
            if not batch:
                return
            self._check_space()
            self._write(batch)
        except Exception as error:
            text = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            if not self._trouble:
                log.error("nothing is acknowledged until the store works again: %s", text)
            self._trouble = text
            self._pause()
            return
        self._pause_s = PAUSE_MIN_S
        if self._trouble:
            self._trouble = ""
            log.info("the store works again")
        for record in batch:
            if isinstance(record.item, Rejection):
                self._rejected += len(record.origins)
            else:
                self._stored += len(record.origins)
        self._reception.stored([origin for record in batch for origin in record.origins])
        self._send_answers()
        self._guard("news", self._publish)

    def _check_space(self) -> None:
        # Before the disk is full to the last byte: SQLite needs room to fold its journal back, and so do others.
        now = self._monotonic()
        if now >= self._next_look or self._trouble:
            self._next_look = now + IDLE_S
            found = self._space(self._database.parent)
            if found is not None and found.tight:
                raise StoreError(
                    f"{self._database.parent} has {found.free >> 20} MB left of {found.total >> 20}: free some, "
                    f"{found.floor >> 20} MB are left to others"
                )
            self._check_journal()

    def _check_journal(self) -> None:
        # While somebody reads from it a write-ahead log only grows, and every read takes longer.
        if self._writer.journal_bytes <= JOURNAL_LIMIT_BYTES // 2:
            return
        self._writer.fold_journal()
        size = self._writer.journal_bytes
        if size > JOURNAL_LIMIT_BYTES // 2:
            text = (
                f"the journal of {self._database} has {size >> 20} MB, because somebody reads for too long "
                f"({openers(self._database) or 'unknown'}): close it"
            )
            if size > JOURNAL_LIMIT_BYTES:
                raise StoreError(text)
            self._complaints.say("journal", f"{text}; from {JOURNAL_LIMIT_BYTES >> 20} MB on nothing is stored")

    def _pause(self) -> None:
        """Forget what is not committed; after a while every stream is asked for it again."""
        self._batch = []
        self._paused_until = self._monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def _publish(self) -> None:
        self._transport.publish(self._writer.revision)

    def _write(self, batch: Sequence[Stored]) -> None:
        try:
            self._writer.commit(batch, now=self._wall())
            return
        except StoreError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self._complaints.say("batch", f"a batch of {len(batch)} has to be committed one by one: {why}")
        # Something in it cannot be written, by whatever mistake. Its neighbours must not suffer for it.
        for record in batch:
            try:
                self._writer.commit([record], now=self._wall())
            except StoreError:
                raise
            except Exception as error:
                origin = record.origins[0]
                refused = Rejected("store", f"{type(error).__name__}: {error}")
                item = self._rejection(self._reception.run_of(origin.stream), origin, refused)
                self._writer.commit([Stored(origins=record.origins, item=item)], now=self._wall())

    def close(self) -> None:
        """Let go of what was opened here; writer and transport belong to the caller."""
        self._desk.close()

    # -- viewers, and care --------------------------------------------------------------------------------------------

    def _serve_viewers(self) -> None:
        for envelope, request in self._transport.requests():
            if request == b"status":
                self._transport.answer(envelope, msgspec.msgpack.encode(self.status()))
            else:
                self._transport.answer(envelope, self._desk.answer(request, self.status()))
        if self._transport.new_listeners():
            self._publish()

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
            "trouble": self._trouble,
            "counters": {
                "accepted": counters.accepted,
                "stored": self._stored,
                "rejected": self._rejected,
                "waiting": self._collector.held_messages,
                "duplicates": counters.duplicates,
                "refused": counters.refused + (self._transport.gate.refused if self._transport.gate else 0),
                "connected": self._transport.connected,
            },
        }

    @property
    def connected_runs(self) -> frozenset[str]:
        """Which runs are connected, as of the last second; read by other threads."""
        return self._connected_runs

    def _care(self) -> None:
        now = self._monotonic()
        self._next_care = now + IDLE_S
        self.counters = self.status()["counters"]
        self._connected_runs = self._reception.connected_runs(self._transport.connected)
        self._reception.remind(behind=self._behind or self._paused_until is not None)
        self._guard("the list of keys", self._watch_keys)
        if self._max_bytes is not None and not self._trouble:
            self._guard("the size of the store", self._trim, self._max_bytes)

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

    def _trim(self, max_bytes: int) -> None:
        end, arrays, windows = self._monotonic() + TRIM_S, 0, 0
        if self._writer.nbytes <= TRIM_ABOVE * max_bytes:
            return
        while dropped := self._writer.trim(int(TRIM_BELOW * max_bytes)):
            arrays, windows = arrays + dropped.arrays, windows + dropped.windows
            if self._monotonic() >= end:
                break
        if arrays or windows:
            what = f"arrays of {arrays} old windows" if arrays else f"{windows} windows of the longest histories"
            self._complaints.say("trim", f"{what} were dropped, to stay below {max_bytes >> 20} MB")
        elif self._writer.nbytes > max_bytes:
            self._complaints.say("trim", f"{self._database} cannot be kept below {max_bytes >> 20} MB: ncmon prune")

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
    log_format: logs.Form = "text",
) -> int:
    """Serve `database` at the endpoints `listen` (by default the user's own) until SIGTERM or SIGINT; return 0.

    `ready` is called with the endpoints once clients can connect; a line in the log that begins with `ready` says the
    same. `metrics` is HOST:PORT for Prometheus; `max_bytes` the size that arrays may fill.

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
        writer = stack.enter_context(Writer.open(database))
        with security.private_files():
            allowed = keyring.allowed() if keyring is not None else ()
            transport = Transport(endpoints, wake_fd=stop.fileno(), key=key, allowed=allowed)
        stack.enter_context(transport)
        transport.prove()
        daemon = Daemon(writer=writer, transport=transport, database=database, keyring=keyring, max_bytes=max_bytes)
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
