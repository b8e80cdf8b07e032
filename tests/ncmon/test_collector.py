"""Ranks merge exactly, streams keep their order, nothing waits for ever."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncmon.collector import RANK_TIMEOUT_S, Collector, Ready, merge
from ncmon.evaluate import evaluate
from ncmon.model import CLASSIFIER_INPUT, FloatArray, Gap, Part, Rejection, RunEnd, StreamSeq, Window
from tests.factories import make_features, make_window, window_from_features


def stream(rank: int, start: int = 0) -> bytes:
    return bytes([rank, start]) + bytes(14)


def part(rank: int, seq: int, *, step: int = 100, world: int = 2, start: int = 0, **fields: Any) -> Part:
    window = make_window(seed=rank, layers=1, n_features=5, per_class=3, scatter=True, step=step, exact=False)
    return Part(
        origin=StreamSeq(stream=stream(rank, start), seq=seq),
        rank=rank,
        window=dataclasses.replace(window, ranks=(rank,), world_size=world, **fields),
    )


def gap(step: int = 100) -> Gap:
    return Gap(run_id="run", split="train", epoch=0, step=step, time=1.0, reason="r")


END = RunEnd(run_id="run", status="finished", text="", time=1.0)


class Ranks:
    """A collector with a clock, and a count of each rank's messages."""

    def __init__(self, world: int = 2, *, known: bool = True) -> None:
        self.collector = Collector()
        self.world = world
        self.now = 0.0
        self.next = [0] * world
        if known:
            for rank in range(world):
                self.collector.open(stream(rank), run_id="run", rank=rank)

    def send(self, rank: int, step: int = 100, **fields: Any) -> list[Ready]:
        seq = self.next[rank]
        self.next[rank] += 1
        share = part(rank, seq, step=step, world=self.world, **fields)
        return self.collector.put(share, share.origin, now=self.now)

    def pass_on(self, rank: int, item: Gap | RunEnd | Rejection) -> list[Ready]:
        seq = self.next[rank]
        self.next[rank] += 1
        return self.collector.put(item, StreamSeq(stream=stream(rank), seq=seq), now=self.now)

    def wait(self, seconds: float) -> list[Ready]:
        self.now += seconds
        return self.collector.tick(now=self.now)


def steps(ready: list[Ready]) -> list[tuple[int, tuple[int, ...]]]:
    return [(one.item.step, one.item.ranks) for one in ready if isinstance(one.item, Window)]


def test_a_window_of_one_rank_goes_straight_through() -> None:
    share = part(0, 5, world=1)
    [ready] = Collector().put(share, share.origin, now=0.0)
    assert ready.item is share.window
    assert ready.origins == (share.origin,)


def test_shares_wait_for_each_other_and_leave_together() -> None:
    ranks = Ranks(3)
    assert ranks.send(0) == []
    assert ranks.send(2) == []
    [ready] = ranks.send(1)
    assert isinstance(ready.item, Window)
    assert ready.item.ranks == (0, 1, 2)
    assert not ready.item.partial
    assert {origin.stream for origin in ready.origins} == {stream(0), stream(1), stream(2)}
    assert ranks.collector.held == 0


@pytest.mark.parametrize("change", [{"split": "test"}, {"exact": True}, {"run_id": "other"}])
def test_windows_of_different_keys_are_not_mixed(change: dict[str, Any]) -> None:
    ranks = Ranks()
    assert ranks.send(0) == []
    assert ranks.send(1, **change) == []
    assert ranks.collector.held == 2


def test_a_missing_rank_is_waited_for_half_a_minute() -> None:
    ranks = Ranks()
    ranks.send(0)
    assert ranks.collector.next_deadline() == RANK_TIMEOUT_S
    assert ranks.wait(RANK_TIMEOUT_S - 0.1) == []
    [ready] = ranks.wait(0.1)
    assert isinstance(ready.item, Window)
    assert ready.item.partial
    assert ready.item.ranks == (0,)
    assert ranks.collector.next_deadline() is None


def test_a_rank_that_was_waited_for_in_vain_is_not_waited_for_again_until_it_speaks() -> None:
    """Often only rank 0 is watched: one delay, not one for every window."""
    ranks = Ranks(known=False)
    ranks.send(0, 100)
    ranks.send(0, 200)
    assert steps(ranks.wait(RANK_TIMEOUT_S)) == [(100, (0,)), (200, (0,))]
    assert steps(ranks.send(0, 300)) == [(300, (0,))]
    assert steps(ranks.send(1, 400)) == []
    assert steps(ranks.send(0, 400)) == [(400, (0, 1))]
    assert ranks.send(0, 500) == []


