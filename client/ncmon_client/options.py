"""What `watch` was given: checked in one place, each mistake one line that says what was expected and what came."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ncmon_client import wire
from ncmon_client._version import __version__
from ncmon_client.errors import ConfigError

SPOOL_LEVELS = ("auto", "memory", "always", "fsync")
POOLS = ("auto", "cls", "mean", "tokens")
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check(
    model: nn.Module,
    criterion: nn.Module | None,
    *,
    num_classes: int | None,
    class_names: tuple[str, ...],
    window_steps: int,
    every: int | str,
    overhead: float,
    pool: str,
    spool: str,
) -> None:
    """Raise `ConfigError` for the first argument that cannot be right; the capture checks layers and classes."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if criterion is not None and not isinstance(criterion, nn.Module):
        raise ConfigError(
            f"criterion: expected an nn.CrossEntropyLoss module, got {type(criterion).__name__}; for a functional loss"
            " leave it out and call monitor.observe(logits, labels) once a batch"
        )
    if criterion is not None and not isinstance(criterion, nn.CrossEntropyLoss):
        raise ConfigError(
            f"criterion: expected nn.CrossEntropyLoss, got {type(criterion).__name__}; leave it out and call"
            " monitor.observe(logits, labels) once a batch"
        )
    if every != "auto" and (not isinstance(every, int) or every < 1):
        raise ConfigError(f"every: expected 'auto' or a number of steps from 1, got {every!r}")
    if not 0 < overhead < 1:
        raise ConfigError(f"overhead: expected a share of the training's time between 0 and 1, got {overhead!r}")
    if window_steps < 1:
        raise ConfigError(f"window_steps: expected a number of steps from 1, got {window_steps!r}")
    if spool not in SPOOL_LEVELS:
        raise ConfigError(f"spool: expected {', '.join(SPOOL_LEVELS[:-1])} or {SPOOL_LEVELS[-1]}, got {spool!r}")
    if pool not in POOLS:
        raise ConfigError(f"pool: expected {', '.join(POOLS[:-1])} or {POOLS[-1]}, got {pool!r}")
    if num_classes is not None and class_names and len(class_names) != num_classes:
        raise ConfigError(f"class_names: expected {num_classes} names, one a class, got {len(class_names)}")


def pooled(layers: str | Iterable[str], pool: str) -> str | list[str]:
    """Return the layers with the pooling suffix for all that name none; `auto:mean` is `auto` with one."""
    given = [layers] if isinstance(layers, str) else list(layers)
    if pool != "auto":
        given = [name if ":" in name else f"{name}:{pool}" for name in given]
    return given[0] if isinstance(layers, str) else given


def run_info(
    *,
    name: str,
    run_id: str | None,
    config: Mapping[str, Any] | None,
    tags: Iterable[str],
    num_classes: int | None,
    class_names: tuple[str, ...],
) -> wire.RunInfo:
    """Return what the daemon is told of the run."""
    chosen = run_id or os.environ.get("NCMON_RUN_ID") or uuid.uuid4().hex[:12]
    if not _RUN_ID.fullmatch(chosen):
        raise ConfigError(f"run_id: expected 1 to 64 letters, digits, dots, dashes or underscores, got {chosen!r}")
    rank, world_size = ranks()
    return wire.RunInfo(
        run_id=chosen,
        name=name[:256],
        config=_json(config),
        tags=[str(tag)[:256] for tag in itertools.islice(tags, 64)],
        host=socket.gethostname()[:256],
        pid=os.getpid(),
        started=time.time(),
        rank=rank,
        world_size=world_size,
        n_classes=num_classes or 2,
        class_names=[str(name)[:256] for name in class_names],
        client=__version__,
    )


def ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, world_size) if 0 <= rank < world_size else (0, 1)


def _json(config: Mapping[str, Any] | None) -> str:
    """Return the configuration as a JSON object; what JSON cannot hold is kept as its repr."""
    text = json.dumps({str(key): value for key, value in (config or {}).items()}, default=repr)
    if len(text) > 64 * 1024:
        raise ConfigError(f"config: expected at most 64 KB as JSON, got {len(text)} characters; leave large values out")
    return text
