"""A client for the fault scripts: client.py ENDPOINT RUN FIRST WINDOWS LEVEL [FEATURES]

Offers one small window after another, waits where the outbox is full, and says each step that is safe by its level on a
line of its own. At the end it closes and prints what became of everything.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time

import stand  # noqa: F401 sets the path

from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.factories import make_window
from tests.messages import Prepared, make_info, to_wire


def main() -> None:
    endpoint, run_id, first, windows, level = sys.argv[1:6]
    logging.basicConfig(level=logging.WARNING)
    outbox = Outbox()
    sender = Sender(
        endpoint=endpoint,
        run=make_info(run_id=run_id),
        outbox=outbox,
        log=logging.getLogger("client"),
        level=level,  # type: ignore[arg-type]
    )
    n_features = int(sys.argv[6]) if len(sys.argv) > 6 else 6
    made = make_window(layers=1, n_features=n_features, per_class=4)
    # A training that measures no loss: without bounds to evaluate it is delivery that takes most of the time here.
    unmeasured = dict.fromkeys(
        ("label_counts", "loss_sums", "correct", "loss_nonfinite", "own_logit_sums", "own_loss_sums")
    )
    made = dataclasses.replace(made, run_id=run_id, head=dataclasses.replace(made.head, **unmeasured))
    slowest = 0.0
    for step in range(int(first), int(first) + int(windows)):
        meta, blob = to_wire(dataclasses.replace(made, step=step))
        begin = time.perf_counter()
        while not outbox.offer(Prepared(meta, blob), len(blob)):
            time.sleep(0.005)
            begin = time.perf_counter()
        sender.start()
        sender.wake()
        safe = sender.settle() if level in ("always", "fsync") else True
        slowest = max(slowest, time.perf_counter() - begin)
        if safe:
            print(step, flush=True)
    # `close` does not wait for a daemon that is away; the promise holds for as long as this process lives.
    deadline = time.monotonic() + 300.0
    while outbox.counts().held and time.monotonic() < deadline:
        time.sleep(0.05)
    begin = time.perf_counter()
    sender.close(5.0)
    counts = outbox.counts()
    closing = time.perf_counter() - begin
    print(json.dumps({**dataclasses.asdict(counts), "slowest_s": slowest, "closing_s": closing}), flush=True)


if __name__ == "__main__":
    main()
