"""NC2: class means, and the classifier's own rows, converge to a simplex equiangular tight frame.

A = rows mu_c - mu_G of the present classes. The classifier's rows w_c are taken as they are, all C of them: absent
classes have rows too, and where minorities collapse theirs become one direction.
"""

from __future__ import annotations

import numpy as np

from ncmon import geometry
from ncmon.metrics.readings import Unavailable, class_array, reading
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View
from ncmon.model import FloatArray


@reading
def nc2_equinorm(view: View) -> float:
    """Return std / mean of |A_c|, ddof 0."""
    view.need_between()
    norms = view.centred.norms
    return float(norms.std() / norms.mean())


def _mean_spread(view: View) -> tuple[float, float]:
    """Return std and mean distance from -1/(K-1) of cos(A_c, A_c') over pairs."""
    return geometry.pair_spread(view.mean_cosines, -1.0 / (view.present.size - 1))


@reading
def nc2_maxangle(view: View) -> float:
    """Return the mean over pairs of |cos(A_c, A_c') + 1/(K-1)|."""
    return view.shared(_mean_spread)[1]


@reading
def nc2_equiangularity(view: View) -> float:
    """Return the std over pairs of cos(A_c, A_c'), ddof 0."""
    return view.shared(_mean_spread)[0]


@reading
def nc2_etf_err(view: View) -> float:
    """Return | G/|G| - (I - 11^T/K)/sqrt(K-1) |_F, G = A A^T."""
    view.need_between()
    return geometry.etf_distance(view.mean_gram)


def _unit_distances(view: View) -> FloatArray:
    """Return |u_c - u_c'| (K, K), 1 on the diagonal, u_c = A_c / |A_c|.

    From cosines, and directly where these leave no digits of it.
    """
    square = 1.0 - view.mean_cosines
    square *= 2.0
    np.fill_diagonal(square, 1.0)
    if square.min() <= geometry.CANCELLATION:
        rows, norms = view.centred.rows, view.centred.norms
        for first, second in zip(*np.nonzero(np.triu(square <= geometry.CANCELLATION, 1)), strict=True):
            difference = rows[first] / norms[first] - rows[second] / norms[second]
            square[first, second] = square[second, first] = difference @ difference
    np.maximum(square, 0.0, out=square)
    return np.sqrt(square, out=square)


def _pair_distances(view: View) -> FloatArray:
    """Return |u_c - u_c'| of every pair (K (K-1) / 2,)."""
    return geometry.pair_values(view.shared(_unit_distances))


@reading
def nc2g_dist(view: View) -> float:
    """Return the variance over pairs of |u_c - u_c'|, u_c = A_c / |A_c|, ddof 0."""
    return float(view.shared(_pair_distances).var())


@reading
def nc2g_log(view: View) -> float:
    """Return the variance over pairs of log(1 / |u_c - u_c'|), u_c = A_c / |A_c|, ddof 0."""
    distances = view.shared(_pair_distances)
    if distances.min() <= geometry.same_floor(1.0, single=view.layer.means_f4):
        _, (first, second) = geometry.pair_maximum(-view.shared(_unit_distances))
        names = f"classes {view.present[first]} and {view.present[second]}"
        raise Unavailable(f"{names} have means in one direction: their distance has no logarithm")
    return float(np.log(distances).var())


def _row_norms(view: View) -> FloatArray:
    """Return |w_c| (C,), all positive."""
    norms = view.weight_norms
    lowest = int(np.argmin(norms))
    if norms[lowest] == 0:
        raise Unavailable(f"row {lowest} of the classifier is zero")
    return norms


def _row_cosines(view: View) -> FloatArray:
    """Return cos(w_c, w_c') (C, C)."""
    norms = view.shared(_row_norms)
    return geometry.cosines(view.weight_gram, norms)


def _row_spread(view: View) -> tuple[float, float]:
    """Return std and mean distance from -1/(C-1) of cos(w_c, w_c') over pairs."""
    return geometry.pair_spread(view.shared(_row_cosines), -1.0 / (view.n_classes - 1))


@reading
def w_equinorm(view: View) -> float:
    """Return std / mean of |w_c|, ddof 0."""
    norms = view.shared(_row_norms)
    return float(norms.std() / norms.mean())


@reading
def w_equiangularity(view: View) -> float:
    """Return the std over pairs of cos(w_c, w_c'), ddof 0."""
    return view.shared(_row_spread)[0]


@reading
def w_maxangle(view: View) -> float:
    """Return the mean over pairs of |cos(w_c, w_c') + 1/(C-1)|."""
    return view.shared(_row_spread)[1]


