"""Every lemma against random points, with its equality case, and with what refutes the statement as it was printed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ncmon.bounds import lemmas
from ncmon.model import FloatArray

POINTS = st.lists(st.floats(-3, 3), min_size=2, max_size=7)
SEEDS = st.integers(0, 10_000)


def least(z: FloatArray, n_classes: int = 4) -> FloatArray:
    return np.logaddexp(0.0, np.log(n_classes - 1) - n_classes / (n_classes - 1) * z)


def jensen_gap(x: FloatArray) -> float:
    return float(least(x).mean() - least(np.array(x.mean())))


def modulus(x: FloatArray) -> float:
    """The least second derivative on the convex hull, by differences on a fine grid."""
    grid = np.linspace(x.min() - 1e-3, x.max() + 1e-3, 4001)
    step = grid[1] - grid[0]
    values = least(grid)
    return float(((values[2:] - 2 * values[1:-1] + values[:-2]) / step**2).min())


@given(points=POINTS)
def test_2_4_1_a_jensen_gap_bounds_the_variance(points: list[float]) -> None:
    x = np.array(points)
    assume(np.ptp(x) > 0.1)
    gap, log_modulus = jensen_gap(x), lemmas.least_log_modulus(x.min(), x.max(), 4)
    assert math.exp(log_modulus) == pytest.approx(modulus(x), rel=0.02)
    assert x.var() <= lemmas.variance_of_gap(gap, math.exp(log_modulus)) * (1 + 1e-9)
    for share in range(1, len(x)):
        farthest = lemmas.deviation_of_share(gap, log_modulus, points=len(x), share=share)
        for chosen in itertools.combinations(x, share):
            assert abs(np.mean(chosen) - x.mean()) <= farthest * (1 + 1e-9)


@pytest.mark.parametrize(("points", "share"), [(5, 1), (5, 2), (8, 4), (2, 1)])
def test_2_4_1_is_reached_by_two_values_of_a_parabola(points: int, share: int) -> None:
    """f = lambda x^2 / 2 has this modulus everywhere: a share at -y, the others at y delta / (1 - delta)."""
    x = np.array([-1.0] * share + [share / (points - share)] * (points - share))
    gap = 0.5 * 1.7 * float(np.mean(x**2))
    assert lemmas.variance_of_gap(gap, 1.7) == pytest.approx(x.var())
    assert lemmas.deviation_of_share(gap, math.log(1.7), points=points, share=share) == pytest.approx(1.0)


def test_2_4_1_without_the_division_by_n_is_another_statement() -> None:
    """One line of the thesis' proof has sum (x_i - mean)^2 <= 2 eps / lambda: N times too good."""
    x = np.array([-1.0, -1.0, 1.0, 1.0])
    gap = 0.5 * float(np.mean(x**2))
    assert float(np.sum((x - x.mean()) ** 2)) > lemmas.variance_of_gap(gap, 1.0)


def test_2_4_1_needs_the_modulus_on_all_points_not_near_their_mean() -> None:
    x = np.array([-6.0, 0.8])
    near_mean = math.exp(lemmas.least_log_modulus(x.mean() + 1.5, x.mean() + 3.5, 4))
    assert x.var() > lemmas.variance_of_gap(jensen_gap(x), near_mean)


def test_2_4_1_a_share_is_a_whole_number_of_points_and_not_all_of_them() -> None:
    for share in (0, 4, 5):
        with pytest.raises(ValueError, match="a share of"):
            lemmas.deviation_of_share(0.1, 0.0, points=4, share=share)
    assert lemmas.deviation_of_share(0.0, 0.0, points=4, share=1) == 0
    assert lemmas.deviation_of_share(1.0, -5_000.0, points=4, share=1) == math.inf


@given(x=st.floats(-3, 3), y=st.floats(-3, 3), weight=st.floats(0, 1))
def test_2_4_2_strong_convexity_between_two_points(x: float, y: float, weight: float) -> None:
    bound = math.exp(lemmas.least_log_modulus(min(x, y), max(x, y), 4))
    gap = weight * least(np.array(x)) + (1 - weight) * least(np.array(y))
    gap -= least(np.array(weight * x + (1 - weight) * y))
    assert gap >= lemmas.quadratic_gap(x, y, weight=weight, modulus=bound) - 1e-12
    # The modulus c of the lemma is half a second derivative: with c = lambda a parabola would break it.
    parabola = 0.5 * (weight * x**2 + (1 - weight) * y**2 - (weight * x + (1 - weight) * y) ** 2)
    assert parabola == pytest.approx(lemmas.quadratic_gap(x, y, weight=weight, modulus=1.0), abs=1e-9)


