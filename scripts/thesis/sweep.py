"""Run many trainings under one daemon: two processes of one thread each, resumable, with a progress display.

What is done is what the database says is finished: there is no other state. A run that was cut off is deleted and
trained again from its seed. Workers train run after run, so that torch is imported once each.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from plan import Spec

import ncmon
from ncmon.cli.children import start_daemon
from ncmon.errors import NcmonError
from ncmon.store.edit import Editor
from ncmon.store.queries import Store
from ncmon.store.runs import StoredRun

HERE = Path(__file__).resolve().parent
REDRAW_S = 0.2
POLL_S = 0.5
STOP_S = 5.0
SHOWN = {"accuracy": "accuracy", "intra_cos_min": "intra", "inter_cos_max": "inter"}
"""Last values of a run that are printed when it is done."""


def spec_of(run: StoredRun) -> Spec | None:
    """Return the spec of a stored run, None where it is no run of ours."""
    try:
        return Spec(**run.config)
    except TypeError:
        return None


def finished(database: Path, specs: Iterable[Spec]) -> set[Spec]:
    """Return the specs whose runs are stored whole."""
    if not database.exists():
        return set()
    with ncmon.open(database) as store:
        return {spec_of(run) for run in store if run.run.status == "finished"} & set(specs)


def forget_unfinished(database: Path, specs: Iterable[Spec]) -> int:
    """Delete what earlier sweeps began and did not finish; return how many runs that were."""
    wanted = set(specs)
    with ncmon.open(database) as store:
        cut = [run.run_id for run in store if run.run.status != "finished" and spec_of(run) in wanted]
    with Editor.open(database) as editor:
        for run_id in cut:
            editor.delete(run_id)
    return len(cut)


class Worker:
    """One training process and the spec that it works on."""

    def __init__(self, number: int, endpoint: str, log: Path, heard: queue.SimpleQueue[tuple[int, Any]]) -> None:
        self.number = number
        self.spec: Spec | None = None
        self.progress: dict[str, Any] = {}
        self._log = log
        with open(log, "a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "training.py"), "--endpoint", endpoint],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Ctrl-C is for the sweep, which ends its processes in order.
                start_new_session=True,
                env=_environment(log.parent),
            )
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    def begin(self, spec: Spec) -> None:
        """Hand it the next run."""
        self.spec, self.progress = spec, {}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"spec": asdict(spec)}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: the listener says so

    def last_word(self) -> str:
        """Return the last line that it logged."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"the process ended with code {self.process.poll()}"

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def _listen(self, heard: queue.SimpleQueue[tuple[int, Any]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            heard.put((self.number, json.loads(line)))
        heard.put((self.number, None))


class Display:
    """What the sweep shows: a line a finished run, and in a terminal what goes on right now below them."""

    def __init__(self, out: TextIO, total: int, already: int, left_cost: float) -> None:
        self._out, self._total, self._done = out, total, already
        self._live = out.isatty()
        self._cost, self._spent = left_cost, 0.0
        self._begin = time.monotonic()
        self._drawn, self._drawn_at = 0, 0.0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        self._out.write(text + "\n")
        self._out.flush()
        self._drawn_at = 0.0

    def done(self, spec: Spec, text: str) -> None:
        """A run is over, one way or another."""
        self._done += 1
        self._spent += spec.cost
        width = len(str(self._total))
        self.say(f"{self._done:>{width}}/{self._total}  {spec.name:<22} {text}")

    def draw(self, workers: Sequence[Worker]) -> None:
        """Show what the workers do, a few times a second."""
        if not self._live or time.monotonic() - self._drawn_at < REDRAW_S:
            return
        self._clear()
        width = shutil.get_terminal_size().columns - 1
        lines = [self._head(workers)]
        for worker in workers:
            if worker.spec is not None:
                lines.append(f"  {worker.spec.name:<22} {_moment(worker.progress)}")
        self._out.write("".join(line[:width] + "\n" for line in lines))
        self._out.flush()
        self._drawn, self._drawn_at = len(lines), time.monotonic()

    def _head(self, workers: Sequence[Worker]) -> str:
        under_way = sum(
            worker.spec.cost * (worker.progress["epoch"] + 1) / worker.progress["epochs"]
            for worker in workers
            if worker.spec is not None and worker.progress
        )
        gone, spent = time.monotonic() - self._begin, self._spent + under_way
        share = min(spent / self._cost, 1.0) if self._cost else 1.0
        bar = "█" * round(20 * share)
        left = f", about {clock(gone / share - gone)} left" if share > 0.01 else ""
        return f"{bar:░<20} {self._done}/{self._total} runs, {clock(gone)} gone{left}"

    def _clear(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def sweep(specs: Sequence[Spec], database: Path, *, jobs: int, out: TextIO = sys.stdout) -> int:
    """Train what is not finished yet; return how many runs failed."""
    begin = time.monotonic()
    with ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="ncmon-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        endpoint = f"ipc://{place}/sweep.sock"
        daemon = start_daemon(database, [endpoint], log=place / "daemon.log")
        stack.callback(daemon.stop)
        cut = forget_unfinished(database, specs)
        have = finished(database, specs)
        todo = [spec for spec in specs if spec not in have]
        display = Display(out, len(specs), len(have), sum(spec.cost for spec in todo))
        display.say(
            f"{len(specs)} runs, {len(have)} of them stored already"
            + (f", {cut} begun before and trained anew" if cut else "")
            + f"; watch them: ncmon watch {endpoint}"
        )
        failed = _train(todo, database, endpoint, place, stack, display, daemon, min(jobs, len(todo))) if todo else 0
        if todo:
            display.say(f"{len(todo) - failed} runs in {clock(time.monotonic() - begin)}, {failed} failed: {database}")
    return failed


def _train(
    todo: Sequence[Spec],
    database: Path,
    endpoint: str,
    place: Path,
    stack: ExitStack,
    display: Display,
    daemon: Any,
    jobs: int,
) -> int:
    heard: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    waiting = list(reversed(todo))
    workers: list[Worker] = []

    def start(number: int) -> Worker:
        worker = Worker(number, endpoint, place / f"worker{number}.log", heard)
        # Called before the daemon's: a training says its last word to one that is still there.
        stack.callback(worker.stop)
        worker.begin(waiting.pop())
        return worker

    workers += [start(number) for number in range(jobs)]
    store = stack.enter_context(ncmon.open(database))
    failed = 0
    while any(worker.spec is not None for worker in workers):
        display.draw(workers)
        try:
            number, line = heard.get(timeout=POLL_S)
        except queue.Empty:
            if not daemon.running:
                raise NcmonError(daemon.failure()) from None
            continue
        worker = workers[number]
        spec = worker.spec
        if line is not None and "epoch" in line:
            worker.progress = line
            continue
        if spec is None:
            continue
        if line is None or "error" in line:
            failed += 1
            display.done(spec, "FAILED: " + (worker.last_word() if line is None else line["error"]))
        else:
            display.done(spec, f"{_values(store, spec)}  {clock(line['seconds'])}")
        worker.spec = None
        if waiting:
            if line is None:
                workers[number] = start(number)
            else:
                worker.begin(waiting.pop())
    return failed


def _values(store: Store, spec: Spec) -> str:
    """Return the last values of a run that was just stored."""
    run = next(run for run in store.runs(limit=200) if spec_of(run) == spec)
    found = run.readings(split="train")[0].layers["classifier-input"].readings
    return "  ".join(
        f"{title} " + ("-" if name not in found or found[name].value is None else f"{found[name].value:7.4f}")
        for name, title in SHOWN.items()
    )


def _moment(at: dict[str, Any]) -> str:
    """Return where a training is."""
    if not at:
        return "begins"
    return f"epoch {at['epoch'] + 1:>3}/{at['epochs']}  loss {at['loss']:.4f}  accuracy {at['accuracy']:.4f}"


def _environment(place: Path) -> dict[str, str]:
    # The user's own settings would send runs elsewhere, or nowhere.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NCMON_")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | threads | {"NCMON_SPOOL": str(place / "spool")}


def clock(seconds: float) -> str:
    """Return a duration as somebody says it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
