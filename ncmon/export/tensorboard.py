"""TensorBoard's event files: DIR/NAME-ID/SPLIT, one tag METRIC/LAYER a metric and layer, and the configuration as text.

TensorBoard keeps scalars in single precision; everything else here is exact. A run that is exported again replaces its
file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ncmon.errors import NotInstalled, StoreError
from ncmon.export.bridge import Point
from ncmon.export.rows import Block, Choice, complete, history_blocks
from ncmon.model import Run
from ncmon.store.runs import StoredRun

LONGEST_NAME = 100
"""Of the run in the name of its directory."""

_STRING = 7
"""DT_STRING of TensorFlow's types."""


def write_events(directory: Path, runs: Sequence[StoredRun], choice: Choice) -> int:
    """Write the histories of runs as event files; return how many scalars."""
    count = 0
    for run in runs:
        splits: dict[str, list[Block]] = {}
        for block in history_blocks(run, choice):
            splits.setdefault(block.split, []).append(block)
        for split, blocks in splits.items():
            count += _write(directory / _directory_of(run) / _plain(split), run, blocks)
    return count


class EventBoard:
    """One run in a directory that TensorBoard watches; what was there of it is written anew."""

    def __init__(self, run: Run, directory: Path) -> None:
        self._run = run
        self._directory = directory / _directory_of(run)
        self._files: dict[str, tuple[Any, Any]] = {}

    def last_steps(self) -> Mapping[str, int]:
        """Return nothing: its files begin at the beginning."""
        return {}

    def put(self, point: Point) -> None:
        """Write the scalars of one window."""
        event_pb2, summary_pb2, _ = _tensorboard()
        _, writer = self._file(point.split)
        for (metric, layer), value in point.values.items():
            scalar = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=f"{metric}/{layer}", simple_value=value)])
            writer.write(event_pb2.Event(wall_time=point.time, step=point.step, summary=scalar).SerializeToString())

    def flush(self) -> None:
        """Let TensorBoard see it."""
        for file, _ in self._files.values():
            file.flush()

    def close(self, run: Run) -> None:
        """Close the files."""
        for file, _ in self._files.values():
            file.close()

    def _file(self, split: str) -> tuple[Any, Any]:
        if split not in self._files:
            path = self._directory / _plain(split) / _file_name(self._run)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = path.open("wb")
            except OSError as error:
                raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
            self._files[split] = file, _begin(file, self._run)
        return self._files[split]


def _write(directory: Path, run: StoredRun, blocks: Sequence[Block]) -> int:
    event_pb2, summary_pb2, _ = _tensorboard()
    events = [
        (at, step, f"{block.metric}/{block.layer}", value)
        for block in blocks
        for at, step, value, reason in zip(
            block.time.tolist(), block.step.tolist(), block.value.tolist(), block.reason, strict=True
        )
        if not reason
    ]
    # As they would have been written: TensorBoard takes a step that goes back for a restarted run.
    events.sort(key=lambda event: (event[1], event[2]))
    with complete(directory / _file_name(run.run)) as unfinished, unfinished.open("wb") as file:
        writer = _begin(file, run.run)
        for at, step, tag, value in events:
            scalar = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)])
            writer.write(event_pb2.Event(wall_time=at, step=step, summary=scalar).SerializeToString())
    return len(events)


def _begin(file: BinaryIO, run: Run) -> Any:
    """Write how an event file begins, and return what writes the rest."""
    event_pb2, summary_pb2, record_writer = _tensorboard()
    writer = record_writer.RecordWriter(file)
    writer.write(event_pb2.Event(wall_time=run.started, file_version="brain.Event:2").SerializeToString())
    config = _text_summary(summary_pb2, "config", json.dumps(dict(run.config), indent=2))
    writer.write(event_pb2.Event(wall_time=run.started, summary=config).SerializeToString())
    return writer


def _file_name(run: Run) -> str:
    return f"events.out.tfevents.{int(run.started)}.ncmon"


def _text_summary(summary_pb2: Any, tag: str, text: str) -> Any:
    """Return a text for TensorBoard's text page, where a fence keeps it as it is."""
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    value = summary_pb2.Summary.Value(
        tag=tag,
        metadata=summary_pb2.SummaryMetadata(plugin_data=plugin),
        tensor=TensorProto(dtype=_STRING, string_val=[f"```\n{text}\n```".encode()]),
    )
    return summary_pb2.Summary(value=[value])


def _plain(name: str) -> str:
    """Return a name as one part of a path."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip(".") or "_"


def _directory_of(run: Run | StoredRun) -> str:
    """Return a name that a file system takes: it counts bytes, and a Chinese letter has three."""
    name = _plain(run.name).encode()[:LONGEST_NAME].decode(errors="ignore")
    return f"{name}-{_plain(run.run_id)}"


def _tensorboard() -> tuple[Any, Any, Any]:
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer import record_writer
    except ImportError:
        raise NotInstalled("TensorBoard's event files", "tensorboard", "tensorboard") from None
    return event_pb2, summary_pb2, record_writer
