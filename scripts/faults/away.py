"""A training beside a daemon that is there, stopped (SIGSTOP), or absent: what it takes, holds and delivers.

    python scripts/faults/away.py                     5 rounds of 15 s each, every state in turn

The same loop on the same data each time, in a process of its own, without ncmon as well. The daemon that was stopped
goes on after the loop, and everything has to arrive; of the one that is absent everything lies in the spool.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from stand import ROOT, Stand, report, stand

LOOP = """
import json, logging, resource, sys, time
import torch
from torch import nn
from tests.end_to_end.trainer import blobs, network
endpoint, seconds = sys.argv[1], float(sys.argv[2])
torch.set_num_threads(1)
logging.basicConfig(level=logging.ERROR)
torch.manual_seed(3)
x, y = blobs()
model = nn.Sequential(nn.Sequential(nn.Linear(12, 512), nn.ReLU()), nn.Sequential(nn.Linear(512, 512), nn.ReLU()),
                      nn.Linear(512, 4))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = None
if endpoint != "-":
    import ncmon_client
    monitor = ncmon_client.watch(model, criterion=criterion, optimizer=optimizer, run="away", endpoint=endpoint)
def epochs(count, first):
    for epoch in range(first, first + count):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad(); criterion(model(x[batch]), y[batch]).backward(); optimizer.step()
        if monitor is not None:
            monitor.epoch(epoch)
epochs(50, 0)
begin, cpu, n = time.perf_counter(), time.process_time(), 50
while time.perf_counter() - begin < seconds:
    epochs(10, n); n += 10
elapsed = time.perf_counter() - begin
print(json.dumps({"per_epoch_ms": 1e3 * elapsed / (n - 50), "cpu_ms": 1e3 * (time.process_time() - cpu) / (n - 50),
                  "epochs": n}), flush=True)
input()
begin = time.perf_counter()
if monitor is not None:
    monitor.close()
closing = time.perf_counter() - begin
status = monitor.status() if monitor is not None else None
print(json.dumps({"closing_s": closing, "accepted": status.accepted if status else 0,
                  "acknowledged": status.acknowledged if status else 0, "refused": status.refused if status else 0,
                  "spooled": status.spooled if status else 0,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}), flush=True)
"""


def train(site: Stand, state: str, seconds: float) -> dict[str, float]:
    daemon = site.daemon() if state in ("there", "stopped") else None
    if daemon is not None and state == "stopped":
        daemon.send_signal(signal.SIGSTOP)
    endpoint = "-" if state == "without ncmon" else site.endpoint
    child = subprocess.Popen(
        [sys.executable, "-c", LOOP, endpoint, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=site.environment,
        cwd=ROOT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    found = json.loads(child.stdout.readline())
    if daemon is not None and state == "stopped":
        os.kill(daemon.pid, signal.SIGCONT)
        time.sleep(4.0)
    child.stdin.write("\n")
    child.stdin.flush()
    found |= json.loads(child.stdout.readline())
    child.wait()
    if daemon is not None:
        daemon.terminate()
        daemon.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for state in ("without ncmon", "there", "stopped", "absent"):
            with stand() as site:
                one = train(site, state, args.seconds)
            found.setdefault(state, []).append(one)
            print(state, one, file=sys.stderr, flush=True)
    for state, rounds in found.items():
        report(
            fault="daemon away",
            state=state,
            epoch_ms=round(statistics.median(one["per_epoch_ms"] for one in rounds), 3),
            epoch_ms_least=round(min(one["per_epoch_ms"] for one in rounds), 3),
            cpu_ms=round(statistics.median(one["cpu_ms"] for one in rounds), 3),
            **{name: max(one[name] for one in rounds) for name in ("closing_s", "peak_mb", "refused")},
            accepted=sum(one["accepted"] for one in rounds),
            acknowledged=sum(one["acknowledged"] for one in rounds),
            spooled=sum(one["spooled"] for one in rounds),
        )


if __name__ == "__main__":
    main()
