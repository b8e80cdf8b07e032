"""NC3: the classifier's rows and the class means become the same directions.

The theorem is about the centred row w_c - wbar (adding one vector to all rows changes no loss) and the class mean as it
is, not centred (thesis, Theorem 2.3.1). wbar is the mean over all declared classes, for absent ones have rows too.
"""

from __future__ import annotations

import numpy as np

from ncmon import geometry
from ncmon.metrics.readings import Unavailable, class_array, reading
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View
from ncmon.model import FloatArray

_NEEDS = ("class_counts", "class_means", "weight")


def _alignment(view: View) -> FloatArray:
    """Return cos(w_c - wbar, mu_c) of the present classes (K,), NaN where a vector is zero."""
    rows = view.of_present(view.centred_weight)
    slopes = view.of_present(view.slopes)
    floor = geometry.same_floor(float(view.weight_norms.max()))
    values = geometry.cosines_of(geometry.row_products(rows, view.means), slopes * view.mean_norms)
    return np.where(slopes > floor, values, np.nan)


def _complete(view: View) -> FloatArray:
    view.need_classes()
    values = view.shared(_alignment)
    undefined = view.present[np.isnan(values)]
    if undefined.size:
        raise Unavailable(f"class {undefined[0]} has a zero mean, or the classifier's row is the mean of all rows")
    return values


@reading
def nc3_cos_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return min_c cos(w_c - wbar, mu_c) and its class."""
    values = _complete(view)
    lowest = int(np.argmin(values))
    return float(values[lowest]), (int(view.present[lowest]),)


@reading
def nc3_cos_mean(view: View) -> float:
    """Return mean_c cos(w_c - wbar, mu_c)."""
    return float(_complete(view).mean())


def _raw_alignment(view: View) -> FloatArray:
    """Return cos(w_c, mu_c) of the present classes (K,)."""
    view.need_classes()
    rows = view.of_present(view.feature_weight)
    lengths = view.of_present(view.weight_norms) * view.mean_norms
    values = geometry.cosines_of(geometry.row_products(rows, view.means), lengths)
    undefined = view.present[np.isnan(values)]
    if undefined.size:
        raise Unavailable(f"class {undefined[0]} has a zero mean, or the classifier's row is zero")
    return values


@reading
def nc3_raw_cos_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return min_c cos(w_c, mu_c) and its class."""
    values = view.shared(_raw_alignment)
    lowest = int(np.argmin(values))
    return float(values[lowest]), (int(view.present[lowest]),)


@reading
def nc3_raw_cos_mean(view: View) -> float:
    """Return mean_c cos(w_c, mu_c)."""
    return float(view.shared(_raw_alignment).mean())


def _own_products(view: View) -> FloatArray:
    """Return w_c . (mu_c - mu_G) of the present classes (K,)."""
    return geometry.row_products(view.of_present(view.feature_weight), view.centred.rows)


def _centred_alignment(view: View) -> FloatArray:
    """Return cos(w_c, mu_c - mu_G) of the present classes (K,)."""
    view.need_between()
    centred = view.centred
    values = geometry.cosines_of(view.shared(_own_products), view.of_present(view.weight_norms) * centred.norms)
    undefined = view.present[np.isnan(values) | (centred.norms <= view.same_floor)]
    if undefined.size:
        raise Unavailable(f"class {undefined[0]} has its mean at the global mean, or the classifier's row is zero")
    return values


@reading
def nc3_centred_cos_mean(view: View) -> float:
    """Return mean_c cos(w_c, mu_c - mu_G)."""
    return float(_centred_alignment(view).mean())


@reading
def nc3u_uni_dual(view: View) -> float:
    """Return the variance over classes of w_c . (mu_c - mu_G), ddof 1."""
    view.need_between()
    return float(view.shared(_own_products).var(ddof=1))


@class_array
def nc3_cos_class(view: View) -> FloatArray:
    """Return cos(w_c - wbar, mu_c) of every class (K,)."""
    return view.shared(_alignment)


@reading
def nc3_frob(view: View) -> float:
    """Return | W/|W| - A/|A| |_F over the present rows; the root, where Papyan plots its square."""
    rows = view.of_present(view.feature_weight)
    view.need_between()
    length = float(np.linalg.norm(view.of_present(view.weight_norms)))
    if length == 0:
        raise Unavailable("the classifier's rows of the present classes are zero")
    means = view.centred.rows
    scale = float(np.linalg.norm(view.centred.norms))
    parts = [np.linalg.norm(rows[part] / length - means[part] / scale) for part in geometry.stretches(len(rows))]
    return float(np.linalg.norm(parts))


