"""The loop's side: windows, exact passes, overhead, and that training is left alone."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ncmon_client
import ncmon_client.errors
from ncmon_client.closed import LastWord
from ncmon_client.layers import CLASSIFIER_INPUT
from tests.client.hooking import NOBODY, Recorder, batch, cnn, images, mlp, place, recorded, two_pass


def train(model: nn.Module, data: Callable[..., tuple[Tensor, Tensor]], *, watched: bool, steps: int = 30) -> list[Any]:
    """Train with dropout-like use of the global generator; return all state that training leaves behind."""
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (the global state is what is compared)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    monitor = ncmon_client.watch(model, criterion, optimizer=optimizer, endpoint=NOBODY, every=1) if watched else None
    if monitor is not None:
        monitor._outbox = Recorder()
    x, y = data(48)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)
    done = 0
    while done < steps:
        for inputs, labels in loader:
            optimizer.zero_grad()
            criterion(model(inputs + 0.01 * torch.randn_like(inputs)), labels).backward()
            optimizer.step()
            done += 1
        if monitor is not None:
            monitor.epoch(done)
            monitor.measure(loader, split="test", exact_ncc=done % 2 == 0)
    if monitor is not None:
        assert monitor.status().sampled_steps == done
        assert monitor.status().last_error in ("", "nobody listens there")
        monitor.close()
    left = [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))]  # noqa: NPY002
    return [*model.state_dict().values(), *left, torch.tensor(random.random())]


def test_never_sends_what_was_measured_and_nothing_else() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, every="never", window_steps=2)
    x, y = batch(48)
    for epoch in range(4):
        for _ in range(3):
            criterion(model(x), y).backward()
        monitor.epoch(epoch)
        if epoch % 2:
            monitor.measure([(x, y)], split="train")
    monitor.close()
    assert [(meta.split, meta.exact, meta.epoch) for meta, _ in recorder.windows()] == [
        ("train", True, 1),
        ("train", True, 3),
    ]
    assert (monitor.status().steps, monitor.status().sampled_steps) == (12, 0)
    assert monitor.status().last_error == ""


@pytest.mark.parametrize(("make", "data"), [(mlp, batch), (cnn, images)], ids=["mlp", "cnn"])
def test_weights_and_random_state_are_bitwise_those_of_an_unwatched_run(make: Any, data: Any) -> None:
    with_ncmon, without = train(make(), data, watched=True), train(make(), data, watched=False)
    assert len(with_ncmon) == len(without)
    assert all(torch.equal(one, other) for one, other in zip(with_ncmon, without, strict=True))


def test_an_exact_window_is_two_passes_at_frozen_weights() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch(90)
    for _ in range(3):
        criterion(model(x), y).backward()
    monitor.epoch(4)
    modes = [module.training for module in model.modules()]
    model[0].eval()  # a frozen block stays what it was
    before = model.state_dict()["0.2.running_mean"].clone()
    monitor.measure([(x[:50], y[:50]), (x[50:], y[50:])], split="test", exact_ncc=True)
    assert [module.training for module in model.modules()] != modes
    assert model.training
    assert not model[0].training
    assert torch.equal(model.state_dict()["0.2.running_mean"], before)

    meta, arrays = recorder.windows()[-1]
    assert (meta.split, meta.exact, meta.epoch, meta.step, meta.steps, meta.ncc_source) == (
        "test",
        True,
        4,
        3,
        2,
        "own",
    )
    model.eval()
    with torch.no_grad():
        h = model[1](model[0](x)).double()
        logits = model(x).double()
    at, truth = place(meta, CLASSIFIER_INPUT), two_pass(h, y, 3)
    for name in ("class_means", "within_sq", "unit_sums", "norm_sums", "norm_sq_sums"):
        np.testing.assert_allclose(arrays[at, name], truth[name], rtol=1e-12, atol=1e-12, err_msg=name)
    nearest = ((h[:, None] - torch.tensor(truth["class_means"])) ** 2).sum(-1).argmin(1)
    for c in range(3):
        assert arrays[at, "ncc_counts"][c] == (y == c).sum()
        assert arrays[at, "ncc_hits"][c] == ((nearest == c) & (y == c)).sum()
        assert arrays[at, "ncc_agree"][c] == ((nearest == logits.argmax(1)) & (y == c)).sum()
    losses = nn.functional.cross_entropy(logits, y, reduction="none")
    np.testing.assert_allclose(arrays[-1, "loss_sums"], [losses[y == c].sum() for c in range(3)], rtol=1e-12)


def test_nearest_class_decisions_need_means_and_say_whose_they_used() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    for epoch in range(2):
        criterion(model(x), y).backward()
        monitor.epoch(epoch)
        monitor.measure([(x, y)])
    sources = [(meta.split, meta.ncc_source, (1, "ncc_hits") in arrays) for meta, arrays in recorder.windows()]
    assert sources == [
        ("train", "none", False),
        ("test", "previous", True),
        ("train", "previous", True),
        ("test", "previous", True),
    ]


def test_windows_close_by_epoch_and_by_steps() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, window_steps=4)
    x, y = batch()
    for epoch in range(2):
        for _ in range(6):
            criterion(model(x), y).backward()
        monitor.epoch(epoch)
    monitor.epoch(2)  # nothing happened since: no window
    found = [(meta.epoch, meta.step, meta.steps) for meta, _ in recorder.windows()]
    assert [(step, steps) for _, step, steps in found] == [(4, 4), (6, 2), (10, 4), (12, 2)]
    assert [epoch for epoch, *_ in found[1::2]] == [0, 1]
    assert found[2][0] == 1


def test_a_loop_without_epochs_still_gets_its_last_window() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    criterion(model(batch()[0]), batch()[1]).backward()
    monitor.close()
    ((meta, _),) = recorder.windows()
    assert (meta.epoch, meta.steps) == (-1, 1)
    assert isinstance(recorder.offered[-1], LastWord)


def test_sampling_leaves_steps_out_and_says_how_many() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, every=4)
    x, y = batch()
    for _ in range(43):
        criterion(model(x), y).backward()
    monitor.epoch(0)
    ((meta, arrays),) = recorder.windows()
    assert meta.steps == 43
    assert 10 <= meta.sampled_steps <= 11  # one in each of ten blocks of four, and one or none of the last three
    assert arrays[-1, "label_counts"].sum() == 24 * meta.sampled_steps
    assert monitor.status().every == 4


def test_an_exception_in_the_loop_marks_the_run_as_failed_and_is_not_swallowed() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)

    def loop() -> None:
        with monitor:
            criterion(model(batch()[0]), batch()[1]).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert recorder.offered[-1].end.status == "failed"


def test_closing_takes_the_hooks_away_and_can_be_repeated() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    criterion(model(batch()[0]), batch()[1]).backward()
    monitor.close()
    monitor.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*model.modules(), criterion))
    offered = len(recorder.offered)
    criterion(model(batch()[0]), batch()[1]).backward()
    monitor.epoch(1)
    assert len(recorder.offered) == offered


def test_nothing_raises_into_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, _ = recorded(model, criterion)
    criterion(model(batch()[0]), batch()[1]).backward()
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        monitor.measure(["not a batch"])
        monitor.measure([])
        monitor.measure(None)
        monitor.epoch("three")
        monitor.observe("logits", None)
    assert model.training
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "measure" in line]) == 1
    assert "last_error" in repr(monitor.status())


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_disabled_touches_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    if how == "environment":
        monkeypatch.setenv("NCMON_DISABLED", "1")
    monitor = ncmon_client.watch(model, criterion, endpoint=NOBODY, enabled=how == "environment")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*model.modules(), criterion))
    criterion(model(batch()[0]), batch()[1]).backward()
    monitor.epoch(0)
    monitor.measure([batch()])
    monitor.close()
    assert monitor.status().accepted == monitor.status().steps == 0


def test_a_forked_child_is_inert() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the parent's are not there, and torch would wait for them
        criterion(model(batch()[0]), batch()[1])
        monitor.epoch(0)
        monitor.close()
        os.write(write, str(len(recorder.offered)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"0"
    os.close(read)
    os.close(write)


def test_the_runs_facts_are_sent_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCMON_RUN_ID", "again-7")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = {"lr": 0.1, "device": torch.device("cpu"), "layers": [1, 2]}
    monitor, _ = recorded(mlp(), run="a run", config=config, tags=("x", "y"))
    run = monitor._run
    assert (run.run_id, run.name, run.rank, run.world_size, run.tags) == ("again-7", "a run", 2, 4, ["x", "y"])
    assert json.loads(run.config) == {"lr": 0.1, "device": "device(type='cpu')", "layers": [1, 2]}


def test_several_ranks_send_the_scatter_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(model(x), y).backward()
    monitor.epoch(0)
    ((meta, arrays),) = recorder.windows()
    at = place(meta, CLASSIFIER_INPUT)
    assert (at, "span_within") not in arrays
    assert arrays[at, "within_scatter"].shape == (8, 8)
    np.testing.assert_allclose(np.trace(arrays[at, "within_scatter"]), arrays[at, "within_sq"].sum(), rtol=1e-5)


def test_large_payloads_travel_in_single_precision_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncmon_client.closed.PAYLOAD_BUDGET_BYTES", 100)
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    criterion(model(batch()[0]), batch()[1]).backward()
    monitor.epoch(0)
    ((meta, arrays),) = recorder.windows()
    assert arrays[0, "class_means"].dtype == np.float32
    assert "single precision" in meta.layers[0].note


@pytest.mark.parametrize("run_id", ["with space", "x" * 65, "a/b"])
def test_a_run_id_that_the_daemon_would_refuse_is_said_at_once(run_id: str) -> None:
    with pytest.raises(ncmon_client.errors.ConfigError, match="run_id: expected"):
        ncmon_client.watch(nn.Sequential(nn.Linear(3, 2)), run_id=run_id, endpoint=NOBODY)


def test_hooks_that_do_not_look_are_on_the_account_too() -> None:
    """What torch takes to call a hook is several times what the hook takes itself, and no clock inside it sees it."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, _ = recorded(model, criterion, every=1)
    before = monitor._capture.dispatch_s
    assert 0 < before < 1e-3
    x, y = batch()
    criterion(model(x), y)
    # The probes that were no classifier are gone after the first batch.
    assert 0 < monitor._capture.dispatch_s < before
    assert monitor.status().overhead is not None


