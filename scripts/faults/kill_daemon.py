"""SIGKILL the daemon again and again under several clients; nothing may be lost and nothing stored twice.

    python scripts/faults/kill_daemon.py                                20 kills, 20,000 windows, 2 clients
    python scripts/faults/kill_daemon.py --control ack-first            acknowledged too early: windows are lost
    python scripts/faults/kill_daemon.py --control no-dedupe            streams are forgotten: windows come twice

The controls break one promise each; where they show no loss and no doubles, this script proves nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time

from stand import report, stand, wait_for

CONTROLS = {
    "": "",
    # Tell the clients first, and take some time to store.
    "ack-first": (
        "import ncmon.daemon as d, time\n"
        "store = d.Daemon._store\n"
        "def early(self):\n"
        "    batch = self._intake._batch\n"
        "    self._reception.stored([origin for record in batch for origin in record.origins])\n"
        "    self._send_answers(); time.sleep(0.05 * bool(batch)); store(self)\n"
        "d.Daemon._store = early\n"
    ),
    # Store, take some time to tell, and know nothing of streams after a restart.
    "no-dedupe": (
        "import ncmon.intake as i, ncmon.store.writer as w, time\n"
        "write = i.Intake._write\n"
        "def late(self, batch):\n"
        "    write(self, batch); time.sleep(0.05)\n"
        "i.Intake._write = late\n"
        "w.Writer.stream_next = lambda self, stream: None\n"
        "w.Writer._take_origins = lambda self, origins: True\n"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=20_000, help="of all clients together")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--control", choices=sorted(CONTROLS), default="")
    args = parser.parse_args()
    rng = random.Random(1)
    begin = time.monotonic()
    with stand() as site:
        spoil = CONTROLS[args.control]
        daemon = site.daemon(spoil)
        site.watch_inserts()
        each = args.windows // args.clients
        clients = {f"run{n}": site.client(f"run{n}", each) for n in range(args.clients)}
        for kill in range(args.kills):
            # Spread over the work, at a moment within it that nobody can foresee.
            already = max(1, args.windows * kill // (args.kills + 1))
            wait_for(lambda already=already: site.stored() >= already, f"{already} windows", deadline_s=300)
            time.sleep(rng.uniform(0.0, 0.2))
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
            daemon = site.daemon(spoil)
        for run_id, client in clients.items():
            if client.wait(timeout=600) != 0:
                raise SystemExit(site.read(f"{run_id}.log"))
        ends = [json.loads(site.read(f"{run_id}.log").splitlines()[-1]) for run_id in clients]
        verdict = site.verdict({run_id: set(range(each)) for run_id in clients})
        report(
            fault="daemon killed",
            control=args.control,
            kills=args.kills,
            clients=args.clients,
            **verdict,
            held=sum(end["held"] for end in ends),
            slowest_offer_s=round(max(end["slowest_s"] for end in ends), 4),
            seconds=round(time.monotonic() - begin, 1),
        )


if __name__ == "__main__":
    main()
