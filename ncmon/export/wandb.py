"""Runs in Weights & Biases: series SPLIT/METRIC (and SPLIT/METRIC/LAYER) over SPLIT/step, the configuration and tags.

The extra `wandb` brings the package, which decides by its own settings where things go (`wandb login`,
`WANDB_MODE=offline`, `WANDB_DIR`). A run keeps its id there, so that a bridge that is started again goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ncmon.errors import NcmonError, NotInstalled
from ncmon.export.bridge import Point, label
from ncmon.model import Run


class WandbBoard:
    """One run of a project."""

    def __init__(self, run: Run, project: str) -> None:
        wandb = _wandb()
        try:
            self._run: Any = wandb.init(
                project=project,
                id=run.run_id,
                name=run.name,
                config=dict(run.config),
                tags=list(run.tags),
                notes=run.note or None,
                resume="allow",
                reinit="create_new",
                # It watches a database, not a training: nothing of this process is worth recording.
                settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
            )
        except wandb.errors.Error as error:
            raise NcmonError(f"Weights & Biases: {' '.join(str(error).split())}") from error
        self._splits: set[str] = set()

    def last_steps(self) -> Mapping[str, int]:
        """Return the last step of every split, of a run that was here before."""
        found = {}
        for key, value in dict(self._run.summary).items():
            split, _, name = str(key).rpartition("/")
            if name == "step" and isinstance(value, int):
                found[split] = value
        return found

    def put(self, point: Point) -> None:
        """Log one window as one row."""
        if point.split not in self._splits:
            self._splits.add(point.split)
            self._run.define_metric(f"{point.split}/step", hidden=True)
            self._run.define_metric(f"{point.split}/*", step_metric=f"{point.split}/step")
        row: dict[str, float] = {f"{point.split}/step": point.step, f"{point.split}/epoch": point.epoch}
        row.update({f"{point.split}/{label(*key)}": value for key, value in point.values.items()})
        self._run.log(row)

    def flush(self) -> None:
        """Nothing to do: the package sends by itself."""

    def close(self, run: Run) -> None:
        """Finish the run there as it did here; one that lives goes on when it is logged again."""
        self._run.finish(exit_code=1 if run.status == "failed" else 0)


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise NotInstalled("Weights & Biases", "wandb", "wandb") from None
    return wandb
