"""Every rule raises what it is there for, clears when it is over, and is quiet about what is well."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from ncmon.alerts import LIMITS, RULES, Engine, Limits, parse_limits, rule_named
from ncmon.alerts.engine import MOST_OPEN
from ncmon.errors import NotFound, UsageError
from ncmon.evaluate import evaluate
from ncmon.model import Alert, Evaluation, Gap, Reading, Rejection, RunEnd, Window
from ncmon.tui.app import SCREENS
from tests.factories import make_evaluation, make_features, make_window, window_from_features


def play(engine: Engine, items: list[object], *, now: float = 1000.0, pause: float = 10.0) -> list[Alert]:
    found = []
    for number, item in enumerate(items):
        found += engine.see(bare(item), now=now + number * pause)  # type: ignore[arg-type]
    return found


def bare(item: object) -> object:
    """Return an evaluation without a window's statistics: rules go by readings, for these are what is kept."""
    if not isinstance(item, Evaluation):
        return item
    head = dict.fromkeys(("weight", "bias", "bn_gamma", "bn_beta", "loss_sums", "correct"))
    window = dataclasses.replace(item.window, layers=(), head=dataclasses.replace(item.window.head, **head))
    return dataclasses.replace(item, window=window)


def only(name: str, **limits: float) -> Engine:
    return Engine([rule_named(name)], Limits(**limits))  # type: ignore[arg-type]


def names(alerts: list[Alert]) -> list[tuple[str, bool]]:
    return [(alert.rule, alert.open) for alert in alerts]


def with_reading(evaluation: Evaluation, name: str, value: float, layer: str = "classifier-input") -> Evaluation:
    layers = tuple(
        dataclasses.replace(one, readings={**one.readings, name: Reading(value=value)})
        if one.key.name == layer
        else one
        for one in evaluation.layers
    )
    return dataclasses.replace(evaluation, layers=layers)


def test_the_list_is_whole() -> None:
    limits = {limit.name for limit in LIMITS}
    for rule in RULES:
        assert set(rule.limits) <= limits, rule.name
        assert rule.screen in SCREENS, rule.name
        assert rule.meaning.endswith(".")
        assert rule.advice
        assert (rule.judge_window, rule.judge_news, rule.judge_tick).count(None) == 2, rule.name
    used = {name for rule in RULES for name in rule.limits}
    assert used == limits
    # The rules of the README's list.
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    for rule in RULES:
        assert f"`{rule.name}`" in readme, rule.name


@pytest.mark.parametrize("exact", [True, False])
def test_a_network_that_collapses_raises_good_news_alone(exact: bool) -> None:
    engine = Engine(RULES)
    found = []
    for epoch in range(60):
        collapse = 0.1 + 0.9 * (1 - np.exp(-epoch / 8))
        window = make_window(seed=1, collapse=float(collapse), epoch=epoch, exact=exact)
        found += engine.see(evaluate(window), now=1000.0 + 5.0 * epoch)
        found += engine.tick(now=1001.0 + 5.0 * epoch)
    assert names(found) == [("collapse-reached", True)]


def test_collapse_is_over_when_cosines_fall_back_and_not_before() -> None:
    reached = make_evaluation(collapse=0.99)
    slightly = with_reading(reached, "intra_cos_min", 0.92)
    lost = with_reading(reached, "intra_cos_min", 0.7)
    engine = only("collapse-reached")
    assert names(play(engine, [reached] * 2)) == []
    assert names(play(engine, [reached])) == [("collapse-reached", True)]
    assert names(play(engine, [slightly] * 20)) == []
    assert names(play(engine, [lost] * 5)) == [("collapse-reached", False)]


def test_one_value_that_is_not_finite_is_enough() -> None:
    made = make_features()
    broken = {name: values.copy() for name, values in made.layers.items()}
    broken["blocks.1"][3, 2] = np.nan
    bad = evaluate(window_from_features(broken, made.labels, made.weight, made.bias, exact=False))
    engine = only("nonfinite")
    (alert,) = play(engine, [bad])
    assert (alert.layer, alert.severity, alert.value) == ("blocks.1", "alert", 1 / 80)
    assert names(play(engine, [make_evaluation()] * 3)) == [("nonfinite", False)]
    window = make_window()
    head = dataclasses.replace(window.head, finite=False, weight=None)
    assert "parameters" in play(only("nonfinite"), [evaluate(dataclasses.replace(window, head=head))])[0].text
    loss = np.array([0, 0, 2, 0])
    head = dataclasses.replace(window.head, loss_nonfinite=loss)
    assert "the loss of 2 of" in play(only("nonfinite"), [evaluate(dataclasses.replace(window, head=head))])[0].text


