"""What would be watched: `suggest_layers(model, x)` runs one forward pass and prints the layers and a window's size."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ncmon_client.batches import frozen, logits_of
from ncmon_client.capture import Capture
from ncmon_client.errors import ConfigError
from ncmon_client.frequent import KEPT, MAX_CLASSES
from ncmon_client.options import pooled
from ncmon_client.payload import PAYLOAD_BUDGET_BYTES, reduction

_SCALARS = 11
"""Numbers of eight bytes that a layer's window holds for each class beside mean and unit sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A layer that `watch` with the same arguments would watch."""

    name: str
    module: str
    n_features: int
    reduction: str
    payload_bytes: int
    """Of one window of a run of one rank."""


def suggest_layers(
    model: nn.Module, inputs: Any, *, layers: str | Iterable[str] = "auto", pool: str = "auto", show: bool = True
) -> tuple[Suggestion, ...]:
    """Return, and print, the layers that would be watched: their shapes, reductions and payload.

    `inputs` is what the model takes: a tensor, a tuple of arguments or a mapping of keywords. The model runs once, in
    eval mode and without gradients; nothing of it changes.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    capture = Capture(model, layers=pooled(layers, pool), num_classes=None, log=logging.getLogger("ncmon_client"))
    try:
        with frozen(model):
            capture.arm(True)
            if isinstance(inputs, dict):
                output = model(**inputs)
            else:
                output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
            logits = logits_of(output)
            taken = capture.take(logits, torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device))
        if isinstance(taken, str):
            raise ConfigError(f"inputs: expected a batch of which features can be taken, got: {taken}")
        n_classes = KEPT if logits.shape[-1] > MAX_CLASSES else logits.shape[-1]
        reduced = reduction(capture.layers, n_classes, widest_scatter=None, budget_bytes=PAYLOAD_BUDGET_BYTES)
        found = tuple(
            Suggestion(
                name=layer.name,
                module=layer.module,
                n_features=layer.n_features,
                reduction=layer.reduction,
                payload_bytes=reduced.nbytes([layer], n_classes, widest_scatter=None) + n_classes * 8 * _SCALARS,
            )
            for layer in capture.layers
        )
    finally:
        capture.detach()
    if show:
        print(_table(found, logits.shape[-1], n_classes))
    return found


def _table(found: tuple[Suggestion, ...], n_classes: int, kept: int) -> str:
    rows = [("layer", "module", "features", "reduction", "KB a window")]
    rows += [(s.name, s.module, str(s.n_features), s.reduction, f"{s.payload_bytes / 1024:.1f}") for s in found]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.rjust(width) if column in (2, 4) else cell.ljust(width) for column, (cell, width) in pairs)
        for pairs in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    ]
    classes = f"{n_classes} classes" if kept == n_classes else f"the {kept} most frequent of {n_classes} classes"
    total = sum(s.payload_bytes for s in found)
    return "\n".join(line.rstrip() for line in [*lines, f"{classes}, {total / 1024:.1f} KB a window"])
