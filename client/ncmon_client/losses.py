"""Where logits and labels come from: a criterion's calls, a model that takes its labels by keyword, a functional loss.

Rules of this module
- Labels are never guessed. In this order: what the loop says (`observe`), what the hooked criterion was called with,
  what the model was given as `labels`. Once the loop has said it, the others are not listened to.
- Mixed samples have no class. Two losses of one step with the same logits and different labels (mixup, CutMix) end the
  listening to criteria: the batches are skipped and counted until the loop says hard labels itself.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn import functional

from ncmon_client.batches import supervised
from ncmon_client.capture import Capture

BLIND_LOSSES = 3
"""So many losses without any forward pass before them are no accident."""


class EndStep(Protocol):
    """Takes a step's logits and labels; returns False when no step was under way."""

    def __call__(self, logits: Tensor, labels: Tensor, *, ignore_index: int, mixed: bool) -> bool: ...


class Losses:
    """Listens to losses. `end_step` is called with each, unless `deaf`; what fails is told to `failed`."""

    def __init__(
        self,
        criterion: nn.Module | None,
        *,
        end_step: EndStep,
        forget: Callable[[], None],
        deaf: Callable[[], bool],
        failed: Callable[[str, Exception], None],
        log: logging.Logger,
    ) -> None:
        self.told = False
        """Whether the loop says its labels itself."""
        self.plain = _is_plain(criterion)
        """Whether the loss is cross-entropy of hard labels without smoothing or class weights; None when unknown."""
        self.value: Tensor | None = None
        """The loss of the step that is heard just now, where it is a mean over samples."""
        self._criterion = criterion
        self._end_step, self._forget, self._deaf, self._failed = end_step, forget, deaf, failed
        self._log = log
        self._mixed = False
        self._last: tuple[int, Tensor] | None = None
        self._capturing = False
        self._unexplained = 0
        self.blindness = ""
        """What is wrong when losses come and features do not."""

    def listen(self, model: nn.Module, capture: Capture) -> None:
        """Hook the criterion, or the model's own `labels` where there is none."""
        if self._criterion is not None:
            ignore_index = int(getattr(self._criterion, "ignore_index", -100))
            capture.on_loss(self._criterion, functools.partial(self._loss, ignore_index=ignore_index))
        else:
            capture.on_labels(functools.partial(self._labelled, model))

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Listen to `torch.nn.functional.cross_entropy` while inside."""
        original = functional.cross_entropy

        @functools.wraps(original)
        def cross_entropy(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            loss = original(input, target, *args, **kwargs)
            if not is_dynamo_compiling():
                # Positional arguments after the two: weight, size_average, ignore_index, ...
                weight = args[0] if args else kwargs.get("weight")
                ignored = args[2] if len(args) > 2 else kwargs.get("ignore_index", -100)
                self.plain = weight is None and not kwargs.get("label_smoothing", 0.0)
                self._loss(input, target, loss, ignore_index=ignored)
            return loss

        functional.cross_entropy = cross_entropy
        self._capturing = True
        try:
            yield
        finally:
            functional.cross_entropy = original
            self._capturing = False

    def _loss(self, logits: Any, labels: Any, loss: Any, *, ignore_index: int) -> None:
        if self.told or self._deaf() or not (isinstance(logits, Tensor) and isinstance(labels, Tensor)):
            return
        try:
            # A sum, or one loss a sample, is compared with nothing.
            mean = getattr(self._criterion, "reduction", "mean") == "mean"
            self.value = loss.detach() if mean and isinstance(loss, Tensor) and loss.dim() == 0 else None
            self._heard(logits, labels, ignore_index)
        except Exception as error:
            self._failed("loss", error)
        finally:
            self.value = None

    def _labelled(self, model: nn.Module, output: Any, labels: Any) -> None:
        if self.told or self._capturing or self._deaf():
            return
        try:
            logits, own = supervised(model, output, labels)
            self._heard(logits, own, -100)
        except Exception as error:
            self._failed("labels", error)

    def unexplained(self) -> None:
        """A loss came without a forward pass before it, and no step ever had one."""
        self._unexplained += 1
        if self._unexplained == BLIND_LOSSES:
            self.say_blind()

    def say_blind(self) -> None:
        """Say once that nothing is seen, and the likely reason."""
        if not self.blindness:
            self.blindness = "losses but no features"
            self._log.warning(
                "ncmon sees losses but no features: if the model was compiled before watch(), watch the model first and"
                " compile it then, or pass the original module"
            )

    def _heard(self, logits: Tensor, labels: Tensor, ignore_index: int) -> None:
        if self._end_step(logits, labels, ignore_index=ignore_index, mixed=self._mixed):
            self._last = (logits.data_ptr(), labels)
            return
        if self._mixed or self._last is None or self._last[0] != logits.data_ptr():
            return
        before, self._last = self._last[1], None
        if before.shape != labels.shape or not torch.equal(before, labels):
            self._mixed = True
            self._forget()
            self._log.warning(
                "ncmon skips batches whose samples are mixtures: one step's logits met two kinds of labels; call"
                " monitor.observe(logits, labels) with hard labels, or monitor.measure(loader) for exact windows"
            )


def _is_plain(criterion: nn.Module | None) -> bool | None:
    if not isinstance(criterion, nn.CrossEntropyLoss):
        return None
    return criterion.label_smoothing == 0 and criterion.weight is None
