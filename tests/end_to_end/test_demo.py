"""The demo, and its numbers against a computation by hand from the same model and data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ncmon
from ncmon_client import demo
from tests import reference
from tests.end_to_end.site import Site
from tests.factories import Features

pytestmark = [pytest.mark.sockets, pytest.mark.training, pytest.mark.timeout(240)]

EPOCHS = 5

PAIRS = ("cos_margin", "inter_cos_max", "inter_cos_mean")
"""By loops over all pairs of samples: compared on the small split."""


def run_demo(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ncmon.cli", "demo", "--headless", "--db", str(site.database), *arguments],
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def features_by_hand(x: torch.Tensor, y: torch.Tensor, model: nn.Sequential) -> Features:
    """Return the raw features of every layer in eval mode: what ncmon saw, by nothing but the model itself."""
    model.eval()
    layers, h = {}, x
    with torch.no_grad():
        for place, block in enumerate(model[:-1]):
            h = block(h)
            layers[str(place)] = h.double().numpy()
    layers["classifier-input"] = layers.pop(str(len(model) - 2))
    return Features(layers=layers, labels=y.numpy(), weight=model[-1].weight.detach().double().numpy(), bias=None)


def test_stored_values_are_those_of_two_passes_over_raw_features(site: Site) -> None:
    done = run_demo(site, "--epochs", str(EPOCHS), "--seed", "4")
    assert done.returncode == 0, done.stderr

    # The same training without ncmon gives the same network, bit for bit.
    torch.set_num_threads(1)
    model, digits = demo.build(4), demo.data(4)
    demo.train(model, digits, epochs=EPOCHS, seed=4)

    compared = 0
    with ncmon.open(site.database) as store:
        run = store.run("latest")
        assert run.run.status == "finished"
        windows = {window.split: window for window in run.readings()}
        assert windows["test"].exact
        assert windows["train-exact"].exact
        for split, x, y in (
            ("test", digits.test_x, digits.test_y),
            ("train-exact", digits.train_x, digits.train_y),
        ):
            features = features_by_hand(x, y, model)
            stored = windows[split].layers
            assert list(stored) == list(features.layers)
            for layer in stored if split == "test" else ("classifier-input",):
                whole = reference.Pass(features, layer)
                for name, slow in reference.SCALARS.items():
                    reading = stored[layer].readings.get(name)
                    if reading is None or reading.value is None or (split != "test" and name in PAIRS):
                        continue
                    if name in ("alpha_bn", "objective") or "wd_" in name or name.startswith("excess_"):
                        continue  # of another scope, or not of features: BatchNorm's scale, weight decays
                    expected = slow(whole)
                    assert expected is not None
                    # The gaps are differences of losses: what single-precision logits leave of them is absolute.
                    absolute = 1e-7 if "gap" in name else 0.0
                    assert reading.value == pytest.approx(expected, rel=1e-5, abs=absolute), f"{split} {layer} {name}"
                    compared += 1
            depth = stored["classifier-input"].readings["effective_depth"].value
            assert depth == reference.effective_depth(features)
            intra = run.classes("intra_cos", split=split)
            expected = reference.intra_cos(reference.Pass(features, "classifier-input"))
            np.testing.assert_allclose(intra.values[-1], expected, rtol=1e-5)
            certified = run.classes("cert_intra", split=split).values[-1]
            known = ~np.isnan(certified)
            assert (certified[known] <= expected[known] + 1e-12).all()
    assert compared > 60


def test_without_a_terminal_it_prints_progress_and_a_table(site: Site) -> None:
    done = run_demo(site, "--epochs", "6")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout
    for part in (str(site.database), "intra_cos_min", "cert_intra_min", "train", "test"):
        assert part in done.stdout


def test_half_of_the_default_reaches_visible_collapse(site: Site) -> None:
    done = run_demo(site, "--epochs", str(demo.EPOCHS // 2))
    assert done.returncode == 0, done.stderr
    with ncmon.open(site.database) as store:
        run = store.run("latest")
        intra = run.history("intra_cos_min", split="train-exact").value
        nc1 = run.history("nc1_pinv", split="train-exact").value
        certified = run.history("cert_intra_min", split="train-exact")
        accuracy = run.history("accuracy", split="train-exact").value
    assert intra[-1] > 0.93
    assert nc1[-1] < 0.2 * nc1[0]
    assert accuracy[-1] == 1.0
    # Measured beside guaranteed: the certificate says something, and nothing that is not so.
    assert certified.value[-1] > 0.8
    known = ~np.isnan(certified.value)
    assert (certified.value[known] <= intra[known]).all()


def test_a_database_that_cannot_be_written_is_one_line(site: Site) -> None:
    site.database = Path("/proc/none/demo.db")
    done = run_demo(site, "--epochs", "1")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_format_for_machines_has_the_table_alone(site: Site) -> None:
    done = run_demo(site, "--epochs", "2", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = {row["metric"]: row for row in json.loads(done.stdout)}
    with ncmon.open(site.database) as store:
        accuracy = store.run("latest").history("accuracy", split="test").value
    assert rows["accuracy"]["test"] == accuracy[-1]
    assert rows["cert_intra_min"].keys() == rows["accuracy"].keys()
