"""A crowd of clients with large windows at a daemon whose writer is held up: its memory has a bound, and all arrives.

    python scripts/faults/flood.py                   100 clients, 3 windows of 2 MB each, 20 s without a commit

The clients are ncmon's own, a thread each, and have more to say than the daemon lets them. Another process of the same
machine holds SQLite's lock for writing in the meantime. Memory is what the system says the daemon had at most (VmHWM).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sqlite3
import threading
import time

from stand import peak_bytes, report, resident_bytes, stand, wait_for

from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.factories import make_window
from tests.messages import Prepared, make_info, to_wire

FEATURES, BYTES_A_LAYER = 700, 46_000
"""Of many small layers, because the factory computes every layer's scatter."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--windows", type=int, default=3, help="of each client")
    parser.add_argument("--mb", type=float, default=2.0, help="size of a window")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long nothing can be committed")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    made = make_window(layers=round(args.mb * 2**20 / BYTES_A_LAYER), n_features=FEATURES, per_class=4)
    _, bytes_of_all = to_wire(made)
    with stand() as site:
        daemon = site.daemon()
        site.watch_inserts()
        idle = resident_bytes(daemon.pid)
        begin = time.monotonic()
        senders: list[tuple[Sender, Outbox]] = []
        with contextlib.closing(sqlite3.connect(site.database, isolation_level=None, timeout=20)) as other:
            for number in range(args.clients):
                run_id = f"run{number}"
                outbox = Outbox()
                sender = Sender(
                    endpoint=site.endpoint, run=make_info(run_id=run_id), outbox=outbox, log=logging.getLogger("flood")
                )
                senders.append((sender, outbox))
                for step in range(args.windows):
                    meta, blob = to_wire(dataclasses.replace(made, run_id=run_id, step=step))
                    # The large part is the same in all of them, and once in this process.
                    assert blob == bytes_of_all
                    outbox.offer(Prepared(meta, bytes_of_all), len(blob))
                sender.start()
            # Everybody was welcomed, or waits to be: then nothing can be written any more.
            other.execute("BEGIN IMMEDIATE")
            stored = site.stored()
            time.sleep(args.seconds)
            stuck = site.stored() - stored
            other.execute("COMMIT")
        held = time.monotonic()
        wait_for(lambda: not any(outbox.counts().held for _, outbox in senders), "everything to arrive", deadline_s=300)
        arrived = time.monotonic() - held
        closers = [threading.Thread(target=sender.close, args=(5.0,)) for sender, _ in senders]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        expected = {f"run{number}": set(range(args.windows)) for number in range(args.clients)}
        report(
            fault="flood",
            clients=args.clients,
            window_mb=round(len(bytes_of_all) / 2**20, 2),
            alive=daemon.poll() is None,
            idle_mb=idle >> 20,
            peak_mb=peak_bytes(daemon.pid) >> 20,
            stored_while_stuck=stuck,
            arrived_after_s=round(arrived, 1),
            sessions_cut=site.read("daemon.log").count("asked for a new session"),
            **site.verdict(expected),
            seconds=round(time.monotonic() - begin, 1),
        )


if __name__ == "__main__":
    main()