def test_a_run_is_stalled_by_its_own_measure() -> None:
    window = make_evaluation()
    quick = only("run-stalled")
    play(quick, [window] * 5, pause=1.0)
    assert quick.tick(now=1004.0 + 299) == []
    (alert,) = quick.tick(now=1004.0 + 301)
    assert alert.open
    assert quick.tick(now=1004.0 + 400) == []
    assert names(quick.see(window, now=1500.0)) == [("run-stalled", False)]
    slow = only("run-stalled")
    play(slow, [window] * 5, pause=1000.0)
    assert slow.tick(now=5000.0 + 4900) == []
    assert len(slow.tick(now=5000.0 + 5100)) == 1
    # The first epoch of a large network: no pause is usual yet.
    first = only("run-stalled")
    first.meet("run", now=0.0)
    assert first.tick(now=3599.0) == []
    assert len(first.tick(now=3601.0)) == 1
    assert names(first.see(RunEnd(run_id="run", status="finished", text="", time=0.0), now=3602.0)) == [
        ("run-stalled", False)
    ]
    assert first.tick(now=1e6) == []


def test_only_ranks_that_were_heard_of_can_fall_silent() -> None:
    both = make_evaluation(make_window(ranks=(0, 1), world_size=4))
    one = make_evaluation(make_window(ranks=(0,), world_size=4))
    assert play(only("rank-silent"), [one] * 10) == []
    engine = only("rank-silent")
    assert play(engine, [both] + [one] * 2) == []
    (alert,) = play(engine, [one])
    assert "rank 1 of 4" in alert.text
    assert names(play(engine, [both])) == [("rank-silent", False)]


def test_a_failed_run_and_lost_windows_are_told() -> None:
    failed = RunEnd(run_id="run", status="failed", text="CUDA error:\nout of memory", time=1.0)
    (alert,) = play(only("run-failed"), [failed])
    assert alert.text == "the training failed: CUDA error: out of memory"
    assert play(only("run-failed"), [dataclasses.replace(failed, status="finished")]) == []
    gap = Gap(run_id="run", split="train", epoch=4, step=50, time=1.0, reason="no room in the outbox")
    engine = only("windows-refused")
    (alert,) = play(engine, [gap])
    assert alert.text == "a window of train (epoch 5) was lost: no room in the outbox"
    assert play(engine, [gap, gap] + [make_evaluation()] * 19) == []
    assert names(play(engine, [make_evaluation()])) == [("windows-refused", False)]
    refused = Rejection(stream=b"", seq=1, run_id="run", code="crc", reason="bytes changed", head=b"", time=1.0)
    assert "refused (crc): bytes changed" in play(only("windows-refused"), [refused])[0].text
    assert play(only("windows-refused"), [dataclasses.replace(refused, run_id="")]) == []


def test_overhead_counts_where_the_loop_did_not_ask_for_every_step() -> None:
    dear = make_evaluation(make_window(overhead=0.08, steps=100, sampled_steps=10))
    wished = make_evaluation(make_window(overhead=0.5, steps=100, sampled_steps=100))
    fair = make_evaluation(make_window(overhead=0.01, steps=100, sampled_steps=10))
    assert play(only("overhead"), [wished] * 10) == []
    engine = only("overhead")
    assert play(engine, [dear, fair] * 10) == []
    (alert,) = play(engine, [dear] * 5)
    assert alert.text.startswith("watching takes 8.0 %")
    assert names(play(engine, [fair] * 3)) == [("overhead", False)]
    assert play(only("overhead", overhead_share=0.1), [dear] * 10) == []


def test_past_a_bound_is_an_alert_on_exact_windows_and_moved_weights_on_others() -> None:
    window = make_window(collapse=0.9, exact=True)
    fair = evaluate(window)
    readings = fair.layers[-1].readings
    assert readings["cert_intra_min"].value is not None
    broken = with_reading(fair, "intra_cos_min", readings["cert_intra_min"].value - 0.01)
    assert play(Engine(RULES, Limits(off=frozenset({"collapse-reached"}))), [fair] * 5) == []
    (alert,) = play(only("below-certificate"), [broken])
    assert alert.severity == "alert"
    assert "intra_cos_min" in alert.text
    assert "moved" not in alert.text
    streaming = dataclasses.replace(broken, window=dataclasses.replace(window, exact=False))
    assert play(only("below-certificate"), [streaming] * 10) == []
    engine = Engine(RULES, Limits(off=frozenset({"collapse-reached"})))
    assert play(engine, [streaming] * 4) == []
    (alert,) = play(engine, [streaming])
    assert (alert.rule, alert.severity) == ("weights-moved", "info")
    assert alert.text.endswith("the weights moved inside the window")
    # Arrays of classes and of pairs are bounded too; what rounding does is no alert.
    for name, arrays in (("cert_intra", "class_arrays"), ("cert_inter", "pair_arrays")):
        layer = fair.layers[-1]
        changed = {key: value.copy() for key, value in getattr(layer, arrays).items()}
        changed[name] += 5.0 if name == "cert_intra" else -5.0
        odd = dataclasses.replace(fair, layers=(dataclasses.replace(layer, **{arrays: changed}),))
        assert "{class:" in play(only("below-certificate"), [odd])[0].text
    tightest = max(
        reading.value
        for name in ("cert_intra_min", "cert_plus_intra_min", "sharp_intra", "thm_intra", "thm_tight_intra")
        if (reading := readings.get(name)) is not None and reading.value is not None
    )
    near = with_reading(fair, "intra_cos_min", tightest - 1e-6)
    assert play(only("below-certificate"), [near]) == []


