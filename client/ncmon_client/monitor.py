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
import itertools
import json
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self

import numpy as np
import torch
from torch import Tensor, nn

from ncmon_client import wire
from ncmon_client._version import __version__
from ncmon_client.accumulate import Reference
from ncmon_client.capture import Batch, Capture
from ncmon_client.errors import ConfigError
from ncmon_client.outbox import Outbox
from ncmon_client.schedule import Schedule
from ncmon_client.sender import Sender
from ncmon_client.window import LastWord, Objective, OpenWindow

P = ParamSpec("P")

log = logging.getLogger("ncmon_client")

CLOSE_S = 10.0
"""How long `close` waits for what is under way to a daemon that is there; it returns at once when none ever was."""
ATEXIT_S = 2.0
SPOOL_LEVELS = ("auto", "memory")


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
    """Messages on this machine's disk; 0 in this version, which keeps them in memory."""
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
    ) -> None:
        self._pid = os.getpid()
        self._inert = capture is None
        self._model, self._criterion, self._optimizer = model, criterion, optimizer
        self._run = run
        self._schedule = schedule
        self._window_steps = window_steps
        self._endpoint = endpoint
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
            spooled=0,
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
            self._sender = Sender(endpoint=self._endpoint, run=self._run, outbox=self._outbox, log=log)
        if self._outbox.offer(closed, closed.nbytes):
            self._sender.start()
            self._sender.wake()

    def _passes(self, loader: Iterable[Any], window: OpenWindow | None) -> Iterator[Batch]:
        """Run the loader once and yield what each batch showed."""
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        for item in loader:
            inputs, labels = _split(item, device)
            self._capture.arm(True)
            output = self._model(**inputs) if isinstance(inputs, dict) else self._model(inputs)
            self._capture.pick_up()
            self._capture.armed = False
            with torch.autocast(device.type, enabled=False):
                batch = self._capture.take(_logits(output), labels)
            if window is not None:
                window.steps += 1
            if isinstance(batch, Batch):
                yield batch
            elif window is not None:
                window.skipped[batch] += 1

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """Eval mode, no gradients, and all of it undone afterwards, the random state included.

        A DataLoader draws its base seed from the global generator whenever it starts: without this a run with a
        measurement in it would shuffle differently from one without.
        """
        modes = {module: module.training for module in self._model.modules()}
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 (the loop's own state)
        on_cuda = any(parameter.is_cuda for parameter in self._model.parameters())
        cuda = torch.cuda.get_rng_state() if on_cuda else None
        fresh, self._fresh, self._measuring = self._fresh, False, True
        armed = self._capture.armed
        try:
            self._model.eval()
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
    spool : `"auto"` or `"memory"`; both hold windows in memory in this version.
    endpoint : the daemon's; `$NCMON_ENDPOINT` or the user's own socket by default.
    enabled : False, or `NCMON_DISABLED=1`, makes everything do nothing.

    Raises
    ------
    ConfigError
        For arguments that cannot be right. Nothing is raised into the loop after this has returned.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if criterion is not None and not isinstance(criterion, nn.Module):
        raise ConfigError(
            f"criterion: expected an nn.CrossEntropyLoss module, got {type(criterion).__name__}; for a functional loss"
            " leave it out and call monitor.observe(logits, labels) once a batch"
        )
    if criterion is not None and not isinstance(criterion, nn.CrossEntropyLoss):
        raise ConfigError(
            f"criterion: expected nn.CrossEntropyLoss, got {type(criterion).__name__}; leave it out and call"
            " monitor.observe(logits, labels) once a batch"
        )
    if every != "auto" and (not isinstance(every, int) or every < 1):
        raise ConfigError(f"every: expected 'auto' or a number of steps from 1, got {every!r}")
    if not 0 < overhead < 1:
        raise ConfigError(f"overhead: expected a share of the training's time between 0 and 1, got {overhead!r}")
    if window_steps < 1:
        raise ConfigError(f"window_steps: expected a number of steps from 1, got {window_steps!r}")
    if spool not in SPOOL_LEVELS:
        raise ConfigError(f"spool: expected {' or '.join(SPOOL_LEVELS)} (windows are held in memory), got {spool!r}")
    if pool not in ("auto", "cls", "mean", "tokens"):
        raise ConfigError(f"pool: expected auto, cls, mean or tokens, got {pool!r}")
    names = tuple(class_names or ())
    if num_classes is not None and names and len(names) != num_classes:
        raise ConfigError(f"class_names: expected {num_classes} names, one a class, got {len(names)}")
    if pool != "auto" and layers != "auto":
        given = [layers] if isinstance(layers, str) else list(layers)
        layers = [name if ":" in name else f"{name}:{pool}" for name in given]
    if os.environ.get("NCMON_DISABLED") == "1":
        enabled = False
    rank, world_size = _ranks()
    chosen_id = run_id or os.environ.get("NCMON_RUN_ID") or uuid.uuid4().hex[:12]
    info = wire.RunInfo(
        run_id=chosen_id,
        name=(run or type(model).__name__)[:256],
        config=_json(config),
        tags=[str(tag)[:256] for tag in itertools.islice(tags, 64)],
        host=socket.gethostname()[:256],
        pid=os.getpid(),
        started=time.time(),
        rank=rank,
        world_size=world_size,
        n_classes=num_classes or 2,
        class_names=[str(name)[:256] for name in names],
        client=__version__,
    )
    capture = Capture(model, layers=layers, num_classes=num_classes, log=log) if enabled else None
    return Monitor(
        model,
        criterion,
        optimizer=optimizer,
        run=info,
        capture=capture,
        schedule=Schedule(every=None if every == "auto" else every, budget=overhead, rng=random.Random(os.urandom(8))),
        window_steps=window_steps,
        endpoint=endpoint or wire.default_endpoint(),
    )


def _with_classes(run: wire.RunInfo, n_classes: int) -> wire.RunInfo:
    import msgspec

    names = run.class_names if len(run.class_names) == n_classes else []
    return msgspec.structs.replace(run, n_classes=n_classes, class_names=names)


def _ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, world_size) if 0 <= rank < world_size else (0, 1)


def _json(config: Mapping[str, Any] | None) -> str:
    """Return the configuration as a JSON object; what JSON cannot hold is kept as its repr."""
    text = json.dumps({str(key): value for key, value in (config or {}).items()}, default=repr)
    if len(text) > 64 * 1024:
        raise ConfigError(f"config: expected at most 64 KB as JSON, got {len(text)} characters; leave large values out")
    return text


def _is_plain(criterion: nn.Module | None) -> bool | None:
    """Whether the criterion is cross-entropy of hard labels without smoothing or class weights; None when unknown."""
    if not isinstance(criterion, nn.CrossEntropyLoss):
        return None
    return criterion.label_smoothing == 0 and criterion.weight is None


def _split(item: Any, device: torch.device) -> tuple[Any, Tensor]:
    """Return inputs and labels of a loader's batch, on the model's device."""
    if isinstance(item, Mapping):
        inputs = {key: _to(value, device) for key, value in item.items() if key != "labels"}
        return inputs, item["labels"].to(device)
    if isinstance(item, tuple | list) and len(item) >= 2:
        return _to(item[0], device), item[1].to(device)
    raise TypeError(f"expected batches (x, y) or mappings with 'labels', got {type(item).__name__}")


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _logits(output: Any) -> Tensor:
    """Return the logits of a model's output: the output, its attribute or key `logits`, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple | list):
        found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"expected logits from the model, got {type(output).__name__} without them")
    return found
