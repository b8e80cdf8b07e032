"""Where things are, by the environment alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncmon import config
from ncmon.errors import ListenError


def test_the_database_is_named_or_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCMON_DB", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert config.default_database() == Path("/data/ncmon/ncmon.db")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert config.default_database() == Path("/home/someone/.local/share/ncmon/ncmon.db")
    monkeypatch.setenv("NCMON_DB", "~/runs.db")
    assert config.default_database() == Path("/home/someone/runs.db")
    assert config.log_path(Path("/x/runs.db")) == Path("/x/runs.log")


def test_the_endpoint_is_named_or_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCMON_ENDPOINT", "ipc:///tmp/a")
    assert config.default_endpoint() == "ipc:///tmp/a"
    monkeypatch.delenv("NCMON_ENDPOINT")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert config.default_endpoint() == "ipc:///run/user/7/ncmon/ncmon.sock"


def test_viewers_endpoints_are_named_after_the_trainers() -> None:
    assert config.view_endpoint("ipc:///a/s") == "ipc:///a/s.view"
    assert config.news_endpoint("ipc:///a/s") == "ipc:///a/s.news"
    assert config.ipc_path("ipc:///a/s") == Path("/a/s")
    assert config.ipc_path("tcp://a:1") is None
    assert config.view_endpoint("tcp://a:7070") == "tcp://a:7071"
    assert config.news_endpoint("tcp://[::1]:7070") == "tcp://[::1]:7072"


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("tcp://0.0.0.0", "expected tcp://HOST:PORT"),
        ("tcp://host:port", "expected tcp://HOST:PORT"),
        ("tcp://host:65534", "a port from 1 to 65533"),
        ("ipc://relative", "expected ipc:///absolute"),
        ("nonsense", "expected ipc:///absolute"),
        ("ipc:///" + "x" * 120, "use a shorter one"),
        ("ipc:///" + "ü" * 60, "use a shorter one"),
    ],
)
def test_an_endpoint_that_cannot_be_is_one_line(endpoint: str, says: str) -> None:
    with pytest.raises(ListenError, match=says) as caught:
        config.check_endpoint(endpoint)
    assert "\n" not in str(caught.value)
    assert config.check_endpoint("ipc:///tmp/s") == "ipc:///tmp/s"
