"""Capture: the only module that hooks `nn.Module`. It turns a step of somebody's training into a `Batch`.

Rules of this module
- A tap keeps a reference and returns None. It never computes, never raises and never changes what flows past it.
- Everything else happens once a batch, when logits and labels are known (`take`), under `no_grad` and without autocast.
- What compilers, transforms, copies and pickles do to a tap is in `taps`.

Which layer is what is found out from the first batch, by identity of tensors, not by names: the classifier is the
Linear whose output is the logits, or else the parameters with logits = h W^T + b; a BatchNorm feeds it if the
classifier's input *is* that BatchNorm's output; a layer whose output *is* the classifier's input is that layer under
another name and is left out.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ncmon_client import head, mixtures
from ncmon_client.errors import ConfigError
from ncmon_client.frequent import MAX_CLASSES, Frequent, most_frequent
from ncmon_client.head import HeadParameters
from ncmon_client.layers import CLASSIFIER_INPUT, Kept, Layer, alike, canonical, first_tensor, pool, same, select
from ncmon_client.rows import rows_of
from ncmon_client.taps import Bell, Tap, elsewhere

STRIKES = 3
SLACK = 0.02
"""Probabilities in half precision add up to one within this."""
SEVERAL = "samples of several classes"
_BATCH_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
_CHANNELS_FIRST = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)
"""Three-dimensional outputs of these are (n, d, positions), those of all others (n, tokens, d)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of a step: features of every layer, logits and labels."""

    features: Mapping[str, Tensor]
    """(n, d) by layer name, detached."""
    logits: Tensor
    """(n, C), detached."""
    rows: Tensor
    """(n,) int64 in [0, C]; C where the label is ignored or out of range."""
    frequent: Frequent | None = None
    """Which classes are kept, where there are too many of them."""
    weights: Tensor | None = None
    """(n, C) the probabilities of the classes where labels are soft; `rows` are the likeliest then."""

    def places(self, classes: Tensor) -> Tensor:
        """Return the places (n,) of classes among those that are kept."""
        return classes if self.frequent is None else self.frequent.places[classes]


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return what keeps autocast off inside: nothing where it is off, for entering it costs as much as a small sum."""
    try:
        on = torch.is_autocast_enabled(device_type)
    except TypeError:  # torch before 2.4 asks without a device
        on = True
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def _fastest(module: nn.Module, value: Tensor) -> float:
    """Return the least mean time of a call, in seconds."""
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(50):
            module(value)
        best = min(best, (time.perf_counter() - begin) / 50)
    return best


