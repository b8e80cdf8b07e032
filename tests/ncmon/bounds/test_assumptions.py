"""The panel: true, false or unknown, with the fact; and every bound names facts that are in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncmon.bounds import BOUNDS
from ncmon.bounds.assumptions import TITLES, assumptions
from ncmon.evaluate import evaluate
from ncmon.model import StreamSeq, Window
from ncmon.store.queries import Store
from ncmon.store.writer import Stored, Writer
from tests.factories import make_run, make_window


def held(window: Window) -> dict[str, bool | None]:
    return {fact.name: fact.holds for fact in assumptions(window)}


def with_head(window: Window, **fields: Any) -> Window:
    return dataclasses.replace(window, head=dataclasses.replace(window.head, **fields))


def test_every_bound_names_facts_of_the_panel() -> None:
    for bound in BOUNDS:
        assert bound.requires
        assert set(bound.requires) <= TITLES.keys()


def test_what_holds_and_why() -> None:
    window = make_window(exact=True, bias=False)
    assert list(held(window)) == list(TITLES)
    assert all(held(window).values())
    facts = {fact.name: fact.fact for fact in assumptions(window)}
    assert facts["balanced"] == "20 each"
    assert facts["decay_weight"] == "0.0005"
    assert facts["bn_before_classifier"] == "bn"


@pytest.mark.parametrize(
    ("window", "name", "holds"),
    [
        (make_window(exact=False), "frozen_weights", False),
        (make_window(bias=True), "no_last_bias", False),
        (make_window(per_class=[9, 20, 20, 20]), "balanced", False),
        (make_window(per_class=[0, 20, 20, 20]), "all_present", False),
        (make_window(n_classes=2), "three_classes", False),
        (make_window(n_classes=4, n_features=2), "room_for_simplex", False),
        (with_head(make_window(), plain_loss=False), "plain_loss", False),
        (with_head(make_window(), plain_loss=None), "plain_loss", None),
        (with_head(make_window(), batch_norm=""), "bn_before_classifier", False),
        (with_head(make_window(), batch_norm=""), "bn_shift_zero", None),
        (with_head(make_window(), bn_beta=np.full(16, 0.1)), "bn_shift_zero", False),
        (with_head(make_window(), weight_decay=None), "decay_weight", None),
        (with_head(make_window(), weight_decay_gamma=0.0), "decay_gamma", False),
        (with_head(make_window(), decoupled_decay=True), "coupled_decay", False),
        (with_head(make_window(), decoupled_decay=None), "coupled_decay", None),
        # A bias that is the same for all classes changes no loss.
        (with_head(make_window(bias=True), bias=np.full(4, 0.7)), "no_last_bias", True),
    ],
)
def test_what_does_not_hold_is_said(window: Window, name: str, holds: bool | None) -> None:
    assert held(window)[name] is holds


def test_the_panel_is_stored_with_its_window(tmp_path: Path) -> None:
    evaluation = evaluate(make_window(exact=True))
    stream = b"s" * 16
    with Writer.open(tmp_path / "t.db") as writer:
        writer.put_run(make_run(), stream, now=1.0)
        writer.commit([Stored(origins=(StreamSeq(stream=stream, seq=0),), item=evaluation)], now=2.0)
    with Store.open(tmp_path / "t.db") as store:
        (window,) = store.run("run").readings()
    assert window.assumptions == evaluation.assumptions
    assert len(window.assumptions) == len(TITLES)


def test_logits_that_are_not_those_of_the_rows_are_noticed() -> None:
    window = make_window(exact=True, bias=True)
    assert held(window)["linear_head"] is True
    fact = next(one.fact for one in assumptions(window) if one.name == "linear_head")
    assert fact.startswith("own logits of class means off by ")
    sums = window.head.own_logit_sums
    assert sums is not None
    # A temperature, or a dropout that this pass took part in.
    for changed in (0.5 * sums, sums + 0.01 * np.abs(sums) * np.array([1, -1, 1, -1])):
        assert held(with_head(window, own_logit_sums=changed))["linear_head"] is False
        moving = dataclasses.replace(with_head(window, own_logit_sums=changed), exact=False)
        assert held(moving)["linear_head"] is None
    assert held(with_head(window, own_logit_sums=None))["linear_head"] is None
    assert held(with_head(window, logits_eps=2.0**-8))["linear_head"] is None
    assert held(with_head(window, bias=None))["linear_head"] is None
    assert held(with_head(window, weight=np.ones((4, 3))))["linear_head"] is False
    assert window.head.label_counts is not None
    other = with_head(window, label_counts=window.head.label_counts + 1)
    assert held(other)["linear_head"] is None


def test_the_loss_that_was_trained_is_compared_with_the_cross_entropy() -> None:
    window = make_window(exact=False)
    head = window.head
    assert head.loss_sums is not None
    assert head.label_counts is not None
    plain = float(head.loss_sums.sum() / head.label_counts.sum())
    for declared, trained, holds in (
        (None, plain, True),
        (True, plain * 1.0004, True),
        (True, plain + 0.4, False),
        (None, 0.5 * plain, False),
        (False, plain, False),
        (None, None, None),
        (True, None, True),
    ):
        changed = with_head(window, plain_loss=declared, trained_loss=trained)
        assert held(changed)["plain_loss"] is holds, (declared, trained)
    fact = next(one.fact for one in assumptions(with_head(window, trained_loss=plain + 1)) if one.name == "plain_loss")
    assert fact == f"trained {plain + 1:.4g}, cross-entropy {plain:.4g}"
