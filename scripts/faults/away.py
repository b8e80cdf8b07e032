"""A training while the daemon is there, stopped, absent, or cannot write: what it takes, holds and delivers.

    python scripts/faults/away.py                          every state at full length, 15 minutes
    python scripts/faults/away.py --state absent --seconds 600

    there       the control: an ordinary daemon
    stopped     SIGSTOP, and SIGCONT at the end
    absent      no process at all; the training ends before a daemon comes, which finds everything in the spool
    full        the disk of store and spool filled to the last byte, on a tmpfs of its own (as root)
    read-only   the store's file system turns read-only as ext4 does after an error; it is mounted again, and the daemon
                started again, at the end (as root)

Two processes train the same network on the same data in turns, a slice at a time, one without ncmon: the ratio of what
they take for an epoch is that of neighbours in time, so that a busy machine is in both of them. `noise` is the same
ratio between neighbouring slices without ncmon.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from disk_full import fill
from stand import ROOT, Stand, report, stand, wait_for

INSIDE = "NCMON_FAULTS_INSIDE"
SECONDS = {"there": 60.0, "stopped": 60.0, "absent": 600.0, "full": 60.0, "read-only": 60.0}
TURN_S = 1.5

LOOP = """
import json, logging, resource, sys, time
import torch
from torch import nn
from tests.end_to_end.trainer import blobs
endpoint = sys.argv[1]
torch.set_num_threads(1)
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
torch.manual_seed(3)
x, y = blobs()
model = nn.Sequential(nn.Sequential(nn.Linear(12, 1024), nn.ReLU()),
                      nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()), nn.Linear(1024, 4))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = None
if endpoint != "-":
    import ncmon_client
    monitor = ncmon_client.watch(model, criterion=criterion, optimizer=optimizer, run="away", endpoint=endpoint,
                                 window_steps=20)
done = 0
def train(seconds):
    global done
    begin, cpu, first = time.perf_counter(), time.thread_time(), done
    while time.perf_counter() - begin < seconds:
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad(); criterion(model(x[batch]), y[batch]).backward(); optimizer.step()
        done += 1
        if monitor is not None and done % 10 == 0:
            monitor.epoch(done)
    return {"wall_ms": 1e3 * (time.perf_counter() - begin) / (done - first),
            "cpu_ms": 1e3 * (time.thread_time() - cpu) / (done - first)}
def status():
    found = monitor.status()
    return {name: getattr(found, name) for name in ("accepted", "acknowledged", "refused", "spooled", "last_error")}
def close():
    begin = time.perf_counter()
    monitor.close()
    return {"closing_s": time.perf_counter() - begin, **status()}
