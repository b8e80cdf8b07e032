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

KERNELS = ("torch", "compiled")
SPOOL_LEVELS = ("auto", "memory", "always", "fsync")
POOLS = ("auto", "cls", "mean", "tokens")
_WATCHED = itertools.count()
"""A process's watches are told apart by their order, which is the same on all ranks."""
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RUN_ID_RULE = "expected 1 to 64 letters, digits, dots, dashes or underscores"
_ENDPOINT = re.compile(r"(ipc://.+|tcp://[^/]+:\d+|inproc://.+)$")


def check(
    model: nn.Module,
    criterion: nn.Module | None,
    *,
    optimizer: Any,
    run: str | None,
    run_id: str | None,
    config: Mapping[str, Any] | None,
    tags: Iterable[str],
    layers: str | Iterable[str],
    num_classes: int | None,
    class_names: Iterable[str] | None,
    first_step: int,
    soft: bool,
    window_steps: int,
    every: int | str,
    overhead: float,
    pool: str,
    spool: str,
    kernel: str,
    endpoint: str | None,
    enabled: bool,
) -> None:
    """Raise `ConfigError` for the first argument that cannot be right; the capture checks layers against the model."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module, got {_what(model)}; give the network itself")
    if criterion is not None and not isinstance(criterion, nn.CrossEntropyLoss):
        functional = "" if isinstance(criterion, nn.Module) else " for a functional loss"
        raise ConfigError(
            f"criterion: expected an nn.CrossEntropyLoss module, got {_what(criterion)};{functional} leave it out and"
            " call monitor.observe(logits, labels) once a batch"
        )
    if optimizer is not None and not _has_groups(optimizer):
        raise ConfigError(
            f"optimizer: expected one with param_groups (torch.optim), got {_what(optimizer)}; leave it out if there is"
            " none, the weight decay is unknown then"
        )
    if run is not None and not (isinstance(run, str) and run):
        raise ConfigError(f"run: expected a name, got {run!r}; leave it out to name the run after the model's class")
    if run_id is not None and not (isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)):
        raise ConfigError(f"run_id: {_RUN_ID_RULE}, got {run_id!r}; leave it out for a new run")
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"config: expected a dictionary of hyperparameters, got {_what(config)}; try vars(config)")
    for name, value, whose in (("tags", tags, "tags"), ("class_names", class_names, "class names")):
        if isinstance(value, str) or (value is not None and not isinstance(value, Iterable)):
            raise ConfigError(f"{name}: expected a list of {whose}, got {value!r}; write [{value!r}]")
    given = [layers] if isinstance(layers, str) else layers
    if not isinstance(given, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"layers: expected 'auto', a module's name or glob, or a list of them, got {layers!r}")
    if num_classes is not None and not _is_whole(num_classes):
        raise ConfigError(
            f"num_classes: expected a number of classes of at least 2, got {num_classes!r}; leave it out to take it"
            " from the first batch"
        )
    if not _is_whole(first_step) or first_step < 0:
        raise ConfigError(
            f"first_step: expected the number of steps done before, got {first_step!r}; 0 where nothing is continued"
        )
    if not _is_whole(window_steps) or window_steps < 1:
        raise ConfigError(
            f"window_steps: expected a number of steps from 1, got {window_steps!r}; the default is 200, and epoch()"
            " closes windows too"
        )
    if every not in ("auto", "never") and (not _is_whole(every) or int(every) < 1):
        raise ConfigError(
            f"every: expected 'auto', 'never' or a number of steps from 1, got {every!r}; 1 looks at every step"
        )
    if isinstance(overhead, bool) or not isinstance(overhead, int | float) or not 0 < overhead < 1:
        raise ConfigError(
            f"overhead: expected a share of the training's time between 0 and 1, got {overhead!r}; 0.01 is one percent"
        )
    if pool not in POOLS:
        raise ConfigError(f"pool: expected {', '.join(POOLS[:-1])} or {POOLS[-1]}, got {pool!r}")
    if spool not in SPOOL_LEVELS:
        raise ConfigError(f"spool: expected {', '.join(SPOOL_LEVELS[:-1])} or {SPOOL_LEVELS[-1]}, got {spool!r}")
    if kernel not in KERNELS:
        raise ConfigError(
            f"kernel: expected 'torch' or 'compiled', got {kernel!r}; 'compiled' needs a C compiler and costs small"
            " batches less"
        )
    if endpoint is not None and not (isinstance(endpoint, str) and _ENDPOINT.match(endpoint)):
        raise ConfigError(
            f"endpoint: expected ipc://PATH or tcp://HOST:PORT, got {endpoint!r}; leave it out for your own daemon"
        )
    if not isinstance(soft, bool):
        raise ConfigError(f"soft: expected True or False, got {soft!r}; True uses labels that are probabilities")
    if not isinstance(enabled, bool):
        raise ConfigError(f"enabled: expected True or False, got {enabled!r}")


def check_names(class_names: tuple[Any, ...], num_classes: int | None) -> None:
    """Raise `ConfigError` where class names are no names, or not one for each class."""
    if any(not isinstance(name, str) for name in class_names):
        odd = next(name for name in class_names if not isinstance(name, str))
        raise ConfigError(f"class_names: expected names, got {odd!r} among them; write str({odd!r})")
    if num_classes is not None and class_names and len(class_names) != num_classes:
        raise ConfigError(f"class_names: expected {num_classes} names, one a class, got {len(class_names)}")


def period(every: int | str) -> int | None:
    """Return what the schedule is told: 0 for never, None for what fits the budget."""
    return {"auto": None, "never": 0}[every] if isinstance(every, str) else every


def _what(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__) if callable(value) else type(value).__name__


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _has_groups(optimizer: Any) -> bool:
    groups = getattr(optimizer, "param_groups", None)
    return isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups)


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
        raise ConfigError(f"run_id: {_RUN_ID_RULE}, got {chosen!r} from $NCMON_RUN_ID or the launcher")
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

    Nobody waits for anybody: no collective, and a rank that does not watch is not missed here. Of a job that torchrun
    restarts the store lives on, and the run with it.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        # torchrun's own id; "none" where nobody gave it one.
        job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        return own if job == "none" or not _RUN_ID.fullmatch(job) else job
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        # The agent's store is the job's own: there prefixes are of one attempt. Elsewhere one may tell jobs apart.
        while agent and isinstance(store, torch.distributed.distributed_c10d.PrefixStore):
            store = store.underlying_store
        return store.compare_set(f"ncmon/run/{next(_WATCHED)}", "", own).decode()
    except Exception:  # a store without that operation: ranks then need NCMON_RUN_ID
        return own


def _json(config: Mapping[str, Any] | None) -> str:
    """Return the configuration as a JSON object; what JSON cannot hold is kept as its repr."""
    text = json.dumps({str(key): value for key, value in (config or {}).items()}, default=repr)
    if len(text) > 64 * 1024:
        raise ConfigError(f"config: expected at most 64 KB as JSON, got {len(text)} characters; leave large values out")
    return text
