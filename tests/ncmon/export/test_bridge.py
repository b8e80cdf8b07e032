"""Runs in other trackers: each window once and in order, by the real packages, read back from what they wrote."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ncmon
from ncmon.export.bridge import Bridge, Point
from ncmon.export.rows import Choice
from ncmon.model import RunEnd, StreamSeq
from ncmon.store.writer import Stored, Writer
from tests.factories import make_evaluation, make_window

CHOICE = Choice(metrics=("nc1_pinv", "intra_cos_min"), layers=("classifier-input",))


class FakeBoard:
    """Keeps what it is given."""

    def __init__(self, has: Mapping[str, int] | None = None) -> None:
        self.has = has or {}
        self.points: list[Point] = []
        self.ended = ""

    def last_steps(self) -> Mapping[str, int]:
        return self.has

    def put(self, point: Point) -> None:
        self.points.append(point)

    def flush(self) -> None:
        pass

    def close(self, run: Any) -> None:
        self.ended = run.status


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "runs.db"))


def test_every_window_comes_once_in_order_with_the_values_of_the_store(path: Path) -> None:
    board = FakeBoard()
    with ncmon.open(path) as store:
        run = store.run("vit-small-wd1e-4")
        bridge = Bridge(board, CHOICE)
        assert bridge.turn(run) == len(board.points) == run.windows()
        assert bridge.turn(run) == 0
        for split in run.splits:
            mine = [point for point in board.points if point.split == split]
            for metric in CHOICE.metrics:
                history = run.history(metric, split=split)
                np.testing.assert_array_equal([point.step for point in mine], history.step)
                np.testing.assert_array_equal(
                    [point.values[(metric, "classifier-input")] for point in mine], history.value
                )
        bridge.close(run)
    assert board.ended == "finished"


def test_it_goes_on_where_the_board_ended(path: Path) -> None:
    board = FakeBoard({"train": 100})
    with ncmon.open(path) as store:
        run = store.run("vit-small-wd1e-4")
        Bridge(board, CHOICE).turn(run)
        steps = run.history("nc1_pinv").step
    assert [point.step for point in board.points if point.split == "train"] == [step for step in steps if step > 100]


def test_two_windows_of_one_step_both_come(path: Path) -> None:
    board = FakeBoard()
    with ncmon.open(path) as store:
        run = store.run("digits-bn")
        bridge = Bridge(board, CHOICE)
        bridge.turn(run)
        last = max(point.step for point in board.points if point.split == "train")
        append(path, run.run_id, step=last, exact=True)
        assert bridge.turn(run) == 1
        assert (board.points[-1].step, board.points[-1].exact) == (last, True)
        assert bridge.turn(run) == 0


def append(path: Path, run_id: str, *, step: int, exact: bool = False, end: bool = False) -> None:
    """Store one more window of a run, and its end."""
    stream = os.urandom(16)
    with Writer.open(path) as writer:
        window = dataclasses.replace(make_window(seed=9, step=step, epoch=99, run_id=run_id), exact=exact)
        writer.commit([Stored(origins=(StreamSeq(stream=stream, seq=0),), item=make_evaluation(window))], now=1.0)
        if end:
            ending = RunEnd(run_id=run_id, status="finished", text="", time=2.0)
            writer.commit([Stored(origins=(StreamSeq(stream=stream, seq=1),), item=ending)], now=2.0)


def ncmon_log(path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ncmon.cli", "log", "--db", str(path), *arguments],
        env={**os.environ, **environment},
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def scalars(directory: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)} if tag in events.Tags()["scalars"] else {}


@pytest.mark.sockets
def test_tensorboard_sees_windows_as_they_come_until_the_run_ends(path: Path, tmp_path: Path) -> None:
    tag, split = "nc1_pinv/classifier-input", tmp_path / "tb" / "digits-bn-run2" / "train"
    with ncmon.open(path) as store:
        history = store.run("digits-bn").history("nc1_pinv")
    process = ncmon_log(path, "digits-bn", "--tensorboard", "tb", "--follow")
    try:
        wait(lambda: split.exists() and len(scalars(split, tag)) == len(history))
        found = scalars(split, tag)
        np.testing.assert_array_equal(list(found.values()), history.value.astype(np.float32))
        append(path, "run2", step=100_000)
        wait(lambda: 100_000 in scalars(split, tag))
        append(path, "run2", step=100_010, end=True)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    assert 100_010 in scalars(split, tag)
    assert "digits-bn (run2)" in out


@pytest.mark.sockets
def test_ctrl_c_ends_following_and_keeps_what_there_is(path: Path, tmp_path: Path) -> None:
    split = tmp_path / "tb" / "digits-bn-run2" / "train"
    process = ncmon_log(path, "digits-bn", "--tensorboard", "tb", "--follow")
    try:
        wait(lambda: split.exists() and bool(scalars(split, "nc1_pinv/classifier-input")))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    assert "windows" in out


@pytest.mark.sockets
def test_weights_and_biases_gets_every_window_bit_for_bit(path: Path, tmp_path: Path) -> None:
    process = ncmon_log(path, "resnet-lr1", "--wandb", "collapse", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    (begun,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (begun.run_id, begun.display_name, begun.project, list(begun.tags)) == (
        *("run1", "resnet-lr1", "collapse"),
        ["sweep"],
    )
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["weight_decay"] == 5e-4
    rows = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    with ncmon.open(path) as store:
        run = store.run("resnet-lr1")
        assert len(rows) == run.windows() > 0
        for split in run.splits:
            for key, metric, layer in (
                ("nc1_pinv", "nc1_pinv", "classifier-input"),
                ("snr/blocks.0", "snr", "blocks.0"),
            ):
                history = run.history(metric, split=split, layer=layer)
                mine = [row for row in rows if f"{split}/step" in row]
                assert [row[f"{split}/step"] for row in mine] == history.step.tolist()
                assert [row[f"{split}/{key}"] for row in mine] == history.value.tolist()


def wandb_records(file: Path) -> Iterator[Any]:
    """Return the records of an offline run: LevelDB's log format in blocks of 32 KiB, behind seven bytes of head."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32_768 - place % 32_768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wait(condition: Any, within_s: float = 40.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
