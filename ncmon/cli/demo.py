"""`ncmon demo`: a small network learns digits under a live daemon, in the terminal UI or as progress lines.

Three processes, as in earnest: daemon, trainer, viewer. The daemon listens on a temporary socket, so that a demo never
meets the user's own daemon; whatever way this command ends, it ends both.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon import config
from ncmon.cli import diagnostics
from ncmon.cli.arguments import examples, format_option
from ncmon.cli.output import Column, Listing, clean, emit, lines, number, table, write
from ncmon.cli.serve import has_terminal
from ncmon.errors import NcmonError, StoreError

if TYPE_CHECKING:
    from ncmon.cli.children import Child
    from ncmon.store.queries import Store
    from ncmon.store.runs import StoredRun

RUN_NAME = "digits"
SETTLE_S = 60.0
REPORT_EVERY = 5
"""Epochs between two lines of progress."""
SHOWN = (
    "accuracy",
    "ncc_acc",
    "intra_cos_min",
    "cert_intra_min",
    "inter_cos_max",
    "nc1_pinv",
    "ce_loss",
    "ce_bound_m",
    "ce_gap",
    "effective_depth",
)
"""The final table."""
PROGRESS = {"intra_cos_min": "test: intra", "inter_cos_max": "inter", "nc1_pinv": "nc1"}
"""Metrics in a line of progress, by their short names in it."""
NEEDED = {"torch": "torch", "sklearn": "scikit-learn"}
"""Modules of the trainer, and how they are installed."""


@click.command(
    "demo", epilog=examples("ncmon demo", "ncmon demo --headless --epochs 20", "ncmon demo --db demo.db --seed 1")
)
@click.option("--headless", is_flag=True, help="Print progress instead of showing the terminal UI.")
@click.option("--epochs", type=click.IntRange(min=1), default=200, show_default=True, metavar="N")
@click.option(
    "--weight-decay",
    type=click.FloatRange(min=0),
    default=5e-3,
    show_default=True,
    metavar="X",
    help="Drives collapse.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Of weights, data and their order.")
@click.option(
    "--db",
    "database",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to keep the run, by default ncmon-demo.db in the user's data directory.",
)
@format_option
def command(headless: bool, epochs: int, weight_decay: float, seed: int, database: Path | None, form: str) -> int:
    """Train a small network on handwritten digits and watch it collapse: a minute of training, or less.

    Starts a daemon of its own and a trainer, shows them, and ends both when you leave. The run stays in the database.
    """
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise NcmonError(
            f"the demo trains a network and needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    path = (config.data_directory() / "ncmon-demo.db" if database is None else database.expanduser()).absolute()
    options = ["--epochs", str(epochs), "--weight-decay", repr(weight_decay), "--seed", str(seed), "--run", RUN_NAME]
    with _ending_on_signals(), ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="ncmon-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        # A format for machines has the final table alone on stdout.
        screen, quiet = not headless and form == "table" and has_terminal(), form != "table"
        run = _play(stack, place, path, options, epochs, screen=screen, quiet=quiet)
    _report(path, run, form)
    return 0


def _play(
    stack: ExitStack, place: Path, database: Path, options: list[str], epochs: int, *, screen: bool, quiet: bool
) -> int:
    """Run daemon, trainer and viewer; return the trainer's pid, by which its run is found."""
    from ncmon.cli.children import Child, start_daemon

    endpoint = f"ipc://{place}/demo.sock"
    if not quiet:
        write(f"database {clean(str(database))}\n")
    daemon = start_daemon(database, [endpoint], log=place / "daemon.log")
    stack.callback(daemon.stop)
    # The user's own settings would send the run elsewhere, or nowhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NCMON_")}
    trainer = Child(
        "trainer",
        "ncmon_client.demo",
        [*options, "--endpoint", endpoint],
        log=place / "trainer.log",
        pipe=True,
        environment=environment,
    )
    # Called first: the trainer says its last word to a daemon that is still there.
    stack.callback(trainer.stop)
    if screen:
        _show(trainer, endpoint)
    else:
        _follow(trainer, daemon, database, epochs, quiet=quiet)
        if trainer.process.wait() != 0:
            raise NcmonError(_kept(trainer))
    _settle(daemon, database)
    return trainer.pid


def _settle(daemon: Child, database: Path) -> None:
    """Wait until everything that arrived can be read: the trainer ends when it is on disk."""
    from ncmon.store.queries import Store

    end = time.monotonic() + SETTLE_S
    with Store.open(database) as store:
        while store.waiting() and daemon.running and time.monotonic() < end:
            time.sleep(0.05)


