"""Every bound of the registry against the truth: on random states, on an optimiser that attacks it, at exact frames."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncmon.bounds import BOUNDS, cover, known_mean, levels, moment, pairs, plus, sharp, theorem
from ncmon.bounds.inputs import WindowInputs
from ncmon.evaluate import evaluate
from ncmon.metrics import View
from ncmon.metrics.loss import least_loss
from ncmon.metrics.readings import Unavailable
from ncmon.model import FloatArray, LayerReadings
from tests.factories import make_features, simplex
from tests.ncmon.bounds.test_certificate import one_layer, random_state, view_of

SLACK = 1e-9
"""Rounding of the measured cosines, which come from Gram matrices."""


def check(layer: LayerReadings, where: object) -> Counter[str]:
    """Hold every bound of a window against what was measured; return how many said something."""
    said: Counter[str] = Counter()
    for bound in BOUNDS:
        sign = 1.0 if bound.side == "lower" else -1.0
        if bound.scope in ("class", "pair"):
            arrays = layer.class_arrays if bound.scope == "class" else layer.pair_arrays
            value, measured = arrays[bound.name], arrays[bound.of]
            known = ~np.isnan(value) & ~np.isnan(measured)
            assert (sign * (measured - value)[known] >= -SLACK).all(), (where, bound.name)
            said[bound.name] += int(known.any())
        else:
            reading, truth = layer.readings[bound.name], layer.readings[bound.of]
            if reading.value is None:
                assert reading.reason, bound.name
            else:
                said[bound.name] += 1
                if truth.value is not None:
                    assert sign * (truth.value - reading.value) >= -SLACK, (where, bound.name)
    return said


@pytest.mark.parametrize("block", range(3))
def test_no_bound_is_ever_on_the_wrong_side(block: int) -> None:
    said: Counter[str] = Counter()
    for seed in range(120 * block, 120 * (block + 1)):
        rows, labels, weight, bias = random_state(seed)
        said += check(evaluate(one_layer(rows, labels, weight, bias)).layers[-1], seed)
    # The theorem as it was proven says nothing on states like these; all others do now and then.
    for bound in BOUNDS:
        if not bound.name.startswith("thm"):
            assert said[bound.name] > 0, bound.name


# At short scales with many classes C L exceeds log C: one class may be thrown away, and nothing is guaranteed.
@pytest.mark.parametrize(
    ("n_classes", "product"), [(3, 1.0), (4, 1.0), *((n, product) for n in (3, 4, 10, 40) for product in (6.0, 30.0))]
)
def test_every_bound_is_tight_at_an_exact_frame(n_classes: int, product: float) -> None:
    """At a simplex frame L = m: whatever is guaranteed is what is there, within the rounding allowed for."""
    frame = simplex(n_classes, n_classes)
    labels = np.repeat(np.arange(n_classes), 3)
    view = view_of(one_layer(product * frame[labels], labels, frame))
    loss = least_loss(n_classes, product)
    exact = WindowInputs(n_classes=n_classes, product=product, loss=loss)
    found = sharp.sharp(exact)
    assert found.cosine == pytest.approx(1.0, abs=2e-3)
    assert found.nc3 == pytest.approx(1.0, abs=2e-3)
    if found.inter is not None:
        # The rate is the root of the gap: rounding of 1e-12 leaves 1e-5 or so.
        assert found.inter == pytest.approx(-1 / (n_classes - 1), abs=0.02)
    else:
        assert product < 3
    assert theorem.theorem(exact, tight=True).nc3 == pytest.approx(1.0, abs=1e-2)
    layer = evaluate(view.window).layers[-1]
    check(layer, n_classes)
    for name in ("cert_intra_min", "cert_nc3_min", "cert_plus_intra_min", "cert_plus_nc3_min"):
        assert layer.readings[name].value == pytest.approx(1.0, abs=0.03), name


def test_nothing_overflows_at_the_ends_of_the_scales() -> None:
    for n_classes, product in ((10, 200.0), (22_000, 30.0), (3, 1e-3), (2, 50.0)):
        least = least_loss(n_classes, product)
        for gap in (0.0, 1e-12, 1.0, 50.0):
            inputs = WindowInputs(n_classes=n_classes, product=product, loss=least + gap)
            found = sharp.sharp(inputs)
            for value in (found.cosine, found.nc3, found.inter):
                assert value is None or -1 <= value <= 1
            if n_classes >= 3:
                for tight in (False, True):
                    other = theorem.theorem(inputs, tight=tight)
                    for value in (other.nc3, other.intra, other.inter):
                        assert value is None or (math.isfinite(value) and value <= 1 + 1e-9)


@pytest.mark.parametrize("n_classes", [3, 10, 100, 300])
@pytest.mark.parametrize("product", [20.0, 60.0])
def test_the_certificate_from_scales_is_tight_at_frames_of_any_size(n_classes: int, product: float) -> None:
    exact = WindowInputs(n_classes=n_classes, product=product, loss=least_loss(n_classes, product))
    found = sharp.sharp(exact)
    assert found.cosine == pytest.approx(1.0, abs=1e-3)
    assert found.nc3 == pytest.approx(1.0, abs=1e-3)
    assert found.inter == pytest.approx(-1 / (n_classes - 1), abs=1e-2)


@pytest.mark.parametrize("loss", [1e-20, 1e-26, 1e-43])
def test_pairs_are_bounded_at_the_smallest_losses(loss: float) -> None:
    """A root sought on the scale of the loss itself is lost there; a gap of a third is nothing at all."""
    n_classes = 10
    product = (math.log(n_classes - 1) - math.log(loss / 1.3)) * (n_classes - 1) / n_classes
    inter = sharp.sharp(WindowInputs(n_classes=n_classes, product=product, loss=loss)).inter
    assert inter is not None
    assert -1 / (n_classes - 1) <= inter < 0.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n_classes", "product"), [(10, 200.0), (22_000, 200.0)])
def test_class_certificates_warn_of_nothing_at_the_ends_of_the_scales(n_classes: int, product: float) -> None:
    """alpha beta = 200, losses down to 1e-12 and to the least there is, C = 22,000."""
    kappa = n_classes / (n_classes - 1)
    losses = np.array([1e-300, 1e-80, 1e-12, 1e-3, 1.0, 9.0, 50.0])
    reach, zeros = np.full(losses.size, product), np.zeros(losses.size)
    plain = moment.least_mean_cosine(rms_reach=reach, mean_reach=reach, loss=losses, shift=zeros, n_classes=n_classes)
    assert ((plain > 0) & (plain <= 1) | np.isnan(plain)).all()
    for own in (1e-3, 0.9 * product, product):
        found = known_mean.least_with_mean(
            reach=reach, loss=losses, offset=zeros + np.log(n_classes - 1.0), kappa=kappa, own=zeros + own
        )
        assert ((found >= -1) & (found <= 1)).all()
    assert found.max() == pytest.approx(1.0, abs=1e-9)


def test_a_loss_below_its_floor_is_withheld_and_not_certified() -> None:
    inputs = WindowInputs(n_classes=4, product=5.0, loss=least_loss(4, 5.0) * 0.99)
    for compute in (sharp.sharp, theorem.theorem):
        with pytest.raises(Unavailable, match="inconsistent"):
            compute(inputs)


def test_more_exceptions_certify_more() -> None:
    inputs = WindowInputs(n_classes=10, product=6.1, loss=1.2 * least_loss(10, 6.1))
    cosines = [sharp.sharp(inputs, exceptions=k).cosine for k in range(10)]
    assert None not in cosines
    assert cosines == sorted(cosines)  # type: ignore[type-var]
    assert cosines[-1] > cosines[0]  # type: ignore[operator]


@pytest.mark.parametrize("exceptions", [0, 1, 2, 4])
def test_pairs_but_k_stop_at_states_of_so_many_bad_pairs(exceptions: int) -> None:
    """j disjoint pairs are brought together as far as a loss allows: they stay below the bound, and near it."""
    n_classes, product = 10, 6.0
    pairs = exceptions // 2 + 1
    frame = simplex(n_classes, n_classes)
    labels = np.arange(n_classes)

    def state(turn: float) -> tuple[FloatArray, FloatArray]:
        rows = frame.copy()
        for pair in range(pairs):
            a, b = 2 * pair, 2 * pair + 1
            middle, apart = (frame[a] + frame[b]) / 2, (frame[a] - frame[b]) / 2
            middle, apart = middle / np.linalg.norm(middle), apart / np.linalg.norm(apart)
            rows[a], rows[b] = (np.cos(turn) * middle + sign * np.sin(turn) * apart for sign in (1, -1))
        return product * rows, rows

    def inputs(turn: float) -> WindowInputs:
        features, rows = state(turn)
        centred = rows - rows.mean(axis=0)
        logits = features @ rows.T
        losses = np.logaddexp.reduce(logits, axis=1) - logits[labels, labels]
        scales = math.sqrt((features**2).sum(axis=1).mean()) * math.sqrt((centred**2).sum(axis=1).mean())
        return WindowInputs(n_classes=n_classes, product=scales, loss=float(losses.mean()))

    nearest = 2.0
    for turn in np.linspace(0.35, 0.8, 10):
        features, _ = state(turn)
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        found = sharp.sharp(inputs(turn), exceptions=exceptions).inter
        worst = cover.greatest_but(units @ units.T, exceptions // 2 * 2)
        assert worst is not None
        if found is not None:
            # What is proven is that no j disjoint pairs are all above it; that leaves out as many classes or more.
            assert found >= math.cos(2 * turn) >= worst - 1e-9
            nearest = min(nearest, found - math.cos(2 * turn))
    assert nearest < 0.05
    # More pairs are harder to bring together.
    at = inputs(0.6)
    bounds = [sharp.sharp(at, exceptions=k).inter for k in range(9)]
    assert bounds[8] is None  # five pairs of ten classes: nothing is left to be perfect
    known = [bound for bound in bounds if bound is not None]
    assert len(known) == 8
    assert known == sorted(known, reverse=True)


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("exceptions", [0, 1, 2])
def test_the_theorem_but_k_holds_next_to_a_frame(exceptions: int, tight: bool) -> None:
    """Pairs of all but k classes, alignment and cosines too: where the theorem says something, states keep to it."""
    n_classes, product = 4, 2.0
    frame = simplex(n_classes, n_classes)
    said = 0
    nearest = 2.0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        noise = 10.0 ** rng.uniform(-7, -1) * rng.normal(size=(2, n_classes, n_classes))
        # Some classes are moved much more than the others: those are the exceptions.
        noise[:, : exceptions + 1] *= rng.uniform(1, 10)
        rows = frame + noise[1]
        rows -= rows.mean(axis=0)
        features = product * (frame + noise[0])
        logits = features @ rows.T
        losses = np.logaddexp.reduce(logits, axis=1) - np.diagonal(logits)
        scales = math.sqrt((features**2).sum(axis=1).mean()) * math.sqrt((rows**2).sum(axis=1).mean())
        start = WindowInputs(n_classes=n_classes, product=scales, loss=float(losses.mean()))
        found = theorem.theorem(start, exceptions=exceptions, tight=tight)
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        cosines = np.einsum("ij,ij->i", rows, units) / np.linalg.norm(rows, axis=1)
        if found.nc3 is not None:
            assert np.sort(cosines)[exceptions] >= found.nc3 - 1e-9
        worst = cover.greatest_but(units @ units.T, exceptions)
        if found.inter is not None and worst is not None:
            said += 1
            assert found.inter >= worst - 1e-9
            nearest = min(nearest, found.inter - worst)
    assert said > 10
    assert nearest < 0.1


@pytest.mark.parametrize(
    ("n_classes", "product", "k"), [(3, 3.0, 0), (4, 6.0, 1), (10, 6.0, 0), (10, 6.0, 3), (10, 20.0, 0)]
)
def test_levels_of_the_loss_gap_are_where_bounds_begin_to_say_something(n_classes: int, product: float, k: int) -> None:
    least = least_loss(n_classes, product)

    def says(kind: str, gap: float) -> bool:
        inputs = WindowInputs(n_classes=n_classes, product=product, loss=least + gap)
        return getattr(sharp.sharp(inputs, exceptions=k), kind) is not None

    # The certificate of cosines is not quite the least over all networks, which the level is about.
    for kind, below in (("nc3", 0.999), ("cosine", 0.95), ("inter", 0.999)):
        level = levels.vacuous_above(n_classes, product, kind, k)
        if kind == "inter" and n_classes <= 2 * (k // 2 + 1):
            assert level == 0
            continue
        assert says(kind, below * level)
        assert not says(kind, 1.001 * level)
        inputs = WindowInputs(n_classes=n_classes, product=product, loss=least + 1.5 * level)
        assert f"needs a loss gap below {level:.2g}, it is {1.5 * level:.2g}" in levels.nothing(inputs, kind, k)


@given(
    n_classes=st.integers(2, 50),
    reach=st.floats(0.1, 40.0),
    shorter=st.floats(0.5, 1.0),
    shift=st.floats(-2.0, 2.0),
)
def test_levels_of_the_loss_of_a_class_are_where_its_certificate_begins(
    n_classes: int, reach: float, shorter: float, shift: float
) -> None:
    reaches = {"rms_reach": np.array([reach]), "mean_reach": np.array([shorter * reach]), "shift": np.array([shift])}
    (level,) = moment.vacuous_above(n_classes=n_classes, **reaches)
    for share, said in ((0.998, True), (1.0 + 1e-9, False)):
        (found,) = moment.least_mean_cosine(loss=np.array([share * level]), n_classes=n_classes, **reaches)
        assert np.isfinite(found) == said


@given(seed=st.integers(0, 10_000), n_classes=st.integers(2, 7), k=st.integers(0, 4), missing=st.booleans())
def test_the_best_classes_to_leave_out_are_found(seed: int, n_classes: int, k: int, missing: bool) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-3, 4, (n_classes, n_classes)).astype(float)
    matrix = matrix + matrix.T
    if missing:
        matrix[0] = matrix[:, 0] = np.nan
    found: list[float | None] = []
    for out in itertools.combinations(range(n_classes), min(k, n_classes)):
        rest = [c for c in range(n_classes) if c not in out]
        values = [matrix[a, b] for a, b in itertools.combinations(rest, 2) if not math.isnan(matrix[a, b])]
        found.append(max(values, default=None))
    least = None if None in found else min(found)
    assert cover.greatest_but(matrix, k) == least


def test_a_search_that_is_too_long_says_nothing() -> None:
    rng = np.random.default_rng(0)
    units = rng.normal(size=(400, 400))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert cover.greatest_but(units @ units.T, 0) == np.sort(units @ units.T, axis=None)[-402]
    assert cover.greatest_but(units @ units.T, 150) is None


def attack(seed: int, n_classes: int, product: float, factor: float) -> FloatArray:
    """Tilt one class as far as a given loss allows, all others perfect: the state that S-intra is about.

    Returns features (C * 2, d) of which class 0 has two samples, mirrored in a spare dimension.
    """
    frame = simplex(n_classes, n_classes + 1)
    spare = np.eye(n_classes + 1)[-1]
    target = factor * least_loss(n_classes, product)
    long = product * (1 + 0.1 * seed)

    def state(cosine: float) -> FloatArray:
        rows = np.repeat(product * frame, 2, axis=0)
        tilted = long * (cosine * frame[0] + np.sqrt(1 - cosine**2) * np.array([[1.0], [-1.0]]) * spare)
        rows[:2] = tilted
        return rows

    def loss(rows: FloatArray) -> float:
        logits = rows @ frame.T
        own = np.repeat(np.arange(n_classes), 2)
        return float(np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(own.size), own]))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if loss(state(middle)) > target else (low, middle)
    return state(high)


@pytest.mark.parametrize(("n_classes", "product"), [(3, 4.0), (4, 5.0), (10, 6.0)])
@pytest.mark.parametrize("factor", [1.05, 1.5, 3.0])
def test_an_adversary_that_tilts_one_class_gets_close_and_not_past(
    n_classes: int, product: float, factor: float
) -> None:
    worst = np.inf
    for seed in range(10):
        rows = attack(seed, n_classes, product, factor)
        labels = np.repeat(np.arange(n_classes), 2)
        layer = evaluate(one_layer(rows, labels, simplex(n_classes, n_classes + 1))).layers[-1]
        check(layer, (n_classes, product, factor, seed))
        bound, truth = layer.readings["sharp_intra"].value, layer.readings["intra_cos_min"].value
        assert bound is not None
        assert truth is not None
        worst = min(worst, truth - bound)
    assert worst < 0.06, "the attack is too weak to say anything"


def test_not_applicable_is_a_state_with_its_reason() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.95, bias=True)
    layer = evaluate(one_layer(raw.last, raw.labels, raw.weight, raw.bias + 0.3 * np.arange(4))).layers[-1]  # type: ignore[operator]
    for name in ("sharp_intra", "sharp_inter", "thm_intra", "thm_tight_intra"):
        assert layer.readings[name].reason == "not applicable: the classifier has a last bias"
    two = make_features(n_classes=2, n_features=8, per_class=6, layers=1, collapse=0.95, bias=False)
    layer = evaluate(one_layer(two.last, two.labels, two.weight)).layers[-1]
    for name in ("sharp_inter", "thm_intra", "thm_inter"):
        assert layer.readings[name].reason == "not applicable: fewer than three classes"
    assert layer.readings["cert_inter_max"].value is not None
    absent = make_features(n_classes=4, n_features=8, per_class=[6, 0, 6, 6], layers=1, collapse=0.95, bias=False)
    layer = evaluate(one_layer(absent.last, absent.labels, absent.weight)).layers[-1]
    assert layer.readings["sharp_intra"].reason == "not applicable: 1 of 4 classes are absent"
    assert layer.readings["cert_inter_max"].value is not None


def test_a_vacuous_theorem_says_how_small_the_gap_would_have_to_be() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.9, bias=False, scale=2.0)
    reason = evaluate(one_layer(raw.last, raw.labels, raw.weight)).layers[-1].readings["thm_intra"].reason
    assert reason.startswith("vacuous: needs a loss gap below 1e")
    limit = 10 ** float(reason.partition("1e")[2].partition(",")[0])
    product = float(np.sqrt(np.mean(np.sum(raw.last**2, axis=1)))) * float(np.linalg.norm(raw.weight) / 2)
    for factor, speaks in ((0.5, True), (2.0, False)):
        inputs = WindowInputs(n_classes=4, product=product, loss=least_loss(4, product) + factor * limit)
        assert (theorem.theorem(inputs).intra is not None) == speaks


def test_unequal_class_sizes_count_once_each() -> None:
    """Ten times the samples of one class change neither the features of a class nor what is guaranteed."""
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.95, bias=False)
    many = np.concatenate([np.arange(raw.labels.size), np.tile(np.flatnonzero(raw.labels == 2), 9)])
    once = evaluate(one_layer(raw.last, raw.labels, raw.weight)).layers[-1]
    often = evaluate(one_layer(raw.last[many], raw.labels[many], raw.weight)).layers[-1]
    for name in ("sharp_intra", "sharp_nc3", "sharp_inter", "cert_inter_max"):
        value = once.readings[name].value
        assert value is not None
        assert often.readings[name].value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_the_cap_lemma_holds_for_every_direction(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 6))
    first, second, u, v = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(4, d)))
    first, second = first * rng.uniform(0, 1), second * rng.uniform(0, 1)
    bound = float(pairs.cap_bound(u @ v, u @ first, v @ second))
    assert first @ second <= bound + 1e-12


@pytest.mark.parametrize("seed", range(60))
def test_a_known_mean_certifies_no_more_than_what_is_there(seed: int) -> None:
    """Random distributions of (n, x): the certificate from E n^2, E f and E t is below E x."""
    rng = np.random.default_rng(seed)
    n_classes = int(rng.choice([2, 3, 10]))
    kappa = n_classes / (n_classes - 1)
    size = int(rng.integers(1, 6))
    chance = rng.dirichlet(np.ones(size))
    x = np.clip(rng.choice([1.0, 0.9, 0.5]) + rng.choice([0.0, 0.1, 0.6]) * rng.normal(size=size), -1, 1)
    n = np.exp(rng.choice([0.0, 0.1, 1.0]) * rng.normal(size=size))
    n /= np.sqrt(chance @ n**2)
    reach = float(np.exp(rng.uniform(0, 4)))
    t = reach * n * x
    offset = float(np.log(n_classes - 1))
    loss = float(chance @ np.logaddexp(0.0, offset - kappa * t))
    found = known_mean.least_with_mean(
        reach=np.array([reach]),
        loss=np.array([max(loss, 1e-300)]),
        offset=np.array([offset]),
        kappa=kappa,
        own=np.array([float(chance @ t)]),
    )
    assert found[0] <= chance @ x + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_no_certificate_is_above_what_two_atoms_attain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, kappa = 50, float(rng.choice([1.0, 1.1]))
    reach = np.exp(rng.uniform(0, 4, n))
    offset = rng.uniform(-1, 3, n)
    own = reach * rng.uniform(-0.1, 1.1, n)
    loss = np.logaddexp(0.0, offset - kappa * own) * np.exp(rng.uniform(-0.1, 2, n))
    facts = {"reach": reach, "loss": loss, "offset": offset, "kappa": kappa, "own": own}
    most = known_mean.most_with_mean(**facts)  # type: ignore[arg-type]
    assert (known_mean.least_with_mean(**facts) <= most + 1e-9).all()  # type: ignore[arg-type]
    assert (most < 1).any()


def test_pairs_whose_direction_cannot_matter_are_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The greatest bound over pairs is that of trying the direction of every pair, to the last bit."""
    sharper = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        n_classes = int(rng.integers(3, 33))
        raw = make_features(
            n_classes=n_classes,
            n_features=40,
            per_class=3,
            layers=1,
            collapse=float(rng.uniform(0.3, 0.99)),
            bias=False,
            scale=float(rng.uniform(2, 15)),
        )
        weight = raw.weight * np.exp(rng.normal(0, 0.4, (n_classes, 1)))
        window = one_layer(raw.last, raw.labels, weight)
        found = plus.greatest_pair(View(window, window.layers[-1]))
        with monkeypatch.context() as patch:
            patch.setattr(plus._PairLogits, "limit", lambda self: np.full(self.between.size, -1.0))
            value, pair = plus.greatest_pair(View(window, window.layers[-1]))
        assert (value, pair) == (pytest.approx(found[0], abs=1e-14), found[1])
        with monkeypatch.context() as patch:
            patch.setattr(plus, "FEW_CLASSES", 0)
            sharper += plus.greatest_pair(View(window, window.layers[-1]))[0] > found[0] + 1e-6
    assert sharper


