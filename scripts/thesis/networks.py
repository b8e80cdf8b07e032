"""The thesis' networks: linear -> ReLU -> BatchNorm, again and again, and a last linear layer without bias.

The batch normalisation stands after the activation and between every pair of linear layers, the output apart: what
leaves the last one are the features that enter the classifier (thesis, section 2.2 and chapter 3).
"""

from __future__ import annotations

from plan import NORMS
from torch import nn


def mlp(n_layers: int, *, n_inputs: int, width: int, n_classes: int, norm: str) -> nn.Sequential:
    """Return a network of so many linear layers; its modules are called block1, block2, ... and output."""
    if norm not in NORMS:
        raise ValueError(f"expected a norm among {', '.join(NORMS)}, got {norm!r}")
    network = nn.Sequential()
    before = n_inputs
    for number in range(1, n_layers):
        block = nn.Sequential()
        block.add_module("linear", nn.Linear(before, width))
        block.add_module("relu", nn.ReLU())
        if norm != "none":
            block.add_module("norm", nn.BatchNorm1d(width, affine=norm == "affine"))
        network.add_module(f"block{number}", block)
        before = width
    network.add_module("output", nn.Linear(before, n_classes, bias=False))
    return network


def features(network: nn.Sequential) -> list[str]:
    """Return the modules whose outputs are watched: the last of every block, from the input."""
    return [f"{name}.{list(block._modules)[-1]}" for name, block in network.named_children() if name != "output"]
