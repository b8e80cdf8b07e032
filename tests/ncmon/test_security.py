"""One daemon for a database and a socket, and nobody else in its directory."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ncmon import security
from ncmon.errors import ListenError, NcmonError, StoreError


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="nc"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def refused(act: Callable[[], object], kind: type[NcmonError] = ListenError) -> str:
    with pytest.raises(kind) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_directory_is_made_for_its_owner_alone(place: Path) -> None:
    socket = place / "a" / "b" / "s"
    before = os.umask(0)
    try:
        security.prepare_socket_directory(socket)
    finally:
        os.umask(before)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    security.prepare_socket_directory(socket)


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o777, 0o1777])
def test_a_directory_that_others_can_enter_is_refused_with_advice(place: Path, mode: int) -> None:
    (place / "d").mkdir()
    (place / "d").chmod(mode)
    text = refused(lambda: security.prepare_socket_directory(place / "d" / "s"))
    assert f"chmod 700 {place / 'd'}" in text


def test_a_link_in_the_place_of_the_directory_is_refused(place: Path) -> None:
    (place / "real").mkdir(mode=0o700)
    (place / "link").symlink_to(place / "real")
    assert "symbolic link" in refused(lambda: security.prepare_socket_directory(place / "link" / "s"))


def test_a_file_in_the_place_of_the_directory_is_refused(place: Path) -> None:
    (place / "f").touch()
    assert "not a directory" in refused(lambda: security.prepare_socket_directory(place / "f" / "s"))
    refused(lambda: security.prepare_socket_directory(place / "f" / "deeper" / "s"))


def test_a_directory_of_somebody_else_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to user" in refused(lambda: security.prepare_socket_directory(place / "s"))


def test_files_made_under_the_umask_are_private_and_it_is_put_back(place: Path) -> None:
    before = os.umask(0o022)
    try:
        with security.private_files():
            (place / "private").touch()
        (place / "usual").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((place / "usual").stat().st_mode) == 0o644


@pytest.mark.parametrize(("lock", "error"), [(security.lock_database, StoreError), (security.lock_socket, ListenError)])
def test_a_second_lock_names_the_process_that_holds_it(
    place: Path, lock: Callable[[Path], security.Lock], error: type[NcmonError]
) -> None:
    with lock(place / "x"):
        assert f"pid {os.getpid()}" in refused(lambda: lock(place / "x"), error)
    with lock(place / "x"):
        pass


def test_the_lock_of_a_database_is_one_for_all_its_names(place: Path) -> None:
    (place / "t.db").touch()
    (place / "other.db").symlink_to(place / "t.db")
    with security.lock_database(place / "t.db"):
        refused(lambda: security.lock_database(place / "other.db"), StoreError)


def test_a_lock_ends_with_its_process_however_that_ends(place: Path) -> None:
    script = (
        "import os, sys, signal; from pathlib import Path; from ncmon import security; "
        "lock = security.lock_database(Path(sys.argv[1])); print(os.getpid(), flush=True); signal.pause()"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(place / "x")], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        pid = child.stdout.readline().strip()
        assert re.search(rf"pid {pid}\b", refused(lambda: security.lock_database(place / "x"), StoreError))
    finally:
        child.kill()
        child.communicate()
    security.lock_database(place / "x").release()


def test_a_link_in_the_place_of_a_lock_is_not_followed(place: Path) -> None:
    (place / "precious").write_text("precious")
    (place / "x.lock").symlink_to(place / "precious")
    assert "symbolic link" in refused(lambda: security.lock_socket(place / "x"))
    assert (place / "precious").read_text() == "precious"


def test_a_lock_that_cannot_be_made_says_why(place: Path) -> None:
    assert "No such file" in refused(lambda: security.lock_database(place / "none" / "x"), StoreError)


def test_a_holder_without_a_name_is_another_process(place: Path) -> None:
    (place / "x").write_text("garbage")
    assert security.holder(place / "x") == security.holder(place / "y") == "another process"
