"""A database under `--max-bytes` while trainings send more than fits, and somebody prunes and reads beside them.

    python scripts/faults/max_bytes.py               6,000 windows into 4 MB

The file is looked at all the time, journal folded back or not. What is dropped is history; no message is lost: the
store has taken every one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time

from stand import report, stand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=6000)
    parser.add_argument("--mb", type=float, default=4.0)
    args = parser.parse_args()
    limit = int(args.mb * 2**20)
    begin = time.monotonic()
    with stand() as site:
        site.daemon(f"import functools; run_daemon = functools.partial(run_daemon, max_bytes={limit})\n")
        site.watch_inserts()
        ended = site.client("ended", args.windows // 3)
        if ended.wait(timeout=300) != 0:
            raise SystemExit(site.read("ended.log"))
        client = site.client("run", args.windows - args.windows // 3)
        most, prunes = 0, 0
        pruning: subprocess.Popen[str] | None = None
        while client.poll() is None:
            most = max(most, site.database.stat().st_size)
            if pruning is None or pruning.poll() is not None:
                if pruning is not None and pruning.returncode != 0:
                    raise SystemExit(site.read("prune.log"))
                prunes += 1
                # Runs that have not ended are live, and named: --thin of one is refused, --compact is not.
                pruning = site.start(
                    "-m", "ncmon.cli", "prune", "--compact", "--db", str(site.database), log="prune.log"
                )
            time.sleep(0.05)
        if pruning is not None:
            pruning.wait()
        end = json.loads(site.read("run.log").splitlines()[-1])
        # Of a moment later: the last look is a second after the last window.
        time.sleep(2.5)
        last = site.database.stat().st_size
        verdict = site.verdict({"ended": set(range(args.windows // 3)), "run": set(range(args.windows * 2 // 3))})
        report(
            fault="more than --max-bytes",
            limit_mb=args.mb,
            file_mb_most=round(most / 2**20, 2),
            file_mb_last=round(last / 2**20, 2),
            below=max(most, last) <= limit,
            windows_left=site.stored(),
            prunes=prunes,
            held=end["held"],
            **verdict,
            seconds=round(time.monotonic() - begin, 1),
        )


if __name__ == "__main__":
    main()
