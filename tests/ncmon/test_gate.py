"""Every row of the key matrix, on real sockets on loopback: who gets in, who does not, and what if the gate breaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from ncmon.errors import ListenError, NcmonError, NotFound, UsageError
from ncmon.feed import Selection, open_feed
from ncmon.gate import Gate, new_pair, shakes_hands
from ncmon.keyring import Allowed, Keyring, ServerKey
from ncmon.transport import Transport
from ncmon_client import keys, wire
from ncmon_client.line import Line
from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.messages import STREAM, Prepared, make_gap, make_info
from tests.ports import free_ports

pytestmark = pytest.mark.sockets


class Fort:
    """A transport on tcp, and keys for it."""

    def __init__(self) -> None:
        self.server = ServerKey(**dict(zip(("public", "secret"), new_pair(), strict=True)))
        self.pairs = {name: new_pair() for name in ("writer", "viewer", "stranger")}
        self.endpoint = f"tcp://127.0.0.1:{free_ports(3)}"
        self.view = f"tcp://127.0.0.1:{int(self.endpoint.rpartition(':')[2]) + 1}"
        read, self._write = os.pipe()
        self._read = read
        self.transport = Transport(
            [self.endpoint],
            wake_fd=read,
            key=self.server,
            allowed=[self.allowed("writer", "write"), self.allowed("viewer", "view")],
        )

    @property
    def gate(self) -> Gate:
        assert self.transport.gate is not None
        return self.transport.gate

    def allowed(self, name: str, *roles: str) -> Allowed:
        return Allowed(name=name, public=self.pairs[name][0], roles=roles, created=0.0)

    def enters(self, name: str | None, endpoint: str, *, server: str | None = None) -> bool:
        pair = self.pairs[name] if name else None
        key = (pair[0].encode(), pair[1].encode()) if pair else None
        return shakes_hands(endpoint, (server or self.server.public).encode(), key, within_s=1.0)

    def close(self) -> None:
        self.transport.close()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def fort() -> Iterator[Fort]:
    made = Fort()
    yield made
    made.close()


def test_every_key_may_do_what_the_list_says_and_nothing_else(fort: Fort) -> None:
    found = {
        (name, door): fort.enters(name, endpoint)
        for name in ("writer", "viewer", "stranger", None)
        for door, endpoint in (("write", fort.endpoint), ("view", fort.view))
    }
    assert {row for row, inside in found.items() if inside} == {("writer", "write"), ("viewer", "view")}


def test_a_client_that_expects_another_daemon_does_not_talk_to_this_one(fort: Fort) -> None:
    assert not fort.enters("writer", fort.endpoint, server=new_pair()[0])


def test_a_key_that_is_taken_off_the_list_does_not_come_in_again(fort: Fort) -> None:
    assert fort.enters("writer", fort.endpoint)
    fort.gate.let([fort.allowed("viewer", "view")])
    assert not fort.enters("writer", fort.endpoint)


def test_when_nobody_answers_for_the_list_nobody_comes_in(fort: Fort) -> None:
    fort.gate.close()
    assert not fort.enters("writer", fort.endpoint)
    assert not fort.enters("stranger", fort.endpoint)


def test_without_the_enforced_domain_a_dead_gate_lets_everybody_in() -> None:
    """The control of the test above: what libzmq does by default."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        public, secret = zmq.curve_keypair()
        router.curve_server, router.curve_secretkey = 1, secret
        port = router.bind_to_random_port("tcp://127.0.0.1")
        assert shakes_hands(f"tcp://127.0.0.1:{port}", public, zmq.curve_keypair())
    finally:
        context.destroy(linger=0)