for line in sys.stdin:
    what, *more = line.split()
    answer = {"train": train, "status": status, "close": close}[what](*map(float, more))
    answer["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(answer), flush=True)
"""


class Training:
    """A process that trains when it is told to."""

    def __init__(self, site: Stand, endpoint: str) -> None:
        with open(site.path / "training.log", "a") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-c", LOOP, endpoint],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=site.environment,
                cwd=ROOT,
            )
        site.children.append(self._child)

    def __call__(self, order: str) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(order + "\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer


# -- the faults: a context each, which yields what ends it ------------------------------------------------------------


@contextmanager
def there(site: Stand) -> Iterator[Callable[[], None]]:
    site.daemon()
    site.watch_inserts()
    yield lambda: None


@contextmanager
def stopped(site: Stand) -> Iterator[Callable[[], None]]:
    daemon = site.daemon()
    site.watch_inserts()
    daemon.send_signal(signal.SIGSTOP)
    yield lambda: os.kill(daemon.pid, signal.SIGCONT)


@contextmanager
def absent(site: Stand) -> Iterator[Callable[[], None]]:
    site.daemon().terminate()
    site.children[-1].wait()
    site.watch_inserts()
    yield lambda: None


@contextmanager
def full(site: Stand) -> Iterator[Callable[[], None]]:
    small = site.path / "small"
    small.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", str(small)], check=True)
    site.database = small / "t.db"
    site.environment["NCMON_SPOOL"] = str(small / "spool")
    site.daemon()
    site.watch_inserts()
    fill(small / "filler")
    try:
        yield (small / "filler").unlink
    finally:
        site.end()
        subprocess.run(["umount", "-l", str(small)], check=True)


@contextmanager
def read_only(site: Stand) -> Iterator[Callable[[], None]]:
    image, place = site.path / "image", site.path / "small"
    place.mkdir(mode=0o700)
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
    mount = ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)]
    subprocess.run(mount, check=True)
    try:
        site.database = place / "t.db"
        daemon = site.daemon()
        site.watch_inserts()
        # As if the kernel had found an error in the file system.
        found = subprocess.run(["findmnt", "-no", "SOURCE", str(place)], check=True, capture_output=True, text=True)
        Path(f"/sys/fs/ext4/{Path(found.stdout.strip()).name}/trigger_fs_error").write_text("1\n")

        def repair() -> None:
            if daemon.poll() is not None:
                raise SystemExit("the daemon did not survive: " + site.read("daemon.log"))
            daemon.terminate()
            daemon.wait()
            subprocess.run(["umount", str(place)], check=True)
            subprocess.run(["e2fsck", "-fy", str(image)], check=False, capture_output=True)
            subprocess.run(mount, check=True)
            site.daemon()

        yield repair
    finally:
        site.end()
        subprocess.run(["umount", str(place)], check=False)


FAULTS = {"there": there, "stopped": stopped, "absent": absent, "full": full, "read-only": read_only}


def measure(plain: Training, watched: Training, seconds: float, turn_s: float) -> dict[str, Any]:
    """Train in turns of `turn_s` for so long; return ratios of neighbours."""
    slices: list[tuple[dict[str, Any], dict[str, Any]]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(slices) < 2:
        # Who goes first changes, so that a machine that becomes busier favours nobody.
        if len(slices) % 2:
            other = watched(f"train {turn_s}")
            slices.append((plain(f"train {turn_s}"), other))
        else:
            slices.append((plain(f"train {turn_s}"), watched(f"train {turn_s}")))
    found: dict[str, Any] = {"pairs": len(slices)}
    for kind in ("wall", "cpu"):
        name = f"{kind}_ms"
        ratios = [with_ncmon[name] / without[name] for without, with_ncmon in slices]
        noise = [abs(one[0][name] / other[0][name] - 1) for one, other in itertools.pairwise(slices)]
        found[f"{kind}_ratio"] = round(statistics.median(ratios), 4)
        found[f"{kind}_noise"] = round(statistics.median(noise), 4)
    found["ram_more_mb"] = slices[-1][1]["peak_mb"] - slices[-1][0]["peak_mb"]
    found["ram_grew_mb"] = slices[-1][1]["peak_mb"] - slices[0][1]["peak_mb"]
    return found


def one(state: str, seconds: float, turn_s: float) -> None:
    """Go through one state and report."""
    with stand() as site:
        site.environment["MALLOC_ARENA_MAX"] = "2"
        plain = Training(site, "-")
        plain(f"train {turn_s}")
        with FAULTS[state](site) as repair:
            watched = Training(site, site.endpoint)
            watched(f"train {turn_s}")
            found = measure(plain, watched, seconds, turn_s)
            during = watched("status")
            stored_during = site.stored()
            repair()
            if state == "absent":
                end = watched("close")
                daemon = site.daemon()
            else:
                wait_for(lambda: settled(watched("status")), "everything to arrive", deadline_s=120)
                end = watched("close")
                daemon = site.children[-1]
            # Besides windows a run has its last word, which is no row of its own.
            wait_for(
                lambda: site.stored() == end["accepted"] - 1 and ended(site), "everything to arrive", deadline_s=120
            )
            report(
                fault="daemon away",
                state=state,
                seconds=seconds,
                **found,
                accepted=end["accepted"],
                refused=end["refused"],
                waiting_at_the_end_of_the_fault=during["accepted"] - during["acknowledged"],
                spooled=max(during["spooled"], end["spooled"]),
                stored_during=stored_during,
                stored_after=site.stored() + 1,
                doubled=int(site.rows("SELECT count(*) - count(DISTINCT step) FROM written")[0][0]),
                closing_s=round(end["closing_s"], 3),
                warnings=site.read("training.log").count("WARNING"),
                integrity=site.rows("PRAGMA integrity_check")[0][0],
            )
            assert daemon is not None


def settled(status: dict[str, Any]) -> bool:
    return bool(status["acknowledged"] == status["accepted"])


def ended(site: Stand) -> bool:
    return bool(site.rows("SELECT count(*) FROM run WHERE status = 'finished'")[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", choices=sorted(FAULTS), help="this one only")
    parser.add_argument("--seconds", type=float, help="in place of 60, and of 600 for an absent daemon")
    parser.add_argument("--turn", type=float, default=TURN_S, help="seconds that one of both trains at a time")
    args = parser.parse_args()
    for state in [args.state] if args.state else list(FAULTS):
        if state in ("full", "read-only") and INSIDE not in os.environ:
            # What is mounted is gone with the process, however it ends.
            more = ["--turn", str(args.turn), *(["--seconds", str(args.seconds)] if args.seconds else [])]
            command = ["unshare", "-m", sys.executable, __file__, "--state", state, *more]
            if subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode:
                raise SystemExit(1)
            continue
        one(state, args.seconds or SECONDS[state], args.turn)


if __name__ == "__main__":
    main()
