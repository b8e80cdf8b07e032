"""A store with runs in it, for the tests of commands, exports and plots."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ncmon.model import RunEnd, StreamSeq
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_run, make_window

NOW = 1_800_000_700.0


def make_store(path: Path, *, epochs: int = 40, hostile: bool = False) -> Path:
    """Write three runs: one live and collapsing, one that ended, one that failed early."""
    with Writer.open(path) as writer:
        names = [("vit-small-wd1e-4", 30, "finished"), ("resnet-lr1", 3, "failed"), ("digits-bn", epochs, None)]
        if hostile:
            names.append(("evil\x1b[2J\x1b]0;title\x07\u202e" + "x" * 300, 2, None))
        for number, (name, length, ending) in enumerate(names):
            stream = bytes([number]) * 16
            run = make_run(
                run_id=f"run{number}",
                name=name,
                started=NOW - 700 + number,
                config={"lr": 0.1, "weight_decay": 5e-4, "epochs": max(epochs, length)},
                tags=("sweep",),
            )
            writer.put_run(run, stream, now=NOW - 600)
            seq = 0
            for epoch in range(length):
                for split in ("train", "test"):
                    collapse = 0.15 + 0.8 * (1 - np.exp(-epoch / 12)) * (1.0 if split == "train" else 0.93)
                    window = make_window(
                        seed=number, collapse=float(collapse), epoch=epoch, step=10 * (epoch + 1), run_id=run.run_id
                    )
                    window = dataclasses.replace(
                        window, split=split, exact=split == "test", time=run.started + 10.0 * (epoch + 1)
                    )
                    item = make_evaluation(window)
                    writer.commit(
                        [Stored(origins=(StreamSeq(stream=stream, seq=seq),), item=item)],
                        now=NOW - 700 + 10.0 * (epoch + 1) if ending else NOW - 5,
                    )
                    seq += 1
            if ending:
                end = RunEnd(run_id=run.run_id, status=ending, text="", time=NOW - 100)  # type: ignore[arg-type]
                writer.commit([Stored(origins=(StreamSeq(stream=stream, seq=seq),), item=end)], now=NOW - 100)
    return path