def test_a_rank_that_is_already_further_on_is_not_waited_for() -> None:
    ranks = Ranks()
    ranks.send(1, 200)
    assert steps(ranks.send(0, 100)) == [(100, (0,))]
    assert steps(ranks.send(0, 200)) == [(200, (0, 1))]


def test_a_rank_that_ended_is_not_waited_for() -> None:
    ranks = Ranks()
    assert [one.item for one in ranks.pass_on(1, END)] == [END]
    assert steps(ranks.send(0, 100)) == [(100, (0,))]


def test_a_rank_that_sent_a_gap_in_its_place_is_not_waited_for() -> None:
    ranks = Ranks()
    ranks.send(0, 100)
    ready = ranks.pass_on(1, gap(100))
    assert steps(ready) == [(100, (0,))]
    assert [one.item.step for one in ready if isinstance(one.item, Gap)] == [100]


def test_a_gap_that_came_first_counts_as_well() -> None:
    ranks = Ranks()
    ranks.pass_on(1, gap(100))
    assert steps(ranks.send(0, 100)) == [(100, (0,))]


def test_nothing_of_a_stream_overtakes_a_share_that_waits() -> None:
    ranks = Ranks()
    ranks.send(0, 100)
    assert ranks.pass_on(0, gap(150)) == []
    assert ranks.pass_on(0, END) == []
    ready = ranks.send(1, 100)
    assert [type(one.item) for one in ready] == [Window, Gap, RunEnd]
    assert [origin.seq for one in ready for origin in one.origins if origin.stream == stream(0)] == [0, 1, 2]


def test_ranks_that_send_two_windows_in_different_orders_leave_together() -> None:
    ranks = Ranks()
    ranks.send(0, 100, split="train")
    ranks.send(0, 100, split="test")
    # The test window is complete, and has to wait for the train window that rank 0 sent before it.
    assert ranks.send(1, 100, split="test") == []
    ready = ranks.send(1, 100, split="train")
    assert len(ready) == 2
    assert ranks.collector.held == 0


def test_a_share_that_comes_too_late_is_recorded_as_a_gap() -> None:
    ranks = Ranks()
    ranks.send(0, 100)
    ranks.wait(RANK_TIMEOUT_S)
    [ready] = ranks.send(1, 100)
    assert isinstance(ready.item, Gap)
    assert "rank 1" in ready.item.reason
    assert ready.origins == (StreamSeq(stream=stream(1), seq=0),)


def test_a_resumed_run_repeats_steps_and_is_not_late() -> None:
    ranks = Ranks()
    ranks.send(0, 100)
    ranks.wait(RANK_TIMEOUT_S)
    for rank in range(2):
        ranks.collector.open(stream(rank, 1), run_id="run", rank=rank)
    again = [part(rank, 0, step=100, start=1) for rank in (1, 0)]
    assert ranks.collector.put(again[0], again[0].origin, now=ranks.now) == []
    assert steps(ranks.collector.put(again[1], again[1].origin, now=ranks.now)) == [(100, (0, 1))]


def test_a_rank_of_the_next_attempt_waits_for_the_others_and_not_for_those_of_the_last() -> None:
    ranks = Ranks()
    for rank in range(2):
        ranks.send(rank, 100)
        ranks.send(rank, 200)
    ranks.send(0, 300)  # rank 1 has died
    collector = ranks.collector

    def begin(rank: int) -> None:
        collector.open(stream(rank, 1), run_id="run", rank=rank, attempt=2)

    def send(rank: int, seq: int, step: int) -> list[Ready]:
        share = part(rank, seq, step=step, start=1)
        return collector.put(share, share.origin, now=ranks.now)

    begin(0)
    # From the checkpoint at step 50. That rank 1 was at step 200 once says nothing of its share of step 100.
    assert send(0, 0, 100) == []
    begin(1)
    assert steps(send(1, 0, 100)) == [(100, (0, 1))]
    # What the dead rank never added to is not completed by its successor: those are other weights.
    assert send(1, 1, 300) == []
    [ready] = send(0, 1, 300)
    assert isinstance(ready.item, Window)
    assert ready.item.ranks == (0, 1)
    assert {origin.stream for origin in ready.origins} == {stream(0, 1), stream(1, 1)}
    # What was left of the first attempt, out of a spool, is merged with its own.
    [ready] = ranks.send(1, 300)
    assert isinstance(ready.item, Window)
    assert {origin.stream for origin in ready.origins} == {stream(0), stream(1)}


