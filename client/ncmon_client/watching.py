"""`watch`: from what the user says to a monitor. Here, and only here, arguments are refused."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

from ncmon_client import wire
from ncmon_client.capture import Capture
from ncmon_client.monitor import Monitor
from ncmon_client.options import check, check_names, period, pooled, run_info
from ncmon_client.schedule import Schedule

log = logging.getLogger("ncmon_client")


def watch(
    model: nn.Module,
    criterion: nn.Module | None = None,
    *,
    optimizer: Any = None,
    run: str | None = None,
    run_id: str | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    layers: str | Iterable[str] = "auto",
    num_classes: int | None = None,
    class_names: Iterable[str] | None = None,
    first_step: int = 0,
    soft: bool = False,
    window_steps: int = 200,
    every: int | Literal["auto", "never"] = "auto",
    overhead: float = 0.01,
    pool: str = "auto",
    spool: str = "auto",
    kernel: Literal["torch", "compiled"] = "torch",
    endpoint: str | None = None,
    enabled: bool = True,
) -> Monitor:
    """Watch a model: hook its layers and stream per-class statistics to the daemon.

    Parameters
    ----------
    criterion : an `nn.CrossEntropyLoss` module, from whose calls logits and labels are taken. Without it the loop calls
        `monitor.observe(logits, labels)` once a batch.
    optimizer : where the weight decays are read from.
    run, run_id, config, tags : how the run is called; `NCMON_RUN_ID` names one to continue.
    layers : `"auto"` (the network's blocks and the classifier's input), or module names and globs, each with an
        optional pooling suffix `:cls`, `:mean` or `:tokens`. The classifier's input is always watched.
    num_classes, class_names : known from the first batch and from nowhere, respectively, if left out.
    first_step : training steps that the run has behind it, where this process goes on from a checkpoint. Steps that are
        trained again replace what is stored of them.
    soft : use batches whose labels are probabilities (n, C), as mixup and distillation give them, or of tokens in the
        shape of the logits: every sample counts for every class, weighted. Without it they are skipped and counted.
    window_steps : training steps after which a window closes by itself.
    every : look at one step in this many; `"auto"` keeps the cost below the share `overhead` of the training's time,
        `"never"` looks at no step: then only `measure` makes windows.
    pool : `"auto"`, or the pooling suffix of all layers that name none.
    spool : what goes to a file on this machine's disk, to outlive this process. `"auto"`: windows that the daemon did
        not acknowledge within a second, and what is left at the end; `"always"`: every window at once, the loop waits
        for it; `"fsync"`: likewise, confirmed by the disk; `"memory"`: nothing.
    kernel : what adds up the sums by class on the CPU. `"torch"`, or `"compiled"`: one pass over the features, made by
        this machine's C compiler beside the training; until it is done, and where there is none, torch adds up, and
        `status().kernel` says so.
    endpoint : the daemon's; `$NCMON_ENDPOINT` or the user's own socket by default.
    enabled : False, or `NCMON_DISABLED=1`, makes everything do nothing.

    Raises
    ------
    ConfigError
        For arguments that cannot be right. Nothing is raised into the loop after this has returned.
    """
    check(
        model,
        criterion,
        optimizer=optimizer,
        run=run,
        run_id=run_id,
        config=config,
        tags=tags,
        layers=layers,
        num_classes=num_classes,
        class_names=class_names,
        first_step=first_step,
        soft=soft,
        window_steps=window_steps,
        every=every,
        overhead=overhead,
        pool=pool,
        spool=spool,
        kernel=kernel,
        endpoint=endpoint,
        enabled=enabled,
    )
    class_names = tuple(class_names or ())
    check_names(class_names, num_classes)
    info = run_info(
        name=run or type(model).__name__,
        run_id=run_id,
        config=config,
        tags=tags,
        num_classes=num_classes,
        class_names=class_names,
    )
    if os.environ.get("NCMON_DISABLED") == "1":
        enabled = False
    alone = info.world_size == 1
    capture = (
        Capture(model, layers=pooled(layers, pool), num_classes=num_classes, alone=alone, log=log) if enabled else None
    )
    return Monitor(
        model,
        criterion,
        optimizer=optimizer,
        run=info,
        capture=capture,
        schedule=Schedule(every=period(every), budget=overhead, rng=random.Random(os.urandom(8))),
        window_steps=window_steps,
        endpoint=endpoint or wire.default_endpoint(),
        spool=spool,
        first_step=first_step,
        soft=soft,
        kernel=kernel,
    )
