"""The compiled kernel: the sums of two passes over raw features, whatever the features; and what is without it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ncmon_client import compiled
from ncmon_client.accumulate import Sums
from ncmon_client.compiled import Build, Kernel
from ncmon_client.moments import Drained
from ncmon_client.rows import Rows
from tests.client.hooking import batch, mlp, recorded, two_pass

CPU = torch.device("cpu")
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def build() -> Build:
    made = Build()
    made.wait(60)
    assert made.word == "compiled", made.word
    return made


def clusters(n: int, d: int, n_classes: int = 4, *, offset: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    means = offset + torch.randn(n_classes, d, generator=generator)
    return means[labels] + 0.3 * torch.randn(n, d, generator=generator), labels


def spoil(h: Tensor, rows: Tensor, how: str) -> None:
    if how == "nan":
        h[3, 0], h[5, -1] = float("nan"), float("-inf")
    elif how == "zero":
        h[4] = 0
    elif how == "ignored":
        rows[::7] = 4
    elif how == "huge":
        h[6], h[8] = 1e25, 1e17  # the square of the first leaves single precision


def sums(build: Build | None, layers: list[Tensor], rows: Tensor, *, parts: int = 3) -> Sums:
    """A window of several batches, after one whose means it is shifted by."""
    first = Sums(4, layers[0].shape[1], CPU, exact=False, references=[None] * len(layers))
    good = torch.isfinite(torch.stack(layers)).all(2).all(0) & (torch.stack(layers).abs() < 1e10).all(2).all(0)
    first.update([h[good] for h in layers], Rows(rows[good], 4))
    shifts = first.references()
    decides = [True] * len(layers)
    found = Sums(4, layers[0].shape[1], CPU, exact=False, references=shifts, nearest=decides, build=build)
    for own in torch.arange(len(rows)).tensor_split(parts):
        found.update([h[own] for h in layers], Rows(rows[own], 4), rows[own].clamp(max=3))
    return found


def agree(one: Drained, truth: dict[str, object]) -> None:
    for name in ("class_means", "within_sq", "unit_sums", "norm_sums", "norm_sq_sums"):
        torch.testing.assert_close(
            torch.as_tensor(getattr(one, name)), torch.as_tensor(truth[name]), rtol=2e-5, atol=2e-5, msg=name
        )


@pytest.mark.parametrize("d", [1, 17, 160])
@pytest.mark.parametrize("how", ["plain", "nan", "zero", "ignored"])
def test_the_sums_are_those_of_two_passes(build: Build, how: str, d: int) -> None:
    layers, rows = [], clusters(90, d)[1]
    for seed in range(2):
        h = clusters(90, d, seed=seed)[0]
        spoil(h, rows, how if seed else "ignored" if how == "ignored" else "plain")
        layers.append(h)
    window = sums(build, layers, rows)
    for member, h in zip(window.members, layers, strict=True):
        drained = member.drain()
        good = torch.isfinite(h).all(1) & (rows < 4)
        agree(drained, two_pass(h[good].double(), rows[good], 4))
        assert drained.nonfinite_counts.sum() == (~torch.isfinite(h).all(1) & (rows < 4)).sum()
        assert drained.zero_counts.sum() == (h == 0).all(1).sum()
        assert drained.class_counts.tolist() == torch.bincount(rows[good], minlength=4).tolist()


@pytest.mark.parametrize("how", ["plain", "nan", "zero", "ignored", "huge"])
def test_decisions_and_second_moments_are_those_of_torch(build: Build, how: str) -> None:
    """Width 17 keeps S whole, width 160 keeps samples: what left the sums out is left out there too."""
    for d in (17, 160):
        h, rows = clusters(90, d)
        spoil(h, rows, how)
        fast, plain = (sums(each, [h.clone(), h.clone()], rows) for each in (build, None))
        assert torch.equal(fast.decided, plain.decided)
        assert torch.equal(fast.counts, plain.counts)
        assert torch.equal(fast.nonfinite, plain.nonfinite)
        if how == "huge":
            continue  # beside squares of 1e34 what is left of the others' digits is chance
        one, other = (each.members[1].drain() for each in (fast, plain))
        assert one.spread is not None
        assert other.spread is not None
        torch.testing.assert_close(
            *(torch.as_tensor(each.spread.matrix()) for each in (one, other)), rtol=1e-4, atol=1e-4
        )  # type: ignore[union-attr]


def test_far_from_the_origin_no_digits_are_lost(build: Build) -> None:
    """Offset 50 and spread 1e-3: sums of squares in single precision would be off by thousands of times."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(400) % 4
    h = 50 + rows[:, None] + 1e-3 * torch.randn(400, 32, generator=generator)
    found = sums(build, [h], rows).members[0].drain()
    truth = torch.as_tensor(two_pass(h.double(), rows, 4)["within_sq"])
    torch.testing.assert_close(torch.as_tensor(found.within_sq), truth, rtol=1e-4, atol=0.0)