def test_a_share_that_comes_again_under_a_new_stream_counts_once_and_acknowledges_both() -> None:
    ranks = Ranks()
    ranks.send(0, 100)
    ranks.collector.open(stream(0, 1), run_id="run", rank=0)
    again = part(0, 0, step=100, start=1)
    assert ranks.collector.put(again, again.origin, now=0.0) == []
    [ready] = ranks.send(1, 100)
    assert isinstance(ready.item, Window)
    assert ready.item.ranks == (0, 1)
    assert len(ready.origins) == 3
    per_class = again.window.layers[0].class_counts + part(1, 0).window.layers[0].class_counts
    assert np.array_equal(ready.item.layers[0].class_counts, per_class)


def test_what_was_dropped_comes_again_as_if_it_had_never_come() -> None:
    """The store failed: the clients send everything again, and no rank counts as further on than it is."""
    ranks = Ranks()
    ranks.send(1, 100)
    ranks.send(1, 200)
    ranks.collector.drop()
    assert ranks.collector.held == 0
    ranks.next = [0, 0]
    assert ranks.send(0, 100) == []
    assert steps(ranks.send(1, 100)) == [(100, (0, 1))]


def test_ranks_that_cannot_be_shares_of_one_window_become_a_rejection() -> None:
    ranks = Ranks()
    ranks.send(0)
    wide = make_window(layers=1, n_features=6, step=100, exact=False)
    share = part(1, 0)
    wide = dataclasses.replace(wide, ranks=(1,), world_size=2)
    [ready] = ranks.collector.put(dataclasses.replace(share, window=wide), share.origin, now=0.0)
    assert isinstance(ready.item, Rejection)
    assert ready.item.code == "ranks"
    assert CLASSIFIER_INPUT in ready.item.reason
    assert len(ready.origins) == 2


def test_a_stream_that_is_forgotten_is_simply_unknown() -> None:
    ranks = Ranks()
    ranks.collector.forget(stream(1))
    ranks.collector.forget(stream(1))
    ranks.send(0, 100)
    assert steps(ranks.send(1, 100)) == [(100, (0, 1))]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_whatever_the_order_everything_leaves_once_and_in_order(world: int, windows: int, seed: int) -> None:
    rng = random.Random(seed)
    ranks = Ranks(world, known=rng.random() < 0.5)
    todo = {
        rank: sorted(
            (100 * (number + 1), split)
            for number in range(windows)
            for split in ("train", "test")
            if rng.random() < 0.8
        )
        for rank in range(world)
    }
    left: list[Ready] = []
    sent = 0
    while any(todo.values()):
        rank = rng.choice([rank for rank in todo if todo[rank]])
        step, split = todo[rank].pop(0)
        left += ranks.pass_on(rank, gap(step)) if rng.random() < 0.1 else ranks.send(rank, step, split=split)
        left += ranks.wait(rng.choice([0.0, 0.0, 1.0, RANK_TIMEOUT_S]))
        sent += 1
    left += ranks.wait(RANK_TIMEOUT_S)
    assert ranks.collector.held == 0
    for rank in range(world):
        seqs = [origin.seq for one in left for origin in one.origins if origin.stream == stream(rank)]
        assert seqs == list(range(ranks.next[rank]))
    assert sum(len(one.origins) for one in left) == sent


# -- merging ----------------------------------------------------------------------------------------------------------


def shares(counts: list[int], seed: int, *, scatter: bool = True) -> tuple[list[Window], Window]:
    """The shares of ranks that split the samples, and the window of one pass over all of them."""
    features = make_features(seed=seed, n_classes=3, n_features=4, per_class=12, layers=2)
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(counts)), counts)[: features.labels.size]
    owner = np.concatenate([owner, np.zeros(features.labels.size - owner.size, dtype=int)])
    rng.shuffle(owner)

    def window(mask: Any, **fields: Any) -> Window:
        return window_from_features(
            {name: layer[mask] for name, layer in features.layers.items()},
            features.labels[mask],
            features.weight,
            features.bias,
            n_classes=3,
            scatter=scatter,
            ncc=False,
            world_size=len(counts),
            **fields,
        )

    alone = [window(owner == rank, ranks=(rank,)) for rank in range(len(counts))]
    return alone, window(np.ones(owner.size, dtype=bool), ranks=tuple(range(len(counts))))


