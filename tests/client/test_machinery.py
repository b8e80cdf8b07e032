"""What is done to a network around the training step, and that the hook neither breaks it nor is fooled by it."""

from __future__ import annotations

import copy
import io
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional

from ncmon_client.layers import CLASSIFIER_INPUT
from tests.client.hooking import NOBODY, batch, cnn, images, mlp, place, recorded
from tests.client.test_networks import Encoder, agrees, only

Wrap = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def whole(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager", fullgraph=True)


def aot(model: nn.Module) -> Any:
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def per_block(model: nn.Module) -> Any:
    for block in (model[0], model[1]):
        block.compile(backend="eager")
    return model


def in_place(model: nn.Module) -> Any:
    model.compile(backend="eager", fullgraph=True)
    return model


# torch itself asks a non-leaf input of a compiled block for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("wrap", [whole, aot, per_block, in_place])
def test_compiling_after_watch_breaks_no_graph_and_gives_the_same_features(wrap: Wrap) -> None:
    """`fullgraph=True` raises at the first graph break."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    twin = copy.deepcopy(model)
    monitor, recorder = recorded(model, criterion)
    compiled = wrap(model)
    hidden, labels = [], []
    for seed in range(3):
        x, y = batch(seed=seed)
        criterion(compiled(x), y).backward()
        hidden.append(twin[1](twin[0](x)))
        labels.append(y)
    compiled.eval()
    criterion(compiled(batch()[0]), batch()[1])
    monitor.epoch(0)
    found = only(recorder)
    assert (found[0].steps, found[0].sampled_steps) == (3, 3)
    agrees(found, CLASSIFIER_INPUT, torch.cat(hidden), torch.cat(labels), 3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # inductor warns about the machine
@pytest.mark.timeout(240)
def test_compiled_to_machine_code_the_features_are_those_of_the_network() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    twin = copy.deepcopy(model)
    monitor, recorder = recorded(model, criterion)
    # Without gradients one kernel is compiled and not two.
    compiled = torch.compile(model.requires_grad_(False), backend="inductor", fullgraph=True, dynamic=False)
    x, y = batch()
    for _ in range(2):
        criterion(compiled(x), y)
    monitor.epoch(0)
    found = only(recorder)
    assert (found[0].steps, found[0].sampled_steps) == (2, 2)
    hidden = twin[1](twin[0](x))
    agrees(found, CLASSIFIER_INPUT, torch.cat([hidden, hidden]), torch.cat([y, y]), 3)


def test_watching_the_compiled_module_itself() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    monitor, recorder = recorded(compiled, criterion)
    x, y = batch()
    for _ in range(2):
        criterion(compiled(x), y).backward()
    monitor.epoch(0)
    found = only(recorder)
    assert [layer.name for layer in found[0].layers] == ["0", CLASSIFIER_INPUT]
    assert found[0].sampled_steps == 2


def test_watching_after_the_first_compiled_step_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Compiled code does not look for hooks that came later: nothing ever fires, and nothing fails."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    compiled = torch.compile(model, backend="eager")
    x, y = batch()
    compiled(x)
    monitor, recorder = recorded(model, criterion)
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        for _ in range(8):
            criterion(compiled(x), y).backward()
    monitor.epoch(0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "watch the model first and compile it then" in said[0]
    assert monitor.status().last_error == "losses but no features"
    assert recorder.windows() == []


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = nn.Sequential(nn.Linear(10, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False))


def test_checkpointing_inside_a_compiled_model_breaks_no_graph(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing may be written from inside: the layer there is not seen, which is said, and the classifier's input is."""
    model, criterion = Checkpointed(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, layers=["block.0"])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, y = batch()
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        for _ in range(2):
            criterion(compiled(x), y).backward()
    monitor.epoch(0)
    found = only(recorder)
    assert [layer.name for layer in found[0].layers] == [CLASSIFIER_INPUT]
    agrees(found, CLASSIFIER_INPUT, model.block(torch.cat([x, x])), torch.cat([y, y]), 3)
    assert ["does not see block.0" in record.getMessage() for record in caplog.records] == [True]


def trained(make: Callable[[], nn.Module], data: Any, how: str, *, watched: bool) -> list[Tensor]:
    torch.manual_seed(5)
    model, criterion = make(), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor, _ = recorded(model, criterion, optimizer=optimizer, enabled=watched, window_steps=7)
    call: Any = torch.compile(model, backend="aot_eager") if how == "compile" else model
    scaler = torch.amp.GradScaler("cpu", enabled=how == "fp16")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(how)
    for number in range(30):
        x, y = data(number)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=kind or torch.bfloat16, enabled=kind is not None):
            loss = criterion(call(x + 0.01 * torch.randn_like(x)), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert monitor.status().sampled_steps == (30 if watched else 0)
    return [*model.state_dict().values(), torch.get_rng_state()]


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 5, 4, generator=generator), torch.randint(0, 3, (12,), generator=generator)


