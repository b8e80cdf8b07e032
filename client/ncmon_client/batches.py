"""What loaders and models hand around: inputs and labels of a batch, logits of an output, a pass at frozen weights."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CAUSAL = re.compile("ForCausalLM|LMHeadModel")
"""Class names of models whose logits at a position are about the token after it."""


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and all of it undone afterwards, the random state included.

    A DataLoader draws its base seed from the global generator whenever it starts: without this a run with a measurement
    in it would shuffle differently from one without.
    """
    modes = {module: module.training for module in model.modules()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 (the loop's own state)
    on_cuda = any(parameter.is_cuda for parameter in model.parameters())
    cuda = torch.cuda.get_rng_state() if on_cuda else None
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def split(item: Any, device: torch.device) -> tuple[Any, Tensor]:
    """Return inputs and labels of a loader's batch, on the model's device."""
    if isinstance(item, Mapping):
        inputs = {key: _to(value, device) for key, value in item.items() if key != "labels"}
        return inputs, item["labels"].to(device)
    if isinstance(item, tuple | list) and len(item) >= 2:
        return _to(item[0], device), item[1].to(device)
    raise TypeError(f"expected batches (x, y) or mappings with 'labels', got {type(item).__name__}")


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_to(item, device) for item in value) if type(value) in (tuple, list) else value
    return value.to(device) if isinstance(value, Tensor) else value


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: the output, its attribute or key `logits`, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple | list):
        found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"expected logits from the model, got {type(output).__name__} without them")
    return found


def supervised(model: nn.Module, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and labels that belong together: a causal language model predicts the next token."""
    logits = logits_of(output)
    causal = _CAUSAL.search(type(_inside(model)).__name__) is not None
    if causal and logits.ndim == 3 and labels.ndim == 2 and logits.shape[:2] == labels.shape:
        return logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    return logits, labels


def _inside(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, FSDP and compile wrappers, adapters included (PEFT)."""
    for name in ("_orig_mod", "module", "base_model"):
        inner = model._modules.get(name)
        if isinstance(inner, nn.Module) and not (name == "base_model" and not hasattr(model, "peft_config")):
            return _inside(inner)
    return model
