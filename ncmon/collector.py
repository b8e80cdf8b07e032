"""The collector: shares of windows and the passing of time go in, whole windows in every stream's order come out.

Rules of this module
- It is a state machine without sockets, threads and clocks: `put` and `tick` are told the time (monotonic seconds).
- What it holds is not acknowledged, so that the clients hold it too: a daemon that dies here loses nothing.
- No item of a stream leaves before an earlier one of that stream. The store acknowledges "everything below".

A window of a single rank goes straight through (the reception does not even ask here). Shares of several ranks wait for
each other under one key, which is (run, attempt, split, exact, step), and are merged exactly. A window is *settled*,
and leaves without the ranks that are missing, when it has waited `rank_timeout_s`, or when it is known that nothing
more can come: each missing rank has already sent something later, or its END, or a gap in the place of its share, or
was waited for in vain before. A share that comes after its window has left cannot be added to readings that were
stored; it is recorded as a gap with that reason. Attempts of a run are of different weights: they know nothing of each
other.

Means and second moments merge by Chan, Golub and LeVeque 1983 (updating formulae for sums of squares); all other
statistics are sums. The reduction of the scatter to the span of the class means belongs to one rank's means and does
not survive a merge; the full scatter, which every rank of several sends, does.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from ncmon.ingest import Arrival
from ncmon.model import FloatArray, Gap, Head, IntArray, LayerStats, Part, Rejection, RunEnd, StreamSeq, Window

Sums = TypeVar("Sums", IntArray, FloatArray)

RANK_TIMEOUT_S = 30.0
REMEMBERED_WINDOWS = 1024
"""Partial windows that are remembered, to recognise shares that come too late."""
REMEMBERED_GAPS = 64

Attempt = tuple[str, int]
"""Run id, and which attempt of the run."""
Key = tuple[Attempt, str, bool, int]
"""Which window: of which attempt, split, exact, step."""
Passing = Gap | RunEnd | Rejection
"""What is not merged with anything, but has its place in the order of its stream."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ready:
    """Something to be stored; once it is, its origins may be acknowledged."""

    item: Window | Passing | Arrival
    """An arrival is a window of a run with one rank, which is not looked at before its turn to be evaluated."""
    origins: tuple[StreamSeq, ...]
    packed: tuple[bytes, ...] = ()
    """Of a merged window the message of each origin; empty where a newer share of the same rank counts."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Held:
    """What waits: the shares of one window, or one passing item behind such a share."""

    key: Key | None
    since: float
    parts: dict[int, Part] = field(default_factory=dict)
    passing: Passing | None = None
    origins: list[StreamSeq] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Rank:
    """What is known of one rank of one attempt."""

    stream: bytes
    step: int = -1
    """Of the last share that came."""
    ended: bool = False
    gaps: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_GAPS))
    """(split, step) of the last windows that it could not deliver."""


class Collector:
    """Merges ranks and keeps order, for all runs of a daemon."""

    def __init__(self, *, rank_timeout_s: float = RANK_TIMEOUT_S) -> None:
        self._rank_timeout_s = rank_timeout_s
        self._held: list[_Held] = []
        """In the order of their first share."""
        self._ranks: dict[tuple[Attempt, int], _Rank] = {}
        self._owner: dict[bytes, tuple[Attempt, int]] = {}
        """Which rank of which attempt a stream belongs to."""
        self._left: OrderedDict[Key, frozenset[int]] = OrderedDict()
        """Windows that left without some ranks -> the ranks that they left with."""
        self._absent: set[tuple[Attempt, int]] = set()
        """Ranks that a window waited for in vain, until they say something: often only rank 0 is watched."""

    @property
    def held(self) -> int:
        """How many items wait."""
        return len(self._held)

    @property
    def held_messages(self) -> int:
        """How many messages wait, unacknowledged."""
        return sum(len(held.origins) for held in self._held)

    def held_streams(self) -> frozenset[bytes]:
        """Return the streams of which something waits."""
        return frozenset(origin.stream for held in self._held for origin in held.origins)

    def open(self, stream: bytes, *, run_id: str, rank: int, attempt: int = 1) -> None:
        """A stream of this rank begins or goes on. A new stream is a new start: what its rank said before is over."""
        owner = (run_id, attempt), rank
        known = self._ranks.get(owner)
        if known is None or known.stream != stream:
            if known is not None:
                self._owner.pop(known.stream, None)
                # The store was put back: what comes again are no late shares of windows that have left.
                for key in [key for key in self._left if key[0] == owner[0]]:
                    del self._left[key]
            self._ranks[owner] = _Rank(stream=stream)
        self._owner[stream] = owner
        self._absent.discard(owner)

    def forget(self, stream: bytes) -> None:
        """A stream is over and everything of it is stored."""
        owner = self._owner.pop(stream, None)
        if owner is not None and self._ranks[owner].stream == stream:
            del self._ranks[owner]
            if not any(attempt == owner[0] for attempt, _ in self._ranks):
                self._absent = {absent for absent in self._absent if absent[0] != owner[0]}

    def drop(self) -> None:
        """Forget everything that waits: it was not acknowledged and will be sent again."""
        self._held.clear()
        for rank in self._ranks.values():
            rank.step, rank.ended = -1, False
            rank.gaps.clear()

    def put(self, item: Part | Passing, origin: StreamSeq, *, now: float) -> list[Ready]:
        """Take the next item of a stream; return what can leave now, in order."""
        if isinstance(item, Part):
            self._put_part(item, now)
        else:
            self._held.append(_Held(key=None, since=now, passing=item, origins=[origin]))
            owner = self._owner.get(origin.stream)
            rank = None if owner is None else self._ranks.get(owner)
            if rank is not None and isinstance(item, RunEnd):
                rank.ended = True
            if rank is not None and isinstance(item, Gap):
                rank.gaps.append((item.split, item.step))
        return self._leave(now)

    def tick(self, *, now: float) -> list[Ready]:
        """Time has passed; return what has waited long enough."""
        return self._leave(now) if self._held else []

    def next_deadline(self) -> float | None:
        """Return when `tick` will have something to do, None while nothing waits for ranks."""
        return min((held.since + self._rank_timeout_s for held in self._held if held.key), default=None)

    # -- holding ------------------------------------------------------------------------------------------------------

    def _put_part(self, part: Part, now: float) -> None:
        window = part.window
        if part.origin.stream not in self._owner:
            self.open(part.origin.stream, run_id=window.run_id, rank=part.rank)
        (_, number), _ = self._owner[part.origin.stream]
        attempt = (window.run_id, number)
        key = (attempt, window.split, window.exact, window.step)
        self._absent.discard((attempt, part.rank))
        rank = self._ranks.get((attempt, part.rank))
        if rank is not None:
            rank.step, rank.ended = window.step, False
        present = self._left.get(key)
        if present is not None and part.rank not in present:
            gap = _late(window, part.rank, present)
            self._held.append(_Held(key=None, since=now, passing=gap, origins=[part.origin]))
            return
        for held in self._held:
            if held.key == key:
                # The same rank again, under a new stream: the newer share counts, both are acknowledged.
                held.parts[part.rank] = part
                held.origins.append(part.origin)
                return
        self._held.append(_Held(key=key, since=now, parts={part.rank: part}, origins=[part.origin]))

    def _settled(self, held: _Held, now: float) -> bool:
        if held.key is None:
            return True
        attempt, split, _, step = held.key
        world = next(iter(held.parts.values())).window.world_size
        if len(held.parts) >= world or now >= held.since + self._rank_timeout_s:
            return True
        for number in range(world):
            if number in held.parts or (attempt, number) in self._absent:
                continue
            rank = self._ranks.get((attempt, number))
            if rank is None or not (rank.ended or rank.step > step or (split, step) in rank.gaps):
                return False
        return True

    def _leave(self, now: float) -> list[Ready]:
        """Take out what is settled and has nothing unsettled of its streams before it."""
        leaving = [held for held in self._held if self._settled(held, now)]
        while leaving:
            # Largest set that is closed under "and everything before it in its streams": ranks that send the windows of
            # one step in different orders leave together instead of waiting for each other.
            first_left: dict[bytes, int] = {}
            chosen = {id(held) for held in leaving}
            for held in self._held:
                if id(held) not in chosen:
                    for origin in held.origins:
                        first_left[origin.stream] = min(first_left.get(origin.stream, origin.seq), origin.seq)
            allowed = [
                held
                for held in leaving
                if all(origin.seq < first_left.get(origin.stream, origin.seq + 1) for origin in held.origins)
            ]
            if len(allowed) == len(leaving):
                break
            leaving = allowed
        if not leaving:
            return []
        gone = {id(held) for held in leaving}
        self._held = [held for held in self._held if id(held) not in gone]
        return [self._ready(held, now) for held in _in_order(leaving)]

    def _ready(self, held: _Held, now: float) -> Ready:
        origins = tuple(held.origins)
        if held.key is None:
            assert held.passing is not None
            return Ready(item=held.passing, origins=origins)
        parts = [held.parts[rank] for rank in sorted(held.parts)]
        world = parts[0].window.world_size
        if len(parts) < world:
            if now >= held.since + self._rank_timeout_s:
                self._absent.update((held.key[0], rank) for rank in range(world) if rank not in held.parts)
            self._left[held.key] = frozenset(held.parts)
            while len(self._left) > REMEMBERED_WINDOWS:
                self._left.popitem(last=False)
        mismatch = _mismatch([part.window for part in parts])
        if mismatch:
            window, origin = parts[0].window, parts[0].origin
            rejection = Rejection(
                stream=origin.stream,
                seq=origin.seq,
                run_id=window.run_id,
                code="ranks",
                reason=f"the ranks of step {window.step} ({window.split}) cannot be merged: {mismatch}",
                head=b"",
                time=window.time,
            )
            return Ready(item=rejection, origins=origins)
        messages = {part.origin: part.packed for part in parts}
        packed = tuple(messages.get(origin, b"") for origin in origins)
        return Ready(item=merge([part.window for part in parts]), origins=origins, packed=packed)


def _in_order(leaving: Sequence[_Held]) -> list[_Held]:
    """Return the items so that each stream's numbers ascend; where ranks cross each other, by arrival."""
    waiting = {
        stream: sorted(origin.seq for held in leaving for origin in held.origins if origin.stream == stream)
        for stream in {origin.stream for held in leaving for origin in held.origins}
    }
    left, ordered = list(leaving), []
    while left:
        held = next(
            (one for one in left if all(waiting[origin.stream][0] == origin.seq for origin in one.origins)), left[0]
        )
        left.remove(held)
        ordered.append(held)
        for origin in held.origins:
            waiting[origin.stream].remove(origin.seq)
    return ordered


