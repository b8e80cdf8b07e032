"""The demo's trainer: a small BatchNorm network on scikit-learn's digits, watched by ncmon.

    python -m ncmon_client.demo --epochs 200 --weight-decay 5e-3 --seed 0 [--endpoint E]

1,797 real images of 8x8 pixels ship with scikit-learn. The network is one Sequential of Linear-ReLU-BatchNorm blocks
and a last Linear without bias, trained by SGD as in the thesis (chapter 3: learning rate 0.0679, momentum 0.9, decayed
by 0.1 three times, evenly). Training windows are streaming, one an epoch; the test set is measured exactly after each
epoch, the training set after each fifth, as split `train-exact`.

Prints one JSON line an epoch on stdout. The same seed gives the same network, with ncmon or without.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ncmon_client.monitor import Monitor

EPOCHS = 200
WEIGHT_DECAY = 5e-3
LEARNING_RATE = 0.0679
BATCH = 64
WIDTHS = (128, 128, 128, 64)
EXACT_EVERY = 5
"""The exact pass over the training set costs about as much as a training epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images (n, 64) in [0, 1] and labels (n,)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def data(seed: int = 0) -> Digits:
    """Return scikit-learn's digits, a fifth of each class held out."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x / 16.0, y, test_size=0.2, stratify=y, random_state=seed)
    return Digits(
        train_x=torch.tensor(train_x, dtype=torch.float32),
        train_y=torch.tensor(train_y),
        test_x=torch.tensor(test_x, dtype=torch.float32),
        test_y=torch.tensor(test_y),
    )


def build(seed: int = 0) -> nn.Sequential:
    """Return the network, initialised from the seed."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    blocks: list[nn.Module] = []
    before = 64
    for width in WIDTHS:
        blocks.append(nn.Sequential(nn.Linear(before, width), nn.ReLU(), nn.BatchNorm1d(width)))
        before = width
    return nn.Sequential(*blocks, nn.Linear(before, 10, bias=False))


def train(
    model: nn.Module,
    digits: Digits,
    *,
    epochs: int,
    weight_decay: float = WEIGHT_DECAY,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    watch: Callable[[nn.Module, nn.Module, object], Monitor] | None = None,
    report: Callable[[int, float, float], None] = lambda epoch, loss, accuracy: None,
) -> None:
    """Train `model` in place; `watch(model, criterion, optimizer)` makes the monitor, None trains without one."""
    import torch
    from torch import nn

    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    milestones = sorted({round(epochs * quarter / 4) for quarter in (1, 2, 3)} - {0})
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    torch.manual_seed(seed + 1)
    monitor = watch(model, criterion, optimizer) if watch is not None else None
    train_set = list(zip(torch.split(digits.train_x, 512), torch.split(digits.train_y, 512), strict=True))
    test_set = [(digits.test_x, digits.test_y)]
    try:
        for epoch in range(epochs):
            model.train()
            total, correct = 0.0, 0
            # The last batch would hold a handful of samples, too few for BatchNorm's statistics.
            order = torch.randperm(len(digits.train_y))
            for batch in torch.split(order[: len(order) // BATCH * BATCH], BATCH):
                labels = digits.train_y[batch]
                optimizer.zero_grad()
                logits = model(digits.train_x[batch])
                loss = criterion(logits, labels)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
                correct += int((logits.argmax(1) == labels).sum())
            scheduler.step()
            seen = len(order) // BATCH * BATCH
            if monitor is not None:
                monitor.epoch(epoch)
                monitor.measure(test_set, split="test", exact_ncc=True)
                if (epoch + 1) % EXACT_EVERY == 0 or epoch + 1 == epochs:
                    monitor.measure(train_set, split="train-exact", exact_ncc=True)
            report(epoch, total / seen, correct / seen)
    except BaseException:
        if monitor is not None:
            monitor.close(failed=True)
        raise
    if monitor is not None:
        monitor.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the trainer; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ncmon_client.demo", description="Train a small network on digits under ncmon."
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--weight-decay", type=float, default=WEIGHT_DECAY)
    parser.add_argument("--lr", type=float, default=LEARNING_RATE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default="digits")
    parser.add_argument("--endpoint", help="the daemon's endpoint; the user's own socket by default")
    parser.add_argument("--no-monitor", action="store_true", help="train without ncmon")
    options = parser.parse_args(arguments)
    for name, good in (
        ("epochs", options.epochs >= 1),
        ("lr", options.lr > 0),
        ("weight_decay", options.weight_decay >= 0),
    ):
        if not good:
            parser.error(f"--{name.replace('_', '-')}: {getattr(options, name)} is too small")
    try:
        import sklearn  # noqa: F401  (named here, so that the message below can name it)
        import torch
    except ImportError as error:
        print(f"the demo needs {error.name}: pip install 'ncmon-client[demo]'", file=sys.stderr)
        return 1
    import ncmon_client

    # SIGTERM becomes an ordinary end, so that the run is marked as failed instead of left open.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)

    def watch(model: nn.Module, criterion: nn.Module, optimizer: object) -> Monitor:
        return ncmon_client.watch(
            model,
            criterion,
            optimizer=optimizer,
            run=options.run,
            config={
                "data": "digits",
                "lr": options.lr,
                "momentum": 0.9,
                "weight_decay": options.weight_decay,
                "batch": BATCH,
                "epochs": options.epochs,
                "seed": options.seed,
                "widths": list(WIDTHS),
            },
            tags=["demo"],
            class_names=[str(digit) for digit in range(10)],
            num_classes=10,
            endpoint=options.endpoint,
            # A network this small takes a millisecond a step, and a demo is about the picture: look at every step.
            every=1,
        )

    def report(epoch: int, loss: float, accuracy: float) -> None:
        line = {"epoch": epoch, "epochs": options.epochs, "loss": loss, "accuracy": accuracy}
        print(json.dumps(line), flush=True)

    try:
        train(
            build(options.seed),
            data(options.seed),
            epochs=options.epochs,
            weight_decay=options.weight_decay,
            learning_rate=options.lr,
            seed=options.seed,
            watch=None if options.no_monitor else watch,
            report=report,
        )
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