@given(points=st.lists(st.floats(-2, 2), min_size=2, max_size=7))
def test_2_4_3_exponentials_of_a_near_constant(points: list[float]) -> None:
    x = np.array(points)
    excess = float(np.mean(np.exp(x - x.mean()))) - 1
    for largest in range(1, len(x) + 1):
        above = float(np.sort(x)[-largest:].mean() - x.mean())
        assert above <= lemmas.excess_of_exponentials(max(excess, 0.0), points=len(x), largest=largest) + 1e-7


def test_2_4_3_is_sharp_for_small_excess_and_about_a_proper_part() -> None:
    x = np.array([1e-3, *[-1e-3 / 9_999] * 9_999])
    excess = float(np.mean(np.expm1(x)))
    assert x[0] == pytest.approx(lemmas.excess_of_exponentials(excess, points=10_000), rel=1e-3)
    assert lemmas.excess_of_exponentials(0.3, points=5, largest=5) == 0
    with pytest.raises(ValueError, match="expected from 1 to 5"):
        lemmas.excess_of_exponentials(0.3, points=5, largest=6)


@given(seed=SEEDS, n=st.integers(1, 6), m=st.integers(1, 6))
def test_2_4_4_mean_directions_are_mean_cosines(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(n, 3)), rng.normal(size=(m, 3))
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a in first for b in second]
    assert lemmas.pair_cosine(first, second) == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)
    own = [a @ b / math.sqrt((a @ a) * (b @ b)) for i, a in enumerate(first) for j, b in enumerate(first) if i != j]
    if n > 1:
        others = (n * lemmas.pair_cosine(first, first) - 1) / (n - 1)
        assert others == pytest.approx(sum(own) / len(own), abs=1e-9)


def test_2_4_4_pairs_of_a_sample_and_itself_leave_no_floor_of_one_in_n() -> None:
    assert lemmas.pair_cosine(np.array([[1.0], [-2.0]]), np.array([[1.0], [-2.0]])) == 0


def test_2_4_4_zeros_have_no_direction() -> None:
    rows = np.array([[3.0, 0.0], [0.0, 0.0]])
    assert lemmas.pair_cosine(rows, rows) == 1
    assert math.isnan(lemmas.pair_cosine(rows, np.zeros((2, 2))))


def vectors(rng: np.random.Generator, n: int) -> FloatArray:
    rows = rng.normal(size=(n, 3)) * np.exp(rng.normal(size=(n, 1)))
    return rows + rng.uniform(0, 5) * np.array([1.0, 0.0, 0.0])


def cosines_to_first_axis(rows: FloatArray) -> FloatArray:
    return rows[:, 0] / np.linalg.norm(rows, axis=1)


@given(seed=SEEDS, n=st.integers(1, 8))
def test_2_4_5_a_long_mean_has_directions_that_agree(seed: int, n: int) -> None:
    rows = vectors(np.random.default_rng(seed), n)
    length = math.sqrt(np.mean(np.sum(rows**2, axis=1)))
    alignment = float(rows[:, 0].mean() / length)
    assume(alignment >= 0)
    mean = float(cosines_to_first_axis(rows).mean())
    assert mean >= lemmas.mean_cosine(alignment) - 1e-12
    intra = lemmas.intra_cosine(alignment)
    if intra is not None:
        assert lemmas.pair_cosine(rows, rows) >= intra - 1e-12
    # Corollary 2.4.2: along the mean's own direction, whatever the classifier.
    own = float(np.linalg.norm(rows.mean(axis=0)) / length)
    intra = lemmas.intra_cosine(own)
    if intra is not None:
        assert lemmas.pair_cosine(rows, rows) >= intra - 1e-12


@pytest.mark.parametrize("alignment", [1.0, 0.9, math.sqrt(0.5)])
def test_2_4_5_is_reached_by_samples_without_length(alignment: float) -> None:
    """A share of 1 - rho^2 has no length and points away, the others are 1/rho long and point along."""
    n = 1_000_000
    short = round((1 - alignment**2) * n)
    x = np.where(np.arange(n) < short, -1.0, 1.0)
    norms = np.where(np.arange(n) < short, 0.0, 1 / alignment)
    assert np.mean(norms**2) == pytest.approx(1.0, abs=1e-5)
    assert np.mean(norms * x) == pytest.approx(alignment, abs=1e-5)
    assert x.mean() == pytest.approx(lemmas.mean_cosine(alignment), abs=1e-5)


