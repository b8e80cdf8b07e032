"""Two machines, as near as one machine comes to it: a daemon in one network namespace, a training and a viewer in
another, a cable between them, and keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.site import Site, wait_for

pytestmark = [pytest.mark.sockets, pytest.mark.training, pytest.mark.timeout(180)]

PORT = 7070


def ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


class Cable:
    """Two namespaces, each with one end of a virtual cable."""

    def __init__(self) -> None:
        self.names = [f"nc{os.getpid()}{side}" for side in "ab"]
        self.addresses = ["10.231.7.1", "10.231.7.2"]

    def lay(self) -> bool:
        one, two = self.names
        return all(
            (
                *(ip("netns", "add", name) for name in self.names),
                ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", two),
                *(
                    ip("-n", name, *what)
                    for name, address in zip(self.names, self.addresses, strict=True)
                    for what in (
                        ("addr", "add", f"{address}/24", "dev", "cable"),
                        ("link", "set", "cable", "up"),
                        ("link", "set", "lo", "up"),
                    )
                ),
            )
        )

    def cut(self) -> None:
        for name in self.names:
            ip("netns", "del", name)

    def inside(self, side: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[side], sys.executable, *command]


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable()
    if os.geteuid() != 0 or not made.lay():
        made.cut()
        pytest.skip("network namespaces need root, and a system that allows them")
    try:
        yield made
    finally:
        made.cut()


def test_a_training_and_a_viewer_in_another_network(site: Site, cable: Cable) -> None:
    endpoint = f"tcp://{cable.addresses[0]}:{PORT}"
    at_daemon = site.environment | {
        "NCMON_KEYS": str(site.path / "keys"),
        "NCMON_DB": str(site.database),
        "NCMON_ENDPOINT": f"ipc://{site.path}/here",
    }

    def ncmon(side: int, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
        more = {"NCMON_KEY": str(site.path / f"{key}.key"), "NCMON_SPOOL": str(site.path / f"spool-{key}")}
        return subprocess.run(
            cable.inside(side, "-m", "ncmon.cli", *arguments),
            env=at_daemon if side == 0 else site.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert ncmon(0, "keys", "init").returncode == 0
    for name, role in (("gpu1", "--write"), ("laptop", "--view")):
        done = ncmon(0, "keys", "new", name, role, "--out", str(site.path / f"{name}.key"))
        assert done.returncode == 0, done.stderr
    with open(site.path / "daemon.err", "a") as log:
        daemon = subprocess.Popen(
            cable.inside(0, "-m", "ncmon.cli", "serve", "--headless", "--listen", endpoint),
            env=at_daemon,
            stdout=log,
            stderr=log,
        )
    site.children.append(daemon)
    wait_for(lambda: daemon.poll() is not None or "ready endpoint=" in site.read("daemon.err"), "the daemon")
    assert daemon.poll() is None, site.read("daemon.err")

    trainer = str(Path(__file__).with_name("trainer.py"))
    for key in ("gpu1", "laptop"):
        done = subprocess.run(
            cable.inside(1, trainer, "--weights", str(site.path / "w.pt"), "--windows", "6", "--endpoint", endpoint),
            env=site.environment | {"NCMON_KEY": str(site.path / f"{key}.key"), "NCMON_SPOOL": str(site.path / key)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout.splitlines()[-1])
        assert counts["acknowledged"] == (counts["accepted"] if key == "gpu1" else 0), (key, counts)
        assert ("does not know this key" in done.stderr) == (key == "laptop"), done.stderr

    looked = ncmon(1, "watch", endpoint, "--format", "json", key="laptop")
    assert looked.returncode == 0, looked.stderr
    shown = json.loads(looked.stdout)
    assert [run["name"] for run in shown["runs"]] == ["kill"]
    assert shown["counters"]["stored"] == shown["counters"]["accepted"] == 10
    denied = ncmon(1, "watch", endpoint, "--format", "json", key="gpu1")
    assert (denied.returncode, denied.stdout) == (1, "")
    assert len(denied.stderr.strip().splitlines()) == 1
    told = ncmon(1, "doctor", endpoint, "--format", "json", key="laptop")
    assert {row["check"]: row["state"] for row in json.loads(told.stdout)}["daemon"] == "ok", told.stdout