def _late(window: Window, rank: int, present: Iterable[int]) -> Gap:
    ranks = ", ".join(map(str, sorted(present)))
    return Gap(
        run_id=window.run_id,
        split=window.split,
        epoch=window.epoch,
        step=window.step,
        time=window.time,
        reason=f"the share of rank {rank} came after the window had been evaluated with rank {ranks} alone",
    )


def _mismatch(windows: Sequence[Window]) -> str:
    """Return why these windows are not shares of one, or nothing."""
    first = windows[0]
    widths = {layer.key.name: layer.n_features for layer in first.layers}
    for window in windows[1:]:
        if window.n_classes != first.n_classes:
            return f"rank {window.ranks[0]} has {window.n_classes} classes, rank {first.ranks[0]} {first.n_classes}"
        if window.world_size != first.world_size:
            return f"rank {window.ranks[0]} knows {window.world_size} ranks, rank {first.ranks[0]} {first.world_size}"
        for layer in window.layers:
            width = widths.setdefault(layer.key.name, layer.n_features)
            if width != layer.n_features:
                return f"layer {layer.key.name!r} is {layer.n_features} wide on rank {window.ranks[0]}, {width} before"
    return ""


# -- merging ----------------------------------------------------------------------------------------------------------


def merge(windows: Sequence[Window]) -> Window:
    """Return the window of all samples of these shares, which are of different ranks; one share is its own merge."""
    if len(windows) == 1:
        return windows[0]
    first = windows[0]
    sources = {window.ncc_source for window in windows}
    overheads = [window.overhead for window in windows if window.overhead is not None]
    skipped: dict[str, int] = {}
    for window in windows:
        for reason, count in window.skipped_batches.items():
            skipped[reason] = skipped.get(reason, 0) + count
    names = dict.fromkeys(layer.key.name for window in windows for layer in window.layers)
    layers = []
    for name in names:
        shares = [layer for window in windows for layer in window.layers if layer.key.name == name]
        merged = shares[0]
        for share in shares[1:]:
            merged = merge_layers(merged, share)
        if len(shares) < len(windows):
            note = f"of {len(shares)} of {len(windows)} ranks"
            merged = replace(merged, note=f"{merged.note}; {note}" if merged.note else note)
        if len(sources) > 1:
            merged = replace(merged, ncc_counts=None, ncc_hits=None, ncc_agree=None)
        layers.append(merged)
    return replace(
        first,
        steps=max(window.steps for window in windows),
        sampled_steps=max(window.sampled_steps for window in windows),
        time=max(window.time for window in windows),
        duration_s=max(window.duration_s for window in windows),
        # Decisions by means of different ages are no one number.
        ncc_source=first.ncc_source if len(sources) == 1 else "none",
        layers=tuple(sorted(layers, key=lambda layer: layer.key.index)),
        head=_merge_heads([window.head for window in windows]),
        ignored_labels=sum(window.ignored_labels for window in windows),
        skipped_batches=skipped,
        overhead=max(overheads, default=None),
        ranks=tuple(sorted(rank for window in windows for rank in window.ranks)),
    )


