"""Lightning: `Trainer(callbacks=[NcmonCallback(run="digits")])`.

A Lightning module's forward pass is often only a part of its `training_step`, and `on_train_batch_end` sees no logits.
So logits are taken where they arise: the output of `head`, or of the module's last Linear, and labels from the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ncmon_client.errors import ConfigError
from ncmon_client.monitor import Monitor
from ncmon_client.watching import watch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import (  # type: ignore[assignment]
            Callback,
            LightningModule,
            Trainer,
        )
    except ImportError:
        raise ConfigError("ncmon_client.integrations.lightning needs Lightning: pip install lightning") from None


def labels_of(batch: Any) -> Tensor:
    """Return the labels of a batch: its key `labels` or `y`, or the second of a pair."""
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in ("labels", "label", "y", "target") if name in batch), None)
    else:
        found = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if not isinstance(found, Tensor):
        raise TypeError(f"expected labels in a batch of {type(batch).__name__}; give NcmonCallback(label_fn=...)")
    return found


class NcmonCallback(Callback):
    """Watches the training of a LightningModule.

    `head` names the module whose output is the logits (the last Linear by default); `label_fn(batch)` returns hard
    labels; `options` are those of `ncmon_client.watch`.
    """

    def __init__(
        self, *, head: str | None = None, label_fn: Callable[[Any], Tensor] = labels_of, **options: Any
    ) -> None:
        self.monitor: Monitor | None = None
        self._head = head
        self._label_fn = label_fn
        self._options = options
        self._logits: Tensor | None = None
        self._handle: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch: optimizers are there, and the sanity pass is over."""
        optimizers = trainer.optimizers
        # From a checkpoint the trainer goes on counting, in steps of the optimizer; here every batch is one.
        done = getattr(trainer, "global_step", 0) * getattr(trainer, "accumulate_grad_batches", 1)
        options = {"first_step": done, **self._options}
        self.monitor = watch(pl_module, optimizer=optimizers[0] if optimizers else None, **options)
        linears = [name for name, module in pl_module.named_modules() if isinstance(module, nn.Linear)]
        name = self._head or (linears[-1] if linears else "")
        modules = dict(pl_module.named_modules())
        if name not in modules or not name:
            raise ConfigError(f"head: expected the name of a module whose output is the logits, got {name!r}")
        self._handle = modules[name].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        if module.training and isinstance(output, Tensor):
            self._logits = output.detach()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A training step begins, whether it calls the module or parts of it."""
        self._logits = None
        if self.monitor is not None:
            self.monitor.begin_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A training step is over: say its logits and labels."""
        logits, self._logits = self._logits, None
        if self.monitor is None or logits is None:
            return
        try:
            labels = self._label_fn(batch)
        except Exception as error:
            self.monitor._failed("label_fn", error)
            return
        self.monitor.observe(logits, labels)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the epoch's window."""
        if self.monitor is not None:
            self.monitor.epoch(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training is over."""
        self._end(failed=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The training failed."""
        self._end(failed=True)

    def _end(self, *, failed: bool) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self.monitor is not None:
            self.monitor.close(failed=failed)