def test_2_4_5_rests_on_a_proposition_that_is_false_as_printed() -> None:
    """sum a_i = A and sum b_i^2 <= B do not give sum a_i / b_i >= A sqrt(n / B)."""
    a, b = np.array([1.0, 1e-12]), np.array([1.0, 1e-6])
    assert np.sum(b**2) <= 1 + 1e-9
    assert np.sum(a / b) < np.sum(a) * math.sqrt(2 / np.sum(b**2)) - 0.4
    # With a_i <= b_i (a product is at most the norms) there is the lemma: 2 rho^2 - 1 instead.
    assert np.mean(a / b) >= lemmas.mean_cosine(float(np.mean(a) / math.sqrt(np.mean(b**2)))) - 1e-12


def test_2_21_without_its_square_is_false() -> None:
    """The lemma bounds the mean cosine X; intra is |hbar|^2, which two mirrored directions bring down to X^2."""
    x = 0.8
    rows = np.array([[x, math.sqrt(1 - x * x)], [x, -math.sqrt(1 - x * x)]])
    assert lemmas.pair_cosine(rows, rows) == pytest.approx(x * x)
    alignment = float(rows[:, 0].mean())
    assert lemmas.pair_cosine(rows, rows) >= (lemmas.intra_cosine(alignment) or 0.0)
    # To first order 1 - 8 (1 - rho), where leaving out the square says 1 - 4 (1 - rho).
    small = 1e-6
    assert 1 - (lemmas.intra_cosine(1 - small) or 0.0) == pytest.approx(8 * small, rel=1e-3)


@given(seed=SEEDS, n=st.integers(1, 8))
def test_2_4_6_cosines_and_products(seed: int, n: int) -> None:
    rows = vectors(np.random.default_rng(seed), n)
    norms = np.linalg.norm(rows, axis=1)
    length = math.sqrt(np.mean(norms**2))
    for axis in range(3):
        mean_product = float(rows[:, axis].mean() / length)
        mean = float((rows[:, axis] / norms).mean())
        assert mean <= lemmas.cosine_of_products(mean_product, float(norms.mean() / length)) + 1e-12


def test_2_4_6_as_printed_drops_its_outliers() -> None:
    """A share 1/k without length costs 1/k, not 1/k^2: cosines exceed products by the root, not by a third root's."""
    for k in (10, 100, 1000):
        norms = np.array([0.0] + [math.sqrt(k / (k - 1))] * (k - 1))
        cosines = np.array([1.0] + [-0.25] * (k - 1))
        product, mean = float(np.mean(norms * cosines)), float(cosines.mean())
        assert mean - product > 0.9 / k
        assert mean <= lemmas.cosine_of_products(product, float(norms.mean()))
    # And cos(w, hbar) is not at most w . hbar / |w| where that is positive: |hbar| is below 1.
    hbar = np.array([0.5, 0.0])
    assert hbar[0] / np.linalg.norm(hbar) > hbar[0]


def test_the_modulus_is_that_of_the_longest_class_mean() -> None:
    """|htilde_c| <= alpha is false: one class may carry all of the mean square, sqrt(C) alpha long."""
    n_classes, alpha = 4, 1.0
    lengths = np.array([2.0, 0.0, 0.0, 0.0])
    assert math.sqrt(np.mean(lengths**2)) == alpha
    assert lengths.max() == math.sqrt(n_classes) * alpha
    interval = lemmas.least_log_modulus(-alpha, alpha, n_classes)
    assert lemmas.least_log_modulus(-n_classes * alpha, n_classes * alpha, n_classes) < interval


def test_2_17_linearises_a_concave_function_in_the_wrong_direction() -> None:
    """log(1 + A + e) >= log(1 + A) + e/C fails beyond small A; expm1 is exact."""
    a, e, n_classes = 9.0, 1.0, 4
    assert math.log(1 + a + e) < math.log(1 + a) + e / n_classes
    gap = math.log(1 + a + e) - math.log(1 + a)
    assert math.expm1(gap) * (1 + a) == pytest.approx(e)


def test_the_gap_of_one_class_may_be_c_times_the_mean() -> None:
    gaps = np.array([0.4, 0.0, 0.0, 0.0])
    assert gaps.max() == len(gaps) * gaps.mean()


def test_a_difference_of_angles_is_not_bounded_by_cos_plus_sin_beyond_a_right_angle() -> None:
    a, b = math.pi / 2 + 0.1, 0.6
    assert math.cos(a - b) > math.cos(a) + math.sin(b)
    assert math.cos(a - b) <= math.cos(max(0.0, a - b))
