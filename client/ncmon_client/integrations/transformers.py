"""Transformers: `watch_trainer(trainer, run="glue")`, one line before `trainer.train()`.

A Trainer's callbacks see neither inputs nor outputs, and under label smoothing, or with a loss function of the user's
own, the model does not see the labels either. So labels are read from the inputs of `compute_loss` and logits from its
outputs; of causal language models, logits and labels are shifted as the loss does it.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ncmon_client.errors import ConfigError
from ncmon_client.monitor import Monitor
from ncmon_client.watching import watch

try:
    from transformers import TrainerCallback
except ImportError:
    raise ConfigError("ncmon_client.integrations.transformers needs Transformers: pip install transformers") from None


class NcmonCallback(TrainerCallback):
    """Watches the training of a Trainer's model; `options` are those of `ncmon_client.watch`."""

    def __init__(self, **options: Any) -> None:
        self.monitor: Monitor | None = None
        self._options = options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        if self.monitor is not None:
            return
        options = dict(self._options)
        options.setdefault("run", args.run_name or None)
        # From a checkpoint the trainer goes on counting, in steps of the optimizer; here every batch is one.
        options.setdefault("first_step", state.global_step * args.gradient_accumulation_steps)
        config = {"learning_rate": args.learning_rate, "weight_decay": args.weight_decay, "seed": args.seed}
        options.setdefault("config", {**config, "label_smoothing": args.label_smoothing_factor})
        self.monitor = watch(kwargs["model"], optimizer=kwargs.get("optimizer"), **options)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the epoch's window."""
        if self.monitor is not None:
            self.monitor.epoch(max(round(state.epoch or 0) - 1, 0))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The training is over."""
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = None


def watch_trainer(trainer: Any, **options: Any) -> NcmonCallback:
    """Watch the model of a Trainer from `train()` on; `options` are those of `ncmon_client.watch`."""
    callback = NcmonCallback(**options)
    trainer.add_callback(callback)
    original = trainer.compute_loss

    @functools.wraps(original)
    def compute_loss(
        model: Any, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        # Read before: the Trainer takes the labels out of the inputs.
        labels = inputs.get("labels")
        loss, outputs = original(model, inputs, True, *args, **kwargs)
        if callback.monitor is not None and isinstance(labels, Tensor) and model.training:
            callback.monitor.observe_output(outputs, labels)
        return (loss, outputs) if return_outputs else loss

    trainer.compute_loss = compute_loss
    return callback
