"""NC2: class means converge to a simplex equiangular tight frame. A = rows mu_c - mu_G of the present classes."""

from __future__ import annotations

import numpy as np

from ncmon import geometry
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View, reading


@reading
def nc2_equinorm(view: View) -> float:
    """Return std / mean of |A_c|, ddof 0."""
    view.need_between()
    norms = view.centred.norms
    return float(norms.std() / norms.mean())


@reading
def nc2_maxangle(view: View) -> float:
    """Return the mean over pairs of |cos(A_c, A_c') + 1/(K-1)|."""
    cosines = geometry.pair_values(view.mean_cosines)
    return float(np.mean(np.abs(cosines + 1.0 / (view.present.size - 1))))


METRICS = (
    Metric(
        name="nc2_equinorm",
        title="NC2, unequal norms of the means",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Papyan 2020, NC2",
        definition="std / mean over present classes of |mu_c - mu_G|, ddof 0",
        needs=("class_counts", "class_means"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc2_equinorm,
    ),
    Metric(
        name="nc2_maxangle",
        title="NC2, distance of the angles from the greatest",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Papyan 2020, NC2",
        definition="mean over pairs of |cos(mu_c - mu_G, mu_c' - mu_G) + 1/(K-1)|",
        needs=("class_counts", "class_means"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc2_maxangle,
    ),
)
