"""`ncmon spool`: what waits is listed, delivered and removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ncmon_client import spool
from tests.client.test_sender import place, running
from tests.client.test_spool import label, written
from tests.messages import make_info
from tests.ncmon.cli.conftest import Run

__all__ = ("place",)  # the fixture


def test_an_empty_spool_is_said(run: Run, tmp_path: Path) -> None:
    for arguments in (("ls",), ("push",)):
        done = run("spool", "--dir", str(tmp_path / "none"), *arguments)
        assert (done.exit_code, done.stdout) == (0, f"nothing waits in {tmp_path / 'none'}\n")


def test_files_are_listed_with_whose_they_are(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path, 4, run=make_info(run_id="r1", name="evil\x1b[2J"))
    living = spool.SpoolFile.create(label(run=make_info(run_id="r2")), place=tmp_path)
    (tmp_path / f"z{spool.SUFFIX}").write_bytes(b"noise")
    rows = {
        row["file"]: row for row in json.loads(run("spool", "--dir", str(tmp_path), "ls", "--format", "json").stdout)
    }
    assert rows[path.name]["messages"] == 4
    assert rows[path.name]["state"] == "left behind"
    assert rows[living.path.name]["state"] == "its process lives"
    assert rows[f"z{spool.SUFFIX}"]["state"] == "not legible"
    assert "\x1b" not in run("spool", "--dir", str(tmp_path), "ls").stdout
    living.close()


@pytest.mark.sockets
def test_push_delivers_and_says_how_many(run: Run, place: Path) -> None:
    path = written(place / "spool", 5, endpoint=f"ipc://{place}/s")
    done = run("spool", "--dir", str(place / "spool"), "push")
    assert done.exit_code == 1
    assert "0 of 5 messages delivered" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    with running(place) as daemon:
        done = run("spool", "--dir", str(place / "spool"), "push", path.name)
        assert (done.exit_code, done.stdout) == (0, f"{path.name}: 5 of 5 messages delivered\n")
        assert daemon.messages() == [0, 1, 2, 3, 4]
    assert not path.exists()


def test_rm_removes_what_is_named_and_nothing_that_lives(run: Run, tmp_path: Path) -> None:
    one, two = written(tmp_path, 1), written(tmp_path, 1)
    living = spool.SpoolFile.create(label(), place=tmp_path)
    at = ("spool", "--dir", str(tmp_path))
    assert run(*at, "rm").exit_code == 2
    assert run(*at, "rm", "nosuch").exit_code == 1
    assert run(*at, "rm", one.name).exit_code == 0
    assert run(*at, "rm", "--all").exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == [living.path.name]
    assert not two.exists()
    living.close()
