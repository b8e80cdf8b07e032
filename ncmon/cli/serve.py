"""`ncmon serve`: the daemon, and the terminal UI on it where there is a terminal.

The daemon is a process of its own either way: what happens to the screen never touches the data.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ncmon import config
from ncmon.cli import diagnostics
from ncmon.cli.arguments import database_option, examples
from ncmon.errors import ListenError


@click.command(
    "serve",
    epilog=examples("ncmon serve", "ncmon serve --headless --db runs.db", "ncmon serve --listen tcp://10.0.0.5:7070"),
)
@database_option
@click.option(
    "--listen",
    multiple=True,
    metavar="ENDPOINT",
    help="Where trainings connect, by default $NCMON_ENDPOINT or the user's own socket. May be given several times; "
    "tcp://HOST:PORT, for other machines, takes two more ports behind it and needs keys (`ncmon keys`).",
)
@click.option("--headless", is_flag=True, help="Log instead of showing the terminal UI, as without a terminal.")
def command(database: Path | None, listen: tuple[str, ...], headless: bool) -> int:
    """Receive windows from trainings, store them and show them.

    In a terminal the UI comes up on a daemon in the background; quitting it asks whether the daemon shall go on.
    """
    path = (config.default_database() if database is None else database.expanduser()).absolute()
    endpoints = [config.check_endpoint(endpoint) for endpoint in listen or (config.default_endpoint(),)]
    if any(map(config.is_tcp, endpoints)) and not any(map(config.ipc_path, endpoints)):
        # The terminal UI, `ncmon watch` and the trainings of this machine need no key.
        endpoints.insert(0, config.default_endpoint())
    refuse_second(endpoints)
    if headless or not has_terminal():
        from ncmon.daemon import run_daemon

        return run_daemon(path, endpoints)
    return _on_terminal(path, endpoints)


def has_terminal() -> bool:
    """Whether there is somebody to show a screen to and to ask."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def refuse_second(endpoints: list[str]) -> None:
    """Raise `ListenError` where a daemon answers already."""
    from ncmon.cli.children import answering

    for endpoint in endpoints:
        pid = answering(endpoint)
        if pid is not None:
            target = "" if endpoint == config.default_endpoint() else f" {endpoint}"
            raise ListenError(f"a daemon (pid {pid}) serves {endpoint} already: `ncmon watch{target}` shows it")


def _on_terminal(database: Path, endpoints: list[str]) -> int:
    from ncmon.cli.children import start_daemon
    from ncmon.tui.app import run_ui

    daemon = start_daemon(database, endpoints, log=config.log_path(database))
    # Should the screen fail, the daemon lives on: trainings do not depend on screens.
    code = run_ui(endpoints[0])
    if not daemon.running:
        diagnostics.say(daemon.failure())
        return 1
    keep = diagnostics.ask("Keep serving in the background?")
    if keep is False:
        daemon.stop()
        return code
    daemon.leave()
    diagnostics.say(
        f"serving on (pid {daemon.pid}, log {daemon.log}); `ncmon watch` shows it, `kill {daemon.pid}` ends it"
    )
    return code
