"""Fill the disk under the store, and under a spool, and make room again: nothing may be lost, nothing stored twice.

    python scripts/faults/disk_full.py          on a tmpfs of 32 MB in a mount namespace of its own (as root)

The store's disk is filled to the last byte in the middle of the work. Nothing is acknowledged then that is not stored,
the clients keep what they have, and everything arrives once there is room.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from stand import report, stand, wait_for

INSIDE = "NCMON_FAULTS_INSIDE"


def fill(path: Path) -> None:
    """Leave not a byte."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    with suppress(OSError), open(path, "ab", buffering=0) as file:
        while file.write(b"x"):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the disk stays full")
    args = parser.parse_args()
    if INSIDE not in os.environ:
        command = ["unshare", "-m", sys.executable, __file__, *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode)
    with stand() as site:
        small = site.path / "small"
        small.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", str(small)], check=True)
        site.database = small / "t.db"
        site.environment["NCMON_SPOOL"] = str(small / "spool")
        begin = time.monotonic()
        daemon = site.daemon()
        site.watch_inserts()
        client = site.client("run", args.windows, "auto")
        wait_for(lambda: site.stored() > args.windows // 10, "the first windows")
        fill(small / "filler")
        full = time.monotonic()
        time.sleep(args.seconds)
        before = site.stored()
        time.sleep(1.0)
        stuck, alive = site.stored() - before, daemon.poll() is None
        said = [line for line in site.read("daemon.log").splitlines() if "nothing is acknowledged" in line]
        (small / "filler").unlink()
        room = time.monotonic()
        if client.wait(timeout=300) != 0:
            raise SystemExit(site.read("run.log"))
        end = json.loads(site.read("run.log").splitlines()[-1])
        report(
            fault="disk full",
            full_s=round(room - full, 1),
            alive=alive,
            stored_while_full=stuck,
            lines_in_log=len(said),
            **site.verdict({"run": set(range(args.windows))}),
            held=end["held"],
            slowest_offer_s=round(end["slowest_s"], 4),
            seconds=round(time.monotonic() - begin, 1),
        )
        # A mount point cannot be taken down with the rest.
        site.end()
        subprocess.run(["umount", "-l", str(small)], check=True)


if __name__ == "__main__":
    main()
