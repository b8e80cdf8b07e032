"""Taps: what hangs on a module's hooks, and never computes, never raises, never changes what flows past.

Rules of this module
- Under `torch.compile` a tap is traced, and all it does is to write one attribute: that breaks no graph. What it left
  is picked up when the batch is taken.
- Wrapped tensors (vmap, grad and their kin), tracers and exporters see a tap that does nothing: what flows there is no
  batch, and it must not outlive its transform.
- A copy or a pickle of a hooked model holds no tap: it gets an inert callable of the standard library in its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling


class Watcher(Protocol):
    """What taps report to."""

    armed: bool

    def keep(self, tap: Tap, args: tuple[Any, ...], output: Any) -> None:
        """Take what one module received and returned; catches everything."""


class Tap:
    """A forward hook that keeps what flows past while its capture is armed."""

    def __init__(self, capture: Watcher, key: str) -> None:
        self.capture = capture
        self.key = key
        self.traced: tuple[tuple[Any, ...], Any] | None = None
        """What flowed past in compiled code."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # In eager code this function is one that returns False; most steps are not looked at, and end here.
        if is_dynamo_compiling():
            if not torch.compiler.is_exporting() and not _in_region():
                self.traced = (args, output)
        elif self.capture.armed and not elsewhere():
            self.capture.keep(self, args, output)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{name}: TorchScript cannot compile a watched model; script it before watch() or after monitor.close()"
            if name == "__name__"
            else name
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class Bell:
    """A hook that calls one method of the capture, inert in copies and pickles."""

    def __init__(self, ring: Callable[..., None]) -> None:
        self.ring = ring

    def __call__(self, *args: Any) -> None:
        if not is_dynamo_compiling():
            self.ring(*args)

    __getattr__ = Tap.__getattr__
    __deepcopy__ = Tap.__deepcopy__
    __reduce__ = Tap.__reduce__


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _in_region() -> bool:
    """Whether a traced tap stands inside activation checkpointing or its kin; asked once, while tracing.

    An attribute must not be written there: the graph would break, or fail to compile where it has to be whole.
    """
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        return InstructionTranslator.current_tx().output.current_tracer.parent is not None
    except Exception:  # private to torch: where it has moved, the tap does as everywhere else
        return False


def elsewhere() -> bool:
    """Whether this forward pass is no step: a functional transform, a tracer, or a recomputation inside backward."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._current_graph_task_id() != -1
    )