def _show(trainer: Child, endpoint: str) -> None:
    from ncmon.tui.app import run_ui

    # Nobody reads the trainer's lines while the screen is up; a full pipe would stop it.
    drain = threading.Thread(target=lambda: [None for _ in trainer.process.stdout or ()], daemon=True)
    drain.start()
    run_ui(endpoint, run_first=True)
    if trainer.running:
        diagnostics.say("the training is stopped with its screen")
    elif trainer.process.returncode != 0:
        raise NcmonError(_kept(trainer))
    trainer.stop()
    drain.join()


def _follow(trainer: Child, daemon: Child, database: Path, epochs: int, *, quiet: bool) -> None:
    """Print a line every few epochs, until the trainer ends."""
    from ncmon.store.queries import Store

    with Store.open(database) as store:
        for line in trainer.process.stdout or ():
            if not daemon.running:
                raise NcmonError(_kept(daemon))
            progress = _parsed(line)
            if progress is None or quiet:
                continue
            done = int(progress["epoch"]) + 1
            if done == 1 or done % REPORT_EVERY == 0 or done == epochs:
                write(_progress(store, trainer.pid, done, epochs, progress))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"epoch", "loss", "accuracy"} <= found.keys() else None


def _progress(store: Store, pid: int, done: int, epochs: int, progress: dict[str, Any]) -> str:
    width = len(str(epochs))
    text = f"epoch {done:>{width}}/{epochs}  loss {progress['loss']:.4f}  accuracy {progress['accuracy']:.4f}"
    # What is stored so far: the daemon is at most a window behind.
    run = _run_of(store, pid)
    if run is not None and run.windows("test"):
        found = run.readings(split="test", layer="classifier-input")[0].layers["classifier-input"].readings
        for name, title in PROGRESS.items():
            value = found[name].value if name in found else None
            text += f"  {title} " + ("-" if value is None else f"{value:.4f}")
    return text + "\n"


def _report(database: Path, pid: int, form: str) -> None:
    """Print what the run came to, and what to type next."""
    from ncmon.store.queries import Store

    with Store.open(database) as store:
        run = _run_of(store, pid)
        if run is None:
            raise StoreError(f"the run is not in {database}: the trainer ended before its first window")
        if form != "table":
            emit(_final(run), form)
            return
        last = max((window.epoch for window in run.readings()), default=-1)
        head = f"run {clean(run.name)} ({run.run_id}), classifier's input, after {last + 1} epochs"
        write("\n" + head + "\n" + table(_final(run)))
    default = database == config.default_database().absolute()
    option = "" if default else f" --db {clean(str(database))}"
    write(
        "\n"
        + lines(
            [
                "What next:",
                f"  ncmon show {run.run_id}{option}",
                f"  ncmon bounds {run.run_id} --per-class{option}",
                f"  ncmon history {run.run_id} --metric nc1_pinv --split test{option}",
                f"  ncmon watch {clean(str(database))}",
                "  ncmon metrics                      what each number means",
                "  ncmon serve                        then ncmon_client.watch(model, ...) in your own training",
            ]
        )
    )


def _final(run: StoredRun) -> Listing:
    from ncmon.metrics import METRICS
    from ncmon.model import CLASSIFIER_INPUT

    metrics = {metric.name: metric for metric in METRICS}
    # The exact pass over the training set where there is one: bounds are guarantees at frozen weights only.
    wanted = ("train-exact" if run.windows("train-exact") else "train", "test")
    found = {window.split: window for window in run.readings()}
    windows = {split: found[split] for split in wanted if split in found}
    columns = (
        Column(key="metric", heading="METRIC"),
        *(Column(key=split, heading=split.upper(), right=True, show=number) for split in windows),
        Column(key="at_collapse", heading="AT COLLAPSE"),
    )
    rows = []
    for name in SHOWN:
        values = [
            reading.value if layer is not None and (reading := layer.readings.get(name)) is not None else None
            for layer in (window.layers.get(CLASSIFIER_INPUT) for window in windows.values())
        ]
        metric = metrics.get(name)
        target = "" if metric is None else metric.at_collapse
        if metric is not None and metric.target is not None and not target.replace(".", "").isdecimal():
            target = f"{target} = {number(metric.target(run.run.n_classes))}"
        rows.append((name, *values, target or ("bounds intra_cos_min from below" if metric is None else "")))
    return Listing(columns=columns, rows=rows, empty="no window yet")


def _run_of(store: Store, pid: int) -> StoredRun | None:
    """Return the newest run of a process."""
    return next((run for run in store.runs(limit=20) if run.run.pid == pid), None)


def _kept(child: Child) -> str:
    """Return why a child ended; its log lies in a temporary directory, so its last line has to do."""
    return child.failure().partition(" (log:")[0]


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process in order, its children first."""

    def end(signum: int, frame: object) -> None:
        sys.exit(128 + signum)

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