def merge_layers(a: LayerStats, b: LayerStats) -> LayerStats:
    """Return the statistics of the samples of both.

    With n = n_a + n_b and delta = mean_b - mean_a, class by class (Chan, Golub and LeVeque 1983, eq. 2.1):

        mean   = mean_a + delta n_b / n
        S      = S_a + S_b + delta delta^T n_a n_b / n
    """
    n_a, n_b = a.class_counts.astype(np.float64), b.class_counts.astype(np.float64)
    n = np.maximum(n_a + n_b, 1.0)  # guards 0/0 for a class that neither has; its rows are zero and stay zero
    delta = b.class_means - a.class_means
    # A class that one side lacks has a zero row there that means nothing: its weight is exactly zero.
    share, weight = n_b / n, n_a * n_b / n
    means = np.where((n_a > 0)[:, None], a.class_means + delta * share[:, None], b.class_means)
    scatter: FloatArray | None = None
    if a.within_scatter is not None and b.within_scatter is not None:
        scatter = a.within_scatter + b.within_scatter + (delta * weight[:, None]).T @ delta
    weights, weighted = _merge_weighted(a, b, delta, weight)
    return replace(
        a,
        class_counts=a.class_counts + b.class_counts,
        class_means=means,
        within_sq=a.within_sq + b.within_sq + (delta**2).sum(axis=1) * weight,
        unit_sums=a.unit_sums + b.unit_sums,
        norm_sums=a.norm_sums + b.norm_sums,
        norm_sq_sums=a.norm_sq_sums + b.norm_sq_sums,
        zero_counts=a.zero_counts + b.zero_counts,
        nonfinite_counts=a.nonfinite_counts + b.nonfinite_counts,
        ncc_counts=_sum(a.ncc_counts, b.ncc_counts),
        ncc_hits=_sum(a.ncc_hits, b.ncc_hits),
        ncc_agree=_sum(a.ncc_agree, b.ncc_agree),
        span_singular=None,
        span_within=None,
        within_scatter=scatter,
        before_counts=_sum(a.before_counts, b.before_counts),
        # Movements of shares about their own means say no more than this of the movement of the whole.
        shift_sq=None if a.shift_sq is None or b.shift_sq is None else a.shift_sq + (b.shift_sq - a.shift_sq) * share,
        moment_weights=weights,
        span_weighted=None,
        weighted_scatter=weighted,
        means_f4=a.means_f4 or b.means_f4,
        eps=max(a.eps, b.eps),
        note=a.note or b.note,
    )


