"""Capture: the only module that touches `nn.Module`. It turns a step of somebody's training into a `Batch`.

Rules of this module
- A tap keeps a reference and returns None. It never computes, never raises and never changes what flows past it.
- Everything else happens once a batch, when logits and labels are known (`take`), under `no_grad` and without autocast.
- Under `torch.compile` a tap is traced, and all it does is to write one attribute: that breaks no graph. What it left
  is picked up when the batch is taken.
- A copy or a pickle of a hooked model holds no tap: it gets an inert callable of the standard library in its place.

Which layer is what is found out from the first batch, by identity of tensors, not by names: the classifier is the
Linear whose output is the logits; a BatchNorm feeds it if the classifier's input *is* that BatchNorm's output; a layer
whose output *is* the classifier's input is that layer under another name and is left out.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ncmon_client.errors import ConfigError

CLASSIFIER_INPUT = "classifier-input"
POOLINGS = ("cls", "mean", "tokens")
STRIKES = 3
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BATCH_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A watched layer, as the first batch showed it."""

    name: str
    index: int
    module: str
    n_features: int
    reduction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of a step: features of every layer, logits and labels."""

    features: Mapping[str, Tensor]
    """(n, d) by layer name, detached."""
    logits: Tensor
    """(n, C), detached."""
    rows: Tensor
    """(n,) int64 in [0, C]; C where the label is ignored or out of range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadParameters:
    """The classifier at one moment: detached copies."""

    name: str = ""
    has_bias: bool = False
    batch_norm: str = ""
    batch_norm_eps: float = 0.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """`weight`, `bias`, `bn_gamma`, `bn_beta`, those that exist."""


@dataclass(slots=True)
class _Kept:
    tensor: Tensor
    version: int | None
    reduction: str = ""

    @property
    def changed(self) -> bool:
        """Whether an in-place operation overwrote the tensor after it was kept."""
        return self.version is not None and self.tensor._version != self.version


class _Tap:
    """A forward hook that keeps what flows past while its capture is armed."""

    def __init__(self, capture: Capture, key: str) -> None:
        self.capture = capture
        self.key = key
        self.traced: tuple[tuple[Any, ...], Any] | None = None
        """What flowed past in compiled code."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            self.traced = (args, output)
        elif self.capture.armed:
            self.capture.keep(self, args, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class _Bell:
    """A hook that calls one method of the capture, inert in copies and pickles."""

    def __init__(self, ring: Callable[..., None]) -> None:
        self.ring = ring

    def __call__(self, *args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.ring(*args)

    __deepcopy__ = _Tap.__deepcopy__
    __reduce__ = _Tap.__reduce__


def canonical(name: str) -> str:
    """Return a module's qualified name without the prefixes of compile, DDP, FSDP and checkpointing."""
    return _WRAPPERS.sub("", f"{name}.").rstrip(".")


