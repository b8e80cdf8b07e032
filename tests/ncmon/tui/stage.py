"""A store with runs in it, a feed over it and a clock that stands still, for the tests of screens."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot

from ncmon.feed import Feed
from ncmon.model import Alert, Evaluation, RunEnd, StreamSeq, Window
from ncmon.store.writer import Stored, Writer
from ncmon.tui.app import NcmonApp
from ncmon.tui.widgets.lines import Lines
from tests.factories import make_evaluation, make_features, make_run, window_from_features

NOW = 1_800_000_700.0
CLASSES = ("ship", "cat", "truck", "dog")


def make_store(
    path: Path, *, epochs: int = 40, hostile: bool = False, others: bool = True, alerts: bool = False
) -> Path:
    """Write three runs: one live and collapsing, one that ended, one that failed early; or the first alone."""
    with Writer.open(path) as writer:
        names = [("vit-small-wd1e-4", 8, "finished"), ("resnet-lr1", 3, "failed"), ("digits-bn", epochs, None)]
        names = names if others else names[-1:]
        if hostile:
            names.append(("evil\x1b[2J\x1b]0;title\x07\u202e" + "x" * 300, 2, None))
        for number, (name, length, ending) in enumerate(names):
            stream = bytes([number]) * 16
            run = make_run(
                run_id=f"run{number}",
                name=name,
                started=NOW - 700 + number,
                config={"lr": 0.1, "weight_decay": 1e-4 if "1e-4" in name else 5e-4, "epochs": max(epochs, length)},
                tags=("sweep",),
                class_names=CLASSES,
            )
            writer.put_run(run, stream, now=NOW - 600)
            seq = 0
            batch: list[Stored] = []
            for epoch in range(length):
                for split in ("train", "test"):
                    item = _evaluation(number, epoch, split)
                    batch.append(Stored(origins=(StreamSeq(stream=stream, seq=seq),), item=item))
                    seq += 1
            # One transaction a run: the disk is waited for once.
            writer.commit(batch, now=NOW - 5 if ending is None else NOW - 100)
            if ending:
                end = RunEnd(run_id=run.run_id, status=ending, text="", time=NOW - 100)  # type: ignore[arg-type]
                writer.commit([Stored(origins=(StreamSeq(stream=stream, seq=seq),), item=end)], now=NOW - 100)
        if alerts:
            raised = [make_alert(number, **fields) for number, fields in enumerate(ALERTS)]
            writer.put_alerts(raised, {})
            writer.put_alerts([dataclasses.replace(raised[-1], cleared=NOW - 30)], {})
    return path


ALERTS: tuple[dict[str, Any], ...] = (
    {"rule": "nc1-rising", "text": "NC1 rose to 0.3, 3.0 times the 0.1 that it had fallen to", "value": 0.3},
    {"rule": "class-dead", "class_index": 1, "text": "of 20 samples of class {class:1} 0.0% are right", "value": 0.0},
    {"rule": "run-failed", "run_id": "run1", "severity": "alert", "layer": "", "split": "", "text": "CUDA error"},
    {"rule": "collapse-reached", "severity": "info", "layer": "blocks.1", "text": "it is there", "value": 0.97},
    {"rule": "nonfinite", "severity": "alert", "layer": "blocks.0", "text": "1 of 80 samples is NaN", "value": 0.0125},
)
"""The last one is over."""


def make_alert(number: int = 0, **fields: Any) -> Alert:
    """Return an alert of the live run."""
    defaults: dict[str, Any] = {
        "run_id": "run2",
        "rule": "nc1-rising",
        "severity": "warning",
        "split": "train",
        "layer": "classifier-input",
        "epoch": 30,
        "step": 310,
        "since": NOW - 300 + 10 * number,
        "text": "a reason",
    }
    return Alert(**(defaults | fields))


@lru_cache(maxsize=256)
def _evaluation(number: int, epoch: int, split: str) -> Evaluation:
    """Return a window of a run. All stores of a session hold the same ones: they are evaluated once."""
    collapse = 0.15 + 0.8 * (1 - np.exp(-epoch / 12)) * (1.0 if split == "train" else 0.93)
    window = _window(number, float(collapse), epoch, f"run{number}")
    at = NOW - 700 + number + 10.0 * (epoch + 1)
    return make_evaluation(dataclasses.replace(window, split=split, exact=split == "test", time=at))


def _window(seed: int, collapse: float, epoch: int, run_id: str) -> Window:
    """Return a window in which cats look half like dogs."""
    made = make_features(seed=seed, collapse=collapse)
    layers = {}
    for name, features in made.layers.items():
        found = features.copy()
        dog = features[made.labels == CLASSES.index("dog")].mean(axis=0)
        cats = made.labels == CLASSES.index("cat")
        found[cats] = 0.5 * features[cats] + 0.5 * dog
        layers[name] = found
    return window_from_features(
        layers, made.labels, made.weight, made.bias, epoch=epoch, step=10 * (epoch + 1), run_id=run_id
    )


def make_app(path: Path, **options: Any) -> NcmonApp:
    """Return the application over a store, as a live daemon would show it at `NOW`."""
    status = {"database": str(path), "host": "gpu07", "counters": options.pop("counters", {"stored": 80})}
    feed = Feed(endpoint="ipc:///nowhere", database=None, clock=lambda: NOW, ask=lambda endpoint: status)
    return NcmonApp(feed, clock=lambda: NOW, refresh_s=1.0, **options)


async def settle(pilot: Pilot[None], app: NcmonApp, ready: Callable[[], bool] = lambda: True) -> None:
    """Wait until a snapshot of what is looked at is shown and `ready` holds."""
    deadline = time.monotonic() + 20  # a busy machine is slow, a wrong screen never gets there
    while time.monotonic() < deadline:
        await pilot.pause(0.02)
        if app.shown is not None and app.shown.selection == app.selection and ready():
            await pilot.pause()
            return
    pytest.fail("the screen did not get there")


def screen_text(app: NcmonApp) -> str:
    """Return everything that the row widgets in sight show."""
    rows: list[str] = []
    for widget in app.screen.query(Lines):
        if widget.display:
            rows += ["".join(text for text, _ in row) for row in widget._rows]
    return "\n".join(rows)


async def with_app(database: Path, act: Callable[[Pilot[None], NcmonApp], Awaitable[None]], **options: Any) -> None:
    """Run the application over a store and do something with it."""
    size = options.pop("size", (80, 24))
    app = make_app(database, **options)
    async with app.run_test(size=size) as pilot:
        await settle(pilot, app)
        await act(pilot, app)
