"""Scatter algebra of class means: centring, the rank rule, pseudo-inverse traces, simplex frames, cosines, distances.

Rules of this module
- numpy, float64 and BLAS only: K x K and K x d products, never an array of K x K x d.
- Every threshold has a name and says which rounding it guards against.
- It knows no window, no metric and no class names. Rows that must not be used are left out by the caller.

Theory of the rank rule. Means are computed as A = M - mean(M); rounding of M leaves an error of about eps |M| in A, so
directions of A whose singular value is not above that level are noise, and the pseudo-inverse would divide by them.
`tr(S pinv(A^T A))` is therefore summed over the directions kept, from the singular values of A itself: forming A^T A
squares the condition number and, in single precision, was measured to be 64 to 3,500 times too small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ncmon.model import FloatArray

EPS_DOUBLE = float(np.finfo(np.float64).eps)
EPS_SINGLE = float(np.finfo(np.float32).eps)

RANK_FACTOR = 4.0
"""Safety factor of the rank rule above the rounding of a singular value decomposition."""

SAME_FACTOR = 4.0
"""Safety factor below which two stored vectors count as equal: 4 eps of the largest of them."""

STRETCH = 48
"""Rows of a matrix that are worked on at a time: whole temporary matrices cost more than the arithmetic on them."""

CANCELLATION = 1e-7
"""Squared distances below this share of the squared norms keep fewer than nine digits in a Gram matrix and are taken
again, directly: they are few, and single precision has seven."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Centred:
    """Class means about their own mean."""

    mean: FloatArray
    """(d,) mean of the rows, each class counting once."""
    rows: FloatArray
    """(K, d) A = M - mean."""
    norms: FloatArray
    """(K,) |A_c|."""
    largest: float
    """max |M_c|, the scale of the rounding inside A."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """The directions of the centred class means that the rank rule keeps."""

    singular: FloatArray
    """(r,) descending."""
    within: FloatArray
    """(r,) v^T S v along them; S is the within-class scatter (a sum)."""
    weighted: FloatArray | None = None
    """(r,) the same of a scatter in which classes have weights."""

    @property
    def rank(self) -> int:
        """How many directions were kept."""
        return int(self.singular.size)


def centre(means: FloatArray, norms: FloatArray | None = None) -> Centred:
    """Centre the rows (K, d), whose norms (K,) may be known, about their own mean."""
    norms = row_norms(means) if norms is None else norms
    mean = means.mean(axis=0)
    rows = means - mean
    return Centred(mean=mean, rows=rows, norms=row_norms(rows), largest=float(norms.max()))


def row_norms(rows: FloatArray) -> FloatArray:
    """Return the Euclidean norms (n,) of the rows (n, d)."""
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def kept(singular: FloatArray, *, n_classes: int, n_features: int, largest_mean: float, single: bool = False) -> int:
    """Return how many of the descending singular values of A (K, d) the rank rule keeps.

    s > 4 max(K, d) eps max(s_1, max |mu_c|), and at most K - 1 of them. Where the means themselves were rounded to
    single precision, their error matrix has a spectral norm of at most 2^-24 sqrt(K) max |mu_c|, which 4 times over is
    a second floor.
    """
    if singular.size == 0:
        return 0
    largest = max(float(singular[0]), largest_mean)
    floor = RANK_FACTOR * max(n_classes, n_features) * EPS_DOUBLE * largest
    if single:
        floor = max(floor, RANK_FACTOR * np.sqrt(n_classes) * EPS_SINGLE / 2 * largest_mean)
    return min(int(np.count_nonzero(singular > floor)), n_classes - 1)


def span_of_means(
    centred: Centred, scatter: FloatArray, *, weighted: FloatArray | None = None, single: bool = False
) -> Span:
    """Return the directions of A kept by the rank rule, and the full scatters (d, d) along them."""
    n_classes, n_features = centred.rows.shape
    _, singular, right = np.linalg.svd(centred.rows, full_matrices=False)
    rank = kept(singular, n_classes=n_classes, n_features=n_features, largest_mean=centred.largest, single=single)
    directions = right[:rank]

    def along(matrix: FloatArray) -> FloatArray:
        found: FloatArray = np.einsum("ij,ij->i", directions @ matrix, directions)
        return found

    return Span(singular=singular[:rank], within=along(scatter), weighted=None if weighted is None else along(weighted))


def pinv_trace(span: Span, *, n_samples: int) -> float:
    """Return tr(Sigma_W pinv(Sigma_B)) / K with Sigma_W = S / N and Sigma_B = A^T A / K: sum_k S_kk / (N s_k^2)."""
    return ratio_trace(span.within / n_samples, span.singular)


def ratio_trace(variances: FloatArray, singular: FloatArray) -> float:
    """Return tr(Sigma_W pinv(Sigma_B)) / K from v_k^T Sigma_W v_k (r,) and s_k (r,): the K of both cancel."""
    return float(np.sum(variances / np.square(singular)))


def simplex_etf(n_classes: int, n_features: int | None = None) -> FloatArray:
    """Return the rows (K, d) of a simplex equiangular tight frame: unit norms, pairwise cosines -1/(K-1).

    d is K by default and at least K - 1. With d = K - 1 the frame is turned into its own span.
    """
    width = n_classes if n_features is None else n_features
    if n_classes < 2 or width < n_classes - 1:
        raise ValueError(f"a simplex frame of {n_classes} vectors needs {n_classes - 1} dimensions, got {width}")
    frame = np.sqrt(n_classes / (n_classes - 1)) * (np.eye(n_classes) - 1.0 / n_classes)
    rows = np.zeros((n_classes, width))
    if width >= n_classes:
        rows[:, :n_classes] = frame
    else:
        _, _, right = np.linalg.svd(frame)
        rows[:] = frame @ right[: n_classes - 1].T
    return rows


def cosines(gram: FloatArray, norms: FloatArray) -> FloatArray:
    """Return the cosines (n, n) of vectors from their Gram matrix (n, n) and their norms (n,), all positive."""
    result = gram / norms[:, None]
    result /= norms
    return np.clip(result, -1.0, 1.0, out=result)


def row_cosines(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the cosines (n,) between rows of equal place; NaN where one of them is zero."""
    return cosines_of(row_products(first, second), row_norms(first) * row_norms(second))


