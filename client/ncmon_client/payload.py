"""What of a window is left out where it would be large: pure, from shapes alone.

Rules of this module
- All ranks decide alike without asking one another: what a share of a window lacks, the merged window lacks.
- The classifier's input is sent whole, and of all layers what the daemon cannot do without: class means, unit sums,
  sums of squares. So there is a size that no reduction goes below, and a budget that small is passed.
- What was reduced is said in the layer's record.

The second moments (d, d), which only shares of several ranks hold, outgrow everything else: of twelve layers of 768
features two of them take 113 MB, where class means and unit sums of ten classes take 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ncmon_client.layers import CLASSIFIER_INPUT, Layer

PAYLOAD_BUDGET_BYTES = 8 * 1024 * 1024
"""Of a window; above this, less is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How far a window is reduced."""

    means_single: bool = False
    """Class means and unit sums in single precision."""
    scatter_single: bool = False
    """Second moments in single precision."""
    inner_weighted: bool = True
    """Whether layers before the classifier's input have the second moment in which every class counts once."""
    inner_scatter: bool = True
    """Whether they have one at all."""

    def wants_scatter(self, layer: Layer) -> bool:
        """Whether a layer's second moment is sent."""
        return self.inner_scatter or layer.name == CLASSIFIER_INPUT

    def wants_weighted(self, layer: Layer) -> bool:
        """Whether the one in which every class counts once is, too."""
        return (self.inner_scatter and self.inner_weighted) or layer.name == CLASSIFIER_INPUT

    def nbytes(self, layers: Sequence[Layer], n_classes: int, *, widest_scatter: int | None) -> int:
        """Return bytes of the large arrays; `widest_scatter` is the widest layer that sends second moments, if any."""
        total = 0
        for layer in layers:
            total += 2 * n_classes * layer.n_features * (4 if self.means_single else 8)
            if widest_scatter is not None and layer.n_features <= widest_scatter:
                moments = self.wants_scatter(layer) + self.wants_weighted(layer)
                total += moments * layer.n_features**2 * (4 if self.scatter_single else 8)
        return total

    def note(self, layer: Layer, *, scatter: bool) -> str:
        """Return what is to be said of a layer, empty if nothing; `scatter` where it has a second moment to send."""
        said = ["class means in single precision"] if self.means_single else []
        if scatter and not self.wants_scatter(layer):
            said.append("no second moment")
        elif scatter:
            said += ["second moment in single precision"] if self.scatter_single else []
            said += [] if self.wants_weighted(layer) else ["no second moment in which every class counts once"]
        return f"{', '.join(said)}: payload over budget" if said else ""


LADDER = (
    Reduction(),
    Reduction(means_single=True),
    Reduction(means_single=True, scatter_single=True),
    Reduction(means_single=True, scatter_single=True, inner_weighted=False),
    Reduction(means_single=True, scatter_single=True, inner_scatter=False),
)
"""From nothing reduced to as little as there can be."""


def reduction(layers: Sequence[Layer], n_classes: int, *, widest_scatter: int | None, budget_bytes: int) -> Reduction:
    """Return the least reduction that fits into the budget, or the utmost."""
    fitting = (step for step in LADDER if step.nbytes(layers, n_classes, widest_scatter=widest_scatter) <= budget_bytes)
    return next(fitting, LADDER[-1])
