"""What the networks of the thesis learn: the definitions hold, sample by sample."""

from __future__ import annotations

import pytest
import torch

from problems import Problem, cones, conic, digits, labelled  # isort: skip

DRAWN = {
    "normal": lambda seed: labelled(n_samples=1_200, n_inputs=8, n_classes=4, width=16, seed=seed),
    "cones": lambda seed: conic(n_samples=1_200, n_inputs=8, n_classes=4, n_planes=4, seed=seed),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_classes_are_of_equal_size_and_the_seed_decides(draw) -> None:  # type: ignore[no-untyped-def]
    first, again, other = draw(3), draw(3), draw(4)
    assert first.x.shape == (1_200, 8)
    assert torch.bincount(first.y).tolist() == [300] * 4
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_samples_stay_normal_where_classes_are_drawn_equal(draw) -> None:  # type: ignore[no-untyped-def]
    x = draw(0).x
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.var()) - 1.0) < 0.08


def test_making_a_problem_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for draw in DRAWN.values():
        draw(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_sample_of_a_class_is_in_one_of_its_cones_and_in_no_other_class() -> None:
    """The definition, in plain loops: x.b_i >= 0 for all i of some cone of the class, and of no cone of another."""
    generator = torch.Generator().manual_seed(0)
    partition = cones(6, 3, 4, generator)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    given = partition.classes(x.float()).tolist()
    for sample, label in zip(x.tolist(), given, strict=True):
        owners = [
            int(owner)
            for base, owner in zip(partition.bases.tolist(), partition.owners.tolist(), strict=True)
            if all(sum(a * b for a, b in zip(sample, vector, strict=True)) >= 0 for vector in base)
        ]
        assert owners == [label]


def test_cones_are_cones() -> None:
    """Closed under positive multiples and sums, which is what makes them convex cones around 0."""
    generator = torch.Generator().manual_seed(1)
    partition = cones(6, 3, 3, generator)
    x = torch.randn(2_000, 6, generator=generator)
    scale = torch.rand(2_000, 1, generator=generator) * 10 + 0.01
    assert torch.equal(partition.within(x), partition.within(scale * x))
    place = partition.within(x).float().argmax(1)
    for cone in range(len(partition.bases)):
        members = x[place == cone]
        assert len(members) > 20
        both = members[: len(members) // 2] + members[len(members) // 2 : 2 * (len(members) // 2)]
        assert partition.within(both)[:, cone].all()


def test_cones_fill_space_and_are_dealt_evenly() -> None:
    generator = torch.Generator().manual_seed(2)
    partition = cones(5, 3, 5, generator)
    assert partition.bases.shape == (32, 5, 5)
    assert sorted(torch.bincount(partition.owners).tolist()) == [10, 11, 11]
    inside = partition.within(torch.randn(5_000, 5, generator=generator)).sum(1)
    assert inside.tolist() == [1] * 5_000


def test_conic_data_is_what_its_partition_says() -> None:
    """The generator deals the same cones from the same seed; none of the samples is on the wrong side."""
    drawn = conic(n_samples=600, n_inputs=8, n_classes=4, n_planes=4, seed=5)
    partition = cones(8, 4, 4, torch.Generator().manual_seed(5))
    assert torch.equal(partition.classes(drawn.x), drawn.y)


@pytest.mark.parametrize(
    ("arguments", "why"), [((3, 4, 4), "leave some of their cones empty"), ((8, 5, 2), "too few for 5 classes")]
)
def test_cones_that_cannot_be_are_refused(arguments: tuple[int, int, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        cones(*arguments, torch.Generator())


def test_samples_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 samples cannot be shared equally by 3 classes"):
        conic(n_samples=1_000, n_inputs=4, n_classes=3, n_planes=2, seed=0)


def test_a_linear_classifier_does_not_learn_them() -> None:
    """Neither problem is trivial: least squares stays far from the training accuracy that the thesis asks for."""
    for draw in DRAWN.values():
        drawn: Problem = draw(0)
        x = torch.cat([drawn.x, torch.ones(len(drawn.x), 1)], 1).double()
        weight = torch.linalg.lstsq(x, torch.nn.functional.one_hot(drawn.y).double()).solution
        assert float(((x @ weight).argmax(1) == drawn.y).double().mean()) < 0.9


def test_digits_are_scikit_learns() -> None:
    drawn = digits()
    assert drawn.x.shape == (1797, 64)
    assert (float(drawn.x.min()), float(drawn.x.max()), drawn.n_classes) == (0.0, 1.0, 10)
