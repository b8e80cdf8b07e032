"""What reading the store returns: frozen values, numpy columns, no connection inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ncmon.errors import NotInstalled
from ncmon.model import Assumption, FloatArray, Gap, IntArray, LayerReadings, Run

if TYPE_CHECKING:
    import pandas as pd

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """One metric of one layer over the windows of one split, ascending in step: five columns (n,) and the reasons."""

    step: IntArray
    epoch: IntArray
    """-1 where the loop named none."""
    time: FloatArray
    """Unix seconds, by the trainer's clock."""
    value: FloatArray
    """NaN where there is a reason, or where the window does not have this layer."""
    exact: BoolArray
    """Whether the window was measured at frozen weights."""
    reason: tuple[str, ...]
    """Empty where there is a value."""

    def __len__(self) -> int:
        return len(self.step)

    def to_pandas(self) -> pd.DataFrame:
        """Return the columns as a table of pandas; raises `NotInstalled` where there is none."""
        names = ("step", "epoch", "time", "exact", "value", "reason")
        return _pandas().DataFrame({name: getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowColumns:
    """Where the windows of one split stand in a run, ascending in step: four columns (n,)."""

    step: IntArray
    epoch: IntArray
    """-1 where the loop named none."""
    time: FloatArray
    exact: BoolArray

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassColumns:
    """One class array of one layer over windows, ascending in step."""

    step: IntArray
    epoch: IntArray
    time: FloatArray
    exact: BoolArray
    values: FloatArray
    """(n, C) NaN where a class has no value; of pairs of classes (n, C, C)."""

    def __len__(self) -> int:
        return len(self.step)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a window and class, or pair of classes, that has a value."""
        place, *numbers = np.nonzero(~np.isnan(self.values))
        columns = {name: getattr(self, name)[place] for name in ("step", "epoch", "time", "exact")}
        names = ("class",) if len(numbers) == 1 else ("class", "other")
        columns |= dict(zip(names, numbers, strict=True))
        return _pandas().DataFrame(columns | {"value": self.values[(place, *numbers)]})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowReadings:
    """Everything of one window: where it stands in the run, and all layers' readings."""

    split: str
    epoch: int
    step: int
    time: float
    duration_s: float
    steps: int
    sampled_steps: int
    exact: bool
    ncc_source: str
    ranks: tuple[int, ...]
    world_size: int
    overhead: float | None
    """Fraction of the training time that watching cost, None when it was not measured."""
    ignored_labels: int
    skipped_batches: Mapping[str, int]
    assumptions: tuple[Assumption, ...]
    """What holds of the theory's assumptions; empty where an older ncmon did not say."""
    layers: Mapping[str, LayerReadings]
    """By layer name, in the order of the forward pass. Class arrays are those of the classifier's input; pair arrays
    are read with `StoredRun.matrix`.
    """

    @property
    def partial(self) -> bool:
        """Whether the parts of some ranks are missing."""
        return len(self.ranks) < self.world_size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunSummary:
    """One line of an overview. Values are those of the classifier's input, of split `train` where there is one."""

    run: Run
    n_windows: int
    n_layers: int
    split: str
    """Empty when there is no window yet; so are epoch, step and time None."""
    epoch: int | None
    step: int | None
    time: float | None
    exact: bool
    values: Mapping[str, float]
    """The latest value of each metric that was asked for; NaN where the last window has none."""
    trend: FloatArray
    """The trend metric over the whole run, at few steps as far from each other as they can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """What an attempt had beyond the checkpoint from which a later one went on: a run of its own, by its id."""

    run_id: str
    attempt: int
    windows: int
    steps: tuple[int, int]
    """The first and the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGap:
    """A window that never came, and when the daemon learned of it."""

    gap: Gap
    received: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRejection:
    """A message that can never become a window."""

    stream: bytes
    seq: int
    run_id: str
    code: str
    reason: str
    head: bytes
    """At most its first 4 KB."""
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a SELECT returned."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    truncated: bool
    """Whether there were more rows than asked for."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a table of pandas."""
        return _pandas().DataFrame.from_records(list(self.rows), columns=list(self.columns))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise NotInstalled("to_pandas()", "pandas", "pandas") from None
    return pandas
