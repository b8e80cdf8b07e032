"""Lemmas 2.4.1 to 2.4.6 of the thesis and their corollaries, as numbers, each with what it needs to be true.

The theorem (`ncmon.bounds.theorem`) is a chain of these. Where the thesis' statement or proof does not hold the
function computes what does, and its docstring says what was corrected; counter-examples to the statements as printed
are tests.
All logarithms are natural, all distributions uniform over finitely many points, Var = (1/N) sum (x_i - mean)^2.

    2.4.1    Jensen's gap bounds the variance, and so how far a share of the points can be from the mean
    2.4.2    the same for one function between two points: strong convexity is a quadratic gap
    2.4.3    a mean of exponentials that is nearly that of equal arguments bounds each argument from above
    2.4.4    mean cosines over pairs of samples are products of mean directions
    2.4.5    a mean along a direction, as long as norms nearly allow, makes directions agree (Corollary 2.4.2: along
             its own)
    2.4.6    replaced: a mean of cosines differs from the cosine of norms by the root of how much norms vary

Source: thesis, section 2.4; ncmon theory notes, section 3.
"""

from __future__ import annotations

import math

import numpy as np

from ncmon.model import FloatArray

OVERFLOW = 690.0
"""Exponents above this are infinite in float64."""


def variance_of_gap(gap: float, modulus: float) -> float:
    """Return the greatest Var(x) where mean f(x_i) - f(mean x) <= gap and f'' >= modulus: 2 gap / modulus (2.4.1).

    f is strongly convex on the convex hull of the points, not only near their mean. One line of the thesis' proof drops
    the 1/N of the variance; its statement is right.
    """
    return 2.0 * gap / modulus


def deviation_of_share(gap: float, log_modulus: float, *, points: int, share: int) -> float:
    """Return Delta: the mean x_i of any `share` of the `points` is at most Delta away from the mean of all.

    Delta = sqrt(2 gap (1 - delta) / (delta modulus)), delta = share / points (Corollary 2.4.1). `share` is a whole
    number of points, at least 1 and below `points`; infinite where the modulus is too small for a float.

    Proof: for a set of a share delta whose mean is y below that of all, the others' is y delta / (1 - delta) above, and
    Var >= delta y^2 + (1 - delta) (y delta / (1 - delta))^2 = y^2 delta / (1 - delta). []
    """
    if not 1 <= share < points:
        raise ValueError(f"a share of {share} of {points} points: expected from 1 to {points - 1}")
    if gap <= 0:
        return 0.0
    exponent = 0.5 * (math.log(2.0 * gap * (points / share - 1.0)) - log_modulus)
    return math.exp(exponent) if exponent < OVERFLOW else math.inf


def quadratic_gap(first: float, second: float, *, weight: float, modulus: float) -> float:
    """Return the least t f(x) + (1-t) f(y) - f(t x + (1-t) y) for f'' >= modulus (Lemma 2.4.2).

    It is c t (1-t) (x - y)^2 with c = modulus / 2: the thesis' modulus of strong convexity c is half the least second
    derivative.
    """
    return 0.5 * modulus * weight * (1.0 - weight) * (first - second) ** 2


def excess_of_exponentials(excess: float, *, points: int, largest: int = 1) -> float:
    """Return y: where mean e^(x_i - mean x) <= 1 + excess, the mean of any `largest` x_i is at most y above the mean.

    y = sqrt(2 excess / k), k = largest / points (Lemma 2.4.3): e^u >= 1 + u + u^2/2 for u >= 0 on the chosen ones, e^-u
    >= 1 - u elsewhere, and the linear terms cancel. The lemma is about a proper part of the points; of all of them the
    mean excess is zero.
    """
    if not 1 <= largest <= points:
        raise ValueError(f"{largest} of {points} points: expected from 1 to {points}")
    return 0.0 if largest == points else math.sqrt(2.0 * excess * points / largest)