def test_class_means_certify_more_than_losses_alone() -> None:
    raw = make_features(n_classes=6, n_features=12, per_class=20, layers=1, collapse=0.8, bias=False, scale=3.0)
    readings = evaluate(one_layer(raw.last, raw.labels, raw.weight)).layers[-1].readings
    for plain, better in (("cert_intra_min", "cert_plus_intra_min"), ("cert_nc3_min", "cert_plus_nc3_min")):
        assert readings[better].value > readings[plain].value  # type: ignore[operator]
    assert readings["cert_plus_inter_max"].value < readings["cert_inter_max"].value  # type: ignore[operator]


def test_logits_in_half_precision_guarantee_nothing() -> None:
    """bfloat16 moves a loss by percents: features and losses are no longer those of one W h + v."""
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.95, bias=False)
    window = one_layer(raw.last, raw.labels, raw.weight)
    half = dataclasses.replace(window, head=dataclasses.replace(window.head, logits_eps=2.0**-7))
    layer = evaluate(half).layers[-1]
    for bound in BOUNDS:
        if bound.scope in ("class", "pair"):
            arrays = layer.class_arrays if bound.scope == "class" else layer.pair_arrays
            assert np.isnan(arrays[bound.name]).all()
        else:
            assert "low precision" in layer.readings[bound.name].reason
    assert layer.readings["intra_cos_min"].value is not None


