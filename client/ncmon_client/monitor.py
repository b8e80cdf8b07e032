"""The monitor: what a training loop holds, and the one place that catches everything.

Nothing raises into the loop once a monitor is there: every public method and every hook goes through `_guarded`, which
logs once a kind of error and goes on.

A *streaming* window covers training steps, while the weights move; it closes at `epoch` and every `window_steps` steps.
An *exact* window is one pass over a loader at frozen weights (`measure`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, cast

import torch
from torch import Tensor, nn

from ncmon_client import wire
from ncmon_client.batches import frozen, split, supervised
from ncmon_client.capture import SEVERAL, Batch, Capture, without_autocast
from ncmon_client.closed import Ending, LastWord, Objective
from ncmon_client.compiled import Build
from ncmon_client.losses import Losses
from ncmon_client.options import with_classes
from ncmon_client.outbox import Outbox
from ncmon_client.pads import Pads
from ncmon_client.rows import Reference
from ncmon_client.schedule import Schedule
from ncmon_client.sender import Sender
from ncmon_client.spool import Level
from ncmon_client.status import Status
from ncmon_client.taps import elsewhere
from ncmon_client.window import OpenWindow

P = ParamSpec("P")

_WATCHING: weakref.WeakSet[Monitor] = weakref.WeakSet()


def _in_forked_child() -> None:
    """A child's copy of a monitor does nothing. Told by the fork itself: asking for the pid is a system call a step."""
    for monitor in list(_WATCHING):
        monitor._inert = True


os.register_at_fork(after_in_child=_in_forked_child)

log = logging.getLogger("ncmon_client")

CLOSE_S = 10.0
"""How long `close` waits for what is under way to a daemon that is there; it returns at once when none ever was."""
ATEXIT_S = 2.0


