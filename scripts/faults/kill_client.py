"""SIGKILL clients of one run again and again at a spool level; what they said was safe has to be in the store.

    python scripts/faults/kill_client.py                        20 kills at level always
    python scripts/faults/kill_client.py --level memory         the control: without a spool windows are lost

The daemon is there half of the time. Every client delivers what the one before it left.
"""

from __future__ import annotations

import argparse
import random
import signal
import time

from stand import report, stand, wait_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--level", choices=("memory", "auto", "always", "fsync"), default="always")
    parser.add_argument("--few", type=int, default=200, help="windows after which a client may be killed")
    parser.add_argument("--most", type=int, default=1_000_000, help="windows that a client offers before it waits")
    args = parser.parse_args()
    rng = random.Random(2)
    begin = time.monotonic()
    with stand() as site:
        daemon = site.daemon()
        site.watch_inserts()
        safe: set[int] = set()
        for kill in range(args.kills):
            before = len(site.read("run.log"))
            client = site.client("run", args.most, args.level, first=kill * 1_000_000)
            wait_for(
                lambda before=before: site.read("run.log")[before:].count("\n") > args.few, "windows to be accepted"
            )
            if kill % 2 == 0 and daemon.poll() is None:
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
            elif daemon.poll() is not None:
                daemon = site.daemon()
            time.sleep(rng.uniform(0.0, 0.0015 * args.few))
            client.kill()
            client.wait()
            said = site.read("run.log")[before:]
            # The last line may be incomplete: then it was not said.
            safe |= {int(line) for line in said[: said.rfind("\n")].splitlines() if line.isdecimal()}
        if daemon.poll() is not None:
            daemon = site.daemon()
        from ncmon_client import spool

        wait_for(lambda: not spool.files(site.spool), "the daemon to sweep the spool", deadline_s=120)
        report(
            fault="client killed",
            level=args.level,
            kills=args.kills,
            **site.verdict({"run": safe}),
            seconds=round(time.monotonic() - begin, 1),
        )


if __name__ == "__main__":
    main()