def test_the_resolution_floor_is_that_of_the_features() -> None:
    raw = make_features(n_classes=4, n_features=8, per_class=6, layers=1, collapse=0.95, bias=False)
    window = one_layer(raw.last, raw.labels, raw.weight)
    assert evaluate(window).layers[-1].quality["resolution_floor"] == 1e-7
    half = dataclasses.replace(window, layers=(dataclasses.replace(window.layers[-1], eps=2.0**-7),))
    assert evaluate(half).layers[-1].quality["resolution_floor"] == pytest.approx(3e-6, rel=0.05)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_between_features_and_logits_certifies_nothing(temperature: float) -> None:
    """Logits twice as long have losses that these rows cannot have: P would promise too much, and says so."""
    raw = make_features(n_classes=4, n_features=8, per_class=12, layers=1, collapse=0.6, bias=False, scale=2.0)
    plain = one_layer(raw.last, raw.labels, raw.weight)
    other = one_layer(raw.last, raw.labels, raw.weight / temperature)
    window = dataclasses.replace(other, head=dataclasses.replace(other.head, weight=plain.head.weight))
    layer = evaluate(window).layers[-1]
    for bound in BOUNDS:
        if bound.scope in ("class", "pair"):
            arrays = layer.class_arrays if bound.scope == "class" else layer.pair_arrays
            assert np.isnan(arrays[bound.name]).all(), bound.name
        else:
            assert "logits are not W h + v of these features" in layer.readings[bound.name].reason
