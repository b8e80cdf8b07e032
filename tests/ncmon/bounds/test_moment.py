"""The moment problem against brute force: grids for the dual function, linear programs for the primal."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from scipy.optimize import linprog

from ncmon.bounds import moment

POWERS: tuple[Literal[1, 2], ...] = (1, 2)


def problem(
    *, reach: float, loss: float, shift: float, n_classes: int, power: Literal[1, 2], size: int = 1
) -> moment._Problem:
    kappa = n_classes / (n_classes - 1)
    return moment._Problem(
        reach=np.full(size, reach),
        loss=np.full(size, loss),
        offset=np.full(size, np.log(n_classes - 1) - kappa * shift),
        kappa=kappa,
        power=power,
    )


def certified(one: moment._Problem) -> float:
    with np.errstate(all="ignore"):
        return float(moment._certified(one)[0])


def loss_at(z: float, n_classes: int) -> float:
    return float(np.log1p((n_classes - 1) * np.exp(-n_classes / (n_classes - 1) * z)))


def test_inverse_loss_inverts() -> None:
    for n_classes in (2, 3, 10, 1000):
        losses = np.geomspace(1e-12, 50.0, 200)
        back = [loss_at(z, n_classes) for z in moment.inverse_loss(losses, n_classes)]
        np.testing.assert_allclose(back, losses, rtol=1e-8)


def random_problem(seed: int) -> tuple[moment._Problem, float, float]:
    """Return a problem whose statistics are consistent, its least loss, and its loss without features."""
    rng = np.random.default_rng(seed)
    n_classes = int(rng.choice([2, 3, 4, 10, 100]))
    reach = float(np.exp(rng.uniform(np.log(0.3), np.log(30.0))))
    shift = float(rng.normal() * rng.choice([0.0, 0.3, 2.0]))
    least, blank = loss_at(reach + shift, n_classes), loss_at(shift, n_classes)
    loss = float(np.exp(rng.uniform(np.log(max(least, 1e-9)), np.log(blank))))
    power = POWERS[int(rng.integers(2))]
    return problem(reach=reach, loss=loss, shift=shift, n_classes=n_classes, power=power), least, blank


@pytest.mark.parametrize("block", range(4))
def test_dual_function_is_below_brute_force_and_close_to_it(block: int) -> None:
    """phi is an infimum over a plane: any grid of the plane is above it, a fine one is close."""
    x = np.concatenate([np.linspace(-1.0, 1.0, 201), np.geomspace(1e-6, 1.0, 200)])
    n = np.concatenate([[0.0], np.geomspace(1e-5, 60.0, 900)])
    grid_n, grid_x = np.meshgrid(n, x)
    for seed in range(60 * block, 60 * (block + 1)):
        rng = np.random.default_rng(seed)
        one, _, _ = random_problem(seed)
        norm_price = float(np.exp(rng.uniform(np.log(0.02), np.log(5.0))))
        loss_price = float(np.exp(rng.uniform(np.log(0.05), np.log(30.0))))
        with np.errstate(all="ignore"):
            value = float(moment.dual_value(one, np.array([norm_price]), np.array([loss_price]))[0])
        t = one.reach[0] * grid_n * grid_x
        cost = grid_x + norm_price * grid_n**one.power + loss_price * np.logaddexp(0, one.offset[0] - one.kappa * t)
        brute = cost.min() - norm_price - loss_price * one.loss[0]
        assert value <= brute + 1e-12
        assert value >= brute - 2e-3 * (1 + norm_price + loss_price * one.at_zero[0])


def linear_program(one: moment._Problem) -> float:
    """Return the least mean cosine over distributions on a grid: an upper bound of the true least."""
    x = np.concatenate([np.linspace(-1.0, 1.0, 121), np.geomspace(1e-4, 1.0, 60)])
    # A grid of the logit, not of the norm, holds the loss's constraint as well as the atoms need it.
    n = np.concatenate([[0.0], np.linspace(0.02, 3.0, 220), np.geomspace(3.0, 12.0, 25)])
    grid_n, grid_x = (values.ravel() for values in np.meshgrid(n, x))
    losses = np.logaddexp(0, one.offset[0] - one.kappa * one.reach[0] * grid_n * grid_x)
    scale = one.loss[0]
    found = linprog(
        grid_x,
        A_ub=np.stack([grid_n**one.power, losses / scale]),
        b_ub=[1.0, 1.0],
        A_eq=np.ones((1, grid_x.size)),
        b_eq=[1.0],
        method="highs",
    )
    return float(found.fun) if found.status == 0 else np.inf


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    ("n_classes", "reach", "share", "shift"),
    [
        # share: where the loss stands between its least value (0) and that of zero logits (1).
        (2, 3.0, 0.2, 0.0),
        (3, 6.0, 0.1, 0.0),
        (4, 2.0, 0.5, 0.3),
        (10, 6.0, 0.05, -0.4),
        (10, 8.0, 0.6, 0.0),
        (10, 4.0, 0.3, 1.0),
        (100, 9.0, 0.4, 0.0),
        (100, 12.0, 0.7, -1.0),
    ],
)
def test_linear_program_is_never_below_and_close(
    n_classes: int, reach: float, share: float, shift: float, power: Literal[1, 2]
) -> None:
    least, blank = loss_at(reach + shift, n_classes), loss_at(shift, n_classes)
    one = problem(reach=reach, loss=least + share * (blank - least), shift=shift, n_classes=n_classes, power=power)
    value, grid = certified(one), linear_program(one)
    assert value <= grid + 1e-9
    assert grid - value < 0.03


def test_certificate_equals_the_two_atom_primal() -> None:
    """The primal value is attained by a distribution, the dual one is certified: between them there is no gap."""
    for seed in range(400):
        one, _, _ = random_problem(seed)
        value = certified(one)
        if value <= 0:
            continue
        with np.errstate(all="ignore"):
            t = one.inverse(one.loss)
            single = float((t / one.reach)[0])
            q = moment._best_mass(one)
            _, _, x = moment._atom(one, q)
        pair = float((-q + (1 - q) * x)[0])
        assert value <= min(single, pair) + 1e-12
        assert min(single, pair) - value < 1e-6


def test_both_regimes_occur() -> None:
    with np.errstate(all="ignore"):
        proven = [bool(moment._one_atom(random_problem(seed)[0])[1][0]) for seed in range(200)]
    assert 0.2 < np.mean(proven) < 0.95


def feasible_states(one: moment._Problem, rng: np.random.Generator) -> list[float]:
    """Return mean cosines of random distributions scaled to the norm constraint that satisfy the loss constraint."""
    found = []
    for _ in range(200):
        atoms = int(rng.integers(1, 5))
        weight = rng.dirichlet(np.ones(atoms))
        x = rng.uniform(-1, 1, atoms) if rng.random() < 0.5 else rng.uniform(0.3, 1.0, atoms)
        n = rng.exponential(size=atoms) if rng.random() < 0.5 else 1 + 0.1 * rng.random(atoms)
        n /= (weight @ n**one.power) ** (1 / one.power)
        if weight @ np.logaddexp(0, one.offset[0] - one.kappa * one.reach[0] * n * x) <= one.loss[0]:
            found.append(float(weight @ x))
    return found


def test_no_random_distribution_is_below_its_certificate() -> None:
    checked = 0
    for seed in range(300):
        one, _, _ = random_problem(seed)
        value = certified(one)
        states = feasible_states(one, np.random.default_rng(seed))
        checked += len(states)
        assert all(state >= value for state in states)
    assert checked > 2000


def test_more_loss_or_more_reach_certifies_less() -> None:
    for power in POWERS:
        by_loss = [
            certified(problem(reach=6.0, loss=loss, shift=0.0, n_classes=10, power=power))
            for loss in np.geomspace(0.02, 2.2, 60)
        ]
        assert all(first >= second - 1e-9 for first, second in itertools.pairwise(by_loss))
        by_reach = [
            certified(problem(reach=reach, loss=0.2, shift=0.0, n_classes=10, power=power))
            for reach in np.geomspace(4.5, 60.0, 60)
        ]
        assert all(first >= second - 1e-9 for first, second in itertools.pairwise(by_reach))


@pytest.mark.parametrize(
    ("reach", "loss", "shift"),
    [
        (5.0, 2.5, 0.0),  # above log C: zero features have less
        (0.0, 0.1, 0.0),
        (np.nan, 0.1, 0.0),
        (5.0, np.nan, 0.0),
        (5.0, 0.0, 0.0),
        (5.0, 0.1, np.inf),
        (np.inf, 0.1, 0.0),
        (1e300, 0.1, 0.0),
        (5.0, 1e300, 0.0),
    ],
)
def test_statistics_that_exclude_nothing_give_nothing(reach: float, loss: float, shift: float) -> None:
    found = moment.least_mean_cosine(
        rms_reach=np.array([reach]),
        mean_reach=np.array([reach]),
        loss=np.array([loss]),
        shift=np.array([shift]),
        n_classes=10,
    )
    assert np.isnan(found[0]) or 0 < found[0] < 1e-290


def test_extreme_scales_stay_in_range() -> None:
    for n_classes in (2, 65_536):
        for reach in (1e-6, 1e-2, 40.0, 1e6):
            for shift in (-1e3, 0.0, 1e3):
                for loss in (1e-12, 1e-3, 1.0, 30.0):
                    found = moment.least_mean_cosine(
                        rms_reach=np.array([reach]),
                        mean_reach=np.array([reach]),
                        loss=np.array([loss]),
                        shift=np.array([shift]),
                        n_classes=n_classes,
                    )[0]
                    assert np.isnan(found) or 0 < found <= 1
