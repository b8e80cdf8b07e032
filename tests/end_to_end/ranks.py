"""A training process of several ranks, started by torchrun, or the same training in one process on all samples.

    python ranks.py --endpoint E [--how plain|ddp|fsdp] [--leave] [--lr L] [--checkpoint FILE]

`--leave` closes the monitor of the last rank after the first epoch. With `--checkpoint` the last rank dies once, one
step before the end of the last epoch, and torchrun begins anew; what goes on from there goes on from the end of the
first epoch. Prints one JSON line a rank.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed
from torch import nn

import ncmon_client

N_CLASSES, N_FEATURES, BATCH, EPOCHS = 3, 10, 24, 3


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Sequential(nn.Linear(N_FEATURES, 16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 8), nn.ReLU()),
        nn.Linear(8, N_CLASSES),
    )


def join() -> None:
    """Join the process group, under a prefix of this attempt: gloo would find addresses of processes that died."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        torch.distributed.init_process_group("gloo")
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    agent = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, False)
    store = torch.distributed.PrefixStore(f"attempt/{os.environ['TORCHELASTIC_RESTART_COUNT']}", agent)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--how", choices=["plain", "ddp", "fsdp"], default="plain")
    parser.add_argument("--leave", action="store_true")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rank, world = 0, 1
    if args.how != "plain":
        join()
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    generator = torch.Generator().manual_seed(11)
    y = torch.arange(4 * BATCH) % N_CLASSES
    x = 2.0 * torch.randn(N_CLASSES, N_FEATURES, generator=generator)[y]
    x = x + torch.randn(x.shape, generator=generator)

    model = network()
    if args.how == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif args.how == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for block in (model[0], model[1], model):
            fully_shard(block)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, weight_decay=1e-3)
    steps, first = len(y) // BATCH, 0
    resumed = args.checkpoint is not None and args.checkpoint.exists()
    if resumed:
        first = 1
        model.load_state_dict(torch.load(args.checkpoint, weights_only=True))
    monitor = ncmon_client.watch(
        model,
        criterion,
        optimizer=optimizer,
        run=args.how,
        endpoint=args.endpoint,
        every=1,
        layers=["0", "1"],
        first_step=first * steps,
        window_steps=2 if args.checkpoint else 200,
    )
    share = BATCH // world
    for epoch in range(first, EPOCHS):
        for begin in range(0, len(y), BATCH):
            if args.checkpoint and not resumed and epoch == EPOCHS - 1 and begin == (steps - 1) * BATCH:
                monitor.close()
                torch.distributed.barrier()
                if rank == world - 1:
                    raise SystemExit("this rank dies, once")
                time.sleep(60)  # until torchrun ends it
            own = slice(begin + rank * share, begin + (rank + 1) * share)
            optimizer.zero_grad()
            criterion(model(x[own]), y[own]).backward()
            optimizer.step()
        monitor.epoch(epoch)
        if args.checkpoint and rank == 0 and epoch == 0:
            torch.save(model.state_dict(), args.checkpoint)
        if args.leave and rank == world - 1:
            monitor.close()
    monitor.close()
    status = monitor.status()
    done = {"rank": rank, "run_id": monitor.run_id, "acknowledged": status.acknowledged, "accepted": status.accepted}
    # At once, with its end: ranks share the output, and torchrun does not let it be buffered.
    os.write(1, (json.dumps({**done, "error": status.last_error}) + "\n").encode())
    if args.how != "plain":
        torch.distributed.destroy_process_group()
        os._exit(0)  # gloo's own threads now and then outlive the interpreter


if __name__ == "__main__":
    main()