def row_products(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the products (n,) of rows of equal place."""
    products: FloatArray = np.einsum("ij,ij->i", first, second)
    return products


def cosines_of(dots: FloatArray, scale: FloatArray) -> FloatArray:
    """Return the cosines (n,) of products with the lengths `scale`; NaN where one of them is zero."""
    return np.clip(np.divide(dots, scale, out=np.full(scale.shape, np.nan), where=scale > 0), -1.0, 1.0)


def pair_maximum(matrix: FloatArray) -> tuple[float, tuple[int, int]]:
    """Return the largest entry off the diagonal of a symmetric (n, n), n >= 2, and its pair (i < j)."""
    best, pair = -np.inf, (0, 1)
    for rows in stretches(len(matrix)):
        other = matrix[rows].copy()
        np.fill_diagonal(other[:, rows], -np.inf)
        # Row by row the first of two equal entries is the one above the diagonal.
        row, column = divmod(int(np.argmax(other)), len(matrix))
        if other[row, column] > best:
            best, pair = float(other[row, column]), (rows.start + row, column)
    return best, (min(pair), max(pair))


def pair_values(matrix: FloatArray) -> FloatArray:
    """Return the entries above the diagonal of (n, n) as a vector (n (n - 1) / 2,), row by row."""
    return np.concatenate([row[place + 1 :] for place, row in enumerate(matrix)])


def pair_mean(matrix: FloatArray) -> float:
    """Return the mean over pairs of a symmetric (n, n), n >= 2."""
    n = matrix.shape[0]
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1.0)))


def pair_spread(matrix: FloatArray, expected: float) -> tuple[float, float]:
    """Return the std (ddof 0) and the mean of |x - expected| over pairs of a symmetric (n, n), n >= 2."""
    n = matrix.shape[0]
    count = n * (n - 1.0)
    total = distance = square = 0.0
    # Zeros on the diagonal, not a difference of sums: at a simplex frame all that is left is rounding.
    for rows in stretches(n):
        off = matrix[rows] - expected
        np.fill_diagonal(off[:, rows], 0.0)
        total += float(off.sum())
        distance += float(np.abs(off, out=off).sum())
    mean = expected + total / count
    for rows in stretches(n):
        off = matrix[rows] - mean
        np.fill_diagonal(off[:, rows], 0.0)
        square += float(np.vdot(off, off))
    return float(np.sqrt(square / count)), distance / count


def squared_distances(rows: FloatArray, gram: FloatArray | None = None) -> FloatArray:
    """Return |rows_i - rows_j|^2 as (n, n), zero on the diagonal, by one Gram product, unless that is given.

    A Gram matrix loses the digits of a distance that is small beside the norms; those few pairs are taken directly.
    """
    if gram is None:
        gram = rows @ rows.T
    square = np.diagonal(gram).copy()
    result = square[:, None] + square[None, :]
    result -= gram
    result -= gram
    np.fill_diagonal(result, np.inf)
    # First for all at once: as a rule no pair is near.
    if result.min() <= CANCELLATION * 2 * square.max():
        near = np.triu(result <= CANCELLATION * (square[:, None] + square[None, :]), 1)
        for first, second in zip(*np.nonzero(near), strict=True):
            difference = rows[first] - rows[second]
            result[first, second] = result[second, first] = difference @ difference
    np.fill_diagonal(result, 0.0)
    return result


def etf_distance(gram: FloatArray) -> float:
    """Return | G/|G| - (I - 11^T/K)/sqrt(K-1) |_F for G (K, K): the distance to the Gram matrix of a simplex frame."""
    n_classes = gram.shape[0]
    # Products of products: squared once more they leave float64 from lengths of 1e77 on, where |G| would be infinite.
    scale = float(max(gram.max(), -gram.min()))
    parts = list(stretches(n_classes))
    length = float(np.linalg.norm([np.linalg.norm(gram[rows] / scale) for rows in parts]))
    size = 1.0 / np.sqrt(n_classes - 1.0)
    distances = []
    for rows in parts:
        rest = gram[rows] / scale
        rest /= length
        rest += size / n_classes
        square = rest[:, rows]
        square.flat[:: len(square) + 1] -= size
        distances.append(np.linalg.norm(rest))
    return float(np.linalg.norm(distances))


def stretches(count: int) -> Iterator[slice]:
    """Yield slices of `STRETCH` rows that cover `count`: what is made of that many stays in the cache."""
    for start in range(0, count, STRETCH):
        yield slice(start, min(start + STRETCH, count))


def same_floor(largest: float, *, single: bool = False) -> float:
    """Return the length below which a difference of stored means, none longer than `largest`, is rounding."""
    return SAME_FACTOR * (EPS_SINGLE if single else EPS_DOUBLE) * largest
