"""A training process for the tests: a small BN network on blobs, with ncmon or without, paced by --pause.

    python trainer.py --weights FILE [--endpoint E] [--windows N] [--pause S] [--run NAME]

Prints one JSON line when training is over (before the monitor closes) and one at the end. It knows nothing of the
tests.
"""

from __future__ import annotations

import argparse
import json
import logging
import time

import torch
from torch import nn

N_CLASSES, N_FEATURES, BATCH = 4, 12, 32


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Sequential(nn.Linear(N_FEATURES, 24), nn.ReLU(), nn.BatchNorm1d(24)),
        nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.BatchNorm1d(16)),
        nn.Linear(16, N_CLASSES),
    )


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    centres = 2.0 * torch.randn(N_CLASSES, N_FEATURES, generator=generator)
    y = torch.arange(256) % N_CLASSES
    return centres[y] + torch.randn(256, N_FEATURES, generator=generator), y


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--endpoint")
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--run", default="kill")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level=logging.WARNING)

    x, y = blobs()
    model, criterion = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(3)  # the order of the batches comes from the global generator, as in most people's loops
    monitor = None
    if args.endpoint:
        import ncmon_client

        monitor = ncmon_client.watch(
            model, criterion=criterion, optimizer=optimizer, run=args.run, endpoint=args.endpoint, every=1
        )
    for epoch in range(args.windows):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            criterion(model(x[batch]), y[batch]).backward()
            optimizer.step()
        if monitor is not None:
            monitor.epoch(epoch)
            if epoch % 2 == 1:
                monitor.measure([(x, y)], split="test")
        time.sleep(args.pause)
    torch.save(model.state_dict(), args.weights)
    print(json.dumps({"trained": time.time()}), flush=True)
    if monitor is not None:
        monitor.close()
        status = monitor.status()
        print(
            json.dumps({"accepted": status.accepted, "acknowledged": status.acknowledged, "refused": status.refused}),
            flush=True,
        )


if __name__ == "__main__":
    main()
