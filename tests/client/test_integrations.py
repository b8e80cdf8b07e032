"""The real frameworks, with small random models: what they do to a step, counted exactly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ncmon_client.closed import LastWord
from ncmon_client.errors import ConfigError
from ncmon_client.layers import CLASSIFIER_INPUT
from tests.client.hooking import NOBODY, Recorder, batch, place

# Frameworks warn about machines, loaders and one another; what is tested here is ncmon.
pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """All outboxes that monitors make."""
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr("ncmon_client.monitor.Outbox", make)
    return made


def splits(recorder: Recorder) -> list[tuple[str, int, int, int]]:
    return [(m.split, m.epoch, m.sampled_steps, int(a[-1, "label_counts"].sum())) for m, a in recorder.windows()]


@pytest.mark.parametrize("through_forward", [True, False])
def test_lightning(kept: list[Recorder], tmp_path: Path, through_forward: bool) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from ncmon_client.integrations.lightning import NcmonCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Sequential(nn.Linear(10, 8), nn.ReLU()), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, item: Any, index: int) -> Tensor:
            return functional.cross_entropy(self(item[0]) if through_forward else self.net(item[0]), item[1])

        def validation_step(self, item: Any, index: int) -> None:
            functional.cross_entropy(self(item[0]), item[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.125)

    x, y = batch(40)
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    callback = NcmonCallback(run="lightning", endpoint=NOBODY, every=1)
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=2,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), loader, loader)
    (recorder,) = kept
    assert splits(recorder) == [("train", 0, 4, 40), ("train", 1, 4, 40)]
    meta, arrays = recorder.windows()[0]
    assert (meta.head.name, meta.head.weight_decay, meta.skipped_batches) == ("net.1", 0.125, {})
    assert arrays[place(meta, CLASSIFIER_INPUT), "class_counts"].tolist() == torch.bincount(y).tolist()
    assert recorder.offered[-1].end.status == "finished" if isinstance(recorder.offered[-1], LastWord) else True


def test_lightning_without_labels_says_so_once_and_trains_on(
    kept: list[Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("lightning.pytorch")
    from ncmon_client.integrations.lightning import NcmonCallback, labels_of

    callback = NcmonCallback(endpoint=NOBODY)
    model = nn.Sequential(nn.Linear(10, 3))

    class FakeTrainer:
        optimizers: tuple[Any, ...] = ()
        current_epoch = 0

    callback.on_train_start(FakeTrainer(), model)
    with caplog.at_level(logging.WARNING, logger="ncmon_client"):
        for _ in range(3):
            callback.on_train_batch_start(FakeTrainer(), model, "text", 0)
            model(batch()[0])
            callback.on_train_batch_end(FakeTrainer(), model, None, "text", 0)
    assert len([record for record in caplog.records if "label_fn" in record.getMessage()]) == 1
    assert torch.equal(labels_of({"labels": batch()[1]}), batch()[1])


def test_lightning_from_a_checkpoint_goes_on_counting(kept: list[Recorder]) -> None:
    pytest.importorskip("lightning.pytorch")
    from ncmon_client.integrations.lightning import NcmonCallback

    class Resumed:
        optimizers: tuple[Any, ...] = ()
        global_step, accumulate_grad_batches = 6, 2

    callback = NcmonCallback(endpoint=NOBODY, every=1)
    callback.on_train_start(Resumed(), nn.Sequential(nn.Linear(10, 3)))  # type: ignore[arg-type]
    assert callback.monitor is not None
    assert callback.monitor.status().steps == 12


def trainer_of(model: Any, data: Any, tmp_path: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            weight_decay=0.125,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        ),
        train_dataset=data,
        eval_dataset=data,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_transformers_sequence_classification(kept: list[Recorder], tmp_path: Path, smoothing: float) -> None:
    transformers = pytest.importorskip("transformers")
    from ncmon_client.integrations.transformers import watch_trainer

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    labels = [index % 3 for index in range(24)]
    data = [{"input_ids": torch.randint(1, 20, (6,)), "labels": label} for label in labels]
    trainer = trainer_of(
        model, data, tmp_path, label_smoothing_factor=smoothing, eval_strategy="epoch", gradient_accumulation_steps=2
    )
    watch_trainer(trainer, run="bert", endpoint=NOBODY, every=1, pool="cls")
    trainer.train()
    (recorder,) = kept
    # Evaluation between epochs counts nothing; with accumulation every micro-batch is a forward pass.
    assert splits(recorder) == [("train", 0, 6, 24), ("train", 1, 6, 24)]
    meta, arrays = recorder.windows()[0]
    names = [layer.name for layer in meta.layers]
    assert names == ["bert.encoder.layer.0", "bert.encoder.layer.1", CLASSIFIER_INPUT]
    assert (meta.head.name, meta.head.weight_decay) == ("classifier", 0.125)
    np.testing.assert_array_equal(arrays[place(meta, names[0]), "class_counts"], [8, 8, 8])


def test_transformers_from_a_checkpoint_goes_on_counting(kept: list[Recorder], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from ncmon_client.integrations.transformers import NcmonCallback

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), gradient_accumulation_steps=3, report_to=[], use_cpu=True
    )
    state = transformers.TrainerState(global_step=5)
    callback = NcmonCallback(endpoint=NOBODY)
    callback.on_train_begin(arguments, state, None, model=nn.Sequential(nn.Linear(10, 3)))
    assert callback.monitor is not None
    assert callback.monitor.status().steps == 15


def test_transformers_causal_language_model(kept: list[Recorder], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from ncmon_client.integrations.transformers import watch_trainer

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    )
    data = []
    for _ in range(8):
        ids = torch.randint(0, 13, (6,))
        data.append({"input_ids": ids, "labels": torch.where(torch.arange(6) < 2, -100, ids)})
    trainer = trainer_of(model, data, tmp_path)
    watch_trainer(trainer, endpoint=NOBODY, every=1, pool="tokens")
    trainer.train()
    (recorder,) = kept
    # Of six positions the first has nothing before it, and the second is masked: four are predicted.
    assert splits(recorder) == [("train", 0, 2, 8 * 4), ("train", 1, 2, 8 * 4)]
    meta, arrays = recorder.windows()[0]
    assert meta.ignored_labels == 8
    targets = torch.stack([item["labels"] for item in data])[:, 1:].flatten()
    counts = torch.bincount(targets[targets >= 0], minlength=13)
    assert [layer.name for layer in meta.layers] == ["transformer.h.0", "transformer.h.1", CLASSIFIER_INPUT]
    assert all((arrays[at, "class_counts"] == counts.numpy()).all() for at in range(3))
    assert (-1, "weight") in arrays


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(kept: list[Recorder], precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    from ncmon_client.integrations.accelerate import watch

    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Sequential(nn.Linear(10, 8), nn.ReLU()), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.125)
    x, y = batch(40)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
    )
    monitor = watch(accelerator, model, criterion, optimizer=optimizer, config={"lr": 0.01}, endpoint=NOBODY, every=1)
    for epoch in range(2):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(inputs), labels))
                optimizer.step()
                optimizer.zero_grad()
        monitor.epoch(epoch)
    monitor.close()
    (recorder,) = kept
    assert splits(recorder) == [("train", 0, 4, 40), ("train", 1, 4, 40)]
    head = recorder.windows()[0][0].head
    assert (head.name, head.weight_decay, head.decoupled_decay) == ("1", 0.125, True)
    assert '"mixed_precision"' in monitor._run.config
    with pytest.raises(ConfigError, match=r"expected an accelerate\.Accelerator"):
        watch(None, model)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
