"""What PyTorch does to a hook, and what the hook does about it."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import ncmon_client
from ncmon_client.layers import CLASSIFIER_INPUT, canonical
from tests.client.hooking import NOBODY, batch, cnn, images, mlp, place, recorded, two_pass


def step(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> None:
    criterion(model(x), y).backward()


def only(recorder: Any) -> tuple[Any, dict[tuple[int, str], Any]]:
    windows = recorder.windows()
    assert len(windows) == 1
    return windows[0]


def test_layers_are_the_blocks_and_the_classifier_input() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    step(model, criterion, *batch())
    monitor.epoch(0)
    meta, _ = only(recorder)
    # The last block's output is the classifier's input; it is watched once.
    assert [(layer.name, layer.n_features, layer.reduction) for layer in meta.layers] == [
        ("0", 16, "none"),
        (CLASSIFIER_INPUT, 8, "none"),
    ]
    assert (meta.head.name, meta.head.has_bias, meta.head.batch_norm) == ("2", True, "1.2")


def test_a_relu_between_batch_norm_and_classifier_is_no_batch_norm_before_it() -> None:
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    criterion = nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    step(model, criterion, *batch())
    monitor.epoch(0)
    assert only(recorder)[0].head.batch_norm == ""


def test_feature_maps_are_pooled_and_say_so() -> None:
    model, criterion = cnn(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = images()
    step(model, criterion, x, y)
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert {layer.name: layer.reduction for layer in meta.layers}["0"] == "mean"
    truth = two_pass(model[0](x).mean((2, 3)), y, 3)
    np.testing.assert_allclose(arrays[place(meta, "0"), "class_means"], truth["class_means"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("inplace", [False, True])
def test_statistics_are_those_of_the_features_that_flowed(inplace: bool) -> None:
    model, criterion = mlp(inplace=inplace), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch(64)
    seen: dict[str, Tensor] = {}
    model[0].register_forward_hook(lambda m, a, out: seen.__setitem__("0", out.detach().clone()))
    model[2].register_forward_pre_hook(lambda m, a: seen.__setitem__(CLASSIFIER_INPUT, a[0].detach().clone()))
    logits = model(x)
    criterion(logits, y).backward()
    monitor.epoch(0)
    meta, arrays = only(recorder)
    for name, features in seen.items():
        truth = two_pass(features, y, 3)
        at = place(meta, name)
        for array in ("class_means", "within_sq", "unit_sums", "norm_sums", "norm_sq_sums"):
            np.testing.assert_allclose(arrays[at, array], truth[array], rtol=1e-5, atol=1e-5, err_msg=f"{name} {array}")
    np.testing.assert_array_equal(arrays[-1, "weight"], model[2].weight.detach().numpy())
    losses = nn.functional.cross_entropy(logits.double(), y, reduction="none").detach()
    np.testing.assert_allclose(arrays[-1, "loss_sums"], [losses[y == c].sum() for c in range(3)], rtol=1e-5)


def test_a_tensor_overwritten_in_place_costs_one_batch_and_is_copied_from_then_on() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(10, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu_(self.first(x)).clone())

    model, criterion = Overwriting(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, layers=["first"])
    x, y = batch()
    for _ in range(3):
        step(model, criterion, x, y)
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert meta.skipped_batches == {"changed in place": 1}
    assert meta.sampled_steps == 2
    raw = model.first(torch.cat([x, x]))
    truth = two_pass(raw, torch.cat([y, y]), 3)
    np.testing.assert_allclose(arrays[place(meta, "first"), "class_means"], truth["class_means"], rtol=1e-4, atol=1e-6)


def test_a_module_used_twice_has_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = nn.Linear(10, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.block(torch.tanh(self.block(x)))))

    model, criterion = Twice(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, layers="block")
    for _ in range(2):
        step(model, criterion, *batch())
    monitor.epoch(0)
    assert [layer.name for layer in only(recorder)[0].layers] == ["block", "block@2", CLASSIFIER_INPUT]


def test_tuple_and_dict_outputs_and_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.head = Wrapping(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encode(x)["last_hidden_state"][:, 0])

    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"mask": None, "last_hidden_state": self.inner(x)}

    torch.manual_seed(0)
    x, y = torch.randn(8, 5, 4), torch.arange(8) % 3
    for suffix, pooled in (("", lambda h: h.mean(1)), (":cls", lambda h: h[:, 0])):
        model, criterion = Tokens(), nn.CrossEntropyLoss()
        monitor, recorder = recorded(model, criterion, layers=f"encode{suffix}")
        step(model, criterion, x, y)
        monitor.epoch(0)
        meta, arrays = only(recorder)
        truth = two_pass(pooled(model.encode.inner(x)), y, 3)
        np.testing.assert_allclose(
            arrays[place(meta, "encode"), "class_means"], truth["class_means"], rtol=1e-4, atol=1e-6
        )


def test_token_classification_counts_every_token_but_the_ignored_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    criterion = nn.CrossEntropyLoss(ignore_index=-100)
    monitor, recorder = recorded(model, criterion)
    x, y = torch.randn(4, 5, 4), torch.randint(0, 3, (4, 5))
    y[:, -1] = -100
    logits = model(x)
    criterion(logits.flatten(0, 1), y.flatten()).backward()
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert meta.ignored_labels == 4
    at = place(meta, CLASSIFIER_INPUT)
    assert arrays[at, "class_counts"].sum() == 16
    kept = y.flatten() >= 0
    truth = two_pass(torch.tanh(model[0](x)).flatten(0, 1)[kept], y.flatten()[kept], 3)
    np.testing.assert_allclose(arrays[at, "class_means"], truth["class_means"], rtol=1e-5, atol=1e-7)


def test_labels_out_of_range_reach_no_index() -> None:
    model = mlp()
    monitor, recorder = recorded(model)
    x, y = batch()
    y[0], y[1] = 99, -7
    monitor.observe(model(x), y)
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert meta.ignored_labels == 2
    assert arrays[-1, "label_counts"].sum() == 22


def test_evaluation_inside_training_counts_nothing() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    step(model, criterion, x, y)
    model.eval()
    with torch.no_grad():
        criterion(model(x), y)
    with torch.inference_mode():
        criterion(model(x), y)
    model.train()
    criterion(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))  # a loss of something else
    step(model, criterion, x, y)
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert meta.steps == meta.sampled_steps == 2


def test_gradient_accumulation_observes_each_micro_batch() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch(32)
    for part in range(4):
        step(model, criterion, x[8 * part : 8 * part + 8], y[8 * part : 8 * part + 8])
    monitor.epoch(0)
    assert only(recorder)[1][-1, "label_counts"].sum() == 32


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_inside_backward_is_not_counted_twice(use_reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = nn.Sequential(nn.Linear(10, 8), nn.Tanh()), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=use_reentrant)
            return self.head(h)

    model, criterion = Checkpointed(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, layers=["block.0"])
    x, y = batch()
    for _ in range(2):
        step(model, criterion, x.requires_grad_(), y)
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert [layer.name for layer in meta.layers] == ["block.0", CLASSIFIER_INPUT]
    assert arrays[0, "class_counts"].sum() == 48


def test_autocast_does_not_reach_the_statistics() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch(48)
    kept: list[Tensor] = []
    model[2].register_forward_pre_hook(lambda m, a: kept.append(a[0].detach().clone()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        criterion(model(x), y).backward()
    monitor.epoch(0)
    meta, arrays = only(recorder)
    truth = two_pass(kept[0].float(), y, 3)
    at = place(meta, CLASSIFIER_INPUT)
    np.testing.assert_allclose(arrays[at, "class_means"], truth["class_means"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arrays[at, "within_sq"], truth["within_sq"], rtol=1e-5)


def test_soft_labels_are_skipped_and_counted() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(model(x), nn.functional.one_hot(y, 3).float()).backward()
    step(model, criterion, x, y)
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert meta.skipped_batches == {"soft labels": 1}
    assert (meta.steps, meta.sampled_steps) == (2, 1)


def test_label_smoothing_is_said_and_the_loss_is_still_plain() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss(label_smoothing=0.1)
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    logits = model(x)
    criterion(logits, y).backward()
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert meta.head.plain_loss is False
    plain = nn.functional.cross_entropy(logits, y, reduction="sum").item()
    assert arrays[-1, "loss_sums"].sum() == pytest.approx(plain, rel=1e-5)


def test_copies_and_pickles_of_a_hooked_model_hold_no_tap() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    keys = list(model.state_dict())
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    step(model, criterion, x, y)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    for twin in copies:
        twin.train()
        assert list(twin.state_dict()) == keys
        torch.testing.assert_close(twin(x), model(x))
        nn.functional.cross_entropy(twin(x), y).backward()
    step(model, criterion, x, y)
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert meta.sampled_steps == 2


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._fsdp_wrapped_module."])
def test_wrappers_do_not_change_a_layers_name(prefix: str) -> None:
    assert canonical(f"{prefix}blocks.3._checkpoint_wrapped_module.mlp") == "blocks.3.mlp"
    assert canonical("submodule.layer") == "submodule.layer"


def test_weight_decays_come_from_the_optimizers_groups() -> None:
    for make, decoupled in ((torch.optim.SGD, False), (torch.optim.AdamW, True)):
        model, criterion = mlp(), nn.CrossEntropyLoss()
        groups = [
            {"params": list(model[2].parameters()), "weight_decay": 0.3},
            {"params": list(model[1][2].parameters()), "weight_decay": 0.2},
        ]
        monitor, recorder = recorded(model, criterion, optimizer=make(groups, lr=0.1))
        step(model, criterion, *batch())
        monitor.epoch(0)
        head = only(recorder)[0].head
        assert (head.weight_decay, head.weight_decay_gamma, head.decoupled_decay) == (0.3, 0.2, decoupled)


def test_logits_that_are_not_the_classifiers_output_claim_no_weight() -> None:
    """A temperature outside the Linear: W h + b is not what decides, so that no bound may be made from W."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(10, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * self.head(torch.tanh(self.body(x)))

    model, criterion = Scaled(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    step(model, criterion, *batch())
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert [layer.name for layer in meta.layers] == [CLASSIFIER_INPUT]
    assert (-1, "weight") not in arrays


def test_weights_that_are_not_finite_are_left_out_and_said() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    step(model, criterion, *batch())
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert meta.head.finite is False
    assert (-1, "weight") not in arrays


def test_compiling_after_watch_keeps_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    compiled = torch.compile(model, backend="eager")
    x, y = batch()
    for _ in range(2):
        criterion(compiled(x), y).backward()
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert meta.sampled_steps == 2
    assert arrays[place(meta, CLASSIFIER_INPUT), "class_counts"].sum() == 48


def test_a_hook_that_fails_never_reaches_the_loop_and_stops_after_three_times(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, _ = recorded(model, criterion)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr("ncmon_client.capture.first_tensor", broken)
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        for _ in range(5):
            step(model, criterion, *batch())
    assert monitor._capture.dead
    assert len([r for r in caplog.records if "stops watching" in r.message]) == 1
    assert monitor.status().mishaps >= 3


def test_data_parallel_is_refused() -> None:
    with pytest.raises(ncmon_client.ConfigError, match=r"watch model\.module"):
        ncmon_client.watch(nn.DataParallel(mlp()), endpoint=NOBODY)


class FirstToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@pytest.mark.parametrize(("pool", "reduced"), [("cls", lambda h: h[:, 0]), ("mean", lambda h: h.mean(1))])
def test_one_pooling_for_all_layers_that_name_none(pool: str, reduced: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), FirstToken(), nn.Linear(5, 3))
    criterion = nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, pool=pool)
    x, y = torch.randn(12, 6, 4), torch.arange(12) % 3
    criterion(model(x), y)
    monitor.epoch(0)
    meta, arrays = only(recorder)
    means = arrays[place(meta, "0"), "class_means"]
    features = reduced(model[0](x)).detach().double()
    expected = torch.stack([features[y == c].mean(0) for c in range(3)]).numpy()
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)


def test_a_masked_logit_is_no_reason_to_send_what_is_not_finite() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).masked_fill(torch.tensor([False, False, True]), float("-inf"))

    model, criterion = Masked(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(model(x), y % 2)
    monitor.epoch(0)
    _, arrays = only(recorder)
    assert np.isfinite(arrays[-1, "loss_sums"]).all()
    assert (-1, "own_logit_sums") not in arrays


@pytest.mark.parametrize(("autocast", "eps"), [(True, 2.0**-7), (False, 2.0**-23)])
def test_a_window_says_how_precise_features_and_logits_were(autocast: bool, eps: float) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(x)
    criterion(logits.float() if not autocast else logits, y)
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert meta.head.logits_eps == eps
    assert max(layer.eps for layer in meta.layers) in (eps, 2.0**-23)
