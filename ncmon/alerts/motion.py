"""Rules about a network that moves the wrong way: NC1 that rises again, lost classes, minorities that merge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ncmon.alerts.spec import TRACED, Rule, Sight, Sign, series_key

FEWEST_SAMPLES = 5
"""Of a class in a window: fewer say nothing about it."""
MOST_MINORITIES = 128
"""The rarest classes, whose rows are compared: all pairs of a thousand would take longer than the metrics."""


def nc1_rising(sight: Sight) -> Sequence[Sign]:
    """Compare NC1 of every layer with the least it has had, where it had fallen."""
    window, limits = sight.evaluation.window, sight.limits
    signs = []
    for layer in sight.evaluation.layers:
        reading = layer.readings.get(TRACED)
        trace = sight.past.traces.get(series_key(window.split, window.exact, layer.key.name))
        if reading is None or reading.value is None or trace is None or not np.isfinite(trace.least):
            continue
        now, least = reading.value, trace.least
        if least > limits.nc1_fell * trace.first or now < limits.nc1_least or now <= 0.75 * limits.nc1_rise * least:
            continue
        text = f"NC1 rose to {now:.3g}, {now / least:.1f} times the {least:.3g} that it had fallen to"
        signs.append(Sign(bad=now > limits.nc1_rise * least, text=text, layer=layer.key.name, value=now))
    # The last layers count most: they are what collapses first.
    return signs[::-1]


def class_dead(sight: Sight) -> Sequence[Sign] | None:
    """Look for classes with samples of which the network gets none right, or whose features are all zero."""
    found, stats = sight.classifier_input, sight.evaluation.window.classifier_input
    if found is None or stats is None:
        return None
    enough = stats.class_counts >= FEWEST_SAMPLES
    zero = enough & (stats.zero_counts == stats.class_counts)
    signs = [
        Sign(
            bad=True,
            text=f"all {stats.class_counts[c]} samples of class {{class:{c}}} have features that are zero",
            layer=found.key.name,
            class_index=int(c),
            value=0.0,
        )
        for c in np.flatnonzero(zero)
    ]
    accuracy, each = sight.value("accuracy"), found.class_arrays.get("class_accuracy")
    if accuracy is None or each is None:
        return signs or None
    if accuracy >= sight.limits.dead_accuracy:
        for c in np.flatnonzero(enough & ~zero & (each < 0.05)):
            text = (
                f"of {stats.class_counts[c]} samples of class {{class:{c}}} {each[c]:.1%} are right,"
                f" of all samples {accuracy:.1%}"
            )
            signs.append(
                Sign(bad=bool(each[c] == 0), text=text, layer=found.key.name, class_index=int(c), value=float(each[c]))
            )
    return signs


def minority_collapse(sight: Sight) -> Sequence[Sign] | None:
    """Compare the classifier's rows of the rare classes: Fang 2021 shows that they merge."""
    window, limits = sight.evaluation.window, sight.limits
    stats, weight = window.classifier_input, window.head.weight
    if stats is None or weight is None:
        return None
    counts = stats.class_counts
    rare = np.flatnonzero((counts > 0) & (counts <= limits.minority_share * counts.max()))
    if rare.size < 2:
        return ()
    rare = rare[np.argsort(counts[rare], kind="stable")][:MOST_MINORITIES]
    rows = weight[rare]
    norms = np.linalg.norm(rows, axis=1)
    rare, rows = rare[norms > 0], rows[norms > 0] / norms[norms > 0, None]
    if rare.size < 2:
        return ()
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1.0)
    first, second = np.unravel_index(int(np.argmax(cosines)), cosines.shape)
    value = float(cosines[first, second])
    if value < limits.minority_cos - 0.1:
        return ()
    a, b = sorted((int(rare[first]), int(rare[second])))
    text = (
        f"the rare classes {{class:{a}}} and {{class:{b}}} ({counts[a]} and {counts[b]} samples, the largest class has"
        f" {counts.max()}) have classifier rows with cosine {value:.3f}"
    )
    return [Sign(bad=value >= limits.minority_cos, text=text, layer=stats.key.name, class_index=a, value=value)]


RULES = (
    Rule(
        name="nc1-rising",
        title="NC1 rises again",
        severity="warning",
        meaning="NC1 of a layer had fallen to half of its first value, and was more than twice its least value in three"
        " windows in a row.",
        advice="Layers shows where it begins. A step of the learning rate or a change of the data often explains it.",
        screen="layers",
        limits=("nc1-rise", "nc1-fell", "nc1-least"),
        raise_after=3,
        clear_after=3,
        judge_window=nc1_rising,
    ),
    Rule(
        name="class-dead",
        title="class dead",
        severity="warning",
        meaning="In three windows in a row no sample of a class is classified right while the network is right on"
        " half of all samples or more, or all features of the class are zero.",
        advice="Classes shows with whom it is confused. Look at its labels, its samples and its weight in the loss.",
        screen="classes",
        limits=("dead-accuracy",),
        raise_after=3,
        clear_after=3,
        judge_window=class_dead,
    ),
    Rule(
        name="minority-collapse",
        title="minority collapse",
        severity="warning",
        meaning="Classes with at most a fifth of the largest class' samples have classifier rows with a cosine of 0.9"
        " or more, in three windows in a row: to the classifier they are one class (Fang 2021).",
        advice="Classes shows the pair. More samples, resampling or class weights tell them apart.",
        screen="classes",
        limits=("minority-share", "minority-cos"),
        by_class=False,
        raise_after=3,
        clear_after=3,
        judge_window=minority_collapse,
    ),
)
