"""NC1: variability within classes vanishes beside variability between them.

Sigma_W is pooled over samples, Sigma_B = A^T A / K with A the class means about mu_G, each class counting once.
"""

from __future__ import annotations

import numpy as np

from ncmon import geometry
from ncmon.metrics.readings import Unavailable, reading
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View


@reading
def nc1_pinv(view: View) -> float:
    """Return tr(Sigma_W pinv(Sigma_B)) / K.

    With A = U s V^T and S the scatter, a sum over the kept directions: sum_k (v_k^T S v_k) / (N s_k^2).
    """
    return geometry.pinv_trace(view.span, n_samples=view.n_samples)


@reading
def nc1_balanced(view: View) -> float:
    """Return the same with Sigma_W = mean_c S_c / n_c: every class counts once, whatever its size."""
    return geometry.ratio_trace(view.balanced_within, view.span.singular)


@reading
def nc1_trace_ratio(view: View) -> float:
    """Return tr Sigma_W / tr Sigma_B."""
    within = view.within_sq
    return float(within.sum() / view.n_samples / view.between_trace)


@reading
def nc1_cdnv(view: View) -> float:
    """Return the mean over pairs of (v_c + v_c') / (2 |mu_c - mu_c'|^2), v_c = mean |h - mu_c|^2. Galanti 2021, (1)."""
    variances = view.within_sq / view.counts
    distances = geometry.squared_distances(view.centred.rows, view.mean_gram)
    np.fill_diagonal(distances, np.inf)
    n = distances.shape[0]
    first, second = divmod(int(np.argmin(distances)), n)
    if distances[first, second] <= view.same_floor**2:
        raise Unavailable(f"classes {view.present[first]} and {view.present[second]} have the same mean")
    # Every v_c stands in n - 1 pairs: the sum over pairs is that over classes of v_c times the row of 1 / distance.
    return float(variances @ np.reciprocal(distances, out=distances).sum(axis=1) / (n * (n - 1.0)))


@reading
def snr(view: View) -> float:
    """Return tr Sigma_B / tr Sigma_W with Sigma_W the mean of the class covariances."""
    within = float(np.mean(view.within_sq / view.counts))
    if within == 0:
        raise Unavailable("the variability within classes is zero: the ratio is infinite")
    return view.between_trace / within


METRICS = (
    Metric(
        name="nc1_pinv",
        title="NC1, within over between",
        family="nc1",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Papyan 2020, NC1",
        definition=(
            "tr(Sigma_W pinv(Sigma_B)) / K, Sigma_W pooled over samples, Sigma_B = A^T A / K; directions of A with"
            " s > 4 max(K, d) eps max(s_1, max |mu_c|), at most K-1"
        ),
        needs=("class_counts", "class_means", "span_singular", "span_within"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        aliases=("nc1", "nc1_svd"),
        compute=nc1_pinv,
    ),
    Metric(
        name="nc1_balanced",
        title="NC1 with every class counting once",
        family="nc1",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Papyan 2020, NC1",
        definition=(
            "tr(Sigma_W pinv(Sigma_B)) / K with Sigma_W the mean of the class covariances, directions as for nc1_pinv"
        ),
        needs=("class_counts", "class_means", "within_sq", "span_singular", "span_within"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc1_balanced,
    ),
    Metric(
        name="nc1_trace_ratio",
        title="NC1, ratio of traces",
        family="nc1",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Tirer 2023",
        definition="tr Sigma_W / tr Sigma_B, Sigma_W pooled over samples, Sigma_B over classes about their own mean",
        needs=("class_counts", "class_means", "within_sq"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        aliases=("nc1_quot",),
        compute=nc1_trace_ratio,
    ),
    Metric(
        name="nc1_cdnv",
        title="class-distance normalised variance",
        family="nc1",
        unit="",
        at_collapse="0",
        better="lower",
        scope="layer",
        source="Galanti 2021",
        definition="mean over pairs of (v_c + v_c') / (2 |mu_c - mu_c'|^2), v_c = mean over the class of |h - mu_c|^2",
        needs=("class_counts", "class_means", "within_sq"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        target=lambda k: 0.0,
        compute=nc1_cdnv,
    ),
    Metric(
        name="snr",
        title="signal to noise ratio",
        family="nc1",
        unit="",
        at_collapse="inf",
        better="higher",
        scope="layer",
        source="thesis, section 2.2",
        definition="tr Sigma_B / tr Sigma_W, both class-balanced: Sigma_W is the mean of the class covariances",
        needs=("class_counts", "class_means", "within_sq"),
        invariant_to=("rotation", "scaling", "permutation", "translation"),
        compute=snr,
    ),
)
