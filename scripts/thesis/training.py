#!/usr/bin/env python3
"""One process that trains run after run under ncmon: specs come as JSON lines on stdin, progress goes out on stdout.

    {"spec": {...}}                                              in
    {"run": NAME, "epoch": 12, "epochs": 300, "loss": 0.1, "accuracy": 0.99}  out, while it trains
    {"run": NAME, "seconds": 41.2, "cpu_s": 39.0}                out, when the run is stored
    {"run": NAME, "error": "..."}                                out, when it could not be

The loop is an ordinary one. ncmon measures the whole training set at frozen weights at some epochs, as split `train`,
and looks at no step in between (`every="never"`): the sweep is about where trainings end.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from networks import features, mlp
from plan import Spec
from problems import Problem, conic, digits, labelled
from torch import Tensor, nn

import ncmon_client

MEASURE_BATCH = 1_000
DIVERGED = "the loss is no number any more"


@functools.lru_cache(maxsize=4)
def problem(data: str, n_samples: int, n_inputs: int, n_classes: int, n_planes: int, width: int, seed: int) -> Problem:
    """Return the samples of a spec; runs that differ in weight decay share them."""
    if data == "normal":
        return labelled(n_samples=n_samples, n_inputs=n_inputs, n_classes=n_classes, width=width, seed=seed)
    if data == "cones":
        return conic(n_samples=n_samples, n_inputs=n_inputs, n_classes=n_classes, n_planes=n_planes, seed=seed)
    if data == "digits":
        return digits()
    raise ValueError(f"expected data among normal, cones and digits, got {data!r}")


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Return the batches of an epoch; a rest of less than half a batch is left out, if it is not all there is.

    Of a handful of samples BatchNorm's statistics are noise, which would train the network, and be a tenth of the
    running statistics that it is measured with right afterwards.
    """
    parts = list(torch.split(order, size))
    return parts[:-1] if len(parts) > 1 and 2 * len(parts[-1]) < size else parts


def train(spec: Spec, *, endpoint: str | None, report: Callable[..., None] = lambda **progress: None) -> nn.Sequential:
    """Train one network from its spec, watched unless there is no endpoint; return it."""
    samples = problem(
        spec.data, spec.n_samples, spec.n_inputs, spec.n_classes, spec.n_planes, spec.width, seed=spec.seed
    )
    torch.manual_seed(spec.seed)
    network = mlp(spec.n_layers, n_inputs=spec.n_inputs, width=spec.width, n_classes=spec.n_classes, norm=spec.norm)
    criterion = nn.CrossEntropyLoss()
    # One kernel for all parameters: of a step of such small networks the optimiser takes a third otherwise.
    optimizer = torch.optim.SGD(
        network.parameters(), lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, spec.milestones, gamma=0.1)
    loader = list(zip(torch.split(samples.x, MEASURE_BATCH), torch.split(samples.y, MEASURE_BATCH), strict=True))
    measured = set(spec.measured)
    with ncmon_client.watch(
        network,
        criterion,
        optimizer=optimizer,
        run=spec.name,
        config=asdict(spec),
        tags=["thesis", spec.data],
        layers=features(network),
        num_classes=spec.n_classes,
        every="never",
        endpoint=endpoint,
        enabled=endpoint is not None,
    ) as monitor:
        for epoch in range(spec.epochs):
            network.train()
            total, hits, seen = 0.0, 0, 0
            for batch in batches(torch.randperm(len(samples.y)), spec.batch):
                labels = samples.y[batch]
                optimizer.zero_grad()
                logits = network(samples.x[batch])
                loss = criterion(logits, labels)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
                seen += len(batch)
                hits += int((logits.detach().argmax(1) == labels).sum())
            scheduler.step()
            if total != total:
                raise FloatingPointError(DIVERGED)
            monitor.epoch(epoch)
            if epoch in measured:
                monitor.measure(loader, split="train", exact_ncc=True)
            report(epoch=epoch, epochs=spec.epochs, loss=total / seen, accuracy=hits / seen)
        refused = monitor.status().refused
    status = monitor.status()
    if endpoint is not None and (refused or status.acknowledged < status.accepted):
        raise ConnectionError(f"{status.accepted - status.acknowledged + refused} windows were not stored")
    return network


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)

    def say(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    for text in sys.stdin:
        spec = Spec(**json.loads(text)["spec"])
        begin, cpu = time.monotonic(), time.process_time()
        try:
            train(spec, endpoint=options.endpoint, report=functools.partial(say, run=spec.name))
        except Exception as error:
            say(run=spec.name, error=f"{type(error).__name__}: {error}")
        else:
            say(run=spec.name, seconds=time.monotonic() - begin, cpu_s=time.process_time() - cpu)
    return 0


if __name__ == "__main__":
    # A sweep that was killed without a word leaves a closed pipe behind.
    try:
        code = main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    sys.exit(code)
