"""The payload budget: what large windows leave out, in which order, and what they never do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ncmon import ingest
from ncmon.evaluate import evaluate
from ncmon_client import wire
from ncmon_client.layers import CLASSIFIER_INPUT, Layer
from ncmon_client.payload import LADDER, reduction
from tests.client.hooking import batch, mlp, place, recorded


def layers(*widths: int) -> tuple[Layer, ...]:
    names = [f"block{number}" for number in range(len(widths) - 1)] + [CLASSIFIER_INPUT]
    return tuple(
        Layer(name=name, index=index, module="Linear", n_features=width, reduction="none")
        for index, (name, width) in enumerate(zip(names, widths, strict=True))
    )


shapes = st.lists(st.integers(1, 3_000), min_size=1, max_size=20).map(lambda widths: layers(*widths))


@given(shapes, st.integers(2, 2_000), st.sampled_from([None, 1024]), st.integers(1, 2**28))
def test_no_step_is_taken_without_need(
    found: tuple[Layer, ...], n_classes: int, widest: int | None, budget: int
) -> None:
    chosen = reduction(found, n_classes, widest_scatter=widest, budget_bytes=budget)
    sizes = [step.nbytes(found, n_classes, widest_scatter=widest) for step in LADDER]
    assert sizes == sorted(sizes, reverse=True)
    at = LADDER.index(chosen)
    assert all(size > budget for size in sizes[:at])
    assert sizes[at] <= budget or chosen == LADDER[-1]
    # What enters the classifier keeps all it has.
    assert chosen.wants_scatter(found[-1])
    assert chosen.wants_weighted(found[-1])


def test_the_sizes_are_those_of_the_arrays() -> None:
    found = layers(768, 768)
    assert LADDER[0].nbytes(found, 10, widest_scatter=None) == 2 * 2 * 10 * 768 * 8
    assert LADDER[0].nbytes(found, 10, widest_scatter=1024) == 2 * (2 * 10 * 768 * 8 + 2 * 768 * 768 * 8)
    assert LADDER[-1].nbytes(found, 10, widest_scatter=1024) == 2 * 2 * 10 * 768 * 4 + 2 * 768 * 768 * 4
    assert LADDER[0].nbytes(layers(2048, 768), 10, widest_scatter=1024) == 2 * 10 * 8 * (2048 + 768) + 2 * 768 * 768 * 8


def windows(monkeypatch: pytest.MonkeyPatch, budget: int) -> tuple[list[Any], list[Any]]:
    """Return two windows of one rank of two, classes of unequal size, and what the daemon makes of them."""
    monkeypatch.setattr("ncmon_client.closed.PAYLOAD_BUDGET_BYTES", budget)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model, criterion = mlp(), nn.CrossEntropyLoss()
    monitor, recorder = recorded(model, criterion)
    x, y = batch(60)
    y[:40] = 0
    for number in range(2):
        criterion(model(x), y).backward()
        monitor.epoch(number)
    sealed = [item.seal() for item in recorder.offered]
    parts = [
        ingest.to_part(wire.Message(kind=wire.Kind.WINDOW, stream=bytes(16), seq=0, meta=meta, blob=blob), received=0.0)
        for meta, blob in sealed
    ]
    return [(meta, wire.unpack_arrays(meta, blob)) for meta, blob in sealed], parts


SAID = (
    "",
    "class means in single precision: payload over budget",
    "class means in single precision, second moment in single precision: payload over budget",
    (
        "class means in single precision, second moment in single precision, "
        "no second moment in which every class counts once: payload over budget"
    ),
    "class means in single precision, no second moment: payload over budget",
)


@pytest.mark.parametrize("step", range(len(LADDER)))
def test_a_window_holds_what_its_reduction_says_and_says_it(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = LADDER[step].nbytes(layers(16, 8), 3, widest_scatter=1024)
    ((_, _), (meta, arrays)), parts = windows(monkeypatch, budget)
    inner, last = place(meta, "0"), place(meta, CLASSIFIER_INPUT)
    (_, (_, whole)), _ = windows(monkeypatch, 2**30)
    reduced = LADDER[step]
    for at in (inner, last):
        assert arrays[at, "class_means"].dtype == (np.float32 if reduced.means_single else np.float64)
    for name, kept in (("within_scatter", reduced.inner_scatter), ("weighted_scatter", step < 3)):
        assert ((inner, name) in arrays) is kept
        assert (last, name) in arrays
        for at in (inner, last) if kept else (last,):
            assert arrays[at, name].dtype == (np.float32 if reduced.scatter_single else np.float64)
            np.testing.assert_allclose(arrays[at, name], whole[at, name], rtol=1e-5, atol=1e-6)
    assert meta.layers[inner].note == SAID[step]
    assert meta.layers[last].note == SAID[min(step, 2)]
    found = evaluate(parts[-1].window)
    assert found.layers[last].readings["nc1_pinv"].value > 0
    assert (found.layers[inner].readings["nc1_pinv"].value is not None) is reduced.inner_scatter
