"""Cosines between unit-normalised features: the thesis' own measure of neural collapse.

hbar_c is the mean of h / |h| over the samples of class c that are not zero. `|hbar_c|^2` is the mean cosine over all
ordered pairs of samples of the class, i = j included, and `hbar_c . hbar_c'` the mean cosine between two classes
(thesis, section 2.2 and Lemma 2.4.4).
"""

from __future__ import annotations

import numpy as np

from ncmon import geometry
from ncmon.metrics.readings import Unavailable, class_array, reading
from ncmon.metrics.spec import Metric
from ncmon.metrics.view import View
from ncmon.model import FloatArray

_THESIS = "thesis, section 2.2 and Lemma 2.4.4"


def _greatest(view: View) -> tuple[float, tuple[int, int]]:
    """Return max over pairs of hbar_c . hbar_c' and the places of its pair."""
    return geometry.pair_maximum(view.unit_gram)


@reading
def intra_cos_min(view: View) -> tuple[float, tuple[int, ...]]:
    """Return min_c |hbar_c|^2 and its class."""
    values = _repeated_intra(view)
    lowest = int(np.argmin(values))
    return float(values[lowest]), (int(view.present[lowest]),)


@reading
def intra_cos_mean(view: View) -> float:
    """Return mean_c |hbar_c|^2."""
    return float(_repeated_intra(view).mean())


@reading
def inter_cos_max(view: View) -> tuple[float, tuple[int, ...]]:
    """Return max over pairs of hbar_c . hbar_c' and its pair."""
    view.need_directions()
    value, pair = view.shared(_greatest)
    return value, tuple(int(view.present[place]) for place in pair)


@reading
def inter_cos_mean(view: View) -> float:
    """Return the mean over pairs of hbar_c . hbar_c'."""
    view.need_directions()
    return geometry.pair_mean(view.unit_gram)


@reading
def cos_margin(view: View) -> tuple[float, tuple[int, ...]]:
    """Return intra_cos_min - inter_cos_max."""
    lowest = float(_repeated_intra(view).min())
    highest, _ = view.shared(_greatest)
    return lowest - highest, ()


def _repeated_intra(view: View) -> FloatArray:
    """Return |hbar_c|^2 (K,), unless every class has a single sample and all of them are 1 by definition."""
    view.need_directions()
    if view.directed.max() < 2:
        raise Unavailable("one sample in every class: the cosine within classes is 1 by definition")
    return view.intra


@class_array
def intra_cos(view: View) -> FloatArray:
    """Return |hbar_c|^2 of every class (K,)."""
    return np.where(view.directed > 0, view.intra, np.nan)


def _inter(view: View) -> FloatArray:
    """Return hbar_c . hbar_c' (K, K), NaN on the diagonal and for classes without a direction."""
    view.need_classes()
    values = view.unit_gram.copy()
    without = view.directed <= 0
    values[without, :] = np.nan
    values[:, without] = np.nan
    np.fill_diagonal(values, np.nan)
    return values


def _nearest(view: View) -> tuple[FloatArray, FloatArray]:
    """Return for every class (K,) the place of the largest hbar_c . hbar_c' and its value, NaN where there is none."""
    values = view.shared(_inter)
    known = np.where(np.isnan(values), -np.inf, values)
    place = np.argmax(known, axis=1)
    value = np.take_along_axis(known, place[:, None], axis=1)[:, 0]
    found = np.isfinite(value)
    return np.where(found, view.present[place], np.nan), np.where(found, value, np.nan)


@class_array
def nearest_class(view: View) -> FloatArray:
    """Return for every class (K,) the declared number of the class with the largest hbar_c . hbar_c'."""
    return view.shared(_nearest)[0]


@class_array
def nearest_cos(view: View) -> FloatArray:
    """Return max_c' hbar_c . hbar_c' of every class (K,)."""
    return view.shared(_nearest)[1]


def inter_cos(view: View) -> FloatArray:
    """Return hbar_c . hbar_c' for every pair (C, C), NaN on the diagonal and where a class has no value."""
    try:
        return view.spread_pairs(view.shared(_inter))
    except Unavailable:
        return np.full((view.n_classes, view.n_classes), np.nan)


METRICS = (
    Metric(
        name="intra_cos_min",
        title="least intra-class cosine",
        family="cosine",
        unit="",
        at_collapse="1",
        better="higher",
        scope="layer",
        source=_THESIS,
        definition="min over present classes of |hbar_c|^2, hbar_c = mean of h/|h| over the non-zero h of class c",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=intra_cos_min,
    ),
    Metric(
        name="intra_cos_mean",
        title="mean intra-class cosine",
        family="cosine",
        unit="",
        at_collapse="1",
        better="higher",
        scope="layer",
        source=_THESIS,
        definition="mean over present classes of |hbar_c|^2",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=intra_cos_mean,
    ),
    Metric(
        name="inter_cos_max",
        title="greatest inter-class cosine",
        family="cosine",
        unit="",
        at_collapse="-1/(K-1)",
        better="lower",
        scope="layer",
        source=_THESIS,
        definition="max over pairs of present classes of hbar_c . hbar_c'",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: -1.0 / (k - 1),
        compute=inter_cos_max,
    ),
    Metric(
        name="inter_cos_mean",
        title="mean inter-class cosine",
        family="cosine",
        unit="",
        at_collapse="-1/(K-1)",
        better="lower",
        scope="layer",
        source=_THESIS,
        definition="mean over pairs of present classes of hbar_c . hbar_c'",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: -1.0 / (k - 1),
        compute=inter_cos_mean,
    ),
    Metric(
        name="cos_margin",
        title="cosine margin",
        family="cosine",
        unit="",
        at_collapse="1 + 1/(K-1)",
        better="higher",
        scope="layer",
        source="thesis, Conjectures 3.1.1 and 3.2.1",
        definition="intra_cos_min - inter_cos_max",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0 + 1.0 / (k - 1),
        compute=cos_margin,
    ),
    Metric(
        name="intra_cos",
        title="intra-class cosine",
        family="cosine",
        unit="",
        at_collapse="1",
        better="higher",
        scope="class",
        source=_THESIS,
        definition="|hbar_c|^2",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: 1.0,
        compute=intra_cos,
    ),
    Metric(
        name="nearest_class",
        title="nearest class",
        family="cosine",
        unit="",
        at_collapse="",
        better="neither",
        scope="class",
        source=_THESIS,
        definition="the class c' != c with the largest hbar_c . hbar_c', the first one of equals",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling"),
        compute=nearest_class,
    ),
    Metric(
        name="nearest_cos",
        title="cosine to the nearest class",
        family="cosine",
        unit="",
        at_collapse="-1/(K-1)",
        better="lower",
        scope="class",
        source=_THESIS,
        definition="max over c' != c of hbar_c . hbar_c'",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: -1.0 / (k - 1),
        compute=nearest_cos,
    ),
    Metric(
        name="inter_cos",
        title="inter-class cosines",
        family="cosine",
        unit="",
        at_collapse="-1/(K-1)",
        better="lower",
        scope="pair",
        source=_THESIS,
        definition="hbar_c . hbar_c' for every pair of present classes",
        needs=("class_counts", "unit_sums", "zero_counts"),
        invariant_to=("rotation", "scaling", "permutation"),
        target=lambda k: -1.0 / (k - 1),
        compute=inter_cos,
    ),
)
