"""`ncmon plot`: stored runs as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ncmon.cli.arguments import RUN_HELP, database_option, examples, open_store
from ncmon.cli.completing import complete_layer, complete_metric, complete_run, complete_split
from ncmon.cli.output import clean, lines, write
from ncmon.cli.selecting import pick_runs, selection_options
from ncmon.errors import StoreError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ncmon.store.runs import StoredRun

KINDS = ("metrics", "bounds", "depth", "heat", "classes", "sweep")
TAKES = {
    "metrics": ("metric", "layer", "split", "scale"),
    "bounds": ("split", "scale"),
    "depth": ("metric", "split", "epoch", "scale"),
    "heat": ("metric", "split", "scale"),
    "classes": ("metric", "layer", "split", "epoch"),
    "sweep": ("metric", "layer", "split", "scale", "against"),
}
"""The options of each kind; the others are refused, not ignored."""


@click.command(
    "plot",
    epilog=examples(
        "ncmon plot latest -o digits.png",
        "ncmon plot wd0 wd5e-4 -o nc1.pdf --metric nc1_pinv --split test",
        "ncmon plot latest -o bounds.svg --kind bounds",
        "ncmon plot latest -o layers.png --kind heat --metric nc1_pinv",
        "ncmon plot --name 'sweep-*' -o sweep.pdf --kind sweep --against weight_decay",
    ),
    help=(
        "Draw runs as .png, .svg or .pdf.\n\n\b\n"
        "  metrics  over epochs, of one run or several\n"
        "  bounds   measured against guaranteed, and every class\n"
        "  depth    over the layers: one run over time, or several runs\n"
        "  heat     layers by epochs\n"
        "  classes  every pair of classes in one window\n"
        "  sweep    last values of many runs over a key of their configuration\n\n"
        f"{RUN_HELP} Or pick runs by the conditions that `ncmon runs` takes."
    ),
)
@click.argument("refs", nargs=-1, shell_complete=complete_run, metavar="[RUN]...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="By its ending.")
@click.option("--kind", type=click.Choice(KINDS), default="metrics", show_default=True)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    shell_complete=complete_metric,
    metavar="M",
    help="These metrics instead of the usual.",
)
@click.option("--layer", shell_complete=complete_layer, metavar="L", help="By default the classifier's input.")
@click.option("--split", "splits", multiple=True, shell_complete=complete_split, metavar="S", help="These splits.")
@click.option("--epoch", type=int, metavar="E", help="Of depth and classes.")
@click.option("--against", metavar="KEY", help="Of sweep: the key of the configuration.")
@click.option("--scale", type=click.Choice(("auto", "linear", "log")), default="auto", show_default=True)
@click.option("--all", "everything", is_flag=True, help="All runs.")
@selection_options
@database_option
def command(
    refs: tuple[str, ...],
    output: Path,
    kind: str,
    metrics: tuple[str, ...],
    layer: str | None,
    splits: tuple[str, ...],
    epoch: int | None,
    against: str | None,
    scale: str,
    everything: bool,
    database: Path | None,
    **selecting: Any,
) -> None:
    """Draw runs."""
    from ncmon.plot import style

    form = style.form_of(output)
    given = {
        "metric": bool(metrics),
        "layer": layer is not None,
        "split": bool(splits),
        "epoch": epoch is not None,
        "against": against is not None,
        "scale": scale != "auto",
    }
    for name in (name for name, there in given.items() if there and name not in TAKES[kind]):
        raise UsageError(f"--kind {kind} takes no --{name}; it takes --{', --'.join(TAKES[kind])}")
    if kind == "sweep" and against is None:
        raise UsageError("--kind sweep needs --against KEY: the key of the configuration that the runs differ in")
    with open_store(database) as store:
        runs = pick_runs(store, refs, everything=everything, **selecting)
        figure = _draw(runs, kind, metrics, layer, splits, epoch, against or "", scale)
    save(output, style.render(figure, form))
    write(lines([clean(f"{output}: {kind} of {len(runs)} run{'s' if len(runs) > 1 else ''}")]))


def save(path: Path, content: bytes) -> None:
    """Write a file; raises `StoreError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error


def _draw(
    runs: list[StoredRun],
    kind: str,
    metrics: tuple[str, ...],
    layer: str | None,
    splits: tuple[str, ...],
    epoch: int | None,
    against: str,
    scale: str,
) -> Figure:
    from ncmon.plot import epochs, layers, sweep

    if kind == "metrics":
        return epochs.metrics(runs, metrics, layer=layer, splits=splits, scale=scale)
    if kind == "depth":
        return layers.depth(runs, metrics, splits=splits, epoch=epoch, scale=scale)
    if kind == "sweep":
        return sweep.sweep(runs, against, metrics, layer=layer, splits=splits, scale=scale)
    if len(runs) != 1:
        raise UsageError(f"--kind {kind} draws one run, these are {len(runs)}")
    (run,) = runs
    if kind == "bounds":
        return epochs.bounds(run, splits=splits, scale=scale)
    if kind == "heat":
        return layers.heat(run, metrics, splits=splits, scale=scale)
    if len(metrics) > 1:
        raise UsageError("--kind classes draws one matrix")
    return layers.classes(run, metrics[0] if metrics else "inter_cos", layer=layer, splits=splits, epoch=epoch)
