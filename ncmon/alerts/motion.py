"""Rules about a network that moves the wrong way: NC1 that rises again, lost classes, minorities that merge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ncmon.alerts.spec import TRACED, Rule, Sight, Sign, series_key

FEWEST_SAMPLES = 5
"""Of a class in a window: fewer say nothing about it."""
NEARLY = 0.05
"""Share of a class that is right, below which it is not well yet."""


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
    found = sight.classifier_input
    counts = found.class_arrays.get("count") if found is not None else None
    if found is None or counts is None:
        return None
    enough = counts >= FEWEST_SAMPLES
    zero = enough & (found.class_arrays.get("rms_norm", np.full(len(counts), np.nan)) == 0)
    signs = [
        Sign(
            bad=True,
            text=f"all {counts[c]:.0f} samples of class {{class:{c}}} have features that are zero",
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
        for c in np.flatnonzero(enough & ~zero & (each < NEARLY)):
            text = (
                f"of {counts[c]:.0f} samples of class {{class:{c}}} {each[c]:.1%} are right,"
                f" of all samples {accuracy:.1%}"
            )
            signs.append(
                Sign(bad=bool(each[c] == 0), text=text, layer=found.key.name, class_index=int(c), value=float(each[c]))
            )
    return signs


def minority_collapse(sight: Sight) -> Sequence[Sign] | None:
    """Look whether the classifier's two rows that are closest are those of rare classes: Fang 2021 shows they merge."""
    found, limits = sight.classifier_input, sight.limits
    counts = found.class_arrays.get("count") if found is not None else None
    reading = found.readings.get("w_cos_max") if found is not None else None
    if found is None or counts is None or reading is None or reading.value is None or len(reading.attained_at) != 2:
        return None
    a, b = sorted(reading.attained_at)
    most = float(np.nanmax(counts))
    if not 0 < max(counts[a], counts[b]) <= limits.minority_share * most or min(counts[a], counts[b]) <= 0:
        return ()
    if reading.value < limits.minority_cos - 0.1:
        return ()
    text = (
        f"the rare classes {{class:{a}}} and {{class:{b}}} ({counts[a]:.0f} and {counts[b]:.0f} samples, the largest"
        f" class has {most:.0f}) have classifier rows with cosine {reading.value:.3f}"
    )
    reached = reading.value >= limits.minority_cos
    return [Sign(bad=reached, text=text, layer=found.key.name, class_index=a, value=reading.value)]


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
