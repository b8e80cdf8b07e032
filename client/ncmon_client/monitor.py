"""The monitor: what a training loop holds, and the one place that catches everything.

`watch` raises `ConfigError` for arguments that cannot be right. After it returned, nothing raises into the loop: every
public method and every hook goes through `_guarded`, which logs once a kind of error and goes on.

A *streaming* window covers training steps, while the weights move; it closes at `epoch` and every `window_steps` steps.
An *exact* window is one pass over a loader at frozen weights (`measure`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, cast

import torch
from torch import Tensor, nn

from ncmon_client import wire
from ncmon_client.accumulate import Reference
from ncmon_client.batches import frozen, logits_of, split
from ncmon_client.capture import Batch, Capture
from ncmon_client.options import check, pooled, run_info
from ncmon_client.outbox import Outbox
from ncmon_client.schedule import Schedule
from ncmon_client.sender import Sender
from ncmon_client.spool import Level
from ncmon_client.window import LastWord, Objective, OpenWindow

P = ParamSpec("P")

log = logging.getLogger("ncmon_client")

CLOSE_S = 10.0
"""How long `close` waits for what is under way to a daemon that is there; it returns at once when none ever was."""
ATEXIT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the monitor does. Messages are windows and, at the end, the run's last word."""

    run_id: str
    accepted: int
    """Messages taken over for delivery."""
    acknowledged: int
    """Messages that are in the store."""
    refused: int
    """Windows not taken because the buffer was full."""
    spooled: int
    """Accepted messages that are in the spool file on this machine's disk and not acknowledged yet."""
    connected: bool
    steps: int
    """Training steps so far."""
    sampled_steps: int
    """Of those, the ones whose features were looked at."""
    every: int
    """At present one step in this many is looked at."""
    overhead: float | None
    """Measured share of the training's time that the hook takes; None before the second step."""
    last_error: str