class Capture:
    """The taps on one model."""

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Iterable[str],
        num_classes: int | None,
        log: logging.Logger,
        alone: bool = True,
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
        self._alone = alone
        self.frequent: Frequent | None = None
        """The classes that are kept, where there are too many."""
        self.spent_s = 0.0
        """What hooks took in the present step, before its loss; a tap that does not look is too cheap to be timed."""
        self.dispatch_s = 0.0
        """What torch takes a step to call all hooks that do nothing; measured once, on a module of its own."""
        self._log = log
        self._names = {canonical(name): module for name, module in model.named_modules() if canonical(name)}
        if isinstance(model, nn.Linear):
            self._names[type(model).__name__] = model
        self._wanted = select(model, self._names, layers)
        self._named = not (isinstance(layers, str) and layers.partition(":")[0] == "auto")
        self._kept: dict[str, Kept] = {}
        self._calls: dict[str, int] = {}
        self._head_kept: dict[str, tuple[Kept, Tensor]] = {}
        self._norm_kept: dict[str, Tensor] = {}
        self._clone: set[str] = set()
        self._strikes = 0
        self.caught = 0
        """Errors in hooks so far."""
        self._head = ""
        self._head_is_linear = False
        self._matrix: tuple[str, str | None] | None = None
        self._alias = ""
        """The layer that is the input of a classifier without a module."""
        self._whole: dict[str, Tensor] = {}
        """Weight and bias of a sharded classifier, as the last pass that was looked at had them."""
        self._shifted = False
        """Whether the logits are those of all tokens but the last, as a language model's loss takes them."""
        self._norm = ""
        self._resolved = False
        self._handles: list[Any] = []
        self._hook_s = 0.0
        self._taps: dict[str, Tap] = {}
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

    def weigh(self) -> None:
        """Measure what a hook costs that does nothing: torch's own way to it is several times as long as the hook."""
        module, nothing = nn.Identity(), torch.empty(0, device="cpu")
        bare_s = _fastest(module, nothing)
        module.register_forward_hook(Tap(self, ""))
        self._hook_s = max(_fastest(module, nothing) - bare_s, 0.0)
        self.dispatch_s = self._hook_s * (len(self._handles) + len(self._probe_handles))

    def _tap(self, key: str, keep_handle: Callable[[Any], None]) -> None:
        tap = self._taps[key] = Tap(self, key)
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
            started = time.perf_counter()
            try:
                if module.training and not elsewhere():
                    ring()
            except Exception:
                self.caught += 1
                self.strike("a step could not begin")
            self.spent_s += time.perf_counter() - started

        self._handles.append(self.model.register_forward_pre_hook(Bell(begin)))

    def on_loss(self, criterion: nn.Module, ring: Callable[[Any, Any, Any], None]) -> None:
        """Call `ring(logits, labels, loss)` after every call of the criterion."""

        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = [*args, *(kwargs[name] for name in ("input", "target") if name in kwargs)]
            if len(given) == 2:
                ring(given[0], given[1], output)

        self._handles.append(criterion.register_forward_hook(Bell(called), with_kwargs=True))

    def on_labels(self, ring: Callable[[Any, Any], None]) -> None:
        """Call `ring(output, labels)` after every forward pass of a model that was given its labels by keyword."""

        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if module.training and isinstance(kwargs.get("labels"), Tensor):
                ring(output, kwargs["labels"])

        self._handles.append(self.model.register_forward_hook(Bell(called), with_kwargs=True))

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

    def keep(self, tap: Tap, args: tuple[Any, ...], output: Any) -> None:
        """Keep what one module received and returned. Called by taps; catches everything."""
        begin = time.perf_counter()
        try:
            probe = tap.key.startswith("?")
            name = tap.key.removeprefix("?")
            tensor = first_tensor(output)
            if tensor is None:
                return
            if not probe:
                call = self._calls[name] = self._calls.get(name, 0) + 1
                key = name if call == 1 else f"{name}@{call}"
                if tensor.ndim == 3 and isinstance(self._names[name], _CHANNELS_FIRST):
                    tensor = tensor[..., None]
                self._kept[key] = self._reference(key, tensor)
            elif isinstance(self._names[name], nn.Linear):
                entering = first_tensor(args)
                if name == self._head and head.is_fsdp(self.model):
                    # After the pass the weight is in shards again; here it is whole.
                    self._whole = head.parameters(self._names[name])
                if entering is not None:
                    key = CLASSIFIER_INPUT if self._resolved else name
                    self._head_kept[name] = (self._reference(key, entering, pool=False), tensor.detach())
            else:
                self._norm_kept[name] = tensor
        except Exception:
            self.caught += 1
            self.strike("a hook failed")
        self.spent_s += time.perf_counter() - begin

    def _reference(self, key: str, tensor: Tensor, *, pool: bool = True) -> Kept:
        version = None if tensor.is_inference() else tensor._version
        tensor = tensor.detach()
        if pool and tensor.ndim >= 4:
            with torch.no_grad(), without_autocast(tensor.device.type):
                return Kept(tensor.flatten(2).float().mean(2), None, "mean")
        if key in self._clone:
            return Kept(tensor.clone(), None)
        return Kept(tensor, version)

    def strike(self, what: str) -> None:
        """Something failed in here; the third time disarms the capture for good, with one line in the log."""
        self._strikes += 1
        if self._strikes == STRIKES:
            self.dead, self.armed = True, False
            self._log.warning("ncmon stops watching: %s %d times", what, STRIKES, exc_info=True)
        elif self._strikes < STRIKES:
            self._log.debug("ncmon: %s", what, exc_info=True)

    # -- one batch ----------------------------------------------------------------------------------------------------

    def take(self, logits: Tensor, labels: Tensor, ignore_index: int = -100, *, soft: bool = False) -> Batch | str:
        """Return the batch whose logits and labels are now known, or in a word why it cannot be used.

        `soft` takes labels that are probabilities, of the shape of the logits.
        """
        kept, heads, norms = self._kept, self._head_kept, self._norm_kept
        own = logits.ndim > 2 and any(alike(output, logits) for _, output in heads.values())
        weights = None
        if labels.is_floating_point():
            if not soft or labels.shape != logits.shape or not labels.ndim:
                return "soft labels"  # what was kept stays: hard labels may still come
            logits, weights = mixtures.flat(logits, labels, self.num_classes, own=own)
            if weights.shape[1] > MAX_CLASSES:
                return "soft labels"
            # Asked once, on the first batch: an accelerator has to be waited for.
            if not self._resolved and bool((weights.sum(1) > 1 + SLACK).any()):
                return SEVERAL
            labels = weights.argmax(1)
        self._kept, self._calls, self._head_kept, self._norm_kept = {}, {}, {}, {}
        logits = logits.detach()
        if logits.ndim == 1:
            logits, labels = logits[None], labels.reshape(1)
        turned = own or labels.shape != logits.shape[:1] + logits.shape[2:]
        if logits.ndim > 2 and logits.shape[:-1] == labels.shape and turned:
            logits = logits.flatten(0, -2)  # (n, tokens, C); a criterion's own order is (n, C, tokens)
        elif logits.ndim > 2:
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
        elif self._alias in kept:
            kept[CLASSIFIER_INPUT] = kept[self._alias]
        features: dict[str, Tensor] = {}
        for layer in self.layers:
            if layer.name not in kept:
                return "a layer was not called"
            entry = kept[layer.name]
            if entry.changed:
                # From now on this tensor is copied before somebody writes into it.
                self._clone.add(layer.name)
                return "changed in place"
            pooled, _ = self._pool(layer.name, entry, len(labels))
            if pooled is None or pooled.shape != (len(labels), layer.n_features):
                return "a layer's shape changed"
            features[layer.name] = pooled
        rows = rows_of(labels, n_classes, ignore_index)
        if n_classes > MAX_CLASSES and self.frequent is None:
            self.frequent = most_frequent(rows, n_classes, alone=self._alone)
        return Batch(features=features, logits=logits, rows=rows, frequent=self.frequent, weights=weights)

    def _pool(self, name: str, entry: Kept, n_samples: int) -> tuple[Tensor | None, str]:
        pooling = self._wanted.get(name.partition("@")[0], "")
        return pool(entry, n_samples, pooling, shifted=self._shifted)

    def _resolve(
        self,
        logits: Tensor,
        kept: dict[str, Kept],
        heads: dict[str, tuple[Kept, Tensor]],
        norms: dict[str, Tensor],
    ) -> None:
        """Find the classifier, the BatchNorm before it and the layers' order from the first batch."""
        n_classes = logits.shape[1]
        self.num_classes = n_classes
        for name, (entry, output) in heads.items():
            if output.shape[-1] != n_classes:
                continue
            self._shifted = (
                output.ndim == 3
                and output.shape[0] * (output.shape[1] - 1) == len(logits)
                and same(output[:, :-1].reshape(-1, n_classes), logits, copies=True)
            )
            if self._shifted or same(output.reshape(-1, n_classes), logits, copies=True):
                self._head, self._head_is_linear = name, True
                self._norm = next((norm for norm, out in norms.items() if same(out, entry.tensor)), "")
                break
        else:
            # The logits are made from this layer's output (scaled, masked): its input is the last feature, but its
            # weight is not what decides, and nothing is claimed about it.
            fitting = [name for name, (_, output) in heads.items() if output.shape[-1] == n_classes]
            self._head = fitting[-1] if fitting else ""
        for name in [name for name in self._probe_handles if name != self._head]:
            self._probe_handles.pop(name).remove()
            del self._taps[f"?{name}"]
        self.dispatch_s = self._hook_s * (len(self._handles) + len(self._probe_handles))
        entering = heads[self._head][0] if self._head else None
        shapes: dict[str, tuple[Tensor, str]] = {}
        doubles: list[str] = []
        for name, entry in kept.items():
            if name == self._head or (entering is not None and same(entry.tensor, entering.tensor)):
                doubles.append(name)
                continue
            pooled, reduction = self._pool(name, entry, len(logits))
            if pooled is not None and len(pooled) == len(logits):
                shapes[name] = pooled, reduction
        if entering is not None:
            pooled, reduction = self._pool("", entering, len(logits))
            if pooled is not None and len(pooled) == len(logits):
                shapes[CLASSIFIER_INPUT] = pooled, reduction
        else:
            found = head.functional(self.model, {name: pooled for name, (pooled, _) in shapes.items()}, logits)
            if found is not None:
                self._alias, self._matrix = found
        self.layers = tuple(
            Layer(
                name=CLASSIFIER_INPUT if name == self._alias else name,
                index=index,
                module=type(self._names[(name if name != CLASSIFIER_INPUT else self._head).partition("@")[0]]).__name__,
                n_features=pooled.shape[1],
                reduction=reduction,
            )
            for index, (name, (pooled, reduction)) in enumerate(shapes.items())
        )
        self._resolved = True
        seen = {name.partition("@")[0] for name in (*shapes, *doubles)}
        missing = [name for name in self._wanted if name not in seen] if self._named else []
        if not self.layers:
            missing = missing or ["any layer that fits the labels"]
        if missing:
            self._log.warning(
                "ncmon does not see %s: not called in the first batch, not one row a label, or inside activation"
                " checkpointing of compiled code",
                ", ".join(missing),
            )

    def head(self) -> HeadParameters:
        """Return the classifier's parameters as they are now: copies on the device, nothing waits."""
        if self._matrix is not None:
            weight, bias = self._matrix
            tensors = {"weight": self.model.get_parameter(weight).detach().clone()}
            if bias is not None:
                tensors["bias"] = self.model.get_parameter(bias).detach().clone()
            return HeadParameters(name=canonical(weight), has_bias=bias is not None, tensors=tensors)
        if not (self._head and self._head_is_linear) or (self.num_classes or 0) > MAX_CLASSES:
            return HeadParameters(name=self._head)
        module = self._names[self._head]
        tensors = head.parameters(module)
        if not self._norm and "weight" in tensors:
            biased = "bias" in tensors or getattr(module, "bias", None) is not None
            return HeadParameters(self._head, biased, "", 0.0, tensors)
        if "weight" not in tensors:
            tensors = dict(self._whole)
        norm = self._names.get(self._norm)
        # A frozen BatchNorm is a fixed affine map: it normalises nothing.
        live = norm is not None and norm.training and not head.is_sharded(norm.weight)
        if norm is not None and live and norm.weight is not None:
            tensors["bn_gamma"] = norm.weight.detach().clone()
            tensors["bn_beta"] = norm.bias.detach().clone()
        return HeadParameters(
            name=self._head,
            has_bias=getattr(module, "bias", None) is not None,
            batch_norm=self._norm if live else "",
            batch_norm_eps=float(norm.eps) if norm is not None and live else 0.0,
            tensors=tensors,
        )

    def decays(self, optimizer: Any) -> tuple[float | None, float | None, bool | None]:
        """Return the weight decay of the classifier's weight and of the BatchNorm's scale, and if it is decoupled."""
        module = self._names[self._head] if self._head_is_linear else None
        weight = self.model.get_parameter(self._matrix[0]) if self._matrix is not None else None
        return head.decays(optimizer, module, self._names.get(self._norm), weight)
