"""`ncmon doctor`: look at everything that delivery depends on; what is wrong comes with what to type."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from ncmon import config, security
from ncmon.cli import output
from ncmon.cli.arguments import database_option, examples, format_option
from ncmon.cli.output import Column, Listing
from ncmon.errors import NcmonError
from ncmon.process import openers

State = Literal["ok", "look", "wrong"]

COLUMNS = (
    Column(key="check", heading="CHECK"),
    Column(key="state", heading="STATE"),
    Column(key="found", heading="FOUND"),
)
MANY_MESSAGES = 200
"""More than a daemon that keeps up has waiting; ncmon's own clients hold up to 512."""
LAST_WINDOWS = """SELECT r.run_id, r.name, w.ranks, w.world_size, max(w.step) FROM run r JOIN window w USING (run_key)
WHERE r.status = 'live' AND w.world_size > 1 GROUP BY r.run_key"""
LONG_JOURNAL_BYTES = 256 * 1024**2
"""Four times what SQLite is told to keep: somebody reads for so long that it cannot be folded back."""


LONG_LAG_S = 60.0
"""Longer than that windows come faster than they can be evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    found: str
    """With what to type where something is wrong."""


@click.command(
    "doctor", epilog=examples("ncmon doctor", "ncmon doctor tcp://10.0.0.5:7070", "ncmon doctor --format json")
)
@click.argument("target", required=False, metavar="[ENDPOINT]")
@database_option
@format_option
def command(target: str | None, database: Path | None, form: str) -> int:
    """Say what is wrong, and what to type. Exit code 1 where something is."""
    endpoint = config.check_endpoint(target or config.default_endpoint())
    findings = list(examine(endpoint, None if database is None else database.expanduser()))
    rows = [[one.check, one.state, one.found] for one in findings]
    output.emit(Listing(columns=COLUMNS, rows=rows), form)
    return 1 if any(one.state == "wrong" for one in findings) else 0


def examine(endpoint: str, database: Path | None) -> Iterator[Finding]:
    """Yield what every check found; a check that fails itself is a finding."""
    status: dict[str, Any] = {}
    yield from _guarded("daemon", lambda: _daemon(endpoint, status))
    remote = config.is_tcp(endpoint)
    path = database or Path(str(status.get("database") or config.default_database()))
    if status:
        yield from _guarded("counters", lambda: _counters(status))
    if not remote:
        yield from _guarded("socket", lambda: _socket(endpoint, bool(status)))
        yield from _guarded("database", lambda: _database(path, status.get("pid")))
        if path.exists():
            yield from _guarded("ranks", lambda: _ranks(path))
        yield from _guarded("disk", lambda: _disk(path))
        yield from _guarded("sqlite", _sqlite)
    yield from _guarded("spool", _spool)
    yield from _guarded("keys", lambda: _keys(remote))


def _guarded(check: str, look: Callable[[], Iterator[tuple[State, str]]]) -> Iterator[Finding]:
    try:
        for state, found in look():
            yield Finding(check=check, state=state, found=found)
    except NcmonError as error:
        yield Finding(check=check, state="wrong", found=str(error))
    except OSError as error:
        yield Finding(check=check, state="wrong", found=f"{error.filename}: {error.strerror}")


def _daemon(endpoint: str, status: dict[str, Any]) -> Iterator[tuple[State, str]]:
    import ncmon
    from ncmon.transport import status as ask

    found = ask(config.view_endpoint(endpoint), timeout_s=2.0)
    if found is None:
        start = "ncmon serve" if endpoint == config.default_endpoint() else f"ncmon serve --listen {endpoint}"
        yield "wrong", f"nobody answers at {endpoint}: {start}"
        return
    status.update(found)
    yield "ok", f"pid {found['pid']} answers at {endpoint}"
    if found["version"] != ncmon.__version__:
        yield "look", f"it is ncmon {found['version']}, this is {ncmon.__version__}: stop it with `kill {found['pid']}`"
    if found.get("trouble"):
        yield "wrong", f"it stores nothing at present: {found['trouble']}"


def _counters(status: dict[str, Any]) -> Iterator[tuple[State, str]]:
    count = {name: int(value) for name, value in status["counters"].items()}
    parts = {name: count.get(name, 0) for name in ("stored", "rejected", "waiting")}
    if count.get("deleted"):
        parts["deleted with their run"] = count["deleted"]
    text = f"{count['accepted']} accepted = " + " + ".join(f"{value} {name}" for name, value in parts.items())
    adds_up = count["accepted"] == sum(parts.values())
    yield ("ok", text) if adds_up else ("wrong", f"{text} does not add up: this is a bug, please report it")
    waiting = parts["waiting"] - count.get("inbox", 0)
    if waiting > MANY_MESSAGES:
        yield "look", f"{waiting} messages wait: other ranks are missing, or the daemon is behind; look at `top`"
    if parts["rejected"]:
        yield "look", "what was rejected, and why: ncmon query 'SELECT run_id, code, reason FROM rejected'"
    if count.get("inbox"):
        waited = f"{count['inbox']} of these are on disk and not evaluated yet ({count['inbox_bytes'] >> 10} KB)"
        lag_s = float(status.get("lag_s", 0.0))
        # Less than a minute is what any burst takes.
        yield "ok" if lag_s < LONG_LAG_S else "look", f"{waited}, the oldest for {lag_s:.0f} s"
    if count.get("refused"):
        yield "look", f"{count['refused']} sessions were refused: the daemon's log says whose"


def _socket(endpoint: str, answered: bool) -> Iterator[tuple[State, str]]:
    path = config.ipc_path(endpoint)
    if path is None or not path.parent.exists():
        yield "ok", "not there yet"
        return
    status = path.parent.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        yield "wrong", f"{path.parent} is not a directory of yours: choose another one with --listen"
    elif status.st_mode & 0o077:
        yield "wrong", f"others can reach the socket: chmod 700 {path.parent}"
    else:
        yield "ok", f"{path.parent} is closed to others"
    if answered:
        return
    holder = security.held_by(path)
    if holder:
        yield "wrong", f"{holder} holds {path} and does not answer: look at its log, or end it with `kill`"
    elif path.exists():
        yield "look", f"{path} was left by a daemon that has ended: `ncmon serve` takes it over"


def _database(path: Path, answering: int | None) -> Iterator[tuple[State, str]]:
    from ncmon.store.queries import Store

    holder = security.held_by(path.resolve())
    if holder and holder != f"pid {answering}":
        yield (
            "look",
            f"{path} is served by {holder}, which is not the daemon asked here: name its socket, ncmon doctor ipc://...",
        )
    if not path.exists():
        yield "look", f"{path} is not there yet: a daemon makes it"
        return
    with Store.open(path) as store:
        runs = len(store.summary())
        waiting = store.waiting()
    yield "ok", f"{path}: {runs} runs, {path.stat().st_size >> 20} MB"
    if waiting and not holder:
        yield "look", f"{waiting} windows wait in it to be evaluated: ncmon serve --db {path}"
    journal = path.with_name(path.name + "-wal")
    if journal.exists() and journal.stat().st_size > LONG_JOURNAL_BYTES:
        who = openers(path.resolve()) or "unknown"
        yield (
            "look",
            f"its journal has {journal.stat().st_size >> 20} MB: somebody reads for too long ({who}), close it",
        )


def _ranks(path: Path) -> Iterator[tuple[State, str]]:
    from ncmon.store.queries import Store

    with Store.open(path) as store:
        found = store.sql(LAST_WINDOWS, max_rows=20, timeout_s=5.0).rows
    for run_id, name, ranks, world_size, step in found:
        missing = sorted(set(range(int(str(world_size)))) - set(json.loads(str(ranks))))
        if missing:
            listed = ", ".join(map(str, missing[:10]))
            text = (
                f"run {output.clean(str(name))} ({run_id}): rank {listed} of {world_size} was not in the window of step"
            )
            yield "look", f"{text} {step}: look at that process, or at the way from its machine to here"


def _disk(path: Path) -> Iterator[tuple[State, str]]:
    from ncmon import disk

    kind = disk.network_kind(path.parent)
    if kind:
        yield "wrong", f"{path.parent} is on a network file system ({kind}): put the database on a local disk with --db"
    found = disk.space(path.parent)
    if found is None:
        yield "look", f"{path.parent} does not say how full it is"
    elif found.tight:
        yield "wrong", f"{found.free >> 20} MB are free: nothing is stored below {found.floor >> 20} MB, free some"
    else:
        yield "ok", f"{found.free >> 20} MB are free"


def _sqlite() -> Iterator[tuple[State, str]]:
    from ncmon.store.migrate import library

    version, sound = library()
    if sound:
        yield "ok", f"SQLite {version}"
        return
    text = "a rare bug that can damage a database which several processes write; ncmon's is written by one"
    yield "look", f"SQLite {version} has {text}. Cured in 3.51.3, 3.50.7 and 3.44.6"


def _spool() -> Iterator[tuple[State, str]]:
    from ncmon_client import spool

    place = spool.directory()
    left = messages = living = held = 0
    for path in spool.files(place):
        try:
            found, lives = spool.look(path)
        except spool.SpoolError:
            yield "look", f"{path} is not legible: ncmon spool rm {path.name}"
            continue
        living += lives
        left += not lives
        messages += 0 if lives else len(found.records)
        held += len(found.records) if lives else 0
    if left:
        yield "look", f"{messages} messages of {left} processes that have ended wait in {place}: ncmon spool push"
    else:
        yield "ok", f"nothing was left behind in {place}" + (f", {living} processes use it" if living else "")
    if held > MANY_MESSAGES:
        yield (
            "look",
            f"{held} messages of processes that live wait in {place}: their daemon is away or behind, ncmon serve",
        )
    damaged = len(list(place.glob(f"*{spool.CORRUPT}")))
    if damaged:
        yield "look", f"{damaged} damaged files were set aside in {place}: ncmon spool ls, ncmon spool rm --all"


def _keys(remote: bool) -> Iterator[tuple[State, str]]:
    from ncmon.keyring import Keyring
    from ncmon_client import keys

    path = keys.path()
    if path.exists() or remote:
        try:
            yield "ok", f"{path} is the key of {keys.read(path).name}"
        except keys.KeyProblem as error:
            yield "wrong", str(error)
    ring = Keyring()
    if (ring.directory / "server.key").exists():
        ring.server()
        yield "ok", f"{len(ring.allowed())} keys may reach a daemon of this account over tcp: ncmon keys list"
    elif not path.exists() and not remote:
        yield "ok", "none, and none are needed on one machine"
