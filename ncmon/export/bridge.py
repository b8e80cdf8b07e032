"""Handing what is stored of a run, and what comes, to another tracker: windows in order, each once.

A `Board` is a thin face of somebody else's package. It says what it has already, so that a bridge that is started again
goes on where the last one ended. Trackers keep scalars by step and take nothing back: a training that resumes and
repeats steps adds to them only what lies beyond.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ncmon.export.rows import Choice, history_blocks
from ncmon.model import CLASSIFIER_INPUT, Run
from ncmon.store.runs import StoredRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one window of a split has to say."""

    split: str
    step: int
    epoch: int
    """-1 where the loop named none."""
    time: float
    """Unix seconds, by the trainer's clock."""
    exact: bool
    values: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By metric and layer; what has a reason in the place of a value is left out."""


class Board(Protocol):
    """Where the points of one run go."""

    def last_steps(self) -> Mapping[str, int]:
        """Return the last step of every split that it has already."""
        ...

    def put(self, point: Point) -> None:
        """Take one window; of a split they come ascending in step."""
        ...

    def flush(self) -> None:
        """Make visible what was put."""
        ...

    def close(self, run: Run) -> None:
        """Let go; `run` says how it ended."""
        ...


class Bridge:
    """What of one run a board does not have yet."""

    def __init__(self, board: Board, choice: Choice) -> None:
        self._board = board
        self._choice = choice
        self._last = dict(board.last_steps())
        self._at_last: dict[str, set[bool]] = {}
        """The kinds, exact or not, that were put at the last step of a split."""

    def turn(self, run: StoredRun) -> int:
        """Put what is new of the run; return how many windows."""
        count = 0
        for point in points(run, self._choice, since=self._last):
            if point.step == self._last.get(point.split) and point.exact in self._at_last.get(
                point.split, {False, True}
            ):
                continue
            if point.step > self._last.get(point.split, -1):
                self._at_last[point.split] = set()
            self._last[point.split] = point.step
            self._at_last[point.split].add(point.exact)
            self._board.put(point)
            count += 1
        if count:
            self._board.flush()
        return count

    def close(self, run: StoredRun) -> None:
        """Let go of the board."""
        self._board.close(run.run)


def points(run: StoredRun, choice: Choice, *, since: Mapping[str, int]) -> Iterator[Point]:
    """Return the windows from the steps `since` on, by split, ascending in step."""
    found: dict[tuple[str, int, bool], tuple[int, float, dict[tuple[str, str], float]]] = {}
    for block in history_blocks(run, choice, since=since):
        columns = (block.step, block.exact, block.epoch, block.time, block.value)
        rows = zip(*(column.tolist() for column in columns), block.reason, strict=True)
        for step, exact, epoch, at, value, reason in rows:
            _, _, values = found.setdefault((block.split, step, exact), (epoch, at, {}))
            if not reason:
                values[(block.metric, block.layer)] = value
    for (split, step, exact), (epoch, at, values) in sorted(found.items()):
        yield Point(split=split, step=step, epoch=epoch, time=at, exact=exact, values=values)


def label(metric: str, layer: str) -> str:
    """Return the name of a series: the metric, and behind it the layer where it is not the classifier's input."""
    return metric if layer == CLASSIFIER_INPUT else f"{metric}/{layer}"