def near(a: FloatArray | None, b: FloatArray | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.allclose(a, b, rtol=1e-12, atol=1e-12 * max(1.0, float(np.abs(b).max(initial=0.0)))))


OF_BEFORE = ("before_counts", "shift_sq", "weighted_scatter", "moment_weights")


def test_shares_of_equal_weights_merge_to_the_scatter_in_which_classes_count_once() -> None:
    """Two ranks with the same class sizes, unequal ones, and features of their own."""
    raws = [make_features(seed=rank, n_features=5, per_class=[3, 9, 5, 2], layers=1, n_classes=4) for rank in (0, 1)]
    windows = [window_from_features(r.layers, r.labels, r.weight, scatter=True, ranks=(n,)) for n, r in enumerate(raws)]
    rows = np.concatenate([raw.last for raw in raws])
    labels = np.concatenate([raw.labels for raw in raws])
    whole = window_from_features({CLASSIFIER_INPUT: rows}, labels, raws[0].weight, scatter=True)
    (merged,) = merge([dataclasses.replace(window, world_size=2) for window in windows]).layers
    assert merged.before_counts is not None
    assert merged.before_counts.tolist() == [6, 18, 10, 4]
    # A rank's classes are half of the whole's: twice its weight.
    assert near(merged.weighted_scatter, 2 * whole.layers[0].weighted_scatter)  # type: ignore[operator]
    found, expected = (
        evaluate(dataclasses.replace(whole, layers=(layer,))).layers[0].readings["nc1_balanced"].value
        for layer in (merged, whole.layers[0])
    )
    assert found == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.integers(1, 15), min_size=2, max_size=4), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_merged_ranks_equal_one_pass_over_all_samples(counts: list[int], seed: int) -> None:
    """Also where a rank saw nothing of a class, or nothing at all."""
    alone, whole = shares(counts, seed)
    merged = merge(alone)
    assert merged.ranks == whole.ranks
    for found, expected in zip((*merged.layers, merged.head), (*whole.layers, whole.head), strict=True):
        for field in dataclasses.fields(expected):
            value = getattr(expected, field.name)
            # Windows before of other sizes are no one weight a class.
            if isinstance(value, np.ndarray) and field.name not in ("bn_gamma", "bn_beta", *OF_BEFORE):
                assert near(getattr(found, field.name), value), field.name


def test_a_reduction_to_one_ranks_span_does_not_survive() -> None:
    alone, _ = shares([6, 6], 0, scatter=False)
    assert alone[0].layers[-1].span_singular is not None
    merged = merge(alone).layers[-1]
    assert merged.span_singular is None
    assert merged.span_within is None
    assert merged.within_scatter is None
    assert merge(alone[:1]) is alone[0]


def test_the_facts_of_a_window_merge() -> None:
    alone, _ = shares([6, 6], 0)
    first = dataclasses.replace(alone[0], ignored_labels=1, skipped_batches={"soft": 2}, overhead=0.01, time=5.0)
    second = dataclasses.replace(
        alone[1], ignored_labels=2, skipped_batches={"soft": 1, "shape": 4}, overhead=None, time=7.0
    )
    merged = merge([first, second])
    assert (merged.ignored_labels, merged.skipped_batches) == (3, {"soft": 3, "shape": 4})
    assert (merged.overhead, merged.time) == (0.01, 7.0)


def test_decisions_by_different_means_are_not_added() -> None:
    shared = [part(rank, 0).window for rank in range(2)]
    same = merge(shared)
    assert same.layers[0].ncc_counts is not None
    mixed = merge([shared[0], dataclasses.replace(shared[1], ncc_source="previous")])
    assert mixed.ncc_source == "none"
    assert mixed.layers[0].ncc_counts is None


def test_a_layer_that_one_rank_lacks_is_kept_and_says_so() -> None:
    alone, _ = shares([6, 6], 0)
    lacking = dataclasses.replace(alone[1], layers=alone[1].layers[1:])
    merged = merge([alone[0], lacking])
    assert [layer.key.name for layer in merged.layers] == [layer.key.name for layer in alone[0].layers]
    assert "1 of 2 ranks" in merged.layers[0].note
    assert merged.layers[1].note == ""
