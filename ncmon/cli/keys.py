"""`ncmon keys`: who may reach the daemon from other machines. Secrets go into files, never on a screen or into argv."""

from __future__ import annotations

from pathlib import Path

import click

from ncmon.cli import output
from ncmon.cli.arguments import examples, format_option
from ncmon.cli.output import Column, Listing

COLUMNS = (
    Column(key="name", heading="NAME"),
    Column(key="roles", heading="MAY"),
    Column(key="created", heading="SINCE", show=output.moment),
    Column(key="public", heading="PUBLIC KEY"),
)


@click.group(
    "keys",
    epilog=examples(
        "ncmon keys init", "ncmon keys new gpu1 --write", "ncmon keys new laptop --view", "ncmon keys revoke gpu1"
    ),
)
def command() -> None:
    """Say who may reach the daemon from other machines, and what they may do there."""


@command.command("init", epilog=examples("ncmon keys init"))
def init() -> None:
    """Make the daemon's own pair of keys, once."""
    from ncmon.gate import new_pair
    from ncmon.keyring import Keyring

    path = Keyring().init(*new_pair())
    output.write(f"the daemon's key is in {path}; now a key for every machine: ncmon keys new NAME --write\n")


@command.command("new", epilog=examples("ncmon keys new gpu1 --write", "ncmon keys new laptop --view --out laptop.key"))
@click.argument("name")
@click.option("--write", is_flag=True, help="May send windows: for machines that train.")
@click.option("--view", is_flag=True, help="May look: for machines that watch.")
@click.option("--out", "target", metavar="FILE", type=click.Path(path_type=Path), help="By default NAME.key.")
def new(name: str, write: bool, view: bool, target: Path | None) -> None:
    """Let NAME in: make a key, and write it to a file for that machine alone."""
    from ncmon.gate import new_pair
    from ncmon.keyring import Keyring

    path = Path(f"{name}.key") if target is None else target.expanduser()
    roles = tuple(role for role, chosen in (("write", write), ("view", view)) if chosen)
    Keyring().add(name, roles, *new_pair(), path)
    output.write(
        f"{path} is the key of {name}: move it to ~/.config/ncmon/client.key on that machine (or name it there with "
        "NCMON_KEY), mode 600\n"
    )


@command.command("list", epilog=examples("ncmon keys list", "ncmon keys list --format json"))
@format_option
def list_keys(form: str) -> None:
    """List who may come in."""
    from ncmon.keyring import Keyring

    rows = [[one.name, " ".join(one.roles), one.created, one.public] for one in Keyring().allowed()]
    output.emit(Listing(columns=COLUMNS, rows=rows, empty="nobody may come in: ncmon keys new NAME --write"), form)


@command.command("revoke", epilog=examples("ncmon keys revoke gpu1"))
@click.argument("name")
def revoke(name: str) -> None:
    """Let NAME in no more. A daemon that runs cuts its connections within a second or two."""
    from ncmon.keyring import Keyring

    Keyring().revoke(name)
    output.write(f"{name} may not come in any more\n")
