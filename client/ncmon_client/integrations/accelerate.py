"""Accelerate: `monitor = watch(accelerator, model, criterion, optimizer=optimizer, run="digits")` after `prepare`.

`prepare` may wrap the model (DDP, FSDP, compile) and always wraps the optimizer; both are read through their wrappers.
All processes have to call it: each sends the statistics of its own batches, and the daemon merges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ncmon_client import monitor, watching
from ncmon_client.errors import ConfigError

try:
    from accelerate import Accelerator
except ImportError:
    raise ConfigError("ncmon_client.integrations.accelerate needs Accelerate: pip install accelerate") from None


def watch(
    accelerator: Accelerator,
    model: nn.Module,
    criterion: nn.Module | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> monitor.Monitor:
    """Watch a prepared model; further options are those of `ncmon_client.watch`."""
    if not isinstance(accelerator, Accelerator):
        raise ConfigError(f"accelerator: expected an accelerate.Accelerator, got {type(accelerator).__name__}")
    own = {
        "mixed_precision": accelerator.mixed_precision,
        "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
        "num_processes": accelerator.num_processes,
    }
    return watching.watch(model, criterion, config={**own, **(config or {})}, **options)
