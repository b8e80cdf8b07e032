"""Which modules are worth watching, under which name, and how what they return becomes one vector a sample.

Rules of this module
- It reads modules and tensors and changes neither; hooks are the capture's business.
- Names are canonical: without the prefixes that compile, DDP, FSDP and activation checkpointing put before them.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ncmon_client.errors import ConfigError

CLASSIFIER_INPUT = "classifier-input"
POOLINGS = ("cls", "mean", "tokens")
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A watched layer, as the first batch showed it."""

    name: str
    index: int
    module: str
    n_features: int
    reduction: str


@dataclass(slots=True)
class Kept:
    """A detached reference to what flowed past, and the version that it had then."""

    tensor: Tensor
    version: int | None
    reduction: str = ""

    @property
    def changed(self) -> bool:
        """Whether an in-place operation overwrote the tensor after it was kept."""
        return self.version is not None and self.tensor._version != self.version


def canonical(name: str) -> str:
    """Return a module's qualified name without the prefixes of compile, DDP, FSDP and checkpointing."""
    return _WRAPPERS.sub("", f"{name}.").rstrip(".")


def select(model: nn.Module, names: Mapping[str, nn.Module], layers: str | Iterable[str]) -> dict[str, str]:
    """Return the names of the modules to tap, each with its pooling suffix or nothing."""
    if isinstance(layers, str) and layers.partition(":")[0] == "auto":
        return dict.fromkeys(_blocks(model), layers.partition(":")[2])
    wanted: dict[str, str] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        glob, _, pooling = pattern.partition(":")
        if pooling and pooling not in POOLINGS:
            raise ConfigError(f"layer {pattern!r}: expected a pooling among {', '.join(POOLINGS)}, got {pooling!r}")
        matched = [name for name in names if fnmatch.fnmatchcase(name, canonical(glob))]
        if not matched:
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4) or list(names)[-3:]
            raise ConfigError(f"no layer is named {glob!r}; near ones: {', '.join(near)}")
        wanted.update(dict.fromkeys(matched, pooling))
    return wanted


def _blocks(model: nn.Module) -> list[str]:
    """Return the network's blocks: the children of its longest stack, or its stages where several are as long.

    A stack is a Sequential or ModuleList inside no other one. A residual network is four Sequentials side by side: none
    of them is the network's spine, and each of them is one of its stages.
    """
    stacks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or outer == "" for outer in stacks)
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) and not inside:
            stacks[name] = module
    if not stacks:
        return []
    spine, longest = max(stacks.items(), key=lambda pair: len(pair[1]))  # type: ignore[arg-type]
    parent = spine.rpartition(".")[0]
    stages = [
        name
        for name, module in stacks.items()
        if name.rpartition(".")[0] == parent and isinstance(module, nn.Sequential) and 2 * len(module) >= len(longest)  # type: ignore[arg-type]
    ]
    if len(stages) > 2 and spine in stages:
        return [canonical(name) for name in stages]
    prefix = f"{canonical(spine)}." if canonical(spine) else ""
    return [f"{prefix}{child}" for child, _ in longest.named_children()]


def first_tensor(value: Any) -> Tensor | None:
    """Return the first floating tensor of a module's output: bare, in a tuple, a dict or a model output."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() and value.ndim >= 2 else None
    if isinstance(value, Mapping):
        preferred = value.get("last_hidden_state")
        return preferred if isinstance(preferred, Tensor) else first_tensor(list(value.values()))
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, seen in one way: neither a copy nor a turned view."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def same(one: Tensor, other: Tensor, *, copies: bool = False) -> bool:
    """Whether two tensors are one tensor, or a cast of it, or with `copies` a copy (asked once, on the first batch)."""
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        return bool(torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-3))
    return one.data_ptr() == other.data_ptr() or (copies and bool(torch.equal(one, other)))


def pool(entry: Kept, n_samples: int, pooling: str, *, shifted: bool = False) -> tuple[Tensor | None, str]:
    """Return features (n, d) of a kept tensor and how they were reduced; `shifted` leaves each last token out."""
    tensor = entry.tensor
    if tensor.ndim == 2:
        return tensor, entry.reduction or "none"
    if tensor.ndim == 3:
        if shifted and pooling in ("", "tokens"):
            return tensor[:, :-1].flatten(0, 1), "tokens"
        tokens = tensor.shape[0] * tensor.shape[1] == n_samples
        if pooling == "cls":
            return tensor[:, 0], "cls"
        if pooling == "tokens" or (tokens and not pooling and tensor.shape[0] != n_samples):
            return tensor.flatten(0, 1), "tokens"
        return tensor.float().mean(1), "mean"
    if tensor.ndim >= 4:
        return tensor.flatten(2).float().mean(2), "mean"
    return None, ""