def test_a_callback_that_raises_refuses_and_goes_on(fort: Fort, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(dict[bytes, Any]):
        def get(self, *_: Any) -> Any:
            raise RuntimeError("a bug")

    good = fort.gate._roles
    fort.gate._roles = Broken()
    assert not fort.enters("writer", fort.endpoint)
    fort.gate._roles = good
    assert fort.enters("writer", fort.endpoint)


@pytest.mark.parametrize(
    "frames", [[], [b""], [b"1.0", b"1"], [b"1.0", b"1", b"write", b"", b"", b"PLAIN", b"u", b"p"], [b"\xff"] * 7]
)
def test_a_request_that_is_none_is_refused(fort: Fort, frames: list[bytes]) -> None:
    assert fort.gate.decide(frames)[2] == b"400"


def test_the_proof_holds_and_finds_an_open_door(fort: Fort) -> None:
    fort.transport.prove()
    fort.gate.decide = lambda frames: [b"1.0", frames[1], b"200", b"OK", b"x", b""]  # type: ignore[method-assign]
    with pytest.raises(ListenError, match="was let in"):
        fort.transport.prove()


def test_a_proof_that_nobody_can_pass_is_no_proof(fort: Fort) -> None:
    fort.gate.close()
    with pytest.raises(ListenError, match="a key that is on the list was not let in"):
        fort.transport.prove()


def test_tcp_without_keys_is_refused() -> None:
    read, write = os.pipe()
    with pytest.raises(ListenError, match="tcp needs keys"):
        Transport([f"tcp://127.0.0.1:{free_ports(3)}"], wake_fd=read)
    os.close(read)
    os.close(write)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    made = Keyring(tmp_path / "keys")
    made.init(*new_pair())
    return made


def test_keys_are_files_that_their_owner_alone_can_read(ring: Keyring, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ring.add("gpu1", ("write",), *new_pair(), tmp_path / "gpu1.key")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {"server.key": "0o600", "gpu1.key": "0o600", "gpu1.pub": "0o600"}
    key = keys.read(tmp_path / "gpu1.key")
    assert (key.server, key.name) == (ring.server().public, "gpu1")
    [allowed] = ring.allowed()
    assert (allowed.public, allowed.roles) == (key.public, ("write",))
    assert key.secret not in repr(key) + (tmp_path / "keys/clients/gpu1.pub").read_text()


def test_a_secret_that_others_can_read_is_refused(ring: Keyring, tmp_path: Path) -> None:
    ring.add("gpu1", ("write",), *new_pair(), tmp_path / "gpu1.key")
    (tmp_path / "gpu1.key").chmod(0o640)
    with pytest.raises(keys.KeyProblem, match="chmod 600"):
        keys.read(tmp_path / "gpu1.key")
    (tmp_path / "keys/server.key").chmod(0o644)
    with pytest.raises(ListenError, match="chmod 600"):
        ring.server()


def test_nothing_is_ever_replaced(ring: Keyring, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there already"):
        ring.init(*new_pair())
    ring.add("gpu1", ("write",), *new_pair(), tmp_path / "a.key")
    with pytest.raises(UsageError, match="has a key already"):
        ring.add("gpu1", ("write",), *new_pair(), tmp_path / "b.key")
    with pytest.raises(UsageError, match="there already"):
        ring.add("gpu2", ("write",), *new_pair(), tmp_path / "a.key")
    assert [one.name for one in ring.allowed()] == ["gpu1"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x" * 80, "a\nb"])
def test_a_name_is_no_path(ring: Keyring, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        ring.add(name, ("view",), *new_pair(), tmp_path / "x.key")
    with pytest.raises(NotFound):
        ring.revoke(name)


@pytest.mark.parametrize("content", ["", "public = 7", 'public = "short"\nroles = "write"', "\x00\xff", "roles = []"])
def test_a_broken_entry_lets_nobody_in(ring: Keyring, content: str) -> None:
    path = ring.directory / "clients" / "broken.pub"
    path.write_text(content)
    path.chmod(0o600)
    assert ring.allowed() == ()


# -- a daemon and its clients -----------------------------------------------------------------------------------------


class Site:
    """A daemon on tcp as a process, with its own key directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_ports(3)
        self.endpoint = f"tcp://127.0.0.2:{self.port}"
        self.environment = {
            **os.environ,
            "NCMON_KEYS": str(path / "keys"),
            "NCMON_ENDPOINT": f"ipc://{path}/s",
            "XDG_CONFIG_HOME": str(path / "none"),
            "NCMON_DB": str(path / "t.db"),
        }
        self.children: list[subprocess.Popen[bytes]] = []

    def ncmon(self, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
        environment = self.environment | ({"NCMON_KEY": str(self.path / f"{key}.key")} if key else {})
        return subprocess.run(
            [sys.executable, "-m", "ncmon.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment,
        )

    def new(self, name: str, *roles: str) -> None:
        done = self.ncmon("keys", "new", name, *roles, "--out", str(self.path / f"{name}.key"))
        assert done.returncode == 0, done.stderr

    def daemon(self) -> subprocess.Popen[bytes]:
        with open(self.path / "log", "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "ncmon.cli", "serve", "--headless", "--listen", self.endpoint],
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        self.children.append(child)
        wait_for(lambda: child.poll() is not None or "ready endpoint=" in self.log(), "the daemon")
        assert child.poll() is None, self.log()
        return child

    def log(self) -> str:
        return (self.path / "log").read_text()

    def sender(self, key: str, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[Sender, Outbox]:
        monkeypatch.setenv("NCMON_KEY", str(self.path / f"{key}.key"))
        import logging

        outbox = Outbox()
        return Sender(
            endpoint=self.endpoint, run=make_info(**fields), outbox=outbox, log=logging.getLogger("t")
        ), outbox


def wait_for(condition: Callable[[], bool], what: str, *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.02)


@pytest.fixture
def site() -> Iterator[Site]:
    path = Path(tempfile.mkdtemp(prefix="nc"))
    made = Site(path)
    try:
        yield made
    finally:
        for child in made.children:
            if child.poll() is None:
                child.kill()
                child.wait()
        shutil.rmtree(path, ignore_errors=True)


def offer(sender: Sender, outbox: Outbox, steps: range, run_id: str = "run") -> None:
    for step in steps:
        assert outbox.offer(Prepared(make_gap(step=step, run_id=run_id)), 100)
        sender.start()
        sender.wake()


def test_a_training_and_a_viewer_on_other_addresses_and_a_key_that_is_revoked_under_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = site.ncmon("serve", "--headless", "--listen", site.endpoint)
    assert refused.returncode == 1
    assert "ncmon keys init" in refused.stderr
    assert site.ncmon("keys", "init").returncode == 0
    refused = site.ncmon("serve", "--headless", "--listen", site.endpoint)
    assert refused.returncode == 1
    assert "ncmon keys new" in refused.stderr
    site.new("gpu1", "--write")
    site.new("gpu2", "--write")
    site.new("laptop", "--view")
    daemon = site.daemon()

    first, outbox = site.sender("gpu1", monkeypatch)
    offer(first, outbox, range(20))
    wait_for(lambda: first.status().acknowledged == 20, "twenty acknowledgements")
    second, others = site.sender("gpu2", monkeypatch, run_id="second")
    offer(second, others, range(10), "second")
    wait_for(lambda: second.status().acknowledged == 10, "ten acknowledgements")

    looked = site.ncmon("watch", site.endpoint, "--format", "json", key="laptop")
    assert looked.returncode == 3, looked.stderr  # windows that were lost on the way are an alert
    shown = json.loads(looked.stdout)
    assert {alert["rule"] for alert in shown["alerts"]} == {"windows-refused"}
    assert shown["state"] == "LIVE"
    assert {run["run_id"] for run in shown["runs"]} == {"run", "second"}
    assert shown["counters"]["stored"] == 30
    for key in ("gpu1", "stranger", ""):
        denied = site.ncmon("watch", site.endpoint, "--format", "json", key=key)
        assert denied.returncode == 1
        assert len(denied.stderr.strip().splitlines()) == 1
        assert denied.stdout == ""
    viewer, held = site.sender("laptop", monkeypatch, run_id="third")
    offer(viewer, held, range(1), "third")
    assert not viewer.close(2.0)

    # A key is read anew for every connection; here two senders share one environment, so that they take turns with it.
    before = first.status().acknowledged
    assert site.ncmon("keys", "revoke", "gpu1").returncode == 0
    monkeypatch.setenv("NCMON_KEY", str(site.path / "gpu1.key"))
    wait_for(lambda: not first.status().connected, "the revoked key to be cut off")
    offer(first, outbox, range(20, 25))
    assert not first.close(1.0)
    assert first.status().acknowledged == before == 20
    monkeypatch.setenv("NCMON_KEY", str(site.path / "gpu2.key"))
    offer(second, others, range(10, 15), "second")
    assert second.close(10.0)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=10) == 0
    secrets = [keys.read(site.path / f"{name}.key").secret for name in ("gpu1", "gpu2", "laptop")]
    assert not any(secret in site.log() for secret in secrets)


def test_acknowledging_an_alert_needs_a_key_that_may_write(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.ncmon("keys", "init").returncode == 0
    site.new("laptop", "--view")
    site.new("both", "--view", "--write")
    site.daemon()
    sender, outbox = site.sender("both", monkeypatch)
    offer(sender, outbox, range(1))
    wait_for(lambda: sender.status().acknowledged == 1, "an acknowledgement")
    for key in ("laptop", "both"):
        monkeypatch.setenv("NCMON_KEY", str(site.path / f"{key}.key"))
        with open_feed(site.endpoint) as feed:
            wait_for(lambda feed=feed: len(feed.read(Selection()).open_alerts) == 1, "the alert of the lost window")
            (alert,) = feed.read(Selection()).open_alerts
            assert alert.rule == "windows-refused"
            if key == "laptop":
                with pytest.raises(NcmonError, match="the key laptop may look and not write: `ncmon keys new"):
                    feed.acknowledge(alert, None)
            else:
                feed.acknowledge(alert, None)
                wait_for(lambda feed=feed: not feed.read(Selection()).open_alerts, "it to press no longer")
    assert sender.close(10.0)


def test_a_stream_belongs_to_the_key_that_opened_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.ncmon("keys", "init").returncode == 0
    site.new("gpu1", "--write")
    site.new("gpu2", "--write")
    site.daemon()

    def hello(key: str, endpoint: str) -> wire.Meta:
        monkeypatch.setenv("NCMON_KEY", str(site.path / f"{key}.key"))
        line = Line(endpoint)
        try:
            assert line.dial() == ""
            assert line.send(wire.encode(wire.Hello(versions=[1], run=make_info()), stream=STREAM)) or True
            end = time.monotonic() + 10
            while time.monotonic() < end:
                line.wait(0.05, writable=False)
                for frames in line.receive():
                    return wire.decode(frames).meta
                if line.send(wire.encode(wire.Hello(versions=[1], run=make_info()), stream=STREAM)):
                    continue
            pytest.fail("no answer")
        finally:
            line.close()

    assert isinstance(hello("gpu1", site.endpoint), wire.Welcome)
    refusal = hello("gpu2", site.endpoint)
    assert isinstance(refusal, wire.Refuse)
    assert "another key" in refusal.text
    assert isinstance(hello("gpu1", site.endpoint), wire.Welcome)
    # The owner of the account reads and writes the database anyway.
    assert isinstance(hello("gpu1", f"ipc://{site.path}/s"), wire.Welcome)