def _guarded(method: Callable[Concatenate[Monitor, P], None]) -> Callable[Concatenate[Monitor, P], None]:
    """Catch everything that a method raises, say it once, and do nothing at all in a child process or when disabled."""

    @functools.wraps(method)
    def call(self: Monitor, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._inert:
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
        first_step: int = 0,
        soft: bool = False,
        kernel: str = "torch",
    ) -> None:
        self._takes_soft = soft
        self._build = Build() if kernel == "compiled" and capture is not None else None
        self._inert = capture is None
        self._model, self._optimizer = model, optimizer
        self._run = run
        self._schedule = schedule
        self._window_steps = window_steps
        self._endpoint = endpoint
        self._level = cast(Level, spool)
        self._outbox = Outbox()
        self._sender: Sender | None = None
        self._references: dict[str, Mapping[str, Reference]] = {}
        self._pads = Pads()
        self._open = OpenWindow(exact=False, references={}, pads=self._pads, build=self._build)
        self._epoch = -1
        self._first_step = self._steps = first_step
        self._sampled = 0
        self._fresh = False
        self._measuring = False
        self._closed = False
        self._last_end: float | None = None
        self._began: float | None = None
        """When the present step began, where nobody saw the one before it end: after a measurement, and at first."""
        self._billed_s = 0.0
        """CPU time of the sending thread that the schedule knows of."""
        self._streamed, self._offered = 0, 0
        """Bytes of streaming windows, and of all."""
        self._mishaps = 0
        self._errors: dict[str, str] = {}
        self._last_error = ""
        self._soft = False
        self._losses = Losses(
            criterion, end_step=self._end_step, forget=self._forget, deaf=self._deaf, failed=self._failed, log=log
        )
        if capture is not None:
            self._capture = capture
            capture.on_forward(self._begin_step)
            self._losses.listen(model, capture)
            capture.weigh()
            atexit.register(self._at_exit)
            _WATCHING.add(self)

    @property
    def run_id(self) -> str:
        """Id under which the run is stored."""
        return self._run.run_id

    # -- the loop's side ----------------------------------------------------------------------------------------------

    @_guarded
    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Say logits (n, C) and labels (n,) of the training batch that just went through the model.

        For functional losses, and for hard labels where the criterion gets soft ones; with a hooked criterion of hard
        labels there is no need to call it.
        """
        self._losses.told = True
        if not (isinstance(logits, Tensor) and isinstance(labels, Tensor)):
            raise TypeError(
                f"expected tensors (n, C) and (n,), got {type(logits).__name__} and {type(labels).__name__}"
            )
        if self._soft:
            # The criterion was called with soft labels just before; what it was called on is still held.
            self._soft = False
            self._open.take_back("soft labels")
            self._look(logits, labels, -100)
        else:
            self._end_step(logits, labels)

    @_guarded
    def observe_output(self, output: Any, labels: Tensor) -> None:
        """Say the output and the labels of a model that finds its logits itself, a causal language model among them."""
        with torch.no_grad():
            logits, labels = supervised(self._model, output, labels)
        self.observe(logits, labels)

    @_guarded
    def begin_step(self) -> None:
        """A training step begins; for loops that call parts of the model and never the model itself."""
        self._begin_step()

    @contextlib.contextmanager
    def capture_loss(self) -> Iterator[None]:
        """Take logits and labels from `torch.nn.functional.cross_entropy` while inside.

        The function is replaced for the whole process meanwhile, which is why it has to be asked for. A loop that holds
        the function itself (`from torch.nn.functional import cross_entropy`) is not heard, nor is compiled code.
        """
        with contextlib.nullcontext() if self._inert else self._losses.captured():
            yield

    @_guarded
    def epoch(self, epoch: int) -> None:
        """An epoch is over: close its training window."""
        begin = time.perf_counter()
        self._epoch = int(epoch)
        self._close_training_window()
        self._epoch = int(epoch) + 1
        self._schedule.spent(time.perf_counter() - begin)

    @_guarded
    def measure(self, loader: Iterable[Any], split: str = "test", exact_ncc: bool = False) -> None:
        """Run the model over `loader` at frozen weights, in eval mode and without gradients, and send an exact window.

        Batches are tuples `(x, y, ...)` or mappings with `labels`. Modes and random state are restored afterwards.
        Nearest-class decisions use the class means of the window before; `exact_ncc` goes through the loader a second
        time and uses the window's own.
        """
        with self._frozen():
            known = self._references.get(split) or self._references.get("train") or {}
            window = OpenWindow(
                exact=True,
                references={} if exact_ncc else known,
                before=self._references.get(split, {}),
                classifier=self._capture.head().tensors.get("weight"),
                pads=self._pads,
            )
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
            mishaps=self._mishaps + (0 if self._inert else self._capture.caught),
            kernel="torch" if self._build is None else self._build.word,
            last_error=self._last_error or self._losses.blindness or (sender.last_error if sender is not None else ""),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    # -- what the hooks ring ------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        if self._measuring or self._inert:
            return
        self._fresh, self._soft = True, False
        self._began = time.perf_counter() if self._last_end is None else None
        if self._sender is not None and self._sender.busy_s != self._billed_s:
            self._bill_sender()
        self._capture.arm(self._schedule.look())

    def _deaf(self) -> bool:
        return self._measuring or self._inert

    def _end_step(self, logits: Tensor, labels: Tensor, *, ignore_index: int = -100, mixed: bool = False) -> bool:
        """A step's logits and labels are known; return False when there was no step in training mode before them."""
        if not self._model.training or self._closed:
            return False
        start = time.perf_counter()
        # A compiled model rings no bell when it begins; what its taps left says that it went forward.
        compiled = not self._fresh
        if compiled:
            self._capture.arm(self._schedule.look())
        left = self._capture.pick_up()
        if compiled and not left:
            self._capture.armed = False
            if self._steps == self._first_step:
                self._losses.unexplained()
            return False
        self._fresh = False
        looked = self._capture.armed
        self._steps += 1
        self._open.steps += 1
        if looked:
            self._capture.armed = False
            if mixed:
                self._skip("mixed labels")
            else:
                self._look(logits, labels, ignore_index)
        if self._open.steps >= self._window_steps:
            self._close_training_window()
        end = time.perf_counter()
        since = self._last_end if self._last_end is not None else self._began
        step_s = end - since if since is not None else None
        hook_s = end - start + self._capture.spent_s + self._capture.dispatch_s
        self._schedule.done(looked=looked, step_s=step_s, hook_s=hook_s)
        self._capture.spent_s = 0.0
        self._last_end = end
        return True

    def _bill_sender(self) -> None:
        """Put what the sending thread took to the account; sending exact windows was the loop's own wish."""
        if self._sender is not None and self._offered:
            busy_s = self._sender.busy_s
            self._schedule.spent((busy_s - self._billed_s) * self._streamed / self._offered, beside=True)
            self._billed_s = busy_s

    def _look(self, logits: Tensor, labels: Tensor, ignore_index: int) -> None:
        if elsewhere():
            return
        try:
            with torch.no_grad(), without_autocast(logits.device.type):
                batch = self._capture.take(logits, labels, ignore_index, soft=self._takes_soft)
                if isinstance(batch, str):
                    self._soft = batch == "soft labels"
                    self._skip(batch)
                else:
                    self._sampled += 1
                    self._open.add(batch, self._capture.layers)
                    self._open.heard(self._losses.value, len(batch.rows))
        except Exception as error:
            self._failed("observe", error)
            self._capture.strike("a batch could not be used")

    def _skip(self, why: str) -> None:
        self._open.skipped[why] += 1
        if why == "no features":
            self._losses.say_blind()
        elif why == SEVERAL:
            self._failed(
                "soft",
                ValueError(
                    "expected probabilities that add up to 1 for each sample, got more; samples of several classes at"
                    " once (multi-label) have no class, and are skipped"
                ),
            )

    def _forget(self) -> None:
        """What the open window holds was mixed: begin it again."""
        before = self._open
        self._open = OpenWindow(exact=False, references=before.given, pads=self._pads, build=self._build)
        self._open.steps, self._open.skipped = before.steps, before.skipped
        self._open.skipped["mixed labels"] += before.sampled_steps
        self._sampled -= before.sampled_steps

    # -- windows ------------------------------------------------------------------------------------------------------

    def _close_training_window(self) -> None:
        window = self._open
        if window.empty:
            return
        self._references["train"] = window.references()
        self._open = OpenWindow(exact=False, references=self._references["train"], pads=self._pads, build=self._build)
        had_means = bool(window.given)
        self._offer(window, split="train", epoch=self._epoch, ncc_source="previous" if had_means else "none")

    def _offer(
        self, window: OpenWindow, *, split: str, epoch: int, ncc_source: Literal["own", "previous", "none"]
    ) -> None:
        closed = window.close(
            Ending(
                run=self._run,
                split=split,
                epoch=max(epoch, -1),
                step=self._steps,
                time=time.time(),
                overhead=self._schedule.overhead,
                ncc_source=ncc_source,
                head=self._capture.head(),
                objective=Objective(*self._capture.decays(self._optimizer), self._losses.plain),
            )
        )
        if self._sender is None:
            # Known from the first batch, where the caller did not say it.
            self._run = with_classes(self._run, closed.n_classes, self._capture.frequent)
            self._sender = Sender(
                endpoint=self._endpoint, run=self._run, outbox=self._outbox, log=log, level=self._level
            )
        size = closed.nbytes
        self._offered += size
        self._streamed += 0 if window.exact else size
        if self._outbox.offer(closed, size):
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
            with without_autocast(device.type):
                batch = self._capture.take(*supervised(self._model, output, labels))
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
        self._mishaps += 1
        self._last_error = f"{where}: {type(error).__name__}: {error}"
        if self._errors.setdefault(where, self._last_error) == self._last_error and f"said {where}" not in self._errors:
            self._errors[f"said {where}"] = ""
            log.warning("ncmon: %s (training goes on)", self._last_error)
            log.debug("ncmon: where it came from", exc_info=error)

    def _at_exit(self) -> None:
        self.close(timeout_s=ATEXIT_S)