def test_a_class_that_comes_late_gets_its_shift(build: Build) -> None:
    h, rows = clusters(120, 20, offset=40.0)
    window = Sums(4, 20, CPU, exact=False, build=build)
    for part in (rows < 2, rows == 2, rows < 3, rows == 3, rows > -1):
        window.update([h[part]], Rows(rows[part], 4))
    every = torch.cat([torch.nonzero(part).view(-1) for part in (rows < 2, rows == 2, rows < 3, rows == 3, rows > -1)])
    truth = two_pass(h[every].double(), rows[every], 4)
    torch.testing.assert_close(
        torch.as_tensor(window.members[0].drain().within_sq), torch.as_tensor(truth["within_sq"]), rtol=1e-4, atol=1e-5
    )


def test_strided_and_half_precision_features_are_taken_as_they_are(build: Build) -> None:
    h, rows = clusters(60, 24)
    turned, sliced = h.T.contiguous().T, torch.stack((h, -h), 1)[:, 0]
    assert not turned.is_contiguous()
    for given in (turned, sliced, h.bfloat16()):
        good = two_pass(given.double(), rows, 4)
        agree(sums(build, [given], rows).members[0].drain(), good)


def test_a_batch_of_no_samples_and_of_none_that_counts(build: Build) -> None:
    h, rows = clusters(30, 12)
    window = sums(build, [h], rows)
    before = window.sums.clone()
    window.update([h[:0]], Rows(rows[:0], 4))
    window.update([h], Rows(torch.full_like(rows, 4), 4))
    assert torch.equal(window.sums[..., :-1, :], before[..., :-1, :])


def test_a_watched_training_has_the_same_statistics_and_the_same_weights() -> None:
    def trained(kernel: str | None) -> tuple[list[Tensor], list[dict[tuple[int, str], Any]]]:
        torch.manual_seed(0)
        model, criterion = mlp(), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        windows: list[dict[tuple[int, str], Any]] = []
        if kernel is not None:
            monitor, recorder = recorded(model, criterion, every=1, kernel=kernel)
            if kernel == "compiled":
                monitor._build.wait(60)
        for epoch in range(3):
            for seed in range(4):
                x, y = batch(seed=seed)
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
            if kernel is not None:
                monitor.epoch(epoch)
        if kernel is not None:
            assert monitor.status().kernel == kernel
            assert monitor.status().mishaps == 0
            windows = [arrays for _, arrays in recorder.windows()]
        return [p.detach() for p in model.parameters()], windows

    bare, fast, plain = trained(None), trained("compiled"), trained("torch")
    assert all(torch.equal(a, b) for a, b in zip(bare[0], fast[0], strict=True))
    assert len(fast[1]) == len(plain[1]) == 3
    for one, other in zip(fast[1], plain[1], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-4, atol=1e-5, err_msg=str(key))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/nonexistent/cc", "torch: the C compiler"),
        ("false", "torch: the C compiler failed"),
    ],
)
def test_without_a_compiler_torch_adds_up(monkeypatch: pytest.MonkeyPatch, command: str, said: str) -> None:
    monkeypatch.setenv("CC", command)
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, every=1, kernel="compiled")
    monitor._build.wait(60)
    criterion(model(batch()[0]), batch()[1])
    monitor.epoch(0)
    assert monitor.status().kernel.startswith(said)
    assert monitor.status().mishaps == 0
    assert len(recorder.windows()) == 1


def test_what_does_not_say_what_it_should_is_not_used(tmp_path: Path) -> None:
    source, library = tmp_path / "idle.c", tmp_path / "idle.so"
    source.write_text("long ncmon_add(void) { return 0; }\n")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    with pytest.raises(ValueError, match=r"wrong classes|not those of numpy"):
        Kernel(library)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path))
    made = Build()
    made.wait(60)
    assert made.word == "compiled"
    assert list(tmp_path.iterdir()) == []


def test_the_process_still_has_numbers_below_the_smallest_normal_one(build: Build) -> None:
    """A library linked for fast mathematics would flush them for the whole process, and change what is trained."""
    assert float(torch.tensor(1e-38) * torch.tensor(1e-3)) > 0


@pytest.mark.parametrize("kernel", ["torch", "compiled"])
def test_where_new_tensors_go_by_default_is_the_trainings_affair(kernel: str) -> None:
    """A model on the host while the default device is another one: memory from there must not reach the sums."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion, every=1, kernel=kernel)
    if kernel == "compiled":
        monitor._build.wait(60)
    x, y = batch()
    with torch.device("meta"):
        for epoch in range(2):
            criterion(model(x), y).backward()
            monitor.epoch(epoch)
    assert (monitor.status().mishaps, monitor.status().kernel) == (0, kernel)
    assert len(recorder.windows()) == 2