@pytest.mark.parametrize("how", ["plain", "bf16", "fp16", "compile"])
@pytest.mark.parametrize(
    ("make", "data"),
    [
        (mlp, lambda seed: batch(seed=seed)),
        (cnn, lambda seed: images(seed=seed)),
        (lambda: Encoder("cls", depth=1), tokens),
    ],
    ids=["mlp", "cnn", "vit"],
)
def test_thirty_steps_leave_the_same_weights_and_random_state(make: Any, data: Any, how: str) -> None:
    with_ncmon, without = trained(make, data, how, watched=True), trained(make, data, how, watched=False)
    assert all(torch.equal(one, other) for one, other in zip(with_ncmon, without, strict=True))


def test_half_precision_that_overflows_is_counted_and_does_not_spread() -> None:
    model, criterion = nn.Sequential(nn.Sequential(nn.Linear(10, 8)), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    x[0] = 6e4
    with torch.autocast("cpu", dtype=torch.float16):
        model[0][0].weight.data.fill_(1.0)
        criterion(model(x), y)
    monitor.epoch(0)
    meta, arrays = only(recorder)
    at = place(meta, CLASSIFIER_INPUT)
    assert arrays[at, "nonfinite_counts"].tolist() == [int(y[0] == c) for c in range(3)]
    assert arrays[-1, "loss_nonfinite"].sum() == 1
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_vmap_and_functional_gradients_are_no_steps() -> None:
    """Per-sample gradients: the taps would see wrapped tensors, which must not outlive the transform."""
    model, criterion = nn.Sequential(nn.Sequential(nn.Linear(10, 8), nn.Tanh()), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (one[None],))
        return criterion(logits, label[None])

    criterion(model(x), y).backward()
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    assert each["0.0.weight"].shape == (24, 8, 10)
    assert not monitor._capture._kept
    criterion(model(x), y).backward()
    monitor.epoch(0)
    found = only(recorder)
    assert (found[0].steps, found[0].sampled_steps, found[0].skipped_batches) == (2, 2, {})
    agrees(found, CLASSIFIER_INPUT, model[0](torch.cat([x, x])), torch.cat([y, y]), 3)


@pytest.mark.parametrize("strict", [True, False])
def test_export_sees_no_hook_and_leaves_nothing_behind(strict: bool) -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(model(x), y).backward()
    exported = torch.export.export(model, (x,), strict=strict)
    plain = copy.deepcopy(model)
    criterion(model(x), y).backward()
    torch.testing.assert_close(exported.module()(x), plain(x))
    monitor.epoch(0)
    assert (only(recorder)[0].sampled_steps, monitor.status().last_error) == (2, "")


# Deprecated from torch 2.14 on, and still there.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_traces_a_watched_model_and_says_why_it_cannot_script_one() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    criterion(model(x), y).backward()
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x))
    with pytest.raises(AttributeError, match=r"script it before watch\(\) or after monitor.close"):
        torch.jit.script(model)
    criterion(model(x), y).backward()
    monitor.epoch(0)
    assert (only(recorder)[0].sampled_steps, monitor.status().last_error) == (2, "")
    monitor.close()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_an_average_of_weights_kept_beside_the_model_is_not_watched() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    x, y = batch()
    for _ in range(2):
        criterion(model(x), y).backward()
        average.update_parameters(model)
    average.train()
    functional.cross_entropy(average(x), y)
    torch.optim.swa_utils.update_bn([x], average)
    torch.save(average.module, io.BytesIO())
    monitor.epoch(0)
    meta, _ = only(recorder)
    assert (meta.steps, meta.sampled_steps) == (2, 2)


