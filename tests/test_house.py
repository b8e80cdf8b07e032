"""The house itself: its map, its rooms and its documents say the same as the code."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import ncmon
import ncmon_client

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
SOURCES = sorted([*(ROOT / "ncmon").rglob("*.py"), *(ROOT / "client/ncmon_client").rglob("*.py")])


def rooms(package: object) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("room", [*rooms(ncmon), *rooms(ncmon_client)])
def test_every_room_is_on_the_map(room: str) -> None:
    assert re.search(rf"^\|.*`{room}/?`.*\|", ARCHITECTURE, flags=re.MULTILINE), f"{room} has no row in ARCHITECTURE.md"


def test_every_room_on_the_map_exists() -> None:
    named = set()
    for row in re.findall(r"^\| ((?:`[a-z_]+/?`(?:, )?)+) \|", ARCHITECTURE, flags=re.MULTILINE):
        named.update(re.findall(r"`([a-z_]+)/?`", row))
    assert named == {*rooms(ncmon), *rooms(ncmon_client)}


def test_the_map_fits_on_its_page() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 150


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""') or not text.strip(), "a module opens with its docstring"
    assert len(text.splitlines()) <= 500, "a module past 400 lines is split at its seams"


def test_public_names_are_tuples_that_exist() -> None:
    for package in (ncmon, ncmon_client):
        assert isinstance(package.__all__, tuple)
        for name in package.__all__:
            assert getattr(package, name) is not None


def test_the_versions_of_both_distributions_agree() -> None:
    for path in ("pyproject.toml", "client/pyproject.toml"):
        version = re.search(r'^version = "(.+)"', (ROOT / path).read_text(), flags=re.MULTILINE)
        assert version is not None
        assert ncmon.__version__ == ncmon_client.__version__ == version.group(1)


def test_the_readme_holds_the_metric_table_of_the_registry() -> None:
    from ncmon.cli import main

    table = CliRunner().invoke(main, ["metrics", "--markdown"], catch_exceptions=False).output.strip()
    match = re.search(r"<!-- metrics:.*?-->\n(.*?)\n<!-- end of metrics -->", README, flags=re.DOTALL)
    assert match is not None
    assert match.group(1).strip() == table


def test_every_command_is_in_the_readme() -> None:
    import click

    from ncmon.cli import main

    context = click.Context(main)
    for name in main.list_commands(context):
        assert f"ncmon {name}" in README, f"`ncmon {name}` is not in the README"


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "client/README.md"):
        path = ROOT / document
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize(
    "name", [*(f"ncmon.{room}" for room in rooms(ncmon)), *(f"ncmon_client.{room}" for room in rooms(ncmon_client))]
)
def test_every_room_can_be_imported_by_itself(name: str) -> None:
    importlib.import_module(name)
