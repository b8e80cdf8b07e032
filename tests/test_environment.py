"""A script that another Python starts goes on in .venv; where there is none it says so in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
USE = "import sys; sys.path.insert(0, {!r}); import environment; environment.settle(); print(sys.prefix, *sys.argv[1:])"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has nothing but its standard library."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    return str(place / "bin" / "python")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_another_python_hands_a_script_to_the_one_that_has_everything(bare: str, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "environment.py", tmp_path / "scripts")
    # This test's own environment stands in for .venv, by a link: nothing is installed twice.
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = tmp_path / "scripts" / "try.py"
    script.write_text(USE.format(str(tmp_path / "scripts")))
    done = run([bare, str(script), "one two", "--three"])
    assert (done.returncode, done.stderr) == (0, "")
    place, _, rest = done.stdout.strip().partition(" ")
    assert Path(place).resolve() == Path(sys.prefix).resolve()
    assert rest == "one two --three"


@pytest.mark.parametrize("name", ["thesis/run", "thesis/report", "bench/metrics", "adversary", "faults/all"])
def test_where_nothing_is_installed_it_says_what_to_type(bare: str, tmp_path: Path, name: str) -> None:
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    done = run([bare, str(scripts / name), "--help"])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "scripts/venv dev" in done.stderr
    assert done.stderr.count("\n") == 1
