"""Messages of the wire for the tests of both sides, from model values. No test state lives here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from ncmon.model import Window
from ncmon_client import wire

STREAM = bytes(range(16))


def make_info(*, run_id: str = "run", **fields: Any) -> wire.RunInfo:
    """Return what a HELLO says of a run of four classes on one rank."""
    defaults: dict[str, Any] = {
        "name": "digits",
        "config": '{"lr": 0.1}',
        "tags": [],
        "host": "host",
        "pid": 1,
        "started": 1_800_000_000.0,
        "rank": 0,
        "world_size": 1,
        "n_classes": 4,
        "class_names": [],
        "client": "0.1.0",
    }
    return wire.RunInfo(run_id=run_id, **(defaults | fields))


def make_gap(*, step: int = 100, run_id: str = "run", **fields: Any) -> wire.Gap:
    """Return a gap in the history of `run`."""
    defaults: dict[str, Any] = {"split": "train", "epoch": 0, "time": 1_800_000_000.0, "reason": "a reason"}
    return wire.Gap(run_id=run_id, step=step, **(defaults | fields))


def to_wire(window: Window, **fields: Any) -> tuple[wire.WindowMeta, bytes]:
    """Return a window of one rank as its client would send it; keywords replace fields of the meta."""
    arrays: list[tuple[str, int, wire.Array]] = []
    for place, layer in enumerate(window.layers):
        for name in wire.LAYER_ARRAYS:
            value = getattr(layer, name)
            if value is not None:
                narrow = layer.means_f4 and name in ("class_means", "unit_sums")
                arrays.append((name, place, value.astype(np.float32) if narrow else value))
    for name in wire.HEAD_ARRAYS:
        value = getattr(window.head, name)
        if value is not None:
            arrays.append((name, -1, value))
    specs, blob = wire.pack_arrays(arrays)
    head = {
        field.name: getattr(window.head, field.name)
        for field in dataclasses.fields(window.head)
        if field.name not in wire.HEAD_ARRAYS
    }
    meta: dict[str, Any] = {
        name: getattr(window, name)
        for name in (
            "run_id",
            "split",
            "epoch",
            "step",
            "steps",
            "sampled_steps",
            "time",
            "duration_s",
            "exact",
            "ncc_source",
            "n_classes",
            "ignored_labels",
            "overhead",
            "world_size",
        )
    }
    meta |= {
        "rank": window.ranks[0],
        "skipped_batches": dict(window.skipped_batches),
        "layers": [
            wire.LayerMeta(
                name=layer.key.name,
                index=layer.key.index,
                module=layer.module,
                n_features=layer.n_features,
                reduction=layer.reduction,
                note=layer.note,
            )
            for layer in window.layers
        ],
        "head": wire.HeadMeta(**head),
        "arrays": specs,
    }
    return wire.WindowMeta(**(meta | fields)), blob


def window_frames(window: Window, *, seq: int = 0, stream: bytes = STREAM, **fields: Any) -> list[bytes]:
    """Return the frames of a WINDOW message."""
    meta, blob = to_wire(window, **fields)
    return wire.encode(meta, stream=stream, seq=seq, blob=blob)


@dataclass(frozen=True)
class Prepared:
    """A `Sealable` that holds its message already."""

    meta: wire.Meta
    blob: bytes = b""

    def seal(self) -> tuple[wire.Meta, bytes]:
        return self.meta, self.blob

    def gap(self, reason: str) -> wire.Gap:
        return make_gap(reason=reason)


class Unsealable:
    """A `Sealable` that fails, in its `gap` as well if `wholly`."""

    def __init__(self, *, wholly: bool = False) -> None:
        self._wholly = wholly

    def seal(self) -> tuple[wire.Meta, bytes]:
        raise ArithmeticError("the singular values did not converge")

    def gap(self, reason: str) -> wire.Gap:
        if self._wholly:
            raise ValueError("no gap either")
        return make_gap(step=7, reason=reason)