def _merge_weighted(
    a: LayerStats, b: LayerStats, delta: FloatArray, weight: FloatArray
) -> tuple[FloatArray | None, FloatArray | None]:
    """Return the weights and the weighted scatter of both, which shares that weigh classes alike have in common."""
    if a.weighted_scatter is None or b.weighted_scatter is None or a.moment_weights is None or b.moment_weights is None:
        return None, None
    if not np.array_equal(a.moment_weights, b.moment_weights):
        return None, None
    between = (delta * (weight * a.moment_weights)[:, None]).T @ delta
    return a.moment_weights, a.weighted_scatter + b.weighted_scatter + between


def _merge_heads(heads: Sequence[Head]) -> Head:
    # Ranks of one data-parallel run hold the same parameters: those of the first that sent them stand for all.
    first = next((head for head in heads if head.weight is not None), heads[0])
    merged = heads[0]
    for head in heads[1:]:
        merged = replace(
            merged,
            finite=merged.finite and head.finite,
            logits_eps=max(merged.logits_eps, head.logits_eps),
            label_counts=_sum(merged.label_counts, head.label_counts),
            loss_sums=_sum(merged.loss_sums, head.loss_sums),
            correct=_sum(merged.correct, head.correct),
            loss_nonfinite=_sum(merged.loss_nonfinite, head.loss_nonfinite),
            own_logit_sums=_sum(merged.own_logit_sums, head.own_logit_sums),
            own_loss_sums=_sum(merged.own_loss_sums, head.own_loss_sums),
            trained_loss=_mean_loss(merged, head),
        )
    return replace(merged, weight=first.weight, bias=first.bias, bn_gamma=first.bn_gamma, bn_beta=first.bn_beta)


def _mean_loss(a: Head, b: Head) -> float | None:
    if a.trained_loss is None or b.trained_loss is None or a.label_counts is None or b.label_counts is None:
        return None
    n, m = float(a.label_counts.sum()), float(b.label_counts.sum())
    return (n * a.trained_loss + m * b.trained_loss) / max(n + m, 1.0)


def _sum(a: Sums | None, b: Sums | None) -> Sums | None:
    return None if a is None or b is None else a + b