class Capture:
    """The taps on one model. `on_batch` is called with every batch that was looked at."""

    def __init__(
        self, model: nn.Module, *, layers: str | Iterable[str], num_classes: int | None, log: logging.Logger
    ) -> None:
        if isinstance(model, nn.DataParallel):
            raise ConfigError(
                "expected a model on one device, got nn.DataParallel, whose replicas share their hooks across threads;"
                " watch model.module, or use DistributedDataParallel"
            )
        self.model = model
        self.num_classes = num_classes
        self.armed = False
        self.layers: tuple[Layer, ...] = ()
        self.dead = False
        self._log = log
        self._names = {canonical(name): module for name, module in model.named_modules() if canonical(name)}
        if isinstance(model, nn.Linear):
            self._names[type(model).__name__] = model
        self._wanted = _select(model, self._names, layers)
        self._kept: dict[str, _Kept] = {}
        self._calls: dict[str, int] = {}
        self._head_kept: dict[str, tuple[_Kept, Tensor]] = {}
        self._norm_kept: dict[str, Tensor] = {}
        self._clone: set[str] = set()
        self._strikes = 0
        self._head = ""
        self._head_is_linear = False
        self._norm = ""
        self._resolved = False
        self._handles: list[Any] = []
        self._taps: dict[str, _Tap] = {}
        self._probe_handles: dict[str, Any] = {}
        self._check_classes()
        self._attach()

    # -- hooks --------------------------------------------------------------------------------------------------------

    def _check_classes(self) -> None:
        if self.num_classes is None:
            return
        if self.num_classes < 2:
            raise ConfigError(f"num_classes: expected at least 2, got {self.num_classes}")
        if not any(p.ndim >= 2 and p.shape[0] == self.num_classes for p in self.model.parameters()):
            heads = [f"{name} ({m.out_features})" for name, m in self._names.items() if isinstance(m, nn.Linear)]
            found = f"the last Linear is {heads[-1]}" if heads else "there is no Linear"
            raise ConfigError(
                f"num_classes={self.num_classes} contradicts the model: no parameter has that many rows, {found};"
                " leave num_classes out or give the classifier's number of outputs"
            )

    def _attach(self) -> None:
        for name in self._wanted:
            self._tap(name, self._handles.append)
        for name, module in self._names.items():
            is_head = isinstance(module, nn.Linear) and self.num_classes in (None, module.out_features)
            if is_head or isinstance(module, _BATCH_NORMS):
                self._tap(f"?{name}", functools.partial(self._probe_handles.__setitem__, name))

    def _tap(self, key: str, keep_handle: Callable[[Any], None]) -> None:
        tap = self._taps[key] = _Tap(self, key)
        keep_handle(self._names[key.removeprefix("?")].register_forward_hook(tap))

    def detach(self) -> None:
        """Remove every hook."""
        self.armed = False
        for handle in (*self._handles, *self._probe_handles.values()):
            handle.remove()
        self._handles.clear()
        self._probe_handles.clear()

    def on_forward(self, ring: Callable[[], None]) -> None:
        """Call `ring` when the whole model begins a forward pass in training mode."""

        def begin(module: nn.Module, args: Any) -> None:
            if module.training and torch._C._current_graph_task_id() == -1:
                ring()

        self._handles.append(self.model.register_forward_pre_hook(_Bell(begin)))

    def on_loss(self, criterion: nn.Module, ring: Callable[[Tensor, Tensor], None]) -> None:
        """Call `ring(logits, labels)` after every call of the criterion."""

        def called(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if len(args) == 2:
                ring(args[0], args[1])

        self._handles.append(criterion.register_forward_hook(_Bell(called)))

    def arm(self, armed: bool) -> None:
        """A forward pass begins: forget the one before, and look at this one or not."""
        self.armed = armed and not self.dead
        if self._kept or self._calls or self._head_kept:
            self._kept, self._calls, self._head_kept, self._norm_kept = {}, {}, {}, {}

    def pick_up(self) -> bool:
        """Keep what taps in compiled code left; return whether there was anything."""
        left = False
        for tap in self._taps.values():
            if tap.traced is not None:
                (args, output), tap.traced, left = tap.traced, None, True
                if self.armed:
                    self.keep(tap, args, output)
        return left

    def keep(self, tap: _Tap, args: tuple[Any, ...], output: Any) -> None:
        """Keep what one module received and returned. Called by taps; catches everything."""
        try:
            if torch._C._current_graph_task_id() != -1:
                return  # activation checkpointing runs the forward again inside backward
            probe = tap.key.startswith("?")
            name = tap.key.removeprefix("?")
            tensor = _first_tensor(output)
            if tensor is None:
                return
            if not probe:
                call = self._calls[name] = self._calls.get(name, 0) + 1
                key = name if call == 1 else f"{name}@{call}"
                self._kept[key] = self._reference(key, tensor)
            elif isinstance(self._names[name], nn.Linear):
                entering = _first_tensor(args)
                if entering is not None:
                    key = CLASSIFIER_INPUT if self._resolved else name
                    self._head_kept[name] = (self._reference(key, entering, pool=False), tensor.detach())
            else:
                self._norm_kept[name] = tensor
        except Exception:
            self.strike("a hook failed")

    def _reference(self, key: str, tensor: Tensor, *, pool: bool = True) -> _Kept:
        version = None if tensor.is_inference() else tensor._version
        tensor = tensor.detach()
        if pool and tensor.ndim >= 4:
            with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
                return _Kept(tensor.flatten(2).float().mean(2), None, "mean")
        if key in self._clone:
            return _Kept(tensor.clone(), None)
        return _Kept(tensor, version)

    def strike(self, what: str) -> None:
        """Something failed in here; the third time disarms the capture for good, with one line in the log."""
        self._strikes += 1
        if self._strikes == STRIKES:
            self.dead, self.armed = True, False
            self._log.warning("ncmon stops watching: %s %d times", what, STRIKES, exc_info=True)
        elif self._strikes < STRIKES:
            self._log.debug("ncmon: %s", what, exc_info=True)

    # -- one batch ----------------------------------------------------------------------------------------------------

    def take(self, logits: Tensor, labels: Tensor) -> Batch | str:
        """Return the batch whose logits and labels are now known, or in a word why it cannot be used."""
        kept, heads, norms = self._kept, self._head_kept, self._norm_kept
        self._kept, self._calls, self._head_kept, self._norm_kept = {}, {}, {}, {}
        if labels.is_floating_point():
            return "soft labels"
        logits = logits.detach()
        if logits.ndim == 1:
            logits, labels = logits[None], labels.reshape(1)
        if logits.ndim > 2:
            logits = logits.flatten(2).transpose(1, 2).flatten(0, 1)
        labels = labels.detach().reshape(-1).to(logits.device, torch.int64)
        if logits.shape[0] != labels.shape[0]:
            return "logits and labels differ in number"
        if not kept and not heads:
            return "no features"
        n_classes = logits.shape[1]
        if not self._resolved:
            self._resolve(logits, kept, heads, norms)
        elif n_classes != self.num_classes:
            return "another number of classes"
        if self._head and self._head in heads:
            kept[CLASSIFIER_INPUT] = heads[self._head][0]
        features: dict[str, Tensor] = {}
        for layer in self.layers:
            if layer.name not in kept:
                return "a layer was not called"
            entry = kept[layer.name]
            if entry.changed:
                # From now on this tensor is copied before somebody writes into it.
                self._clone.add(layer.name)
                return "changed in place"
            pooled, _ = _pool(entry, len(labels), self._pooling(layer.name))
            if pooled is None or pooled.shape != (len(labels), layer.n_features):
                return "a layer's shape changed"
            features[layer.name] = pooled
        rows = torch.where((labels >= 0) & (labels < n_classes), labels, n_classes)
        return Batch(features=features, logits=logits, rows=rows)

    def _pooling(self, name: str) -> str:
        return self._wanted.get(name.partition("@")[0], "")

    def _resolve(
        self,
        logits: Tensor,
        kept: dict[str, _Kept],
        heads: dict[str, tuple[_Kept, Tensor]],
        norms: dict[str, Tensor],
    ) -> None:
        """Find the classifier, the BatchNorm before it and the layers' order from the first batch."""
        n_classes = logits.shape[1]
        self.num_classes = n_classes
        for name, (entry, output) in heads.items():
            if output.shape[-1] == n_classes and _same(output.reshape(-1, n_classes), logits):
                self._head, self._head_is_linear = name, True
                self._norm = next((norm for norm, out in norms.items() if _same(out, entry.tensor)), "")
        if not self._head:
            fitting = [name for name, (_, output) in heads.items() if output.shape[-1] == n_classes]
            if fitting:
                # The logits are made from this layer's output (scaled, masked): its input is the last feature, but its
                # weight is not what decides, and nothing is claimed about it.
                self._head = fitting[-1]
        for name in [name for name in self._probe_handles if name != self._head]:
            self._probe_handles.pop(name).remove()
            del self._taps[f"?{name}"]
        found: list[Layer] = []
        entering = heads[self._head][0] if self._head else None
        for name, entry in kept.items():
            if name == self._head or (entering is not None and _same(entry.tensor, entering.tensor)):
                continue
            pooled, reduction = _pool(entry, len(logits), self._pooling(name))
            if pooled is not None and len(pooled) == len(logits):
                module = type(self._names[name.partition("@")[0]]).__name__
                found.append(
                    Layer(name=name, index=len(found), module=module, n_features=pooled.shape[1], reduction=reduction)
                )
        if entering is not None:
            pooled, reduction = _pool(entering, len(logits), "")
            if pooled is not None and len(pooled) == len(logits):
                found.append(
                    Layer(
                        name=CLASSIFIER_INPUT,
                        index=len(found),
                        module=type(self._names[self._head]).__name__,
                        n_features=pooled.shape[1],
                        reduction=reduction,
                    )
                )
        self.layers = tuple(found)
        self._resolved = True

    def head(self) -> HeadParameters:
        """Return the classifier's parameters as they are now: copies on the device, nothing waits."""
        if not (self._head and self._head_is_linear):
            return HeadParameters(name=self._head)
        module = self._names[self._head]
        tensors: dict[str, Tensor] = {}
        for name in ("weight", "bias"):
            parameter = getattr(module, name, None)
            if isinstance(parameter, Tensor):
                tensors[name] = parameter.detach().clone()
        norm = self._names.get(self._norm)
        if norm is not None and norm.weight is not None:
            tensors["bn_gamma"] = norm.weight.detach().clone()
            tensors["bn_beta"] = norm.bias.detach().clone()
        return HeadParameters(
            name=self._head,
            has_bias="bias" in tensors,
            batch_norm=self._norm,
            batch_norm_eps=float(norm.eps) if norm is not None else 0.0,
            tensors=tensors,
        )

    def decays(self, optimizer: Any) -> tuple[float | None, float | None, bool | None]:
        """Return the weight decay of the classifier's weight and of the BatchNorm's scale, and if it is decoupled."""
        groups = getattr(optimizer, "param_groups", None)
        if not groups or not self._head_is_linear:
            return None, None, None
        norm = self._names.get(self._norm)
        wanted = (self._names[self._head].weight, norm.weight if norm is not None else None)
        found: list[float | None] = []
        decoupled: bool | None = None
        for parameter in wanted:
            group = next(
                (g for g in groups if parameter is not None and any(p is parameter for p in g["params"])), None
            )
            found.append(None if group is None else float(group.get("weight_decay", 0.0)))
            if group is not None:
                by_name = "AdamW" in type(getattr(optimizer, "optimizer", optimizer)).__name__
                decoupled = bool(group.get("decoupled_weight_decay", by_name))
        return found[0], found[1], decoupled


def _select(model: nn.Module, names: Mapping[str, nn.Module], layers: str | Iterable[str]) -> dict[str, str]:
    """Return the names of the modules to tap, each with its pooling suffix or nothing."""
    if isinstance(layers, str) and layers.partition(":")[0] == "auto":
        pooling = layers.partition(":")[2]
        stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
        if not stacks:
            return {}
        # The first of the longest: a Sequential inside a block is not longer than the network's own spine.
        name, longest = max(stacks, key=lambda pair: len(pair[1]))
        prefix = f"{canonical(name)}." if canonical(name) else ""
        return {f"{prefix}{child}": pooling for child, _ in longest.named_children()}
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


def _first_tensor(value: Any) -> Tensor | None:
    """Return the first floating tensor of a module's output: bare, in a tuple, a dict or a model output."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() and value.ndim >= 2 else None
    if isinstance(value, Mapping):
        preferred = value.get("last_hidden_state")
        return preferred if isinstance(preferred, Tensor) else _first_tensor(list(value.values()))
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := _first_tensor(item)) is not None), None)
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same values: one tensor, or a cast of it (asked once, on the first batch)."""
    if one.shape != other.shape:
        return False
    if one.data_ptr() == other.data_ptr():
        return True
    return one.dtype != other.dtype and bool(torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-3))


def _pool(entry: _Kept, n_samples: int, pooling: str) -> tuple[Tensor | None, str]:
    """Return features (n, d) of a kept tensor and how they were reduced."""
    tensor = entry.tensor
    if tensor.ndim == 2:
        return tensor, entry.reduction or "none"
    if tensor.ndim == 3:
        tokens = tensor.shape[0] * tensor.shape[1] == n_samples
        if pooling == "cls":
            return tensor[:, 0], "cls"
        if pooling == "tokens" or (tokens and not pooling and tensor.shape[0] != n_samples):
            return tensor.flatten(0, 1), "tokens"
        return tensor.float().mean(1), "mean"
    if tensor.ndim >= 4:
        return tensor.flatten(2).float().mean(2), "mean"
    return None, ""
