"""`ncmon spool`: what trainings of this machine could not deliver, and delivering it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon import config
from ncmon.cli import output
from ncmon.cli.arguments import examples, format_option
from ncmon.cli.output import Column, Listing
from ncmon.errors import NcmonError, NotFound, near

if TYPE_CHECKING:
    from ncmon_client.spool import Scan

COLUMNS = (
    Column(key="file", heading="FILE"),
    Column(key="run_id", heading="RUN"),
    Column(key="name", heading="NAME", clip=20),
    Column(key="rank"),
    Column(key="messages", heading="MESSAGES", right=True),
    Column(key="bytes"),
    Column(key="state", heading="STATE"),
    Column(key="endpoint", heading="FOR"),
)


@click.group(
    "spool",
    epilog=examples(
        "ncmon spool ls", "ncmon spool push", "ncmon spool push --to ipc:///tmp/me/nc.sock", "ncmon spool rm FILE"
    ),
)
@click.option(
    "--dir",
    "place",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where spool files lie, by default $NCMON_SPOOL or the user's own.",
)
@click.pass_context
def command(context: click.Context, place: Path | None) -> None:
    """List, deliver and remove what trainings that have ended could not deliver.

    A daemon on the same machine delivers such files by itself, and so does the next client of the same run.
    """
    from ncmon_client import spool

    context.obj = spool.directory() if place is None else place.expanduser()


@command.command("ls", epilog=examples("ncmon spool ls", "ncmon spool ls --format json"))
@format_option
@click.pass_obj
def ls(place: Path, form: str) -> None:
    """List the files: whose they are, how many messages they hold, and whether their process lives."""
    output.emit(Listing(columns=COLUMNS, rows=_rows(place), empty=f"nothing waits in {output.clean(str(place))}"), form)


@command.command("push", epilog=examples("ncmon spool push", "ncmon spool push FILE --to ipc:///tmp/me/nc.sock"))
@click.argument("names", nargs=-1, metavar="[FILE]...")
@click.option("--to", "endpoint", metavar="ENDPOINT", help="The daemon, by default the one that each file names.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds for one file.")
@click.pass_obj
def push(place: Path, names: tuple[str, ...], endpoint: str | None, timeout_s: float) -> int:
    """Deliver files, all of them by default. What a daemon has already is not stored twice."""
    from ncmon_client import courier
    from ncmon_client import spool as files

    if endpoint is not None:
        config.check_endpoint(endpoint)
    log = logging.getLogger("ncmon.spool")
    failed = 0
    found = _named(place, names)
    for path in found:
        try:
            done = courier.deliver(path, endpoint=endpoint, timeout_s=timeout_s, log=log)
        except files.InUse:
            output.write(f"{path.name}: its process lives and delivers it itself\n")
            continue
        except files.SpoolError as error:
            output.write(f"{output.clean(str(error))}\n")
            failed += 1
            continue
        line = f"{path.name}: {done.messages - done.left} of {done.messages} messages delivered"
        if done.damaged:
            line += "; part of it was damaged, it is kept aside"
        if done.left:
            failed += 1
            line += f": {output.clean(done.problem)}"
        output.write(line + "\n")
    if not found:
        output.write(f"nothing waits in {output.clean(str(place))}\n")
    if failed:
        raise NcmonError(f"{failed} of {len(found)} files could not be delivered; is a daemon there? `ncmon doctor`")
    return 0


@command.command("rm", epilog=examples("ncmon spool rm FILE", "ncmon spool rm --all"))
@click.argument("names", nargs=-1, metavar="[FILE]...")
@click.option("--all", "everything", is_flag=True, help="All files, also those that were set aside as damaged.")
@click.pass_obj
def rm(place: Path, names: tuple[str, ...], everything: bool) -> int:
    """Remove files undelivered. What they hold is lost."""
    from ncmon_client import spool as files

    if not names and not everything:
        raise click.UsageError("expected files to remove, or --all")
    aside = [*place.glob(f"*{files.CORRUPT}"), *place.glob(f"*{files.PART}")] if everything else []
    kept = 0
    for path in [*_named(place, names), *aside]:
        try:
            if path.suffix == files.SUFFIX and files.look(path)[1]:
                output.write(f"{path.name}: kept, its process lives\n")
                kept += 1
                continue
        except files.SpoolError:
            pass  # not legible: gone all the more
        path.unlink(missing_ok=True)
        output.write(f"{path.name}: removed\n")
    return 1 if kept else 0


def _named(place: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the files of these names, or all of them."""
    from ncmon_client import spool as files

    known = files.files(place)
    if not names:
        return known
    by_name = {path.name: path for path in known}
    chosen = []
    for name in names:
        path = by_name.get(Path(name).name) or Path(name)
        if not path.is_file():
            raise NotFound(f"no spool file is named {name!r}{near(name, by_name)}")
        chosen.append(path)
    return chosen


def _rows(place: Path) -> list[list[Any]]:
    from ncmon_client import spool as files

    rows: list[list[Any]] = []
    for path in files.files(place):
        try:
            found, lives = files.look(path)
        except files.SpoolError:
            rows.append([path.name, None, None, None, None, path.stat().st_size, "not legible", None])
            continue
        rows.append(_row(path, found, "its process lives" if lives else "left behind"))
    for path in sorted(place.glob(f"*{files.CORRUPT}")):
        rows.append([path.name, None, None, None, None, path.stat().st_size, "set aside as damaged", None])
    return rows


def _row(path: Path, found: Scan, state: str) -> list[Any]:
    run = found.label.run
    if found.damaged_bytes:
        state += ", damaged in part"
    return [
        path.name,
        run.run_id,
        run.name,
        run.rank,
        len(found.records),
        path.stat().st_size,
        state,
        found.label.endpoint,
    ]
