"""`ncmon metrics`: the registry, for people, machines and the README."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import examples, format_option
from ncmon.cli.output import Column, Listing, emit, line_width, lines, write
from ncmon.errors import NotFound, UsageError, near

if TYPE_CHECKING:
    from ncmon.metrics.spec import Bound, Metric


@click.command(
    "metrics",
    epilog=examples(
        "ncmon metrics",
        "ncmon metrics nc1_pinv",
        "ncmon metrics --format json",
        "ncmon metrics --datasette runs > metadata.json",
        "ncmon metrics --grafana > dashboard.json",
    ),
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--markdown", is_flag=True, help="As the table of the README.")
@click.option("--datasette", metavar="DB", help="As metadata for Datasette on DB.db: what tables and columns mean.")
@click.option("--grafana", is_flag=True, help="As a dashboard for Grafana, over `ncmon serve --metrics`.")
@format_option
def command(names: tuple[str, ...], markdown: bool, datasette: str | None, grafana: bool, form: str) -> None:
    """Say what each number means: its formula, its value at perfect collapse, where it comes from.

    K is the number of classes that are present, C that of all classes. With NAMEs, only those.
    """
    from ncmon.bounds import BOUNDS
    from ncmon.metrics import METRICS, resolve

    entries: list[Metric | Bound] = [*METRICS, *BOUNDS]
    if names:
        known = {entry.name: entry for entry in entries}
        for name in names:
            if resolve(name) not in known:
                raise NotFound(f"no metric is named {name!r}{near(name, known)}")
        entries = [known[resolve(name)] for name in dict.fromkeys(names)]
    if datasette is not None or grafana:
        option = "--grafana" if grafana else "--datasette"
        if names or markdown or form != "table" or (grafana and datasette is not None):
            raise UsageError(f"{option} is everything in a format of its own: leave names and formats out")
        write(json.dumps(_neighbour(datasette), indent=2) + "\n")
        return
    if markdown and form != "table":
        raise UsageError("--markdown is a format of its own: leave --format out")
    if markdown:
        write(_markdown(entries))
    elif form == "table":
        write("\n".join(_block(entry) for entry in entries))
    else:
        emit(_listing(entries), form)


def _neighbour(datasette: str | None) -> dict[str, Any]:
    """Return what another tool takes: metadata for Datasette on a database, or else a dashboard for Grafana."""
    if datasette is None:
        from ncmon.cli.grafana import dashboard

        return dashboard()
    from ncmon.cli.datasette import metadata

    return metadata(Path(datasette).stem)


def _block(entry: Metric | Bound) -> str:
    texts = [_facts(entry), entry.definition, entry.source]
    if _assumptions(entry):
        texts.append("if " + "; ".join(_assumptions(entry)))
    indent, width = " " * 4, min(line_width(), 100)
    wrapped = [textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent) for text in texts]
    return lines([f"{entry.name}  {entry.title}", *(line for part in wrapped for line in part)])


def _markdown(entries: list[Metric | Bound]) -> str:
    rows = ["| name | at collapse | definition | source |", "|---|---|---|---|"]
    for entry in entries:
        cells = (f"`{entry.name}`", _at_collapse(entry), entry.definition, entry.source)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines(rows)


def _listing(entries: list[Metric | Bound]) -> Listing:
    records = [
        {
            "name": entry.name,
            "kind": "bound" if _of(entry) else "metric",
            "title": entry.title,
            "family": getattr(entry, "family", None),
            "scope": entry.scope,
            "unit": getattr(entry, "unit", None),
            "at_collapse": getattr(entry, "at_collapse", None),
            "better": getattr(entry, "better", None),
            "of": _of(entry) or None,
            "side": getattr(entry, "side", None),
            "assumptions": list(_assumptions(entry)),
            "definition": entry.definition,
            "version": entry.version,
            "source": entry.source,
            "aliases": list(getattr(entry, "aliases", ())),
        }
        for entry in entries
    ]
    return Listing(columns=tuple(Column(key=key) for key in records[0]), rows=[tuple(one.values()) for one in records])


def _of(entry: Metric | Bound) -> str:
    """Return what a bound bounds; a metric bounds nothing."""
    return getattr(entry, "of", "")


def _assumptions(entry: Metric | Bound) -> tuple[str, ...]:
    return getattr(entry, "assumptions", ())


def _at_collapse(entry: Metric | Bound) -> str:
    """Return a metric's value at perfect collapse as text; of a bound, what it bounds."""
    if _of(entry):
        return f"at {'most' if getattr(entry, 'side', '') == 'lower' else 'least'} {_of(entry)}"
    return getattr(entry, "at_collapse", "")


def _facts(entry: Metric | Bound) -> str:
    text, better = _at_collapse(entry), getattr(entry, "better", "neither")
    parts = (
        text if _of(entry) else f"at collapse {text}" if text else "",
        "" if better == "neither" else f"{better} is closer to it",
        _SCOPES[entry.scope],
    )
    return ", ".join(part for part in parts if part)


_SCOPES = {
    "layer": "every layer",
    "classifier": "the classifier and its input",
    "window": "all layers together",
    "class": "every class",
    "pair": "every pair of classes",
}
