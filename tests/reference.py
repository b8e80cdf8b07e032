"""Slow references of every metric, from raw features: plain loops over samples, written from the definitions alone.

Nothing here uses class statistics, Gram matrices or anything of `ncmon` but the container of raw features. A reference
returns a number, an array with NaN where there is no value, or None where the metric must give a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.factories import Features


class Pass:
    """The features of one layer, sample by sample and class by class."""

    def __init__(self, features: Features, layer: str) -> None:
        self.features = features
        self.n_classes = features.weight.shape[0]
        self.rows = list(features.layers[layer])
        self.labels = [int(label) for label in features.labels]
        self.weight, self.bias = features.weight, features.bias
        self.by_class = {
            c: [row for row, label in zip(self.rows, self.labels, strict=True) if label == c]
            for c in range(self.n_classes)
        }
        self.present = [c for c in range(self.n_classes) if self.by_class[c]]
        self.means = {c: sum(self.by_class[c]) / len(self.by_class[c]) for c in self.present}
        self.centre = sum(self.means.values()) / len(self.means)

    def pairs(self) -> list[tuple[int, int]]:
        return [(c, e) for place, c in enumerate(self.present) for e in self.present[place + 1 :]]

    def per_class(self, value: Callable[[int], float]) -> np.ndarray:
        return np.array([value(c) if c in self.present else math.nan for c in range(self.n_classes)])

    def logits(self, row: np.ndarray) -> np.ndarray:
        return self.weight @ row + (0.0 if self.bias is None else self.bias)

    def nearest(self, row: np.ndarray) -> int:
        return min(self.present, key=lambda c: float(np.sum((row - self.means[c]) ** 2)))

    def loss(self, row: np.ndarray, label: int) -> float:
        logits = self.logits(row)
        wrong = [logits[c] - logits[label] for c in range(self.n_classes) if c != label]
        top = max(0.0, *wrong)
        if top > 0:
            return top + math.log(math.exp(-top) + sum(math.exp(one - top) for one in wrong))
        return math.log1p(sum(math.exp(one) for one in wrong))


def cos(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second) / (math.sqrt(first @ first) * math.sqrt(second @ second))


def mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def spread(values: Any) -> float:
    """Return the standard deviation, ddof 0."""
    found = list(values)
    centre = mean(found)
    return math.sqrt(mean((value - centre) ** 2 for value in found))


# Cosines: means over ordered pairs of samples, i = j included (thesis, Lemma 2.4.4).


def pair_cosine(p: Pass, c: int, e: int) -> float:
    first = [row for row in p.by_class[c] if np.any(row)]
    second = [row for row in p.by_class[e] if np.any(row)]
    return mean(cos(a, b) for a in first for b in second)


def inter_matrix(p: Pass) -> np.ndarray:
    matrix = np.full((p.n_classes, p.n_classes), np.nan)
    for c, e in p.pairs():
        matrix[c, e] = matrix[e, c] = pair_cosine(p, c, e)
    return matrix


def intra_cos(p: Pass) -> np.ndarray:
    return p.per_class(lambda c: pair_cosine(p, c, c))


def nearest_class(p: Pass) -> np.ndarray:
    return p.per_class(lambda c: max((e for e in p.present if e != c), key=lambda e: pair_cosine(p, c, e)))


def nearest_cos(p: Pass) -> np.ndarray:
    return p.per_class(lambda c: max(pair_cosine(p, c, e) for e in p.present if e != c))


# Scatter matrices, formed in full.


def within_covariance(p: Pass) -> np.ndarray:
    total = np.zeros((p.rows[0].size, p.rows[0].size))
    for c in p.present:
        for row in p.by_class[c]:
            total += np.outer(row - p.means[c], row - p.means[c])
    return total / len(p.rows)


def between_covariance(p: Pass) -> np.ndarray:
    return sum(np.outer(p.means[c] - p.centre, p.means[c] - p.centre) for c in p.present) / len(p.present)


def ratio(p: Pass, within: np.ndarray) -> float:
    """tr(within pinv(A^T A / K)) / K = tr(pinv(A)^T within pinv(A)), which does not square the condition of A."""
    left, singular, right = np.linalg.svd(np.array(centred_means(p)), full_matrices=False)
    kept = [k for k in range(min(len(p.present) - 1, len(singular))) if singular[k] > 1e-10 * singular[0]]
    inverse = sum(
        (np.outer(right[k], left[:, k]) / singular[k] for k in kept), start=np.zeros((right.shape[1], len(left)))
    )
    return float(np.trace(inverse.T @ within @ inverse))


def nc1_pinv(p: Pass) -> float:
    return ratio(p, within_covariance(p))


def nc1_balanced(p: Pass) -> float:
    width = p.rows[0].size
    within = np.zeros((width, width))
    for c in p.present:
        within += sum(np.outer(row - p.means[c], row - p.means[c]) for row in p.by_class[c]) / len(p.by_class[c])
    return ratio(p, within / len(p.present))


def nc1_trace_ratio(p: Pass) -> float:
    return float(np.trace(within_covariance(p)) / np.trace(between_covariance(p)))


def variance(p: Pass, c: int) -> float:
    return mean(float(np.sum((row - p.means[c]) ** 2)) for row in p.by_class[c])


def nc1_cdnv(p: Pass) -> float:
    return mean(
        (variance(p, c) + variance(p, e)) / (2 * float(np.sum((p.means[c] - p.means[e]) ** 2))) for c, e in p.pairs()
    )


def centred_norms(p: Pass) -> list[float]:
    return [float(np.linalg.norm(p.means[c] - p.centre)) for c in p.present]


def unit_distances(p: Pass) -> list[float]:
    units = {c: (p.means[c] - p.centre) / np.linalg.norm(p.means[c] - p.centre) for c in p.present}
    return [float(np.linalg.norm(units[c] - units[e])) for c, e in p.pairs()]


def uniform_duality(p: Pass) -> float:
    products_ = [float(p.weight[c] @ (p.means[c] - p.centre)) for c in p.present]
    return sum((value - mean(products_)) ** 2 for value in products_) / (len(products_) - 1)


def nc2_equinorm(p: Pass) -> float:
    return spread(centred_norms(p)) / mean(centred_norms(p))


def centred_cosines(p: Pass) -> list[float]:
    return [cos(p.means[c] - p.centre, p.means[e] - p.centre) for c, e in p.pairs()]


def nc2_maxangle(p: Pass) -> float:
    return mean(abs(value + 1 / (len(p.present) - 1)) for value in centred_cosines(p))


def snr(p: Pass) -> float:
    return mean(value**2 for value in centred_norms(p)) / mean(variance(p, c) for c in p.present)


def etf_distance(gram: np.ndarray) -> float:
    """Entry by entry against the frame whose Gram matrix has diagonal 1 - 1/K and -1/K elsewhere, at norm 1."""
    size = len(gram)
    gram = gram / np.abs(gram).max()
    norm = math.sqrt(sum(float(value) ** 2 for value in gram.ravel()))
    total = 0.0
    for i in range(size):
        for j in range(size):
            target = ((1 if i == j else 0) - 1 / size) / math.sqrt(size - 1)
            total += (gram[i, j] / norm - target) ** 2
    return math.sqrt(total)


def products(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    return np.array([[float(a @ b) for b in second] for a in first])


def centred_means(p: Pass) -> list[np.ndarray]:
    return [p.means[c] - p.centre for c in p.present]


# The classifier.


def row_norms(p: Pass) -> list[float]:
    return [math.sqrt(row @ row) for row in p.weight]


def row_cosines(p: Pass) -> list[float]:
    return [cos(p.weight[c], p.weight[e]) for c in range(p.n_classes) for e in range(c + 1, p.n_classes)]


def nc3_frob(p: Pass) -> float:
    rows = np.array([p.weight[c] for c in p.present])
    means = np.array(centred_means(p))
    difference = rows / math.sqrt(np.sum(rows**2)) - means / math.sqrt(np.sum(means**2))
    return math.sqrt(np.sum(difference**2))


def bias_collapse(p: Pass) -> float:
    logits = p.logits(sum(p.rows) / len(p.rows))
    return math.sqrt(logits @ logits)


def objective(p: Pass) -> float:
    """The decays are those of the factory: 5e-4 each."""
    return ce_loss(p) + 0.5 * 5e-4 * sum(float(row @ row) for row in p.weight) + 0.5 * 5e-4 * alpha(p) ** 2


def centred_rows(p: Pass) -> list[np.ndarray]:
    middle = sum(p.weight[c] for c in range(p.n_classes)) / p.n_classes
    return [p.weight[c] - middle for c in range(p.n_classes)]


def nc3_cos_class(p: Pass) -> np.ndarray:
    return p.per_class(lambda c: cos(centred_rows(p)[c], p.means[c]))


def samples(p: Pass) -> list[tuple[np.ndarray, int]]:
    return list(zip(p.rows, p.labels, strict=True))


def ncc_acc(p: Pass) -> float:
    return mean(p.nearest(row) == label for row, label in samples(p))


def nc4_agree(p: Pass) -> float:
    return mean(p.nearest(row) == int(np.argmax(p.logits(row))) for row in p.rows)


def accuracy(p: Pass) -> float:
    return mean(int(np.argmax(p.logits(row))) == label for row, label in samples(p))


def alpha(p: Pass) -> float:
    return math.sqrt(mean(float(row @ row) for row in p.rows))


def beta(p: Pass) -> float:
    return math.sqrt(mean(float(p.weight[c] @ p.weight[c]) for c in range(p.n_classes)))


def biased(p: Pass) -> bool:
    return p.bias is not None and bool(np.any(p.bias))


def alpha_aug(p: Pass) -> float | None:
    return math.sqrt(mean(float(row @ row) + 1 for row in p.rows)) if biased(p) else None


def beta_aug(p: Pass) -> float | None:
    if not biased(p):
        return None
    return math.sqrt(mean(float(p.weight[c] @ p.weight[c]) + p.bias[c] ** 2 for c in range(p.n_classes)))


def ce_loss(p: Pass) -> float:
    return mean(p.loss(row, label) for row, label in samples(p))


def ce_bound_m(p: Pass) -> float:
    product = alpha_aug(p) * beta_aug(p) if biased(p) else alpha(p) * beta(p)
    c = p.n_classes
    return math.log(1 + (c - 1) * math.exp(-c / (c - 1) * product))


# The gaps of the proof, sample by sample; every class counts once.


def own_logit(p: Pass, row: np.ndarray, label: int) -> float:
    logits = p.logits(row)
    return float(logits[label]) - mean(float(value) for value in logits)


def least_loss(p: Pass, z: float) -> float:
    c = p.n_classes
    exponent = math.log(c - 1) - c / (c - 1) * z
    return exponent + math.log1p(math.exp(-exponent)) if exponent > 0 else math.log1p(math.exp(exponent))


def class_own(p: Pass, c: int) -> float:
    return mean(least_loss(p, own_logit(p, row, c)) for row in p.by_class[c])


def class_logit(p: Pass, c: int) -> float:
    return mean(own_logit(p, row, c) for row in p.by_class[c])


def class_gap_wrong(p: Pass) -> np.ndarray:
    return p.per_class(lambda c: mean(p.loss(row, c) for row in p.by_class[c]) - class_own(p, c))


def class_gap_within(p: Pass) -> np.ndarray:
    return p.per_class(lambda c: class_own(p, c) - least_loss(p, class_logit(p, c)))


def class_gap_align(p: Pass) -> np.ndarray:
    def gap(c: int) -> float:
        rms = math.sqrt(mean(float(row @ row) for row in p.by_class[c]))
        row = centred_rows(p)[c]
        shift = 0.0 if p.bias is None else float(p.bias[c]) - mean(float(value) for value in p.bias)
        return least_loss(p, class_logit(p, c)) - least_loss(p, rms * math.sqrt(row @ row) + shift)

    return p.per_class(gap)


def gap_between(p: Pass) -> float:
    logits = [class_logit(p, c) for c in p.present]
    return mean(least_loss(p, z) for z in logits) - least_loss(p, mean(logits))


def gap_align(p: Pass) -> float:
    extra = 1.0 if biased(p) else 0.0
    features = mean(mean(float(row @ row) + extra for row in p.by_class[c]) for c in p.present)
    rows = mean(
        float(p.weight[c] @ p.weight[c]) + (float(p.bias[c]) ** 2 if biased(p) else 0.0) for c in range(p.n_classes)
    )
    return least_loss(p, mean(class_logit(p, c) for c in p.present)) - least_loss(p, math.sqrt(features * rows))


def settled(p: Pass) -> tuple[float, float, float]:
    """The minimum of m(p) + lambda sqrt(C) p, where its slope changes sign; the decays are those of the factory."""
    strength = 5e-4 * math.sqrt(p.n_classes)
    c = p.n_classes

    def objective_at(product: float) -> float:
        return least_loss(p, product) + strength * product

    low, high = 0.0, 60.0
    for _ in range(200):
        product = 0.5 * (low + high)
        wrong = (c - 1) / (math.exp(c / (c - 1) * product) + c - 1)
        low, high = (product, high) if c / (c - 1) * wrong > strength else (low, product)
    product = 0.5 * (low + high)
    return product, least_loss(p, product), objective_at(product)


def excess_structure(p: Pass) -> float | None:
    # With unequal classes the pooled loss may be below its balanced bound: then there is no such term.
    value = ce_loss(p) - least_loss(p, alpha(p) * beta(p))
    return None if biased(p) or value < -1e-12 else value


def excess_norm(p: Pass) -> float:
    product = alpha(p) * beta(p)
    return least_loss(p, product) + 5e-4 * math.sqrt(p.n_classes) * product - settled(p)[2]


def excess_balance(p: Pass) -> float:
    penalty = 0.5 * 5e-4 * (p.n_classes * beta(p) ** 2 + alpha(p) ** 2)
    return penalty - 5e-4 * math.sqrt(p.n_classes) * alpha(p) * beta(p)


def effective_depth(features: Features) -> float:
    for place, layer in enumerate(features.layers, 1):
        if 1 - ncc_acc(Pass(features, layer)) <= 0.01:
            return place
    return len(features.layers)


SCALARS: dict[str, Callable[[Pass], float | None]] = {
    "intra_cos_min": lambda p: float(np.nanmin(intra_cos(p))),
    "intra_cos_mean": lambda p: float(np.nanmean(intra_cos(p))),
    "inter_cos_max": lambda p: float(np.nanmax(inter_matrix(p))),
    "inter_cos_mean": lambda p: mean(pair_cosine(p, c, e) for c, e in p.pairs()),
    "cos_margin": lambda p: float(np.nanmin(intra_cos(p)) - np.nanmax(inter_matrix(p))),
    "nc1_pinv": nc1_pinv,
    "nc1_balanced": nc1_balanced,
    "nc1_trace_ratio": nc1_trace_ratio,
    "nc1_cdnv": nc1_cdnv,
    "nc2_equinorm": nc2_equinorm,
    "nc2_maxangle": nc2_maxangle,
    "ncc_acc": ncc_acc,
    "snr": snr,
    "nc2_equiangularity": lambda p: spread(centred_cosines(p)),
    "nc2_etf_err": lambda p: etf_distance(products(centred_means(p), centred_means(p))),
    "w_equinorm": lambda p: spread(row_norms(p)) / mean(row_norms(p)),
    "w_equiangularity": lambda p: spread(row_cosines(p)),
    "w_maxangle": lambda p: mean(abs(value + 1 / (p.n_classes - 1)) for value in row_cosines(p)),
    "w_etf_err": lambda p: etf_distance(products(list(p.weight), list(p.weight))),
    "w_cos_max": lambda p: max(row_cosines(p)),
    "nc3_frob": nc3_frob,
    "nc3_dual_err": lambda p: etf_distance(products([p.weight[c] for c in p.present], centred_means(p))),
    "bias_collapse": bias_collapse,
    "alpha_bn": alpha,
    "objective": objective,
    "alpha": alpha,
    "nc3_cos_min": lambda p: float(np.nanmin(nc3_cos_class(p))),
    "nc3_cos_mean": lambda p: float(np.nanmean(nc3_cos_class(p))),
    "nc4_agree": nc4_agree,
    "accuracy": accuracy,
    "beta": beta,
    "alpha_aug": alpha_aug,
    "beta_aug": beta_aug,
    "ce_loss": ce_loss,
    "ce_bound_m": ce_bound_m,
    "ce_gap": lambda p: ce_loss(p) - ce_bound_m(p),
    "gap_wrong": lambda p: mean(class_gap_wrong(p)) if len(p.present) == p.n_classes else None,
    "gap_within": lambda p: mean(class_gap_within(p)) if len(p.present) == p.n_classes else None,
    "gap_between": lambda p: gap_between(p) if len(p.present) == p.n_classes else None,
    "gap_align": lambda p: gap_align(p) if len(p.present) == p.n_classes else None,
    "wd_alpha_beta": lambda p: settled(p)[0],
    "wd_loss": lambda p: settled(p)[1],
    "wd_objective": lambda p: settled(p)[2],
    "excess_structure": excess_structure,
    "excess_norm": excess_norm,
    "excess_balance": excess_balance,
    "nc2g_dist": lambda p: spread(unit_distances(p)) ** 2,
    "nc2g_log": lambda p: spread(-math.log(value) for value in unit_distances(p)) ** 2,
    "nc3_centred_cos_mean": lambda p: mean(cos(p.weight[c], p.means[c] - p.centre) for c in p.present),
    "nc3u_uni_dual": uniform_duality,
    "nc3_raw_cos_min": lambda p: min(cos(p.weight[c], p.means[c]) for c in p.present),
    "nc3_raw_cos_mean": lambda p: mean(cos(p.weight[c], p.means[c]) for c in p.present),
}


def nearest_row(p: Pass, c: int) -> tuple[float, int]:
    return max(((cos(p.weight[c], p.weight[e]), e) for e in range(p.n_classes) if e != c), key=lambda one: one[0])


ARRAYS: dict[str, Callable[[Pass], np.ndarray]] = {
    "w_nearest_class": lambda p: p.per_class(lambda c: nearest_row(p, c)[1]),
    "w_nearest_cos": lambda p: p.per_class(lambda c: nearest_row(p, c)[0]),
    "intra_cos": intra_cos,
    "nearest_class": nearest_class,
    "nearest_cos": nearest_cos,
    "inter_cos": inter_matrix,
    "count": lambda p: p.per_class(lambda c: len(p.by_class[c])),
    "mean_norm": lambda p: p.per_class(lambda c: mean(math.sqrt(row @ row) for row in p.by_class[c])),
    "rms_norm": lambda p: p.per_class(lambda c: math.sqrt(mean(float(row @ row) for row in p.by_class[c]))),
    "class_loss": lambda p: p.per_class(lambda c: mean(p.loss(row, c) for row in p.by_class[c])),
    "class_accuracy": lambda p: p.per_class(
        lambda c: mean(int(np.argmax(p.logits(row))) == c for row in p.by_class[c])
    ),
    "class_ncc_acc": lambda p: p.per_class(lambda c: mean(p.nearest(row) == c for row in p.by_class[c])),
    "nc3_cos_class": nc3_cos_class,
    "class_gap_wrong": class_gap_wrong,
    "class_gap_within": class_gap_within,
    "class_gap_align": class_gap_align,
}

WINDOWS: dict[str, Callable[[Features], float | None]] = {"effective_depth": effective_depth}