@reading
def nc3_dual_err(view: View) -> float:
    """Return | G/|G| - (I - 11^T/K)/sqrt(K-1) |_F, G = W A^T over the present rows.

    Where means came in single precision it is right to 1e-7 sqrt(K), in absolute terms.
    """
    view.need_between()
    rows, means = view.of_present(view.feature_weight), view.centred.rows
    if view.layer.means_f4:
        # Both came in single precision, whose rounding is more than that of their products in it.
        rows, means = rows.astype(np.float32), means.astype(np.float32)
    gram = np.asarray(rows @ means.T, dtype=np.float64)
    if not np.any(gram):
        raise Unavailable("the classifier's rows are orthogonal to all class means")
    return geometry.etf_distance(gram)


@reading
def bias_collapse(view: View) -> float:
    """Return |W mu + b|, mu the mean over samples (d,)."""
    weight = view.feature_weight
    if view.n_samples == 0:
        raise Unavailable("no finite samples")
    mean = view.counts @ view.means / view.n_samples
    logits = weight @ mean
    return float(np.linalg.norm(logits if view.bias is None else logits + view.bias))


METRICS = (
    Metric(
        name="nc3_cos_min",
        title="least alignment of row and mean",
        family="nc3",
        unit="",
        at_collapse="1",
        better="higher",
        scope="classifier",
        source="thesis, Theorem 2.3.1",
        definition="min over present classes of cos(w_c - wbar, mu_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=nc3_cos_min,
    ),
    Metric(
        name="nc3_cos_mean",
        title="mean alignment of row and mean",
        family="nc3",
        unit="",
        at_collapse="1",
        better="higher",
        scope="classifier",
        source="thesis, Theorem 2.3.1",
        definition="mean over present classes of cos(w_c - wbar, mu_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=nc3_cos_mean,
    ),
    Metric(
        name="nc3_raw_cos_min",
        title="least alignment of row and mean, rows not centred",
        family="nc3",
        unit="",
        at_collapse="1",
        better="higher",
        scope="classifier",
        source="thesis, Theorem 2.3.1, as it is worded there",
        definition="min over present classes of cos(w_c, mu_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=nc3_raw_cos_min,
    ),
    Metric(
        name="nc3_raw_cos_mean",
        title="mean alignment of row and mean, rows not centred",
        family="nc3",
        unit="",
        at_collapse="1",
        better="higher",
        scope="classifier",
        source="thesis, Theorem 2.3.1, as it is worded there",
        definition="mean over present classes of cos(w_c, mu_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=nc3_raw_cos_mean,
    ),
    Metric(
        name="nc3_centred_cos_mean",
        title="mean alignment of row and centred mean",
        family="nc3",
        unit="",
        at_collapse="1",
        better="higher",
        scope="classifier",
        source="Wu 2024 (self-duality); as rhubarbwu/neural-collapse",
        definition="mean over present classes of cos(w_c, mu_c - mu_G)",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 1.0,
        aliases=("nc3_cos",),
        compute=nc3_centred_cos_mean,
    ),
    Metric(
        name="nc3u_uni_dual",
        title="uneven products of row and centred mean",
        family="nc3",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Wu 2024 (uniform duality); as rhubarbwu/neural-collapse",
        definition="variance over present classes of w_c . (mu_c - mu_G), ddof 1",
        needs=_NEEDS,
        invariant_to=("rotation", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc3u_uni_dual,
    ),
    Metric(
        name="nc3_cos_class",
        title="alignment of row and mean",
        family="nc3",
        unit="",
        at_collapse="1",
        better="higher",
        scope="class",
        source="thesis, Theorem 2.3.1",
        definition="cos(w_c - wbar, mu_c)",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=nc3_cos_class,
    ),
    Metric(
        name="nc3_frob",
        title="distance of classifier and means",
        family="nc3",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Papyan 2020, NC3 (there squared)",
        definition="|W/|W| - A/|A||_F over present rows, A = rows mu_c - mu_G",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc3_frob,
    ),
    Metric(
        name="nc3_dual_err",
        title="distance of rows times means to a simplex frame",
        family="nc3",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Zhu 2021",
        definition="|G/|G| - (I - 11^T/K)/sqrt(K-1)|_F, G = W A^T over present rows",
        needs=_NEEDS,
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        aliases=("nc3_dual", "nc3_self_dual"),
        compute=nc3_dual_err,
    ),
    Metric(
        name="bias_collapse",
        title="logits of the mean feature",
        family="nc3",
        unit="",
        at_collapse="0",
        better="lower",
        scope="classifier",
        source="Zhu 2021",
        definition="|W mu + b|, mu the mean over samples",
        needs=_NEEDS,
        invariant_to=("rotation", "permutation"),
        target=lambda k: 0.0,
        compute=bias_collapse,
    ),
)
