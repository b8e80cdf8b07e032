"""A real sweep, in small: real processes, stopped in the middle, gone on with, and compared with the truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ncmon

from facts import outcomes  # isort: skip
from networks import mlp  # isort: skip
from plan import Spec  # isort: skip
from training import problem, train  # isort: skip

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "thesis"
SIZES = {"n-samples": 240, "cone-samples": 240, "n-inputs": 8, "width": 16, "n-shallow": 4, "n-deep": 5, "epochs": 12}
SMALL = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]

pytestmark = [pytest.mark.sockets, pytest.mark.training, pytest.mark.timeout(240)]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(SCRIPTS / "run"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NCMON_ENDPOINT": "ipc:///nonexistent/elsewhere.sock"},
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A database that one sweep began and another finished, and what both said."""
    database = tmp_path_factory.mktemp("thesis") / "t.db"
    arguments = ["--db", str(database), *SMALL, "--only", "3.1", "--only", "3.3", "--seeds", "1", "--decays", "1e-2"]
    first = start(*arguments, "--jobs", "1")
    assert first.stdout is not None
    said = ""
    # One after the other: the first is over while others have not begun.
    while "1/4" not in said and first.poll() is None:
        said += first.stdout.readline()
    first.send_signal(signal.SIGTERM)
    said += first.communicate(timeout=60)[0]
    assert first.returncode == 143, said
    second = start(*arguments)
    again = second.communicate(timeout=120)[0]
    assert second.returncode == 0, again
    return database, said, again


def test_a_sweep_that_was_stopped_goes_on_where_it_was(swept: tuple[Path, str, str]) -> None:
    database, said, again = swept
    assert said.startswith("4 runs, 0 of them stored already")
    kept = int(again.split(" of them stored already")[0].split()[-1])
    assert 1 <= kept < 4
    assert f"{4 - kept} runs in" in again
    assert "0 failed" in again
    with ncmon.open(database) as store:
        runs = list(store)
        assert sorted(run.run.status for run in runs) == ["finished"] * 4
        assert len({run.name for run in runs}) == 4
        for run in runs:
            # Every measured epoch once, all of them exact, nothing between.
            windows = run.window_columns("train")
            assert run.splits == ("train",)
            assert windows.epoch.tolist() == list(Spec(**run.config).measured)
            assert windows.exact.all()


def test_what_is_stored_is_what_the_network_shows(swept: tuple[Path, str, str]) -> None:
    """The network again, trained without ncmon from the stored configuration: cosines in double precision, by loops."""
    found = next(one for one in outcomes(swept[0]) if one.spec.n_layers == 5 and one.spec.weight_decay == 1e-2)
    spec = found.spec
    network = train(spec, endpoint=None)
    samples = problem(spec.data, spec.n_samples, spec.n_inputs, spec.n_classes, spec.n_planes, spec.width, spec.seed)
    network.eval()
    features = samples.x
    with torch.no_grad():
        for place, (_, block) in enumerate(list(network.named_children())[:-1]):
            features = block(features)
            unit = torch.nn.functional.normalize(features.double(), dim=1).numpy()
            labels = samples.y.numpy()
            sums = [sum(unit[labels == one]) / (labels == one).sum() for one in range(spec.n_classes)]
            intra = min(float(one @ one) for one in sums)
            inter = max(float(a @ b) for i, a in enumerate(sums) for j, b in enumerate(sums) if i < j)
            means = np.stack([features.double().numpy()[labels == one].mean(0) for one in range(spec.n_classes)])
            nearest = ((features.double().numpy()[:, None] - means[None]) ** 2).sum(2).argmin(1)
            assert found.depth["intra_cos_min"][place] == pytest.approx(intra, rel=1e-5)
            assert found.depth["inter_cos_max"][place] == pytest.approx(inter, rel=1e-4, abs=1e-6)
            assert found.depth["ncc_acc"][place] == pytest.approx((nearest == labels).mean(), abs=1.1 / len(labels))
        accuracy = float((network.output(features).argmax(1) == samples.y).double().mean())
    assert found.values["accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_watching_changes_no_weight() -> None:
    spec = Spec(
        data="cones", n_layers=4, norm="affine", weight_decay=1e-3, n_samples=240, n_inputs=8, width=16, epochs=2
    )
    nobody = "ipc:///nonexistent/nobody.sock"
    with pytest.raises(ConnectionError, match="windows were not stored"):
        train(spec, endpoint=nobody)
    plain, again = train(spec, endpoint=None), train(spec, endpoint=None)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), again.parameters(), strict=True))
    assert not torch.equal(plain.output.weight, mlp(4, n_inputs=8, width=16, n_classes=4, norm="affine").output.weight)


def test_the_report_is_drawn_from_the_database_alone(swept: tuple[Path, str, str], tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Mine\n\n<!-- claims: old -->\nold\n<!-- end of claims -->\n\nMy words.\n")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "report"), str(swept[0]), "-o", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("figure-3.1", "figure-3.3", "bounds", "conjectures"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    text = page.read_text()
    assert text.startswith("# Mine\n")
    assert "My words." in text
    assert "\nold\n" not in text
    assert text.count("| Figure 3.1 |") == 4
    assert text.count("<!-- end of claims -->") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "0"], "--jobs: expected a number from 1, got 0"),
        (["--n-samples", "10", "--n-classes", "4"], "--n-samples: 10 cannot be shared equally by 4 classes"),
        (["--decays", "-1"], "--decays: expected numbers from 0"),
        (["--only", "3.2"], "invalid choice"),
    ],
)
def test_what_cannot_be_is_one_line_and_two(arguments: list[str], said: str) -> None:
    done = start(*arguments)
    text = done.communicate(timeout=60)[0]
    assert done.returncode == 2
    assert said in text.splitlines()[-1]


def test_a_database_of_something_else_is_one_line(tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    database.write_text("no database at all, but long enough to look at: " * 20)
    done = start("--db", str(database), "--quick")
    begin = time.monotonic()
    text = done.communicate(timeout=60)[0]
    assert done.returncode == 1
    assert len(text.splitlines()) == 1
    assert text.startswith("thesis: ")
    assert time.monotonic() - begin < 60
