"""Rules that hold what is measured against what the theory guarantees.

Past a bound on an exact window means a bug, here or in what was sent: bounds are theorems there. On a streaming window
the weights moved while its sums were taken, and a bound is an estimate: then it only says that they moved far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ncmon.alerts.spec import Rule, Sight, Sign
from ncmon.bounds import BOUNDS
from ncmon.metrics.spec import Bound
from ncmon.model import CLASSIFIER_INPUT, LayerReadings

SINGLE_EPS = 2.0**-23
SLIGHT = 0.05
"""How far cosines may fall back behind the limits of collapse before it is over."""


def below_certificate(sight: Sight) -> Sequence[Sign] | None:
    """Compare every measurement of an exact window with its bounds."""
    if not sight.evaluation.window.exact:
        return None
    return _violations(sight, "")


def weights_moved(sight: Sight) -> Sequence[Sign] | None:
    """The same for a streaming window, where it says that the weights moved."""
    if sight.evaluation.window.exact:
        return None
    return _violations(sight, ": the weights moved inside the window")


def loss_under_floor(sight: Sight) -> Sequence[Sign] | None:
    """Compare the loss with its least value, where that is one: balanced classes, frozen weights, full precision."""
    window = sight.evaluation.window
    holds = {assumption.name: assumption.holds for assumption in sight.evaluation.assumptions}
    if not window.exact or not holds.get("balanced") or not holds.get("all_present"):
        return None
    loss, floor = sight.value("ce_loss"), sight.value("ce_bound_m")
    if loss is None or floor is None or window.head.logits_eps > SINGLE_EPS:
        return None
    if loss >= floor - sight.limits.slack * max(1.0, floor):
        return ()
    text = f"the loss {loss:.4g} is below {floor:.4g}, its least value at these scales"
    return [Sign(bad=True, text=text, layer=_name(sight), value=loss - floor)]


def collapse_reached(sight: Sight) -> Sequence[Sign] | None:
    """Compare the cosines at the classifier's input with those of a simplex frame."""
    found, limits = sight.classifier_input, sight.limits
    intra, inter = sight.value("intra_cos_min"), sight.value("inter_cos_max")
    present = int(found.quality.get("classes_present", 0)) if found is not None else 0
    if intra is None or inter is None or present < 2:
        return None
    above = inter + 1.0 / (present - 1)
    if intra < limits.collapse_intra - SLIGHT or above > limits.collapse_inter + SLIGHT:
        return ()
    text = f"cosines are those of collapse: {intra:.3f} within classes, at most {inter:.3f} between"
    reached = intra >= limits.collapse_intra and above <= limits.collapse_inter
    return [Sign(bad=reached, text=text, layer=_name(sight), value=intra)]


def _name(sight: Sight) -> str:
    found = sight.classifier_input
    return found.key.name if found is not None else ""


def _violations(sight: Sight, ending: str) -> list[Sign]:
    """Return one sign a layer: the bound that is passed by most."""
    signs = []
    for layer in sight.evaluation.layers:
        worst = min(_slacks(layer), key=lambda found: found[0], default=None)
        if worst is None or worst[0] >= -sight.limits.slack:
            continue
        slack, bound, measured, value, where = worst
        at = f" at class {' and '.join(f'{{class:{c}}}' for c in where)}" if where else ""
        sign = "<" if bound.side == "lower" else ">"
        text = f"{bound.of} {measured:.4g} {sign} {value:.4g}, its bound {bound.name}{at}{ending}"
        signs.append(
            Sign(bad=True, text=text, layer=layer.key.name, class_index=where[0] if where else None, value=slack)
        )
    return sorted(signs, key=lambda sign: sign.value or 0.0)


_OF_ANY_LAYER = tuple(bound for bound in BOUNDS if not bound.at_classifier)
_Slack = tuple[float, Bound, float, float, tuple[int, ...]]


def _slacks(layer: LayerReadings) -> Iterator[_Slack]:
    """Yield the least slack of every bound of a layer, with what is measured, the bound, and where."""
    for bound in BOUNDS if layer.key.name == CLASSIFIER_INPUT else _OF_ANY_LAYER:
        if bound.scope in ("class", "pair"):
            arrays = layer.class_arrays if bound.scope == "class" else layer.pair_arrays
            limit, measured = arrays.get(bound.name), arrays.get(bound.of)
            if limit is None or measured is None or limit.shape != measured.shape:
                continue
            slack = measured - limit if bound.side == "lower" else limit - measured
            if np.isnan(slack).all():
                continue
            place = np.unravel_index(int(np.nanargmin(slack)), slack.shape)
            where = tuple(int(index) for index in place)
            yield float(slack[place]), bound, float(measured[place]), float(limit[place]), where
        else:
            reading, of = layer.readings.get(bound.name), layer.readings.get(bound.of)
            if reading is None or of is None or reading.value is None or of.value is None:
                continue
            one = of.value - reading.value if bound.side == "lower" else reading.value - of.value
            yield one, bound, of.value, reading.value, reading.attained_at


RULES = (
    Rule(
        name="below-certificate",
        title="measured past its bound",
        severity="alert",
        meaning="On an exact window a measurement is on the wrong side of its bound. Theorems do not do that: it is a"
        " bug, or the weights moved during the pass.",
        advice="Bounds shows which. Did the loop train while `monitor.measure` ran? If not, please report it.",
        screen="bounds",
        limits=("slack",),
        by_class=False,
        judge_window=below_certificate,
    ),
    Rule(
        name="loss-under-floor",
        title="loss under its floor",
        severity="alert",
        meaning="On an exact window with balanced classes the cross-entropy is below the least value that these scales"
        " allow (Theorem 2.3.1): a bug, or the weights moved during the pass.",
        advice="Run shows loss, floor and gap. Are logits and features of one and the same pass?",
        screen="run",
        limits=("slack",),
        judge_window=loss_under_floor,
    ),
    Rule(
        name="weights-moved",
        title="weights moved",
        severity="info",
        meaning="In five streaming windows in a row a measurement is past its estimated bound: the weights moved that"
        " far while the sums were taken.",
        advice="For guarantees call `monitor.measure` at frozen weights; shorter windows move less.",
        screen="bounds",
        limits=("slack",),
        by_class=False,
        raise_after=5,
        clear_after=5,
        judge_window=weights_moved,
    ),
    Rule(
        name="collapse-reached",
        title="collapse reached",
        severity="info",
        meaning="At the classifier's input the least cosine within a class is at least 0.95 and the largest between"
        " classes at most 0.15 above -1/(K-1), in three windows in a row.",
        advice="Layers shows how far down it goes, Bounds how much of it is guaranteed.",
        screen="layers",
        limits=("collapse-intra", "collapse-inter"),
        raise_after=3,
        clear_after=5,
        judge_window=collapse_reached,
    ),
)
