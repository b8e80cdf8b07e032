"""The classifier: its parameters at one moment, its weight decay, and a head that is no module but a matrix.

Rules of this module
- Reading a parameter must not change it: spectral norm takes a power iteration at each look in training mode.
- Nothing is gathered from other ranks: of a sharded parameter, what the forward pass unsharded is copied, or nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MAX_FUNCTIONAL = 4096
"""Classes above which no matrix is tried as the classifier: the first batch would pay n x d x C for each."""


class HeadParameters(NamedTuple):
    """The classifier at one moment: detached copies. A tuple: one is made whenever a window closes (`closed`)."""

    name: str = ""
    has_bias: bool = False
    batch_norm: str = ""
    batch_norm_eps: float = 0.0
    tensors: Mapping[str, Tensor] = MappingProxyType({})
    """`weight`, `bias`, `bn_gamma`, `bn_beta`, those that exist."""


def is_sharded(value: Any) -> bool:
    """Whether a parameter is spread over several ranks (FSDP2, tensor parallelism)."""
    # An attribute that is not there is slow to ask for.
    return type(value) is not nn.Parameter and hasattr(value, "full_tensor")


def is_fsdp(model: nn.Module) -> bool:
    """Whether `fully_shard` was applied to this model."""
    return hasattr(model, "set_requires_gradient_sync")


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of weight and bias as the forward pass uses them; a sharded one is left out."""
    own = module._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if type(weight) is nn.Parameter and (bias is None or type(bias) is nn.Parameter) and not module._modules:
        # The usual case, and nothing to ask: a window that closes holds the loop up for as long as this takes.
        copy = {"weight": weight.detach().clone()}
        if bias is not None:
            copy["bias"] = bias.detach().clone()
        return copy
    found: dict[str, Tensor] = {}
    with torch.no_grad(), _still(module):
        for name in ("weight", "bias"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor) and not is_sharded(value):
                found[name] = value.detach().clone()
    return found


@contextlib.contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Eval mode for a module's parametrizations, so that a look at them moves nothing."""
    lists = getattr(module, "parametrizations", None)
    moving = [part for part in lists.modules() if part.training] if isinstance(lists, nn.Module) else []
    for part in moving:
        part.training = False
    try:
        yield
    finally:
        for part in moving:
            part.training = True


def decays(
    optimizer: Any, head: nn.Module | None, norm: nn.Module | None, weight: Tensor | None = None
) -> tuple[float | None, float | None, bool | None]:
    """Return the weight decay of the classifier's weight and of the BatchNorm's scale, and if it is decoupled.

    `weight` is the parameter itself where the classifier is no module. A reparametrised weight is no parameter of the
    optimizer: its decay is unknown.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not groups or (head is None and weight is None):
        return None, None, None
    own = weight if head is None else head._parameters.get("weight")
    found: list[float | None] = []
    decoupled: bool | None = None
    for parameter in (own, None if norm is None else norm._parameters.get("weight")):
        group = None if parameter is None else _group(groups, parameter)
        found.append(None if group is None else float(group.get("weight_decay", 0.0)))
        if group is not None:
            by_name = "AdamW" in type(getattr(optimizer, "optimizer", optimizer)).__name__
            decoupled = bool(group.get("decoupled_weight_decay", by_name))
    return found[0], found[1], decoupled


def _group(groups: list[dict[str, Any]], parameter: Any) -> dict[str, Any] | None:
    """Return the group that holds a parameter; the last ones are looked at first, the classifier is at the end."""
    for group in reversed(groups):
        for other in reversed(group["params"]):
            if other is parameter:
                return group
    return None


def functional(
    model: nn.Module, features: Mapping[str, Tensor], logits: Tensor
) -> tuple[str, tuple[str, str | None]] | None:
    """Find features h (n, d) and parameters W (C, d), b (C,) with logits = h W^T + b; asked once, on the first batch.

    Return the layer's name and the parameters' names, None where no such pair is there.
    """
    n_classes = logits.shape[1]
    if n_classes > MAX_FUNCTIONAL:
        return None
    named = {name: p.detach().float() for name, p in model.named_parameters() if not is_sharded(p)}
    biases = {name: p for name, p in named.items() if p.shape == (n_classes,)}
    target = logits.float()
    for layer, h in reversed(list(features.items())):
        for name, weight in named.items():
            if weight.shape != (n_classes, h.shape[1]) or h.shape[0] != len(target):
                continue
            rest = target - h.float() @ weight.T
            for bias, value in [(None, torch.zeros_like(target[0])), *biases.items()]:
                if torch.allclose(rest, value.expand_as(rest), rtol=1e-3, atol=1e-3 * float(target.abs().max())):
                    return layer, (name, bias)
    return None
