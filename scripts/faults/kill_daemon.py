"""SIGKILL the daemon again and again under several clients; nothing may be lost and nothing stored twice.

    python scripts/faults/kill_daemon.py                                20 kills, 20,000 windows, 2 clients
    python scripts/faults/kill_daemon.py --control ack-first           acknowledged too early: windows are lost
    python scripts/faults/kill_daemon.py --control no-dedupe           streams are forgotten: windows come twice
    python scripts/faults/kill_daemon.py --control plain-reconnect     the socket reconnects alone: windows are lost

The controls break one promise each; where they show no loss and no doubles, this script proves nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from typing import Any

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
        "import ncmon.intake as i, ncmon.store.streams as s, ncmon.store.writer as w, time\n"
        "write = i.Intake._write\n"
        "def late(self, batch):\n"
        "    stored = write(self, batch); time.sleep(0.05); return stored\n"
        "i.Intake._write = late\n"
        "w.Writer.stream_next = lambda self, stream: None\n"
        "assert s.Streams.take\n"
        "s.Streams.take = lambda self, origins, **waited: True\n"
    ),
    # What a plain DEALER invites to: it reconnects by itself and sends what its old pipe still held; the daemon asks
    # nobody to introduce himself again, and the highest number that it saw is the one that it acknowledges.
    "plain-reconnect": (
        "import ncmon.reception as r\n"
        "from tests.messages import make_info\n"
        "def in_turn(self, peer, stream_id, seq):\n"
        "    stream = self._streams.get(stream_id)\n"
        "    if stream is None:\n"
        "        found = self._ledger._connection.execute('SELECT run_id FROM stream WHERE stream = ?', (stream_id,))\n"
        "        run, number = make_info(run_id=found.fetchone()[0]), self._ledger.stream_next(stream_id)\n"
        "        stream = r._Stream(peer=peer, run=run, committed=number, expected=number)\n"
        "        self._streams[stream_id] = stream\n"
        "        self._collector.open(stream_id, run_id=run.run_id, rank=0)\n"
        "    stream.peer = peer\n"
        "    if seq < stream.expected:\n"
        "        self._answer(peer, stream_id, r.wire.Ack(next=stream.committed))\n"
        "        return None\n"
        "    return stream\n"
        "assert r.Reception._in_turn\n"
        "r.Reception._in_turn = in_turn\n"
    ),
}
CLIENT = {
    "plain-reconnect": (
        "import zmq, ncmon_client.line as l, ncmon_client.session as s\n"
        "def dial(self):\n"
        "    if self._socket is None:\n"
        "        self._socket = self._context.socket(zmq.DEALER)\n"
        "        self._socket.linger = 0\n"
        "        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)\n"
        "        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)\n"
        "        self._monitor.linger = 0\n"
        "        self._socket.connect(self._endpoint)\n"
        "    return ''\n"
        "lost = s.Session.lost\n"
        "def resend(self, now, why, **more):\n"
        "    if self.phase is not s.Phase.OPEN:\n"
        "        return lost(self, now, why, **more)\n"
        "    self._outbox.rewind(self._outbox.first)\n"
        "    self._deadline = now + s.ACK_TIMEOUT_S\n"
        "l.Line.dial, s.Session.lost = dial, resend\n"
    )
}
WIDE = 200
"""Features of the clients' windows under plain-reconnect: what is in flight does not fit into the system's buffers."""


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
        wide: dict[str, Any] = {}
        if args.control in CLIENT:
            wide = {"n_features": WIDE, "spoil": CLIENT[args.control]}
        clients = {f"run{n}": site.client(f"run{n}", each, **wide) for n in range(args.clients)}
        ended = list(clients.values())
        for kill in range(args.kills):
            # Spread over the work, at a moment within it that nobody can foresee.
            already = max(1, args.windows * kill // (args.kills + 1))
            wait_for(
                # Where windows are lost the number may never be reached.
                lambda already=already: site.stored() >= already or all(one.poll() is not None for one in ended),
                f"{already} windows",
                deadline_s=300,
            )
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
