"""The networks: which modules in which order, and what is watched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import features, mlp  # isort: skip
from plan import NORMS  # isort: skip
from training import batches  # isort: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_layers", [3, 6, 15])
def test_normalisation_stands_after_the_activation_and_before_every_linear_but_the_first(
    n_layers: int, norm: str
) -> None:
    network = mlp(n_layers, n_inputs=5, width=7, n_classes=3, norm=norm)
    kinds = [type(module) for module in network.modules() if not list(module.children())]
    block = [nn.Linear, nn.ReLU] + ([] if norm == "none" else [nn.BatchNorm1d])
    assert kinds == [*block * (n_layers - 1), nn.Linear]
    affine = {module.affine for module in network.modules() if isinstance(module, nn.BatchNorm1d)}
    assert affine == ({norm == "affine"} if norm != "none" else set())
    assert network.output.bias is None


@pytest.mark.parametrize("norm", NORMS)
def test_the_last_watched_features_enter_the_classifier(norm: str) -> None:
    network = mlp(4, n_inputs=5, width=7, n_classes=3, norm=norm)
    names = features(network)
    assert names == [f"block{number}.{'relu' if norm == 'none' else 'norm'}" for number in (1, 2, 3)]
    seen: dict[str, torch.Tensor] = {}
    network.output.register_forward_pre_hook(lambda module, inputs: seen.update(entered=inputs[0]))
    network.get_submodule(names[-1]).register_forward_hook(lambda module, inputs, output: seen.update(left=output))
    network(torch.randn(9, 5))
    assert torch.equal(seen["entered"], seen["left"])


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a norm among affine, plain, none, got 'batch'"):
        mlp(3, n_inputs=5, width=7, n_classes=3, norm="batch")


@pytest.mark.parametrize(
    ("n_samples", "sizes"),
    [(10_000, [128] * 78), (2_000, [128] * 15 + [80]), (1_797, [128] * 14), (256, [128] * 2), (60, [60])],
)
def test_a_handful_of_samples_is_no_batch(n_samples: int, sizes: list[int]) -> None:
    parts = batches(torch.arange(n_samples), 128)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), torch.arange(sum(sizes)))
