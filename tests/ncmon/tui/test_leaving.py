"""Leaving when nobody is there any more: the thread that sees to it, and the real program with its parent gone."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ncmon.tui import leaving
from ncmon.tui.leaving import Watchman
from ncmon.tui.place import Place, keep, recall
from tests.ncmon.tui.test_terminal import ROOT, terminal


def wait_for(condition: Callable[[], object], what: str, *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.02)


@pytest.fixture
def _signals() -> object:
    before = {number: signal.getsignal(number) for number in leaving.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_a_signal_asks_to_leave_and_keeps_where_the_viewer_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watchman, "_gone", lambda self: False)
    done: list[str] = []
    watchman = Watchman(lambda: done.append("left"), lambda: done.append("kept"), end=lambda code: done.append("ended"))
    watchman.start()
    os.kill(os.getpid(), signal.SIGHUP)
    wait_for(lambda: "left" in done, "the application being asked")
    watchman.stop()
    assert done == ["kept", "left"]
    assert (watchman.dropped, watchman.told) == (True, signal.SIGHUP)


@pytest.mark.usefixtures("_signals")
def test_an_application_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watchman, "_gone", lambda self: True)
    monkeypatch.setattr(leaving, "GRACE_S", 0.05)
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    def fail() -> None:
        raise RuntimeError("no loop any more")

    watchman = Watchman(fail, lambda: None, end=end)
    watchman.start()
    assert ended.wait(30)
    watchman.stop()
    assert codes == [128 + signal.SIGHUP]


@pytest.mark.sockets
def test_a_told_end_gives_the_terminal_back(database: Path, tmp_path: Path) -> None:
    with terminal(database, tmp_path) as shown:
        shown.wait_for("digits-bn")
        shown.press("3")
        shown.wait_for("by depth")
        shown.process.send_signal(signal.SIGTERM)
        assert shown.process.wait(20) == 128 + signal.SIGTERM
        drawn = b""
        while b"\x1b[?1049l" not in drawn:  # the screen that was there before
            drawn += os.read(shown.main, 65_536)
    with terminal(database, tmp_path) as shown:
        shown.wait_for("by depth")


@pytest.mark.sockets
def test_a_terminal_that_takes_no_more_does_not_keep_the_program(database: Path, tmp_path: Path) -> None:
    """Nobody reads: the program hangs in a write, where its event loop hears nothing."""
    with terminal(database, tmp_path) as shown:
        shown.wait_for("digits-bn")
        for _ in range(40):
            shown.press("23")
        time.sleep(0.5)
        shown.process.send_signal(signal.SIGTERM)
        assert shown.process.wait(20) == 128 + signal.SIGTERM


@pytest.mark.sockets
def test_a_program_whose_parent_died_ends_and_does_not_spin(database: Path, tmp_path: Path) -> None:
    """As under srun or docker exec: no controlling terminal, so that no SIGHUP comes, and a pty that stays open."""
    main, other = pty.openpty()
    middle = (
        "import subprocess, sys; words = [sys.executable, '-m', 'ncmon.cli', 'watch', sys.argv[1]];"
        " child = subprocess.Popen(words, stdin=3, stdout=3, stderr=3); print(child.pid, flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "XDG_STATE_HOME": str(tmp_path)}
    os.set_inheritable(other, True)
    parent = subprocess.Popen(
        ["bash", "-c", f'exec 3<&{other}; exec "$@"', "-", sys.executable, "-c", middle, str(database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[other],
        env=environment,
        start_new_session=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        drawn = b""
        while b"digits" not in drawn:
            drawn += os.read(main, 65_536)
        parent.kill()
        parent.wait()
        threading.Thread(target=_drain, args=(main,), daemon=True).start()
        wait_for(lambda: not running(pid), "the end of the program")
    finally:
        if running(pid):
            os.kill(pid, signal.SIGKILL)
        for stream in (parent.stdin, parent.stdout):
            assert stream is not None
            stream.close()
        os.close(other)


def _drain(main: int) -> None:
    try:
        while os.read(main, 65_536):
            pass
    except OSError:
        os.close(main)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_places_are_kept_by_target_and_forgotten_when_told(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "places.json"
    here = Place(screen="layers", run_id="r", layer="blocks.1", marked=("a", "b"), zoom=2, filter="vit")
    keep(path, ("a.db",), here)
    keep(path, ("a.db", "b.db"), Place(screen="run"))
    assert recall(path, ("a.db",)) == here
    assert recall(path, ("a.db", "b.db")) == Place(screen="run")
    assert recall(path, ()) is None
    keep(path, ("a.db",), None)
    assert recall(path, ("a.db",)) is None
    for number in range(40):
        keep(path, (f"ipc:///{number}",), here)
    assert recall(path, ("ipc:///0",)) is None
    assert recall(path, ("ipc:///39",)) == here
    for nonsense in ("", "[]", "{", '{"ipc:///1": 7}', '{"ipc:///1": {"zoom": "x"}}'):
        path.write_text(nonsense)
        assert recall(path, ("ipc:///1",)) is None
