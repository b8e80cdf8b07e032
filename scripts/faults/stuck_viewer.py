"""A viewer that hangs in the middle of a read while trainings go on: the journal is bounded, told of, and recovers.

    python scripts/faults/stuck_viewer.py            a journal of at most 16 MB in the place of 1 GB, 20,000 windows

Another process opens the database as any SQLite program may, begins a transaction, reads, and waits. Nothing can be
folded back from then on. At half the limit the log names the process; at the limit nothing is acknowledged any more, so
that the disk is left to others; when the reader is gone, everything arrives.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from stand import report, stand, wait_for

READER = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
connection.execute("BEGIN"); connection.execute("SELECT count(*) FROM window").fetchall()
print("reads", flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--limit-mb", type=float, default=16.0)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long it hangs beyond the limit")
    args = parser.parse_args()
    limit = int(args.limit_mb * 2**20)
    with stand() as site:
        site.daemon(f"import ncmon.intake as d; d.JOURNAL_LIMIT_BYTES = {limit}\n")
        site.watch_inserts()
        journal = site.database.with_name(site.database.name + "-wal")
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(site.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        site.children.append(reader)
        assert reader.stdout is not None
        assert reader.stdin is not None
        reader.stdout.readline()
        client = site.client("run", args.windows)
        wait_for(lambda: "nothing is acknowledged until" in site.read("daemon.log"), "the limit", deadline_s=300)
        most = journal.stat().st_size
        before, begin = site.stored(), time.monotonic()
        time.sleep(args.seconds)
        stuck, most = site.stored() - before, max(most, journal.stat().st_size)
        said = site.read("daemon.log")
        reader.stdin.close()
        reader.wait()
        # Not by what is stored: what waits in the inbox is counted already, and may be all there is.
        wait_for(lambda: "the store works again" in site.read("daemon.log"), "the store to work again")
        recovered = time.monotonic() - begin - args.seconds
        if client.wait(timeout=600) != 0:
            raise SystemExit(site.read("run.log"))
        end = json.loads(site.read("run.log").splitlines()[-1])
        report(
            fault="stuck viewer",
            limit_mb=args.limit_mb,
            journal_mb=round(most / 2**20, 1),
            named_the_reader=f"pid {reader.pid}" in said,
            warned_before=said.find("reads for too long") < said.find("nothing is acknowledged until"),
            stored_at_the_limit=stuck,
            recovered_after_s=round(recovered, 2),
            journal_after_mb=round(journal.stat().st_size / 2**20, 1),
            held=end["held"],
            **site.verdict({"run": set(range(args.windows))}),
        )


if __name__ == "__main__":
    main()