def test_a_pass_that_fails_in_the_middle_is_forgotten() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.fail = mlp(), False

        def forward(self, x: Tensor) -> Tensor:
            h = self.net[1](self.net[0](x))
            if self.fail:
                raise torch.OutOfMemoryError("made up")
            return self.net[2](h)

    model, criterion = Failing(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    for model.fail in (False, True, False):
        try:
            criterion(model(x), y).backward()
        except torch.OutOfMemoryError:
            continue
    monitor.epoch(0)
    meta, arrays = only(recorder)
    assert (meta.steps, meta.sampled_steps, meta.skipped_batches) == (2, 2, {})
    assert arrays[place(meta, CLASSIFIER_INPUT), "class_counts"].sum() == 48


def test_an_error_of_the_models_own_reaches_the_loop_as_it_is() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    recorded(model, criterion)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(4, 3))
    with pytest.raises(ValueError, match="batch_size"):
        criterion(model(batch()[0]), torch.zeros(3, dtype=torch.long))


def test_compiled_autograd_and_inference_tensors_in_measure() -> None:
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch()
    with torch.inference_mode():
        data = [(x.clone(), y.clone())]
    criterion(model(x), y).backward()
    monitor.epoch(0)
    monitor.measure(data, exact_ncc=True)
    with torch.inference_mode():
        monitor.measure(data)
    assert [meta.split for meta, _ in recorder.windows()] == ["train", "test", "test"]
    assert monitor.status().last_error == ""


LOADING = """
import sys, torch, ncmon_client
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tests.client.hooking import recorded, batch, mlp

def main(context):
    torch.manual_seed(0)
    x, y = batch(24)
    loader = DataLoader(TensorDataset(x, y), batch_size=12, shuffle=True, num_workers=1,
                        multiprocessing_context=context)
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    for inputs, labels in loader:
        criterion(model(inputs), labels).backward()
    monitor.close()
    print(context, [(meta.split, int(arrays[-1, "label_counts"].sum())) for meta, arrays in recorder.windows()])

if __name__ == "__main__":
    for context in sys.argv[1:]:
        main(context)
"""


def test_workers_of_a_loader_started_in_any_way(tmp_path: Any) -> None:
    """In one process one after the other: every other interpreter would load torch again."""
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    ways = ["fork", "spawn", "forkserver"]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *ways], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{way} [('train', 24)]" for way in ways]
    assert done.stderr == ""


ENDLESS = f"""
import torch, ncmon_client
from torch import nn
model, criterion = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), nn.CrossEntropyLoss()
monitor = ncmon_client.watch(model, criterion, endpoint={NOBODY!r}, every=1, window_steps=2)
first = True
while True:
    criterion(model(torch.randn(8, 4)), torch.randint(0, 2, (8,))).backward()
    if monitor.status().accepted > 3 and first:
        print("started", flush=True)
        first = False
"""


def test_a_termination_signal_is_neither_caught_nor_delayed() -> None:
    child = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"started\n"
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=10) == -signal.SIGTERM
    assert time.monotonic() - begun < 1.0
    child.stdout.close()


def test_the_end_of_a_process_that_never_closed_waits_a_moment_at_most() -> None:
    # Asked for first and so called last: what the interpreter and torch take to end is not ncmon's.
    first = "import atexit, time\natexit.register(lambda: print(time.monotonic(), flush=True))\n"
    code = first + ENDLESS.replace("while True", "for _ in range(20)") + "print(time.monotonic(), flush=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    begin, end = map(float, done.stdout.split()[-2:])
    assert end - begin < 3.0
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1, done.stderr
