"""What administrators copy: the systemd unit and the SLURM job, checked by the programs that read them."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ncmon.cli.serve import command

SCRIPTS = Path(__file__).parents[1] / "scripts"


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(SCRIPTS / "ncmon.service")
    return found


def test_the_unit_starts_a_command_that_there_is_with_options_that_it_has() -> None:
    program, verb, *options = unit()["Service"]["ExecStart"].split()
    assert program == "%h/.local/bin/ncmon"
    assert verb == command.name
    known = {name for parameter in command.params for name in parameter.opts}
    assert set(options) <= known
    # The breaker trips before systemd does.
    assert unit()["Service"]["MemoryMax"] == "2G"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_has_nothing_to_say_against_the_unit(tmp_path: Path) -> None:
    # Of a user who has ncmon: otherwise it would only be told that the program is not there.
    program = tmp_path / ".local" / "bin" / "ncmon"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (SCRIPTS / "ncmon.service").read_text().replace("%h", str(tmp_path))
    (tmp_path / "ncmon.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(tmp_path / "ncmon.service")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    said = [line for line in done.stderr.splitlines() if "ncmon" in line]
    assert (done.returncode, said) == (0, [])


def test_the_slurm_job_trains_stops_its_daemon_and_brings_the_database_home(tmp_path: Path) -> None:
    """With stand-ins for srun and for ncmon that write down what they were told."""
    job = SCRIPTS / "slurm-job"
    assert subprocess.run(["bash", "-n", str(job)], check=False).returncode == 0
    places = tmp_path / "bin"
    places.mkdir()
    for name, body in {
        "srun": 'echo "srun $* at $NCMON_ENDPOINT run $NCMON_RUN_ID" >> "$SAID"; "$@"',
        "ncmon": 'echo "ncmon $*" >> "$SAID"; echo data > "$NCMON_DB"; trap "echo ended >> $SAID; exit 0" TERM; '
        "while :; do sleep 0.05; done",
        "train": "sleep 0.5; exit ${CODE:-0}",
    }.items():
        (places / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (places / name).chmod(0o755)
    environment = {
        "PATH": f"{places}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "42",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path),
        "SAID": str(tmp_path / "said"),
    }
    done = subprocess.run(
        ["bash", str(job), "train"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said").read_text().splitlines()
    local = tmp_path / "ncmon-42"
    assert sorted(said[:2]) == [
        f"ncmon serve --headless --listen ipc://{local}/s",
        f"srun train at ipc://{local}/s run slurm-42",
    ]
    assert said[2:] == ["ended"]
    assert (tmp_path / "ncmon-42.db").read_text() == "data\n"
    assert oct(local.stat().st_mode & 0o777) == "0o700"
    # A training that fails is a job that failed; one beside a daemon elsewhere starts none.
    failed = subprocess.run(["bash", str(job), "train"], env=environment | {"CODE": "3"}, timeout=30, check=False)
    assert failed.returncode == 3
    (tmp_path / "said").unlink()
    elsewhere = environment | {"NCMON_ENDPOINT": "tcp://login1:7070"}
    assert subprocess.run(["bash", str(job), "train"], env=elsewhere, timeout=30, check=False).returncode == 0
    assert (tmp_path / "said").read_text() == "srun train at tcp://login1:7070 run slurm-42\n"