def test_the_floor_of_the_loss_binds_where_it_is_a_theorem() -> None:
    fair = evaluate(make_window(collapse=0.9, exact=True, bias=False))
    floor = fair.layers[-1].readings["ce_bound_m"].value
    below = with_reading(fair, "ce_loss", floor - 0.001)
    assert play(only("loss-under-floor"), [fair]) == []
    (alert,) = play(only("loss-under-floor"), [below])
    assert alert.value == pytest.approx(-0.001)
    streaming = dataclasses.replace(below, window=dataclasses.replace(below.window, exact=False))
    assert play(only("loss-under-floor"), [streaming]) == []
    uneven = evaluate(make_window(collapse=0.9, exact=True, bias=False, per_class=[10, 20, 30, 40]))
    assert play(only("loss-under-floor"), [with_reading(uneven, "ce_loss", 1e-9)]) == []
    half = dataclasses.replace(below.window.head, logits_eps=2.0**-8)
    rough = dataclasses.replace(below, window=dataclasses.replace(below.window, head=half))
    assert play(only("loss-under-floor"), [rough]) == []


def course(values: list[float]) -> list[Evaluation]:
    fair = make_evaluation()
    return [with_reading(fair, "nc1_pinv", value) for value in values]


def test_nc1_that_rises_after_it_fell_is_told_once() -> None:
    falls = [1.0, 0.5, 0.2, 0.1, 0.1, 0.1]
    engine = only("nc1-rising")
    assert play(engine, course(falls)) == []
    assert play(engine, course([0.3, 0.1, 0.3, 0.1])) == []  # spikes
    (alert,) = play(engine, course([0.25, 0.26, 0.3, 0.4]))
    assert alert.layer == "classifier-input"
    assert alert.text == "NC1 rose to 0.3, 3.0 times the 0.1 that it had fallen to"
    assert play(engine, course([0.17] * 10)) == []  # not yet down again
    assert names(play(engine, course([0.11] * 3))) == [("nc1-rising", False)]
    # It never fell; it is nothing but rounding; the daemon started in between.
    assert play(only("nc1-rising"), course([0.1, 0.1, 0.1, 0.5, 0.5, 0.5])) == []
    assert play(only("nc1-rising"), course([1e-3, 1e-8, 1e-8, 1e-8, 1e-4, 1e-4, 1e-4])) == []
    before, after = only("nc1-rising"), only("nc1-rising")
    play(before, course(falls))
    after.resume([], [("run", before.memory("run"))], now=0.0)
    assert len(play(after, course([0.3] * 3))) == 1


def test_a_training_that_goes_on_from_a_checkpoint_has_not_risen() -> None:
    def at(steps: list[int], values: list[float]) -> list[Evaluation]:
        return [
            dataclasses.replace(one, window=dataclasses.replace(one.window, step=step))
            for step, one in zip(steps, course(values), strict=True)
        ]

    falls = at([10, 20, 30, 40, 50, 60], [1.0, 0.5, 0.2, 0.1, 0.1, 0.1])
    engine = only("nc1-rising")
    assert play(engine, falls) == []
    # From step 25: NC1 is what it was there.
    assert play(engine, at([30, 40, 50, 60], [0.3, 0.25, 0.22, 0.21])) == []
    # What is its past is remembered from there on, by a daemon that starts anew as well.
    after = only("nc1-rising")
    after.resume([], [("run", engine.memory("run"))], now=0.0)
    assert play(after, at([70, 80, 90], [0.1, 0.1, 0.1])) == []
    assert len(play(after, at([100, 110, 120], [0.4, 0.4, 0.4]))) == 1
    # Without the steps going back it would have been one.
    engine = only("nc1-rising")
    play(engine, falls)
    assert len(play(engine, at([70, 80, 90], [0.3, 0.25, 0.22]))) == 1


