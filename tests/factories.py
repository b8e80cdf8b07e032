"""Valid model values from raw random features, with defaults for everything. No test state lives here.

`window_from_features` is the honest way from features to a window: each statistic is computed in one line from its
definition on the wire. Whoever needs raw features beside the window makes them with `make_features` and passes them on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ncmon.model import (
    CLASSIFIER_INPUT,
    Evaluation,
    FloatArray,
    Head,
    IntArray,
    LayerKey,
    LayerStats,
    Run,
    Window,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """Raw features of one pass: what a window is made of."""

    layers: Mapping[str, FloatArray]
    """(N, d) by layer name, in the order of the forward pass; the last one is `classifier-input`."""
    labels: IntArray
    """(N,)"""
    weight: FloatArray
    """(C, d of the last layer)"""
    bias: FloatArray | None

    @property
    def last(self) -> FloatArray:
        """The features that enter the classifier."""
        return self.layers[CLASSIFIER_INPUT]


def simplex(n_classes: int, n_features: int) -> FloatArray:
    """Return a simplex frame (C, d) of unit vectors, or orthonormal-ish random ones where d < C - 1."""
    if n_features < n_classes - 1:
        rows = np.random.default_rng(n_classes).normal(size=(n_classes, n_features))
        rows -= rows.mean(axis=0)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # Helmert's basis of what is orthogonal to 1: an SVD of the centring matrix, whose singular values are all equal,
    # gives another basis on every processor, and with it other numbers in every snapshot.
    place = np.arange(1, n_classes)
    vectors = np.triu(np.ones((n_classes, n_classes - 1)))
    vectors[place, place - 1] = -place
    vectors /= np.sqrt(place * (place + 1))
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.pad(rows, ((0, 0), (0, n_features - (n_classes - 1))))


def make_features(
    *,
    seed: int = 0,
    n_classes: int = 4,
    n_features: int | Sequence[int] = 16,
    per_class: int | Sequence[int] = 20,
    layers: int = 3,
    collapse: float = 0.5,
    scale: float = 4.0,
    weight_scale: float = 2.0,
    bias: bool = True,
    relu: bool = False,
) -> Features:
    """Return random features: a simplex frame of class means plus noise.

    `collapse` 0 is noise as large as the means, 1 is a simplex frame without noise whose classifier is aligned and has
    a zero bias. Earlier layers are half as collapsed each. `scale` is the norm of a mean, `weight_scale` of a row.
    """
    rng = np.random.default_rng(seed)
    widths = [n_features] * layers if isinstance(n_features, int) else list(n_features)
    counts = [per_class] * n_classes if isinstance(per_class, int) else list(per_class)
    labels = np.repeat(np.arange(n_classes), counts)
    rng.shuffle(labels)
    noise = 1.0 - collapse
    found: dict[str, FloatArray] = {}
    for place, width in enumerate(widths):
        last = place == len(widths) - 1
        level = noise if last else 1.0 - collapse * 0.5 ** (len(widths) - 1 - place)
        means = simplex(n_classes, width) + 0.3 * level * rng.normal(size=(n_classes, width)) / np.sqrt(width)
        features = means[labels] + level * rng.normal(size=(labels.size, width)) / np.sqrt(width)
        features = scale * features
        found[CLASSIFIER_INPUT if last else f"blocks.{place}"] = np.maximum(features, 0.0) if relu else features
    weight = simplex(n_classes, widths[-1]) + 0.3 * noise * rng.normal(size=(n_classes, widths[-1])) / np.sqrt(
        widths[-1]
    )
    return Features(
        layers=found,
        labels=labels.astype(np.int64),
        weight=weight_scale * weight,
        bias=0.5 * noise * rng.normal(size=n_classes) if bias else None,
    )


def window_from_features(
    layers: Mapping[str, FloatArray],
    labels: IntArray,
    weight: FloatArray | None = None,
    bias: FloatArray | None = None,
    *,
    n_classes: int | None = None,
    has_bias: bool | None = None,
    scatter: bool = False,
    span: bool = True,
    ncc: bool = True,
    loss: bool = True,
    single: bool = False,
    before: bool = True,
    **window: Any,
) -> Window:
    """Return the window of raw features (N, d) by layer name, the last one `classifier-input`.

    Rows with a value that is not finite are left out and counted, as a client does. `scatter` sends the full
    within-class scatter in the place of its reduction to the span of the means (as several ranks do); `span`, `ncc`,
    `loss` False leave statistics out; `single` rounds class means and unit sums to single precision; `before` says that
    a window of the same class sizes came before. All other keywords are fields of `Window`.
    """
    total = n_classes or (weight.shape[0] if weight is not None else int(labels.max()) + 1)
    logits = None
    if weight is not None:
        logits = layers[CLASSIFIER_INPUT] @ weight.T + (0.0 if bias is None else bias)
    stats = tuple(
        _layer_stats(
            *(name, place, features, labels, total, logits),
            scatter=scatter,
            span=span,
            ncc=ncc,
            single=single,
            before=before,
        )
        for place, (name, features) in enumerate(layers.items())
    )
    fields: dict[str, Any] = {
        "run_id": "run",
        "split": "train",
        "epoch": 0,
        "step": 100,
        "steps": 100,
        "sampled_steps": 100,
        "time": 1_800_000_000.0,
        "duration_s": 1.0,
        "exact": True,
        "ncc_source": "own" if ncc else "none",
        "n_classes": total,
        "layers": stats,
        "head": _head(labels, total, layers[CLASSIFIER_INPUT], logits, weight, bias, has_bias=has_bias, loss=loss),
    }
    return Window(**(fields | window))


def make_window(
    *,
    seed: int = 0,
    n_classes: int = 4,
    n_features: int | Sequence[int] = 16,
    per_class: int | Sequence[int] = 20,
    layers: int = 3,
    collapse: float = 0.5,
    bias: bool = True,
    scatter: bool = False,
    single: bool = False,
    epoch: int = 0,
    step: int | None = None,
    **window: Any,
) -> Window:
    """Return a valid window of random features. `step` is 100 (epoch + 1) by default, `time` one second a step."""
    features = make_features(
        seed=seed,
        n_classes=n_classes,
        n_features=n_features,
        per_class=per_class,
        layers=layers,
        collapse=collapse,
        bias=bias,
    )
    at = 100 * (epoch + 1) if step is None else step
    fields: dict[str, Any] = {"epoch": epoch, "step": at, "time": 1_800_000_000.0 + at, "exact": False} | window
    return window_from_features(
        features.layers,
        features.labels,
        features.weight,
        features.bias,
        n_classes=n_classes,
        scatter=scatter,
        single=single,
        **fields,
    )


def make_run(*, run_id: str = "run", **fields: Any) -> Run:
    """Return a live run of four classes."""
    defaults: dict[str, Any] = {
        "name": run_id,
        "status": "live",
        "started": 1_800_000_000.0,
        "host": "host",
        "pid": 1,
        "n_classes": 4,
        "config": {"lr": 0.1},
        "client": "0.1.0",
    }
    return Run(run_id=run_id, **(defaults | fields))


def make_evaluation(window: Window | None = None, **options: Any) -> Evaluation:
    """Return the evaluation of a window, by default of `make_window(**options)`."""
    from ncmon.evaluate import evaluate

    return evaluate(make_window(**options) if window is None else window)


def _layer_stats(
    name: str,
    place: int,
    features: FloatArray,
    labels: IntArray,
    total: int,
    logits: FloatArray | None,
    *,
    scatter: bool,
    span: bool,
    ncc: bool,
    single: bool,
    before: bool,
) -> LayerStats:
    width = features.shape[1]
    finite = np.isfinite(features).all(axis=1)
    kept, own = features[finite], labels[finite]
    counts = np.bincount(own, minlength=total).astype(np.int64)
    means = np.zeros((total, width))
    units = np.zeros((total, width))
    within = np.zeros(total)
    norm_sums, norm_sq_sums = np.zeros(total), np.zeros(total)
    zeros = np.zeros(total, dtype=np.int64)
    pooled = np.zeros((width, width))
    for c in np.flatnonzero(counts):
        mine = kept[own == c]
        norms = np.linalg.norm(mine, axis=1)
        directed = norms > 0
        means[c] = mine.mean(axis=0)
        deviation = mine - means[c]
        within[c] = np.sum(deviation**2)
        pooled += deviation.T @ deviation
        units[c] = np.sum(mine[directed] / norms[directed, None], axis=0)
        norm_sums[c], norm_sq_sums[c] = norms.sum(), np.sum(norms**2)
        zeros[c] = np.count_nonzero(~directed)
    present = np.flatnonzero(counts)
    singular = within_span = None
    if span and not scatter and present.size:
        centred = means[present] - means[present].mean(axis=0)
        _, values, right = np.linalg.svd(centred, full_matrices=False)
        singular = values
        within_span = np.maximum(np.einsum("ij,jk,ik->i", right, pooled, right), 0.0)
    taken = hits = agree = None
    if ncc and present.size:
        distances = ((kept[:, None, :] - means[present][None]) ** 2).sum(axis=2)
        nearest = present[np.argmin(distances, axis=1)]
        taken = counts.copy()
        hits = np.bincount(own[nearest == own], minlength=total).astype(np.int64)
        if logits is not None:
            chosen = np.argmax(logits[finite], axis=1)
            agree = np.bincount(own[nearest == chosen], minlength=total).astype(np.int64)
    # As if the window before had held the same samples, all of them a little elsewhere.
    weighted = sum(
        (np.cov(kept[own == c].T, ddof=0).reshape(width, width) for c in present if counts[c] > 1),
        start=np.zeros((width, width)),
    )
    along = None if singular is None else np.maximum(np.einsum("ij,jk,ik->i", right, weighted, right), 0.0)
    if single:
        means = means.astype(np.float32).astype(np.float64)
        units = units.astype(np.float32).astype(np.float64)
    return LayerStats(
        key=LayerKey(name=name, index=place),
        module="Linear",
        reduction="none",
        note="",
        n_features=width,
        class_counts=counts,
        class_means=means,
        within_sq=within,
        unit_sums=units,
        norm_sums=norm_sums,
        norm_sq_sums=norm_sq_sums,
        zero_counts=zeros,
        nonfinite_counts=np.bincount(labels[~finite], minlength=total).astype(np.int64),
        ncc_counts=taken,
        ncc_hits=hits,
        ncc_agree=agree,
        span_singular=singular,
        span_within=within_span,
        within_scatter=pooled if scatter else None,
        before_counts=counts.copy() if before else None,
        shift_sq=np.where(counts > 0, 0.04, 0.0) if before else None,
        moment_weights=np.divide(1.0, counts, out=np.zeros(total), where=counts > 0) if before else None,
        span_weighted=along if before else None,
        weighted_scatter=weighted if scatter and before else None,
        means_f4=single,
    )


def _head(
    labels: IntArray,
    total: int,
    features: FloatArray,
    logits: FloatArray | None,
    weight: FloatArray | None,
    bias: FloatArray | None,
    *,
    has_bias: bool | None,
    loss: bool,
) -> Head:
    label_counts = loss_sums = correct = loss_nonfinite = own_logit_sums = own_loss_sums = None
    if logits is not None and loss:
        finite = np.isfinite(logits).all(axis=1)
        usable, own = logits[finite], labels[finite]
        gaps = usable - usable[np.arange(own.size), own][:, None]
        gaps[np.arange(own.size), own] = -np.inf
        top = np.maximum(gaps.max(axis=1), 0.0)
        # log(1 + sum of the wrong ones), by log1p so that the smallest losses keep their digits.
        losses = np.where(
            top > 0,
            top + np.log(np.exp(-top) + np.exp(gaps - top[:, None]).sum(axis=1)),
            np.log1p(np.exp(gaps - top[:, None]).sum(axis=1)),
        )
        label_counts = np.bincount(own, minlength=total).astype(np.int64)
        loss_sums = np.bincount(own, weights=losses, minlength=total).astype(np.float64)
        right = usable.argmax(axis=1) == own
        correct = np.bincount(own[right], minlength=total).astype(np.int64)
        loss_nonfinite = np.bincount(labels[~finite], minlength=total).astype(np.int64)
        z = usable[np.arange(own.size), own] - usable.mean(axis=1)
        own_logit_sums = np.bincount(own, weights=z, minlength=total).astype(np.float64)
        least = np.logaddexp(0.0, np.log(total - 1.0) - total / (total - 1.0) * z)
        own_loss_sums = np.bincount(own, weights=least, minlength=total).astype(np.float64)
    seen = features[np.isfinite(features).all(axis=1)]
    known = (bias is not None) if has_bias is None else has_bias
    return Head(
        name="head",
        has_bias=known,
        batch_norm="bn",
        batch_norm_eps=1e-5,
        weight_decay=5e-4,
        weight_decay_gamma=5e-4,
        decoupled_decay=False,
        plain_loss=True,
        finite=True,
        weight=weight,
        bias=bias,
        # The scale of a BatchNorm without shift that gives these features: |gamma| is their root mean square norm.
        bn_gamma=np.sqrt(np.mean(seen**2, axis=0)) if len(seen) else np.ones(features.shape[1]),
        bn_beta=np.zeros(features.shape[1]),
        label_counts=label_counts,
        loss_sums=loss_sums,
        correct=correct,
        loss_nonfinite=loss_nonfinite,
        own_logit_sums=own_logit_sums,
        own_loss_sums=own_loss_sums,
    )