def test_the_sending_threads_time_is_on_the_account_but_for_what_the_loop_asked_to_measure() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, _ = recorded(model, criterion, every=1)
    x, y = batch()
    for epoch in range(2):
        criterion(model(x), y)
        monitor.epoch(epoch)
    monitor.measure([(x, y)] * 3)
    assert 0 < monitor._streamed < monitor._offered
    before = monitor._schedule._cost_s
    monitor._sender.busy_s += 100.0
    model.train()
    criterion(model(x), y)
    share = (monitor._schedule._cost_s - before) / 100.0
    assert share == pytest.approx(monitor._streamed / monitor._offered, abs=0.01)


def test_a_layer_too_wide_for_its_second_moment_has_nc1_in_exact_windows_and_says_that_it_is_approximate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(10, 1100), nn.ReLU()), nn.Linear(1100, 3))
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor, recorder = recorded(model, criterion)
    x, y = batch(120)
    x += 2 * torch.nn.functional.one_hot(y, 10)
    for _ in range(4):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    monitor.epoch(0)
    monitor.measure([(x[:50], y[:50]), (x[50:], y[50:])])
    (_, _), (meta, arrays) = recorder.windows()
    at = place(meta, CLASSIFIER_INPUT)
    assert meta.layers[at].note.startswith("NC1 approximate")
    truth = two_pass(model[0](x), y, 3)
    rows = truth["class_means"] - truth["class_means"].mean(axis=0)
    right = np.linalg.svd(rows, full_matrices=False)[2][:2]
    expected = np.einsum("ij,ij->i", right @ truth["within_scatter"], right)
    # The means moved a little since the training window: a few percent at most.
    np.testing.assert_allclose(arrays[at, "span_within"], expected, rtol=0.03)


def test_a_run_that_goes_on_from_a_checkpoint_counts_from_there() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, first_step=40)
    for _ in range(3):
        criterion(model(batch()[0]), batch()[1])
    monitor.epoch(7)
    ((meta, _),) = recorder.windows()
    assert (meta.step, meta.steps, meta.epoch) == (43, 3, 7)


def test_a_step_between_two_measurements_has_a_time_too() -> None:
    """One step an epoch, each followed by a pass over the data: the budget is a share of something."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, _ = recorded(model, criterion)
    x, y = batch()
    for epoch in range(4):
        out = model(x)
        time.sleep(0.05)  # a forward pass that takes its time
        criterion(out, y)
        monitor.epoch(epoch)
        monitor.measure([(x, y)])
    assert monitor._schedule._total_s >= 4 * 0.05