def _guarded(method: Callable[Concatenate[Monitor, P], None]) -> Callable[Concatenate[Monitor, P], None]:
    """Catch everything that a method raises, say it once, and do nothing at all in a child process or when disabled."""

    @functools.wraps(method)
    def call(self: Monitor, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._inert or os.getpid() != self._pid:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._failed(method.__name__, error)

    return call


class Monitor:
    """Watches one model. Made by `watch`; also a context manager that closes it."""

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module | None,
        *,
        optimizer: Any,
        run: wire.RunInfo,
        capture: Capture | None,
        schedule: Schedule,
        window_steps: int,
        endpoint: str,
        spool: str = "memory",
    ) -> None:
        self._pid = os.getpid()
        self._inert = capture is None
        self._model, self._criterion, self._optimizer = model, criterion, optimizer
        self._run = run
        self._schedule = schedule
        self._window_steps = window_steps
        self._endpoint = endpoint
        self._level = cast(Level, spool)
        self._outbox = Outbox()
        self._sender: Sender | None = None
        self._references: dict[str, dict[str, Reference]] = {}
        self._open = OpenWindow(exact=False, references={})
        self._epoch = -1
        self._steps = 0
        self._sampled = 0
        self._fresh = False
        self._measuring = False
        self._closed = False
        self._last_end: float | None = None
        self._forward_s = 0.0
        self._errors: dict[str, str] = {}
        self._last_error = ""
        if capture is not None:
            self._capture = capture
            capture.on_forward(self._begin_step)
            if criterion is not None:
                capture.on_loss(criterion, self._loss_called)
            atexit.register(self._at_exit)

    @property
    def run_id(self) -> str:
        """Id under which the run is stored."""
        return self._run.run_id

    # -- the loop's side ----------------------------------------------------------------------------------------------

    @_guarded
    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Say logits (n, C) and labels (n,) of the training batch that just went through the model.

        For functional losses; with a hooked criterion there is no need to call it.
        """
        self._end_step(logits, labels)

    @_guarded
    def epoch(self, epoch: int) -> None:
        """An epoch is over: close its training window."""
        self._epoch = int(epoch)
        self._close_training_window()
        self._epoch = int(epoch) + 1

    @_guarded
    def measure(self, loader: Iterable[Any], split: str = "test", exact_ncc: bool = False) -> None:
        """Run the model over `loader` at frozen weights, in eval mode and without gradients, and send an exact window.

        Batches are tuples `(x, y, ...)` or mappings with `labels`. Modes and random state are restored afterwards.
        Nearest-class decisions use the class means of the window before; `exact_ncc` goes through the loader a second
        time and uses the window's own.
        """
        with self._frozen():
            known = self._references.get(split) or self._references.get("train") or {}
            window = OpenWindow(exact=True, references={} if exact_ncc else known)
            for batch in self._passes(loader, window):
                window.add(batch, self._capture.layers)
            if window.empty:
                raise ValueError(f"the loader of split {split!r} gave no batch that could be used")
            own = window.references()
            if exact_ncc:
                window.forget_decisions()
                for batch in self._passes(loader, None):
                    window.decide_again(batch, own)
            self._references[split] = own
        # Epoch k's measurement usually follows `epoch(k)`, whose window is closed by then.
        epoch = self._epoch - 1 if self._epoch > 0 and self._open.empty else self._epoch
        self._offer(window, split=split, epoch=epoch, ncc_source="own" if exact_ncc else "previous")

    @_guarded
    def close(self, *, failed: bool = False, timeout_s: float = CLOSE_S) -> None:
        """Close the last window, say that the run is over, and wait until everything is stored, or `timeout_s`.

        Returns at once when no daemon was ever there.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._close_training_window()
        self._capture.detach()
        end = wire.End(run_id=self._run.run_id, status="failed" if failed else "finished", text="", time=time.time())
        if self._sender is not None:
            self._outbox.offer(LastWord(end=end), 256, always=True)
            self._sender.wake()
            self._sender.close(timeout_s)

    def status(self) -> Status:
        """Return how the monitor does; never raises."""
        counts = self._outbox.counts()
        sender = self._sender.status() if self._sender is not None else None
        return Status(
            run_id=self._run.run_id,
            accepted=counts.accepted,
            acknowledged=counts.acknowledged,
            refused=counts.refused,
            spooled=counts.spooled,
            connected=sender is not None and sender.connected,
            steps=self._steps,
            sampled_steps=self._sampled,
            every=self._schedule.every,
            overhead=self._schedule.overhead,
            last_error=self._last_error or (sender.last_error if sender is not None else ""),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    # -- what the hooks ring ------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        if self._measuring or self._inert or os.getpid() != self._pid:
            return
        self._fresh = True
        self._capture.arm(self._schedule.look())

    @_guarded
    def _loss_called(self, logits: Tensor, labels: Tensor) -> None:
        if not self._measuring and isinstance(logits, Tensor) and isinstance(labels, Tensor):
            self._end_step(logits, labels)

    def _end_step(self, logits: Tensor, labels: Tensor) -> None:
        # A loss without a forward pass in training mode before it: evaluation, or a second term of the same step.
        if not self._model.training or self._closed:
            return
        start = time.perf_counter()
        # A compiled model rings no bell when it begins; what its taps left says that it went forward.
        compiled = not self._fresh
        if compiled:
            self._capture.arm(self._schedule.look())
        left = self._capture.pick_up()
        if compiled and not left:
            self._capture.armed = False
            return
        self._fresh = False
        looked = self._capture.armed
        self._steps += 1
        self._open.steps += 1
        if looked:
            self._capture.armed = False
            self._look(logits, labels)
        if self._open.steps >= self._window_steps:
            self._close_training_window()
        end = time.perf_counter()
        step_s = end - self._last_end if self._last_end is not None else None
        self._schedule.done(looked=looked, step_s=step_s, hook_s=end - start)
        self._last_end = end

    def _look(self, logits: Tensor, labels: Tensor) -> None:
        try:
            with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
                batch = self._capture.take(logits, labels)
                if isinstance(batch, str):
                    self._skip(batch)
                else:
                    self._sampled += 1
                    self._open.add(batch, self._capture.layers)
        except Exception as error:
            self._failed("observe", error)
            self._capture.strike("a batch could not be used")

    def _skip(self, why: str) -> None:
        self._open.skipped[why] += 1
        if why == "no features" and why not in self._errors:
            self._errors[why] = why
            log.warning(
                "ncmon sees losses but no features: if the model was compiled before watch(), watch the model first and"
                " compile it then, or pass the original module"
            )

    # -- windows ------------------------------------------------------------------------------------------------------

    def _close_training_window(self) -> None:
        window = self._open
        if window.empty:
            return
        self._references["train"] = window.references()
        self._open = OpenWindow(exact=False, references=self._references["train"])
        had_means = bool(window._references)
        self._offer(window, split="train", epoch=self._epoch, ncc_source="previous" if had_means else "none")

    def _offer(
        self, window: OpenWindow, *, split: str, epoch: int, ncc_source: Literal["own", "previous", "none"]
    ) -> None:
        decay, decay_gamma, decoupled = self._capture.decays(self._optimizer)
        closed = window.close(
            run_id=self._run.run_id,
            rank=self._run.rank,
            world_size=self._run.world_size,
            split=split,
            epoch=max(epoch, -1),
            step=self._steps,
            ncc_source=ncc_source,
            head=self._capture.head(),
            objective=Objective(
                weight_decay=decay,
                weight_decay_gamma=decay_gamma,
                decoupled_decay=decoupled,
                plain_loss=_is_plain(self._criterion),
            ),
            overhead=self._schedule.overhead,
        )
        if self._sender is None:
            # Known from the first batch, where the caller did not say it.
            self._run = _with_classes(self._run, int(str(closed.meta["n_classes"])))
            self._sender = Sender(
                endpoint=self._endpoint, run=self._run, outbox=self._outbox, log=log, level=self._level
            )
        if self._outbox.offer(closed, closed.nbytes):
            self._sender.start()
            self._sender.wake()
            self._sender.settle()

    def _passes(self, loader: Iterable[Any], window: OpenWindow | None) -> Iterator[Batch]:
        """Run the loader once and yield what each batch showed."""
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        for item in loader:
            inputs, labels = split(item, device)
            self._capture.arm(True)
            output = self._model(**inputs) if isinstance(inputs, dict) else self._model(inputs)
            self._capture.pick_up()
            self._capture.armed = False
            with torch.autocast(device.type, enabled=False):
                batch = self._capture.take(logits_of(output), labels)
            if window is not None:
                window.steps += 1
            if isinstance(batch, Batch):
                yield batch
            elif window is not None:
                window.skipped[batch] += 1

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """The model at frozen weights, and no step of training meanwhile."""
        fresh, self._fresh, self._measuring = self._fresh, False, True
        armed = self._capture.armed
        try:
            with frozen(self._model):
                yield
        finally:
            self._measuring, self._fresh, self._capture.armed = False, fresh, armed
            # What the pass took is the loop's own wish, not the hook's overhead.
            self._last_end = None

    def _failed(self, where: str, error: Exception) -> None:
        self._last_error = f"{where}: {type(error).__name__}: {error}"
        if self._errors.setdefault(where, self._last_error) == self._last_error and f"said {where}" not in self._errors:
            self._errors[f"said {where}"] = ""
            log.warning("ncmon: %s (training goes on)", self._last_error)
            log.debug("ncmon: where it came from", exc_info=error)

    def _at_exit(self) -> None:
        self.close(timeout_s=ATEXIT_S)


def watch(
    model: nn.Module,
    criterion: nn.Module | None = None,
    *,
    optimizer: Any = None,
    run: str | None = None,
    run_id: str | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    layers: str | Iterable[str] = "auto",
    num_classes: int | None = None,
    class_names: Iterable[str] | None = None,
    window_steps: int = 200,
    every: int | Literal["auto"] = "auto",
    overhead: float = 0.01,
    pool: str = "auto",
    spool: str = "auto",
    endpoint: str | None = None,
    enabled: bool = True,
) -> Monitor:
    """Watch a model: hook its layers and stream per-class statistics to the daemon.

    Parameters
    ----------
    criterion : an `nn.CrossEntropyLoss` module, from whose calls logits and labels are taken. Without it the loop calls
        `monitor.observe(logits, labels)` once a batch.
    optimizer : where the weight decays are read from.
    run, run_id, config, tags : how the run is called; `NCMON_RUN_ID` names one to continue.
    layers : `"auto"` (the network's blocks and the classifier's input), or module names and globs, each with an
        optional pooling suffix `:cls`, `:mean` or `:tokens`. The classifier's input is always watched.
    num_classes, class_names : known from the first batch and from nowhere, respectively, if left out.
    window_steps : training steps after which a window closes by itself.
    every : look at one step in this many; `"auto"` keeps the cost below the share `overhead` of the training's time.
    pool : `"auto"`, or the pooling suffix of all layers that name none.
    spool : what goes to a file on this machine's disk, to outlive this process. `"auto"`: windows that the daemon did
        not acknowledge within a second, and what is left at the end; `"always"`: every window at once, the loop waits
        for it; `"fsync"`: likewise, confirmed by the disk; `"memory"`: nothing.
    endpoint : the daemon's; `$NCMON_ENDPOINT` or the user's own socket by default.
    enabled : False, or `NCMON_DISABLED=1`, makes everything do nothing.

    Raises
    ------
    ConfigError
        For arguments that cannot be right. Nothing is raised into the loop after this has returned.
    """
    class_names = tuple(class_names or ())
    check(
        model,
        criterion,
        num_classes=num_classes,
        class_names=class_names,
        window_steps=window_steps,
        every=every,
        overhead=overhead,
        pool=pool,
        spool=spool,
    )
    info = run_info(
        name=run or type(model).__name__,
        run_id=run_id,
        config=config,
        tags=tags,
        num_classes=num_classes,
        class_names=class_names,
    )
    if os.environ.get("NCMON_DISABLED") == "1":
        enabled = False
    capture = Capture(model, layers=pooled(layers, pool), num_classes=num_classes, log=log) if enabled else None
    return Monitor(
        model,
        criterion,
        optimizer=optimizer,
        run=info,
        capture=capture,
        schedule=Schedule(every=None if every == "auto" else every, budget=overhead, rng=random.Random(os.urandom(8))),
        window_steps=window_steps,
        endpoint=endpoint or wire.default_endpoint(),
        spool=spool,
    )


def _with_classes(run: wire.RunInfo, n_classes: int) -> wire.RunInfo:
    import msgspec

    names = run.class_names if len(run.class_names) == n_classes else []
    return msgspec.structs.replace(run, n_classes=n_classes, class_names=names)


def _is_plain(criterion: nn.Module | None) -> bool | None:
    """Whether the criterion is cross-entropy of hard labels without smoothing or class weights; None when unknown."""
    if not isinstance(criterion, nn.CrossEntropyLoss):
        return None
    return criterion.label_smoothing == 0 and criterion.weight is None
