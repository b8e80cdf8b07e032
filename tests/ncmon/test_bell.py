"""The user's command: what it gets, and that it can do nothing to the daemon. Real processes."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ncmon.bell import WAITING, Bell, parse_command
from ncmon.errors import UsageError


def until(ready: Callable[[], bool], what: str = "it") -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if ready():
            return
        time.sleep(0.01)
    pytest.fail(f"{what} did not happen")


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def test_a_command_gets_the_alert_as_json_and_no_shell_touches_it(tmp_path: Path) -> None:
    got = tmp_path / "got"
    record = {"rule": "nonfinite", "text": "$(touch evil); `touch evil` 'ü' \n && touch evil", "value": None}
    with Bell(python("import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())", str(got))) as bell:
        bell.ring(record)
        bell.ring({"rule": "second"})
        until(lambda: got.exists() and got.read_bytes().count(b"\n") == 2)
    assert [json.loads(line) for line in got.read_text().splitlines()] == [record, {"rule": "second"}]
    assert os.listdir(tmp_path) == ["got"]
    assert (bell.failed, bell.dropped) == (0, 0)


def test_words_are_split_and_never_given_to_a_shell(tmp_path: Path) -> None:
    assert parse_command("sh -c 'echo \"a b\"'") == ("sh", "-c", 'echo "a b"')
    for text, said in (
        ("sh -c 'unclosed", "cannot be split"),
        ("", "empty"),
        ("no-such-command-here; true", "there is no command 'no-such-command-here;'"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            parse_command(text)


def test_failures_are_logged_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = "import sys; sys.stderr.write('x' * 100000 + ' the reason\\nof it'); sys.exit(4)"
    with caplog.at_level(logging.WARNING, "ncmon.bell"), Bell(python(code)) as bell:
        bell.ring({})
        until(lambda: bell.failed == 1)
    assert "ended with 4" in caplog.text
    assert "the reason of it" in caplog.text
    assert len(caplog.text) < 2000
    # A command that does not read what it gets, and one that is gone by now, are no trouble.
    with Bell(["true"]) as bell:
        bell.ring({"text": "y" * 3000})
        until(bell._waiting.empty)
    with caplog.at_level(logging.WARNING, "ncmon.bell"), Bell([str(tmp_path / "gone")]) as bell:
        bell.ring({})
        until(lambda: bell.failed == 1)
    assert "cannot be run" in caplog.text


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def started(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


SLEEPER = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[1], "a").write(f"{os.getpid()} {child.pid} ")
child.wait()
"""


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with Bell(python(SLEEPER, str(pids)), limit_s=1.0) as bell:
        begun = time.monotonic()
        bell.ring({})
        assert time.monotonic() - begun < 0.5
        until(lambda: bell.failed == 1)
        assert len(started(pids)) == 2
        until(lambda: not any(alive(pid) for pid in started(pids)), "the end of its children")


def test_closing_does_not_wait_for_a_command(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with Bell(python(SLEEPER, str(pids))) as bell:
        for _ in range(WAITING + 5):
            bell.ring({})
        until(lambda: len(started(pids)) == 2)
        begun = time.monotonic()
    assert time.monotonic() - begun < 4
    assert bell.dropped >= 4
    assert not bell._thread.is_alive()
    until(lambda: not any(alive(pid) for pid in started(pids)), "the end of its children")