@reading
def w_etf_err(view: View) -> float:
    """Return | G/|G| - (I - 11^T/C)/sqrt(C-1) |_F, G = W W^T."""
    view.shared(_row_norms)
    return geometry.etf_distance(view.weight_gram)


@reading
def w_cos_max(view: View) -> tuple[float, tuple[int, ...]]:
    """Return max over pairs of cos(w_c, w_c') and its pair."""
    return geometry.pair_maximum(view.shared(_row_cosines))


def _nearest_rows(view: View) -> tuple[FloatArray, FloatArray]:
    """Return of every class (C,) the class whose row is nearest to its own, and the cosine to it."""
    values = view.shared(_row_cosines).copy()
    np.fill_diagonal(values, -np.inf)
    place = np.argmax(values, axis=1)
    return place.astype(np.float64), values[np.arange(len(place)), place]


@class_array
def w_nearest_class(view: View) -> FloatArray:
    """Return argmax over e of cos(w_c, w_e) of every class (K,)."""
    return view.shared(_nearest_rows)[0][view.present]


@class_array
def w_nearest_cos(view: View) -> FloatArray:
    """Return max over e of cos(w_c, w_e) of every class (K,)."""
    return view.shared(_nearest_rows)[1][view.present]


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
    Metric(
        name="nc2_equiangularity",
        title="NC2, unequal angles of the means",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Papyan 2020, NC2",
        definition="std over pairs of cos(mu_c - mu_G, mu_e - mu_G), ddof 0",
        needs=("class_counts", "class_means"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc2_equiangularity,
    ),
    Metric(
        name="nc2_etf_err",
        title="NC2, distance of the means to a simplex frame",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Zhu 2021",
        definition="|G/|G| - (I - 11^T/K)/sqrt(K-1)|_F, G = A A^T",
        needs=("class_counts", "class_means"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc2_etf_err,
    ),
    Metric(
        name="nc2g_dist",
        title="NC2, unequal distances of the means on the sphere",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Liu 2023 (hyperspherical uniformity); as rhubarbwu/neural-collapse",
        definition="variance over pairs of |u_c - u_e|, u_c = (mu_c - mu_G) / |mu_c - mu_G|, ddof 0",
        needs=("class_counts", "class_means"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc2g_dist,
    ),
    Metric(
        name="nc2g_log",
        title="NC2, unequal logarithmic distances of the means on the sphere",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Liu 2023 (hyperspherical uniformity); as rhubarbwu/neural-collapse",
        definition="variance over pairs of log(1 / |u_c - u_e|), u_c = (mu_c - mu_G) / |mu_c - mu_G|, ddof 0",
        needs=("class_counts", "class_means"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc2g_log,
    ),
    Metric(
        name="w_equinorm",
        title="unequal norms of the rows",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Papyan 2020, NC2",
        definition="std / mean over all classes of |w_c|, ddof 0",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=w_equinorm,
    ),
    Metric(
        name="w_equiangularity",
        title="unequal angles of the rows",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Papyan 2020, NC2",
        definition="std over pairs of cos(w_c, w_e), ddof 0",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=w_equiangularity,
    ),
    Metric(
        name="w_maxangle",
        title="distance of the angles of the rows from the greatest",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Papyan 2020, NC2",
        definition="mean over pairs of |cos(w_c, w_e) + 1/(C-1)|",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=w_maxangle,
    ),
    Metric(
        name="w_etf_err",
        title="distance of the rows to a simplex frame",
        family="nc2",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Zhu 2021",
        definition="|G/|G| - (I - 11^T/C)/sqrt(C-1)|_F, G = W W^T",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=w_etf_err,
    ),
    Metric(
        name="w_cos_max",
        title="greatest cosine between rows",
        family="nc2",
        unit="",
        at_collapse="-1/(C-1)",
        better="lower",
        scope="classifier",
        source="Fang 2021, minority collapse shows as 1",
        definition="max over pairs of cos(w_c, w_e)",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: -1.0 / (k - 1),
        compute=w_cos_max,
    ),
    Metric(
        name="w_nearest_class",
        title="class with the nearest row",
        family="class",
        unit="",
        at_collapse="",
        better="neither",
        scope="class",
        source="Fang 2021",
        definition="the class e != c with the largest cos(w_c, w_e), the first one of equals",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "translation"),
        compute=w_nearest_class,
    ),
    Metric(
        name="w_nearest_cos",
        title="cosine to the nearest row",
        family="class",
        unit="",
        at_collapse="-1/(C-1)",
        better="lower",
        scope="class",
        source="Fang 2021, minority collapse shows as 1",
        definition="max over e != c of cos(w_c, w_e)",
        needs=("weight",),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: -1.0 / (k - 1),
        compute=w_nearest_cos,
    ),
)