def test_a_dead_class_is_named() -> None:
    made = make_features(collapse=0.95, n_classes=4, per_class=20)
    labels = made.labels.copy()
    swapped = np.where(labels == 3, 2, labels)  # the features of class 3 look like those of class 2
    features = {"classifier-input": made.last.copy()}
    features["classifier-input"][labels == 3] = made.last[labels == 2]
    dead = evaluate(window_from_features(features, labels, made.weight, made.bias, exact=False))
    assert dead.layers[-1].class_arrays["class_accuracy"][3] == 0
    assert set(swapped) == {0, 1, 2}
    engine = only("class-dead")
    assert play(engine, [dead] * 2) == []
    (alert,) = play(engine, [dead])
    assert alert.class_index == 3
    assert "of 20 samples of class {class:3} 0.0% are right" in alert.text
    fair = make_evaluation(collapse=0.95)
    assert names(play(engine, [fair] * 3)) == [("class-dead", False)]
    # Before anything is learned no class is dead; afterwards one without directions is.
    features["classifier-input"][labels == 1] = 0.0
    zero = evaluate(window_from_features(features, labels, made.weight, np.zeros(4), exact=False))
    assert "features that are zero" in next(a.text for a in play(only("class-dead"), [zero] * 3) if a.class_index == 1)
    chance = make_evaluation(make_window(collapse=0.0, seed=5))
    assert play(only("class-dead", dead_accuracy=0.99), [chance] * 5) == []


def test_many_dead_classes_are_few_alerts() -> None:
    made = make_features(collapse=0.95, n_classes=40, n_features=64, per_class=6, layers=1)
    wrong = np.where(made.labels >= 25, 0, made.labels)
    features = {"classifier-input": made.last[np.argsort(made.labels)]}
    labels = np.sort(made.labels)
    features["classifier-input"][labels >= 25] = features["classifier-input"][0]
    assert wrong.max() < 25
    dead = evaluate(window_from_features(features, labels, made.weight, made.bias, exact=False))
    assert len(play(only("class-dead"), [dead] * 5)) == MOST_OPEN


def test_minorities_whose_rows_merge_are_told() -> None:
    counts = [200, 200, 10, 12]
    made = make_features(per_class=counts, collapse=0.9, layers=1)
    weight = made.weight.copy()
    fair = evaluate(window_from_features(made.layers, made.labels, weight, made.bias, exact=False))
    weight = weight.copy()
    weight[3] = 0.7 * weight[2] + 0.01 * weight[0]
    merged = evaluate(window_from_features(made.layers, made.labels, weight, made.bias, exact=False))
    engine = only("minority-collapse")
    (alert,) = play(engine, [merged] * 3)
    assert alert.class_index == 2
    assert "{class:2} and {class:3} (10 and 12 samples, the largest class has 200)" in alert.text
    assert names(play(engine, [fair] * 3)) == [("minority-collapse", False)]
    even = make_features(per_class=100, collapse=0.9, layers=1)
    same = evaluate(window_from_features(even.layers, even.labels, weight, even.bias))
    assert play(only("minority-collapse"), [same] * 5) == []


def test_rules_take_a_window_without_anything() -> None:
    bare = make_window()
    none = dataclasses.replace(
        bare.head, weight=None, bias=None, label_counts=None, loss_sums=None, correct=None, loss_nonfinite=None
    )
    empty: list[Window] = [
        dataclasses.replace(bare, layers=()),
        dataclasses.replace(bare, head=none),
        dataclasses.replace(bare, layers=bare.layers[:1]),
    ]
    for window in empty:
        assert play(Engine(RULES), [evaluate(window)] * 5) == []


def test_limits_are_options() -> None:
    names_of_rules = [rule.name for rule in RULES]
    limits = parse_limits(["overhead-share=0.1", "class-dead=off", "nc1-rise = 3"], names_of_rules)
    assert (limits.overhead_share, limits.nc1_rise, limits.off) == (0.1, 3.0, frozenset({"class-dead"}))
    assert parse_limits(["class-dead=off", "class-dead=on"], names_of_rules) == Limits()
    for text, said in (
        ("nc1-rose=3", "did you mean nc1-rise"),
        ("nc1-rise", "expected nc1-rise=NUMBER"),
        ("nc1-rise=x", "expected nc1-rise=NUMBER"),
        ("nc1-rise=-1", "not negative"),
        ("nc1-rise=inf", "expected nc1-rise=NUMBER"),
        ("class-dead=3", "expected class-dead=off"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            parse_limits([text], names_of_rules)
    with pytest.raises(NotFound, match="did you mean class-dead"):
        rule_named("class-death")
