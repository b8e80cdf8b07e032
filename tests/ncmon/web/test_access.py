"""Who may come in: addresses, hosts, origins and the token, without a server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ncmon.errors import ListenError, UsageError
from ncmon.web import access


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("8000", ("127.0.0.1", 8000)),
        (":8000", ("127.0.0.1", 8000)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:8000", ("::1", 8000)),
        ("127.3.2.1:0", ("127.3.2.1", 0)),
    ],
)
def test_an_address_of_this_machine_alone_is_taken(text: str, expected: tuple[str, int]) -> None:
    assert access.address(text) == expected


@pytest.mark.parametrize("text", ["0.0.0.0:8000", "10.0.0.5:80", "gpu07:80", "[::]:80", "[2001:db8::1]:80"])
def test_other_addresses_are_refused_unless_asked_for(text: str) -> None:
    with pytest.raises(UsageError, match="--web-public") as refused:
        access.address(text)
    assert "ssh -L" in str(refused.value)
    assert access.address(text, public=True)[1] in (80, 8000)


@pytest.mark.parametrize("text", ["", "host", "host:", "host:99999", "host:-1", "host:x", "127.0.0.1:٣"])
def test_what_is_no_address_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        access.address(text)


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError, match="cannot be used"):
        access.listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:9999", True),  # the port of `ssh -L` is another one
        ("LOCALHOST", True),
        ("[::1]:8000", True),
        ("192.168.1.7:80", True),  # an address cannot be made to point elsewhere
        ("gpu07:8000", False),
        ("evil.example", False),
        ("localhost.evil.example:8000", False),
        ("127.0.0.1.nip.io:8000", False),
        ("localhost@evil.example", False),
        ("localhost:8000, evil.example", False),
        ("", False),
        (None, False),
    ],
)
def test_a_host_is_a_name_of_this_machine_or_an_address(header: str | None, allowed: bool) -> None:
    assert access.host_allowed(header, access.own_names("127.0.0.1")) is allowed


def test_a_public_server_knows_its_own_name() -> None:
    assert access.host_allowed(f"{socket.gethostname()}:80", access.own_names("0.0.0.0"))
    assert not access.host_allowed(f"{socket.gethostname()}:80", access.own_names("127.0.0.1"))


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("https://gpu07", "gpu07", True),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", False),  # another server on the same machine
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("http://evil.example", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000.evil.example", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),  # a page in a sandbox, or a file
        (None, "127.0.0.1:8000", False),
        ("http://None", None, False),
    ],
)
def test_only_our_own_page_drives(origin: str | None, host: str | None, allowed: bool) -> None:
    assert access.origin_allowed(origin, host) is allowed


def test_the_token_is_kept_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "token"
    first = access.token(path)
    assert len(first) == access.TOKEN_LETTERS
    assert path.stat().st_mode & 0o777 == 0o600
    assert access.token(path) == first
    path.chmod(0o644)
    second = access.token(path)
    assert second != first  # others may have read it
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short\n")
    assert access.token(path) not in (first, second, "short")
    assert access.token_allowed(first, first)
    assert not any(access.token_allowed(wrong, first) for wrong in (None, "", first[:-1], second, "é"))


def test_links_can_be_opened() -> None:
    assert access.link("127.0.0.1", 8000, "t") == "http://127.0.0.1:8000/?token=t"
    assert access.link("::1", 8000, "t") == "http://[::1]:8000/?token=t"
    assert socket.gethostname() in access.link("0.0.0.0", 80, "t")
