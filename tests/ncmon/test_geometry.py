"""Scatter algebra against numpy's own dense linear algebra, and the rank rule at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from ncmon import geometry
from ncmon.geometry import Span


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 1), (3, 7), (5, 5), (9, 4)])
def test_pinv_trace_equals_the_dense_formula(n_classes: int, n_features: int) -> None:
    means = rng().normal(size=(n_classes, n_features))
    root = rng(1).normal(size=(40, n_features))
    scatter = root.T @ root
    centred = geometry.centre(means)
    between = centred.rows.T @ centred.rows / n_classes
    dense = np.trace(scatter / 40 @ np.linalg.pinv(between, rcond=1e-10)) / n_classes
    span = geometry.span_of_means(centred, scatter)
    assert span.rank == min(n_classes - 1, n_features)
    assert geometry.pinv_trace(span, n_samples=40) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("condition", [1e3, 1e5, 1e7])
def test_pinv_trace_survives_ill_conditioned_means(condition: float) -> None:
    """Through A^T A the smallest directions would be lost in single precision: the truth is known in closed form."""
    n_classes, n_features = 6, 12
    left = np.linalg.svd(np.eye(n_classes) - 1 / n_classes)[0][:, : n_classes - 1]
    right = np.linalg.qr(rng().normal(size=(n_features, n_classes - 1)))[0]
    singular = np.geomspace(1.0, 1.0 / condition, n_classes - 1)
    means = left @ np.diag(singular) @ right.T + 0.5
    span = geometry.span_of_means(geometry.centre(means), np.eye(n_features))
    assert span.rank == n_classes - 1
    truth = np.sum(1 / singular**2) / 100
    assert geometry.pinv_trace(span, n_samples=100) == pytest.approx(truth, rel=1e-4)


def test_rank_rule_drops_rounding_of_a_common_offset() -> None:
    """Two classes that differ, two that are equal, all far from the origin: one direction, not three."""
    base = rng().normal(size=8)
    means = np.stack([base, base, base + 1e-3, base + 1e-3]) + 1e3
    span = geometry.span_of_means(geometry.centre(means), np.eye(8))
    assert span.rank == 1


def test_rank_rule_keeps_at_most_one_direction_less_than_classes() -> None:
    assert geometry.kept(np.ones(5), n_classes=5, n_features=9, largest_mean=1.0) == 4
    assert geometry.kept(np.array([]), n_classes=5, n_features=9, largest_mean=1.0) == 0
    assert geometry.kept(np.zeros(4), n_classes=5, n_features=9, largest_mean=0.0) == 0


def test_rank_rule_for_single_precision_means() -> None:
    means = np.stack([np.ones(6), np.ones(6), np.full(6, 2.0)]) * np.pi
    noisy = means.astype(np.float32).astype(np.float64)
    noisy[1, :3] = np.nextafter(noisy[1, :3].astype(np.float32), np.float32(0)).astype(np.float64)
    centred = geometry.centre(noisy)
    assert geometry.span_of_means(centred, np.eye(6)).rank == 2
    assert geometry.span_of_means(centred, np.eye(6), single=True).rank == 1


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 1), (2, None), (4, 3), (5, 5), (7, 20)])
def test_simplex_frame(n_classes: int, n_features: int | None) -> None:
    rows = geometry.simplex_etf(n_classes, n_features)
    gram = rows @ rows.T
    np.testing.assert_allclose(np.diagonal(gram), 1.0, atol=1e-12)
    np.testing.assert_allclose(gram[~np.eye(n_classes, dtype=bool)], -1 / (n_classes - 1), atol=1e-12)
    np.testing.assert_allclose(rows.sum(axis=0), 0.0, atol=1e-12)


@pytest.mark.parametrize(("n_classes", "n_features"), [(1, 3), (5, 3)])
def test_no_simplex_frame_in_too_few_dimensions(n_classes: int, n_features: int) -> None:
    with pytest.raises(ValueError, match="simplex"):
        geometry.simplex_etf(n_classes, n_features)


def test_pair_maximum_names_the_pair() -> None:
    matrix = rng().normal(size=(6, 6))
    matrix += matrix.T
    np.fill_diagonal(matrix, 100.0)
    value, (first, second) = geometry.pair_maximum(matrix)
    best = max((matrix[i, j], i, j) for i in range(6) for j in range(i + 1, 6))
    assert (value, first, second) == best


def test_means_over_pairs_are_those_of_the_entries_above_the_diagonal() -> None:
    matrix = rng().normal(size=(6, 6))
    matrix += matrix.T
    pairs = matrix[np.triu_indices(6, 1)]
    assert geometry.pair_mean(matrix) == pytest.approx(pairs.mean(), rel=1e-12)
    std, distance = geometry.pair_spread(matrix, 0.3)
    assert std == pytest.approx(pairs.std(), rel=1e-12)
    assert distance == pytest.approx(np.abs(pairs - 0.3).mean(), rel=1e-12)


def test_the_spread_of_a_simplex_frame_is_rounding() -> None:
    """A difference of sums with and without the diagonal would leave the root of the rounding."""
    frame = geometry.simplex_etf(300)
    std, distance = geometry.pair_spread(frame @ frame.T, -1 / 299)
    assert std < 1e-14
    assert distance < 1e-14


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_squared_distances_equal_differences(offset: float) -> None:
    rows = rng().normal(size=(7, 5)) + offset
    rows[3] = rows[2] + 1e-9
    slow = np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])
    np.testing.assert_allclose(geometry.squared_distances(rows), slow, rtol=1e-6)


def test_squared_distances_never_lose_a_close_pair() -> None:
    """By a Gram matrix alone, 1e-20 beside norms of 1 would be rounding of either sign."""
    rows = rng().normal(size=(4, 5))
    rows[1] = rows[0] + np.array([1e-10, 0, 0, 0, 0])
    assert geometry.squared_distances(rows)[0, 1] == pytest.approx(1e-20, rel=1e-4)


def test_row_cosines_are_blank_for_zero_rows() -> None:
    first, second = np.eye(3), np.array([[2.0, 0, 0], [0, 0, 0], [0, 1.0, 1.0]])
    found = geometry.row_cosines(first, second)
    assert found[0] == 1.0
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(np.sqrt(0.5))


def test_span_rank_counts_its_directions() -> None:
    assert Span(singular=np.ones(3), within=np.ones(3)).rank == 3
