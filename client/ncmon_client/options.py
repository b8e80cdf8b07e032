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

import msgspec
import torch
from torch import nn

from ncmon_client import wire
from ncmon_client._version import __version__
from ncmon_client.errors import ConfigError
from ncmon_client.frequent import Frequent

SPOOL_LEVELS = ("auto", "memory", "always", "fsync")
POOLS = ("auto", "cls", "mean", "tokens")
_WATCHED = itertools.count()
"""A process's watches are told apart by their order, which is the same on all ranks."""
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
    if every not in ("auto", "never") and (not isinstance(every, int) or every < 1):
        raise ConfigError(f"every: expected 'auto', 'never' or a number of steps from 1, got {every!r}")
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


def period(every: int | str) -> int | None:
    """Return what the schedule is told: 0 for never, None for what fits the budget."""
    return {"auto": None, "never": 0}[every] if isinstance(every, str) else every


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
    chosen = run_id or os.environ.get("NCMON_RUN_ID") or _common_id(uuid.uuid4().hex[:12])
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


def with_classes(run: wire.RunInfo, n_classes: int, frequent: Frequent | None) -> wire.RunInfo:
    """Return the run with its number of classes, known from the first batch; kept classes are called by their ids."""
    names = run.class_names
    if frequent is not None:
        own = names if len(names) == len(frequent.places) - 1 else None
        names = [own[index] if own else str(index) for index in frequent.ids.tolist()]
    return msgspec.structs.replace(run, n_classes=n_classes, class_names=names if len(names) == n_classes else [])


def ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, world_size) if 0 <= rank < world_size else (0, 1)


def _common_id(own: str) -> str:
    """Return one run id for all ranks: the first one that a rank wrote into the process group's store.

    Nobody waits for anybody: no collective, and a rank that does not watch is not missed here.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        # torchrun's own id; "none" where nobody gave it one.
        job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        return own if job == "none" or not _RUN_ID.fullmatch(job) else job
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.compare_set(f"ncmon/run/{next(_WATCHED)}", "", own).decode()
    except Exception:  # a store without that operation: ranks then need NCMON_RUN_ID
        return own


def _json(config: Mapping[str, Any] | None) -> str:
    """Return the configuration as a JSON object; what JSON cannot hold is kept as its repr."""
    text = json.dumps({str(key): value for key, value in (config or {}).items()}, default=repr)
    if len(text) > 64 * 1024:
        raise ConfigError(f"config: expected at most 64 KB as JSON, got {len(text)} characters; leave large values out")
    return text