def pair_cosine(first: FloatArray, second: FloatArray) -> float:
    """Return hbar . hbar', the mean cosine over all pairs of rows of `first` (n, d) and `second` (m, d) (Lemma 2.4.4).

    Rows of zeros have no direction and are left out; with first = second the n pairs of a sample and itself count, and
    the mean over the others is (n |hbar|^2 - 1) / (n - 1). NaN where one side has no direction.
    """

    def mean_direction(rows: FloatArray) -> FloatArray:
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        units = rows[norms > 0] / norms[norms > 0, None]
        mean: FloatArray = units.mean(axis=0) if len(units) else np.full(rows.shape[1], np.nan)
        return mean

    return float(mean_direction(first) @ mean_direction(second))


def mean_cosine(alignment: float) -> float:
    """Return the least mean cos(v_i, u), u a unit vector, where mean v_i . u = rho a and a is at least the root mean
    square of |v_i|.

    It is 2 rho^2 - 1 for every rho in [0, 1] (Lemma 2.4.5). The thesis' proof rests on a proposition (sum a_i = A, sum
    b_i^2 <= B give sum a_i / b_i >= A sqrt(n / B)) that is false without a_i <= b_i: a = (A, 0), b = (sqrt(B), 0+)
    leave A / sqrt(B). One line proves the claim: with n = |v|/a and x the cosine, x >= -1 + 4 rho n x - 2 rho^2 n^2:
    both sides are linear in x and the left one is larger by 4 rho n + 2 rho^2 n^2 at x = -1 and by 2 (1 - rho n)^2 at
    x = 1; the mean of the right side is at least -1 + 4 rho^2 - 2 rho^2. []
    """
    return 2.0 * alignment * alignment - 1.0


def intra_cosine(alignment: float) -> float | None:
    """Return the least |hbar|^2 of a class with that alignment, None where there is none: (2 rho^2 - 1)^2.

    |hbar|^2 >= (hbar . u)^2 where hbar . u >= 0. The thesis (2.21) leaves out the square: to first order the bound is
    1 - 8 (1 - rho), not 1 - 4 (1 - rho). With u the mean's own direction (Corollary 2.4.2) no classifier is needed.
    """
    cosine = mean_cosine(alignment)
    return cosine * cosine if cosine > 0 else None


def cosine_of_products(mean_product: float, alignment: float) -> float:
    """Return the greatest mean cos(v_i, w), where mean |v_i| cos(v_i, w) = `mean_product` a and mean |v_i| >= rho a.

    It is at most mean_product + sqrt(2 (1 - rho)), which stands for Lemma 2.4.6: there the outliers of Chebyshev's
    inequality are dropped, which costs their share to first order, not to second, and cos(w, hbar) is not at most
    w . hbar / |w| where that is positive.

    Proof: with n = |v|/a, E cos = E[n cos] + E[(1 - n) cos] and E|1 - n| <= sqrt(E (1-n)^2) <= sqrt(2 - 2 E n), for
    E n^2 <= 1. []
    """
    return mean_product + math.sqrt(max(0.0, 2.0 * (1.0 - alignment)))


def least_log_modulus(bottom: float, top: float, n_classes: int) -> float:
    """Return log of the least g'' on [bottom, top], g(z) = log(1 + (C-1) exp(-kappa z)).

    g'' rises to its maximum at z = log(C-1)/kappa and falls behind it, so that the least is at an end. The thesis takes
    |htilde_c| <= alpha for granted, which holds for the quadratic mean over classes only: the interval of arguments is
    [-C alpha beta, C alpha beta], and the modulus e^(-O(C alpha beta)).
    """
    return min(_log_curvature(bottom, n_classes), _log_curvature(top, n_classes))


def _log_curvature(z: float, n: int) -> float:
    """Return log g''(z) = 2 log kappa + log sigma(s) sigma(-s), s = log(C-1) - kappa z."""
    kappa = n / (n - 1.0)
    s = math.log(n - 1.0) - kappa * z
    return float(2 * math.log(kappa) - np.logaddexp(0.0, -s) - np.logaddexp(0.0, s))
