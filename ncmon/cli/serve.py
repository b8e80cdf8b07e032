"""`ncmon serve`: the daemon, and the terminal UI on it where there is a terminal.

The daemon is a process of its own either way: what happens to the screen never touches the data.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ncmon import config, logs
from ncmon.cli import diagnostics
from ncmon.cli.arguments import database_option, examples
from ncmon.errors import ListenError, UsageError

if TYPE_CHECKING:
    from ncmon.alerts import Limits


@click.command(
    "serve",
    epilog=examples(
        "ncmon serve",
        "ncmon serve --headless --db runs.db",
        "ncmon serve --listen tcp://10.0.0.5:7070",
        "ncmon serve --on-alert 'mail -s ncmon me@example.org'",
    ),
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
@click.option(
    "--web",
    metavar="HOST:PORT",
    help="Show the terminal UI in a browser, too, by a link with a token (pip install 'ncmon[web]'). On this machine "
    "only; from elsewhere use `ssh -L PORT:127.0.0.1:PORT HOST`.",
)
@click.option("--web-public", is_flag=True, help="Let --web be at an address that other machines can reach.")
@click.option("--metrics", metavar="HOST:PORT", help="Answer Prometheus there (pip install 'ncmon[metrics]').")
@click.option(
    "--max-bytes",
    metavar="SIZE",
    callback=lambda _context, _option, text: size(text),
    help="Keep the database below this, like 500M or 20G, by dropping arrays of old windows first, then every second "
    "window of the longest histories.",
)
@click.option(
    "--on-alert",
    metavar="COMMAND",
    help="Run this for every alert, with the alert as JSON on its standard input. No shell; it has 30 s.",
)
@click.option(
    "--alert",
    "said",
    multiple=True,
    metavar="NAME=VALUE",
    help="A limit of the alerts' rules (overhead-share=0.1), or a rule that is not wanted (class-dead=off);"
    " `ncmon alerts --rules` lists them. May be given several times.",
)
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMS),
    default="text",
    show_default=True,
    help="Of the log: lines for people, or a JSON object a line.",
)
def command(
    database: Path | None,
    listen: tuple[str, ...],
    headless: bool,
    web: str | None,
    web_public: bool,
    metrics: str | None,
    max_bytes: int | None,
    on_alert: str | None,
    said: tuple[str, ...],
    log_format: logs.Form,
) -> int:
    """Receive windows from trainings, store them and show them.

    In a terminal the UI comes up on a daemon in the background; quitting it asks whether the daemon shall go on.
    """
    path = (config.default_database() if database is None else database.expanduser()).absolute()
    endpoints = [config.check_endpoint(endpoint) for endpoint in listen or (config.default_endpoint(),)]
    if any(map(config.is_tcp, endpoints)) and not any(map(config.ipc_path, endpoints)):
        # The terminal UI, `ncmon watch` and the trainings of this machine need no key.
        endpoints.insert(0, config.default_endpoint())
    limits, words = _alerting(on_alert, said)
    if web is not None:
        from ncmon.cli.page import Page

        page = Page(web, public=web_public)
    elif web_public:
        raise UsageError("--web-public says where --web may be: expected --web HOST:PORT as well")
    else:
        page = None
    refuse_second(endpoints)
    if headless or not has_terminal():
        from ncmon.daemon import run_daemon

        daemon = partial(
            run_daemon,
            path,
            endpoints,
            metrics=metrics,
            max_bytes=max_bytes,
            limits=limits,
            on_alert=words,
            log_format=log_format,
        )
        if page is None:
            return daemon()
        with page.open(endpoints[0], log=config.log_path(path).with_name(f"{path.stem}-web.log")):
            return daemon(ready=page.begin)
    more = [
        *(("--metrics", metrics) if metrics else ()),
        *(("--max-bytes", str(max_bytes)) if max_bytes else ()),
        *(("--web", web) if web else ()),
        *(("--web-public",) if web_public else ()),
        *(("--on-alert", on_alert) if on_alert else ()),
        *(("--log-format", log_format) if log_format != "text" else ()),
        *(word for text in said for word in ("--alert", text)),
    ]
    return _on_terminal(path, endpoints, more, page.link if page is not None else "")


def _alerting(on_alert: str | None, said: tuple[str, ...]) -> tuple[Limits, tuple[str, ...]]:
    """Return the rules' limits and the command's words; `UsageError` for what cannot be."""
    from ncmon.alerts import RULES, parse_limits
    from ncmon.bell import parse_command

    limits = parse_limits(said, [rule.name for rule in RULES])
    return limits, () if on_alert is None else parse_command(on_alert)


def size(text: str | None) -> int | None:
    """Return bytes for a text like `500M`; `UsageError` for anything else."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M", "G", "T") else (text, "")
    if not number.isdecimal() or int(number) == 0:
        raise UsageError(f"--max-bytes: expected a size like 500M or 20G, got {text!r}")
    return int(number) * 1024 ** " KMGT".index(unit or " ")


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


def _on_terminal(database: Path, endpoints: list[str], more: list[str], link: str) -> int:
    from ncmon.cli.children import start_daemon
    from ncmon.tui.app import run_ui

    daemon = start_daemon(database, endpoints, log=config.log_path(database), more=more)
    if link:
        diagnostics.say(f"in a browser: {link}")
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
        + (f"; in a browser: {link}" if link else "")
    )
    return code
