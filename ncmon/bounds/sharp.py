"""The sharp certificate from (C, alpha beta, L) alone (S): what any such network must have, all but k classes.

Assumes every class counted once (alpha^2 = mean a_c^2, L = mean l_c), no last bias, frozen weights. Notation and
rounding: `ncmon.bounds.inputs`; P_c = a_c b_c, so sum_c P_c <= C alpha beta by Cauchy-Schwarz.

S-intra. Suppose that j = k + 1 classes had X_c <= x0. For all theta, omega > 0, with m = b_c |h| (E m <= P_c),

    C L + theta C alpha beta >= sum_c (l_c + theta P_c) + omega sum_bad (X_c - x0) >= j (Phi_b - omega x0) + (C-j) Phi_g
    Phi_g = min_P g(P) + theta P = -log(1-tau) + theta Z(tau),  tau = theta/kappa,
            Z(tau) = (log(C-1) + log((1-tau)/tau)) / kappa
    Phi_b = inf over m >= 0, |x| <= 1 of g(m x) + theta m + omega x

so x0 >= [j Phi_b + (C-j) Phi_g - C L - theta C alpha beta] / (j omega) =: X for every pair of multipliers, and all but
k classes have X_c >= X and intra_c >= X^2. Phi_b is the smaller one of log C - omega (x <= 0: samples without length)
and, for t = m x > 0, inf g(t) + [2 sqrt(omega theta t) if t <= omega/theta, else omega + theta t].

Multipliers. With wrong-probabilities tau (good classes) and tau_b (bad ones) of losses l = -log(1-tau) that satisfy
j l_b + (C-j) l_g = C L, x0 = tau / tau_b and j Z(tau_b)/x0 + (C-j) Z(tau) = C alpha beta (one bisection over log tau):
theta = kappa tau, omega = kappa tau_b Z(tau_b) / x0. It reads: k+1 classes tilted by arccos x0, all others perfect.
There the inner infimum is at t = Z(tau_b) when the lemma of `ncmon.bounds.moment` (p = 1) says so; elsewhere a small
grid of multipliers is evaluated, each a certificate.

S-NC3 (cos(dw_c, htilde_c) of all but k classes). By Jensen over samples first no atoms without length are left: x is
certified as soon as  j min_y [g(y) + (theta/x) y] + (C-j) Phi_g > C L + theta C alpha beta.

S-inter (every pair). For a pair (c, e): w_c - w_e = b_d f, mid = (dw_c + dw_e)/2, bbar^2 = (b_c^2 + b_e^2)/2 with
b_d/2 = bbar cos phi, |mid| = bbar sin phi. Fix wrong-probabilities q1 (the partner) and q2 (all others), Q = q1 + q2,
U = 2 q1 + q2, V = C q2/(C-2), c1 = -q1 log q1 - q2 log q2 + q2 log(C-2),
E(rho) = -(1 - rho Q) log(1 - rho Q) - rho Q log rho + rho c1. By the variational form of log-sum-exp with weights
rho q1 and rho q2/(C-2), for every rho in (0, 1/Q) and every sample, m = bbar |h|, u = h/|h|:
L >= E(rho) - rho m r,  r = U cos phi (f.u) + V sin phi (mid.u/|mid|)  (f -> -f in class e).
With rho = theta/r, L + theta m >= E(theta/r) =: k(r); k is convex for r >= theta/rho_c. Let s = -k'(theta) and kap0 the
infimum of k(r) + s r over |r| <= sqrt(U^2 + V^2). r is linear in u, so averaging over both classes, with
|Dbar|^2 + |Sbar|^2 <= 1 and inter = |Sbar|^2 - |Dbar|^2 for Dbar, Sbar half the difference and sum of hbar_c, hbar_e,

    need = [C L + theta C alpha beta - (C-2) Phi_g] / 2,  r_min = (kap0 - need)/s,
    inter <= (U^2 + V^2 - 2 r_min^2) / (U^2 - V^2)        where U > V, r_min > 0.

For k exceptions let j = floor(k/2) + 1, and 2j and C-2j stand for 2 and C-2 in `need`: then no j disjoint pairs have a
greater cosine all of them. The ends of a largest set of disjoint pairs that do, at most 2 (j-1) <= k classes, are in
every pair that does.

The optimum of q1, q2, theta is that of a convex program of two variables (`_pair_program`).

Source: ncmon theory notes, sections 2 and 2b, which sharpen the thesis' Theorem 2.3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ncmon.bounds import moment, pair_program
from ncmon.bounds.inputs import ALLOWANCE, GLOBAL, GLOBAL_FACTS, LOSS_STATISTICS, WindowInputs, window_inputs
from ncmon.bounds.levels import NO_PAIR, nothing
from ncmon.bounds.moment import ROUNDING
from ncmon.metrics.loss import least_loss
from ncmon.metrics.readings import Unavailable, reading
from ncmon.metrics.spec import Bound
from ncmon.metrics.view import View

BISECTIONS = 70
GRID = 7
"""Multipliers a side where the closed form is not the best."""
GRID_ROUNDS = 3

INCONSISTENT = "inconsistent: the loss is below its least value at these scales"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharp:
    """What (C, alpha beta, L) guarantee for all but k classes; None where they guarantee nothing."""

    cosine: float | None
    """X: least mean cos(w_c - wbar, h)."""
    nc3: float | None
    """Least cos(w_c - wbar, mu_c)."""
    inter: float | None
    """Greatest inter-class cosine of any pair."""


def sharp(inputs: WindowInputs, *, exceptions: int = 0) -> Sharp:
    """Return the certificate; raises `Unavailable` for inputs that contradict each other.

    `inputs` are enlarged by their rounding already. `exceptions` is k, 0 <= k < C.
    """
    n, product = inputs.n_classes, inputs.product
    least = least_loss(n, product)
    if not (math.isfinite(product) and math.isfinite(inputs.loss) and product > 0):
        raise Unavailable("vacuous: scales or loss are not finite and positive")
    if inputs.loss < least * (1 - ALLOWANCE):
        raise Unavailable(INCONSISTENT)
    loss = max(inputs.loss, least) * (1 + 1e-12)
    if loss >= math.log(n):
        return Sharp(cosine=None, nc3=None, inter=None)
    state = _Multipliers.best(n, product, loss, exceptions + 1)
    cosine = nc3 = None
    if state is not None:
        cosine, nc3 = state.certified_cosine(), state.certified_alignment()
    pairs = exceptions // 2 + 1
    inter = pair_program.greatest_inter(n, product, loss, pairs) if n > 2 * pairs else None
    return Sharp(cosine=cosine, nc3=nc3, inter=inter)


def logit_of(log_tau: float, n_classes: int) -> float:
    """Return Z(tau): the own logit at which the wrong probability is tau."""
    return (math.log(n_classes - 1.0) + math.log1p(-math.exp(log_tau)) - log_tau) * (n_classes - 1.0) / n_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Multipliers:
    """The best pair of multipliers for j bad classes, and what they certify."""

    n_classes: int
    product: float
    loss: float
    bad: int
    log_tau: float
    log_tau_bad: float

    @classmethod
    def best(cls, n_classes: int, product: float, loss: float, bad: int) -> _Multipliers | None:
        n, good = n_classes, n_classes - bad

        def tau_bad(log_tau: float) -> float | None:
            """Return log tau_b, or None where the bad classes would have no own logit left."""
            spent = -math.log1p(-math.exp(log_tau)) * good
            level = (n * loss - spent) / bad
            if not 0 < level < math.log(n):
                return None
            return math.log(-math.expm1(-level))

        def excess(log_tau: float) -> float | None:
            """Return how much the scales would have to exceed alpha beta; None beyond the allowed range."""
            log_bad = tau_bad(log_tau)
            if log_bad is None or log_bad < log_tau:
                return None
            x = math.exp(log_tau - log_bad)
            return bad * logit_of(log_bad, n) / x + good * logit_of(log_tau, n) - n * product

        top = math.log(-math.expm1(-loss))
        if good == 0:
            log_bad = top
            x = min(1.0, logit_of(log_bad, n) / product)
            if x <= 0:
                return None
            return cls(n_classes=n, product=product, loss=loss, bad=bad, log_tau=log_bad + math.log(x), log_tau_bad=top)
        high, low = top, top - 1.0
        value, moved = None, 0
        for _ in range(60):
            value = excess(low)
            if value is None or value > 0:
                break
            low = top - 2 * (top - low)
        # False position between known values, an end's halved when the other has moved twice (Illinois); else halving.
        below, above = value, excess(high)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            if below is not None and above is not None and above < 0 < below:
                middle = low + (high - low) * below / (below - above)
            if not low < middle < high or high - low < 1e-15 * abs(low):
                break
            value = excess(middle)
            if value is None or value > 0:
                above = above if above is None or moved != 1 else above / 2
                low, below, moved = middle, value, 1
            else:
                below = below if below is None or moved != -1 else below / 2
                high, above, moved = middle, value, -1
                if value > -4e-16 * n * product:
                    break
        found = tau_bad(high)
        if found is None:
            return None
        return cls(n_classes=n, product=product, loss=loss, bad=bad, log_tau=high, log_tau_bad=found)

    @property
    def cosine(self) -> float:
        """x0"""
        return min(1.0, math.exp(self.log_tau - self.log_tau_bad))

    def _good(self, theta: float) -> float:
        """Return Phi_g."""
        n = self.n_classes
        tau = min(theta * (n - 1.0) / n, (n - 1.0) / n)
        return -math.log1p(-tau) + theta * logit_of(math.log(tau), n)

    def certified_alignment(self) -> float | None:
        """Return the certified cos(w_c - wbar, mu_c), None where none above zero is."""
        n, good = self.n_classes, self.n_classes - self.bad
        theta = math.exp(self.log_tau) * n / (n - 1.0)
        other = good * self._good(theta) if good else 0.0
        spent = n * self.loss + theta * n * self.product
        for x in (self.cosine * (1 - loss) for loss in (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)):
            log_bad = self.log_tau - math.log(x)
            if log_bad >= math.log((n - 1.0) / n):
                continue
            level = -math.log1p(-math.exp(log_bad)) + theta / x * logit_of(log_bad, n)
            if self.bad * level + other - spent > ROUNDING * (spent + abs(other) + self.bad * abs(level)):
                return x
        return None

    def certified_cosine(self) -> float | None:
        """Return X, None where none above zero is certified."""
        n = self.n_classes
        kappa = n / (n - 1.0)
        own = logit_of(self.log_tau_bad, n)
        if own <= 0:
            return None
        theta = kappa * math.exp(self.log_tau)
        omega = kappa * math.exp(self.log_tau_bad) * own / self.cosine
        best = self._closed_form(theta, omega, own)
        if best < self.cosine - 1e-4:
            best = max(best, self._search(theta, omega))
        return best if best > 0 else None

    def _value(self, theta: float, omega: float, bad_level: float) -> float:
        n, good = self.n_classes, self.n_classes - self.bad
        other = good * self._good(theta) if good else 0.0
        spent = n * self.loss + theta * n * self.product
        total = self.bad * bad_level + other - spent
        size = spent + abs(other) + self.bad * (abs(bad_level) + omega)
        return (total - 2 * ROUNDING * size) / (self.bad * omega)

    def _closed_form(self, theta: float, omega: float, own: float) -> float:
        """Return X where the infimum of the bad classes is at their own logit; -1 where that is not proven."""
        n = self.n_classes
        kappa = n / (n - 1.0)
        wrong = math.exp(self.log_tau_bad)
        # Stationary by construction; convex there, and before the knee: the only interior minimum.
        if not (own <= omega / theta * (1 + 1e-9) and 2 * kappa * own * (1 - wrong) >= 1):
            return -1.0
        level = -math.log1p(-wrong) + 2 * math.sqrt(omega * theta * own)
        return self._value(theta, omega, min(math.log(n) - omega, level))

    def _search(self, theta: float, omega: float) -> float:
        """Return the best X over a grid of multipliers around the closed form."""
        n = self.n_classes
        kappa = n / (n - 1.0)
        best, width = -1.0, 1.5
        at = np.array([math.log(theta), math.log(omega)])
        steps = np.linspace(-1.0, 1.0, GRID)
        other, spent = self.n_classes - self.bad, n * self.loss
        for _ in range(GRID_ROUNDS):
            thetas, omegas = (grid.ravel() for grid in np.exp(np.meshgrid(*(at[:, None] + width * steps))))
            level = moment.least_tilted_loss(theta=thetas, omega=omegas, offset=math.log(n - 1.0), kappa=kappa)
            # As in `_good` and `_value`, for all at once.
            with np.errstate(all="ignore"):
                tau = np.minimum(thetas / kappa, 1 / kappa)
                good = other * (-np.log1p(-tau) + thetas * (math.log(n - 1.0) + np.log1p(-tau) - np.log(tau)) / kappa)
                paid = spent + thetas * n * self.product
                size = paid + np.abs(good) + self.bad * (np.abs(level) + omegas)
                value = (self.bad * level + good - paid - 2 * ROUNDING * size) / (self.bad * omegas)
            value = np.where(np.isfinite(value) & (thetas < 1.0), value, -1.0)
            place = int(np.argmax(value))
            if value[place] > best:
                best = float(value[place])
                at = np.log([thetas[place], omegas[place]])
            width *= 0.4
        return best


def _window(view: View) -> Sharp:
    return sharp(view.shared(window_inputs))


@reading
def sharp_intra(view: View) -> float:
    """Return X^2 for k = 0: the guaranteed |hbar_c|^2 of every class."""
    found = view.shared(_window).cosine
    if found is None:
        raise Unavailable(nothing(view.shared(window_inputs), "cosine"))
    return found * found


@reading
def sharp_nc3(view: View) -> float:
    """Return the guaranteed cos(w_c - wbar, mu_c) of every class."""
    found = view.shared(_window).nc3
    if found is None:
        raise Unavailable(nothing(view.shared(window_inputs), "nc3"))
    return found


@reading
def sharp_inter(view: View) -> float:
    """Return the guaranteed upper bound of the inter-class cosine of every pair."""
    if view.n_classes < 3:
        raise Unavailable("not applicable: fewer than three classes")
    found = view.shared(_window).inter
    if found is None:
        raise Unavailable(NO_PAIR)
    return found


_SOURCE = "ncmon theory notes, section 2 (S); thesis, Theorem 2.3.1"

BOUNDS = (
    Bound(
        name="sharp_intra",
        title="guaranteed intra-class cosine from loss and scales",
        of="intra_cos_min",
        side="lower",
        scope="classifier",
        assumptions=GLOBAL,
        requires=GLOBAL_FACTS,
        source=_SOURCE,
        definition="X^2, X the least mean cos(w_c - wbar, h) that (C, alpha beta, L) allow any single class",
        needs=LOSS_STATISTICS,
        compute=sharp_intra,
    ),
    Bound(
        name="sharp_nc3",
        title="guaranteed alignment from loss and scales",
        of="nc3_cos_min",
        side="lower",
        scope="classifier",
        assumptions=GLOBAL,
        requires=GLOBAL_FACTS,
        source=_SOURCE,
        definition="the least cos(w_c - wbar, mu_c) that (C, alpha beta, L) allow any single class",
        needs=LOSS_STATISTICS,
        compute=sharp_nc3,
    ),
    Bound(
        name="sharp_inter",
        title="guaranteed inter-class cosine from loss and scales",
        of="inter_cos_max",
        side="upper",
        scope="classifier",
        assumptions=GLOBAL,
        requires=GLOBAL_FACTS,
        source="ncmon theory notes, section 2b (S-inter); thesis, Theorem 2.3.1",
        definition="(U^2 + V^2 - 2 r^2) / (U^2 - V^2), the greatest that (C, alpha beta, L) allow any pair",
        needs=LOSS_STATISTICS,
        compute=sharp_inter,
    ),
)
