"""Run: one layer of one run over time, in four pictures, with the last values below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from ncmon.detail import Detail, main_split
from ncmon.feed import Snapshot, target_of
from ncmon.model import CLASSIFIER_INPUT
from ncmon.tui import palette
from ncmon.tui.format import fit, number, percent, printable
from ncmon.tui.look import AXES, Look
from ncmon.tui.plots import framed, moment, timeline, x_of
from ncmon.tui.screens.base import OneRunScreen, Sheet
from ncmon.tui.verdicts import heading
from ncmon.tui.widgets.chart import Chart, Level, Line, Picture
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.status import Text

NC1 = ("nc1_pinv", "nc1_cdnv", "nc1_trace_ratio")
PANELS = ("nc1", "cosine", "nc23", "loss")
WIDE, TALL_ENOUGH, WIDE_ENOUGH = 120, 14, 60
LEAST_CONFIG = 4
"""The configuration has at least one part in so many of the panel, if it needs it."""


class RunScreen(OneRunScreen):
    """Screen 2."""

    PANELS = PANELS
    HINTS = (
        ("[ ]", "layer"),
        (", .", "time"),
        ("L", "log"),
        ("x", "axis"),
        ("z", "zoom"),
        ("m", "metric"),
        ("b", "bounds"),
        ("q", "back"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("L", "log", "logarithmic or linear", id="log"),
        Binding("x", "axis", "x axis: epoch, step, minutes, log step", id="axis"),
        Binding("b", "bounds", "show or hide what is guaranteed", id="bound-overlay"),
        Binding("m", "metric", "the next way to measure NC1", id="metric"),
        Binding("left,h", "app.travel(-1)", "one window back", show=False),
        Binding("right,l", "app.travel(1)", "one window forward", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="run")

    def compose_body(self) -> ComposeResult:
        """Make the widgets."""
        with Container(id="body"):
            with Container(id="charts"):
                for name in PANELS:
                    chart = Chart(id=name, ascii=self.ncmon.ascii_only)
                    chart.can_focus = True
                    yield chart
            yield Text(id="side")
        yield Text(id="values")

    def on_resize(self, event: events.Resize) -> None:
        """Small terminals show one chart, wide ones the readings and the configuration beside them."""
        self.make_panels(event.size.width, event.size.height)

    def make_panels(self, width: int, height: int) -> None:
        """Show the panels that have room."""
        small = width < WIDE_ENOUGH or height < TALL_ENOUGH
        self.set_class(small, "-small")
        self.set_class(height < 4, "-tiny")
        self.query_one("#side").display = width >= WIDE and not small
        large = self.large or (PANELS[0] if small else None)
        self.query_one("#charts").set_class(large is not None, "-one")
        self.only(large)

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        return self.heading(snapshot)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        detail = snapshot.detail
        self.show_status(snapshot)
        if detail is None:
            return
        cursor = moment(detail, snapshot.selection, self.ncmon.look)
        for name in PANELS:
            chart = self.query_one(f"#{name}", Chart)
            if chart.display:
                picture = picture_of(name, detail, self.ncmon.look)
                chart.show(framed(picture, self.ncmon.look, cursor=cursor, zoom=self.ncmon.zoom))
        values = self.query_one("#values", Text)
        values.show([_values(detail, snapshot.selection.step, values.size.width)])
        side = self.query_one("#side", Text)
        if side.display:
            side.show(_side(detail, *side.size))

    # -- keys ---------------------------------------------------------------------------------------------------------

    def on_chart_picked(self, message: Chart.Picked) -> None:
        """Look at the moment that was clicked."""
        snapshot = self.ncmon.shown
        if snapshot is not None and snapshot.detail is not None and (columns := timeline(snapshot.detail)) is not None:
            x = x_of(columns, snapshot.detail.run, self.ncmon.look)
            self.ncmon.travel_to(int(np.argmin(np.abs(x - message.x))))

    def action_log(self) -> None:
        """Logarithmic or linear."""
        self.ncmon.look.log = not self.ncmon.look.log
        self.again()

    def action_axis(self) -> None:
        """The next x-axis: epoch, step, minutes, log step."""
        self.ncmon.look.axis = (self.ncmon.look.axis + 1) % len(AXES)
        self.again()

    def action_bounds(self) -> None:
        """Show or hide what is guaranteed."""
        self.ncmon.look.bounds = not self.ncmon.look.bounds
        self.again()

    def action_metric(self) -> None:
        """The next way to measure NC1."""
        self.ncmon.look.nc1 = (self.ncmon.look.nc1 + 1) % len(NC1)
        self.again()

    def copied(self) -> Sheet | None:
        """Return the readings of the layer at the moment looked at."""
        snapshot = self.ncmon.shown
        if snapshot is None or snapshot.detail is None or snapshot.detail.layer is None:
            return None
        layer = snapshot.detail.layer.name
        rows = [
            (split, window.epoch, window.step, name, reading.value)
            for split, window in snapshot.detail.latest.items()
            if layer in window.layers
            for name, reading in window.layers[layer].readings.items()
        ]
        return ("split", "epoch", "step", "metric", "value"), rows

    def sheet(self) -> Sheet | None:
        """Return the histories of the layer, of all splits."""
        snapshot = self.ncmon.shown
        if snapshot is None or snapshot.detail is None or snapshot.detail.layer is None:
            return None
        detail = snapshot.detail
        names = list(dict.fromkeys(name for series in detail.series.values() for name in series))
        rows: list[list[object]] = []
        for split, series in detail.series.items():
            by_step: dict[int, dict[str, object]] = {}
            for name, columns in series.items():
                for step, epoch, value in zip(columns.step, columns.epoch, columns.value, strict=True):
                    by_step.setdefault(int(step), {"epoch": int(epoch)})[name] = value
            rows += [[split, at, found["epoch"], *(found.get(n) for n in names)] for at, found in by_step.items()]
        return ("split", "step", "epoch", *names), rows


def picture_of(name: str, detail: Detail, look: Look) -> Picture:
    """Return one of the four pictures of a run, by the name of its panel."""
    classes = detail.run.n_classes
    at_classifier = detail.layer is None or detail.layer.name == CLASSIFIER_INPUT
    only = "only at the classifier's input: press ] for the last layer"
    if name == "nc1":
        metric = NC1[look.nc1]
        title = {"nc1_pinv": "NC1", "nc1_cdnv": "NC1 cdnv", "nc1_trace_ratio": "NC1 traces"}[metric]
        return Picture(title=title, lines=_by_split(detail, look, metric), log=look.log)
    if name == "cosine":
        lines = [
            *_series(detail, look, "intra_cos_min", "intra", 0),
            *_series(detail, look, "inter_cos_max", "inter", 1),
        ]
        if look.bounds and at_classifier:
            lines += _series(detail, look, "cert_intra_min", "bound", 2)
        target = target_of("inter_cos_max", classes)
        levels = (Level(name="simplex", value=target),) if target is not None else ()
        low = min([-0.2, *(float(np.nanmin(line.y)) for line in lines if np.isfinite(line.y).any())])
        return Picture(title="cosine", lines=tuple(lines), levels=levels, span=(low - 0.05, 1.05))
    if name == "nc23":
        lines = [
            *_series(detail, look, "nc2_equinorm", "norms", 0),
            *_series(detail, look, "nc2_maxangle", "angles", 1),
            *_series(detail, look, "nc3_cos_min", "1-NC3", 2, flip=True),
        ]
        return Picture(title="NC2 NC3", lines=tuple(lines), log=look.log)
    if not at_classifier:
        lines = list(_by_split(detail, look, "ncc_acc", error=True))
        return Picture(title="NCC error", lines=tuple(lines), log=look.log, empty="no NCC error")
    lines = [
        *_series(detail, look, "ce_loss", "loss", 0),
        *_series(detail, look, "ce_bound_m", "floor", 1),
        *_series(detail, look, "ce_gap", "gap", 2),
    ]
    return Picture(title="loss", lines=tuple(lines), log=look.log, empty=only)


def _by_split(detail: Detail, look: Look, metric: str, *, error: bool = False) -> tuple[Line, ...]:
    """Return one line a split, of one metric."""
    lines = []
    for number_, split in enumerate(detail.splits):
        columns = detail.series.get(split, {}).get(metric)
        if columns is not None and len(columns):
            lines.append(
                Line(
                    name=printable(split),
                    x=x_of(columns, detail.run, look),
                    y=1.0 - columns.value if error else columns.value,
                    style=palette.SERIES[number_ % len(palette.SERIES)],
                    pattern=palette.PATTERNS[number_ % len(palette.PATTERNS)],
                )
            )
    return tuple(lines)


def _series(detail: Detail, look: Look, metric: str, name: str, place: int, *, flip: bool = False) -> list[Line]:
    """Return the line of one metric, of the split that the run trains on."""
    split = main_split(detail.splits)
    columns = detail.series.get(split, {}).get(metric)
    if columns is None or not len(columns):
        return []
    style = palette.BOUND if metric.startswith("cert") else palette.SERIES[place]
    y = 1.0 - columns.value if flip else columns.value
    return [
        Line(
            name=name,
            x=x_of(columns, detail.run, look),
            y=y,
            style=style,
            pattern=palette.PATTERNS[place],
        )
    ]


def _values(detail: Detail, step: int | None, width: int) -> Row:
    """Return the values of the layer at a moment, each with an arrow for where it has been going.

    What has no room is left out whole; half a number is another number.
    """
    spans: list[Span] = []
    room = width
    series = detail.series.get(main_split(detail.splits), {})
    wanted = (
        ("nc1_pinv", "NC1", number),
        ("intra_cos_min", "intra", number),
        ("cert_intra_min", "bound", number),
        ("inter_cos_max", "inter", number),
        ("nc2_maxangle", "NC2", number),
        ("ncc_acc", "NCC", percent),
        ("ce_gap", "gap", number),
    )
    for metric, name, shown in wanted:
        columns = series.get(metric)
        if columns is None or not len(columns):
            continue
        upto = len(columns) if step is None else int(np.searchsorted(columns.step, step, side="right"))
        if not upto:
            continue
        value = float(columns.value[upto - 1])
        arrow = " ▲▼"[heading(columns.value[:upto])]
        both: list[Span] = [(f" {shown(value)}", palette.BOLD), (f" {name}{arrow}", palette.DIM)]
        room -= sum(len(text) for text, _ in both)
        if room < 0:
            break
        spans += both
    if not spans:
        return ((" waiting for the first window", palette.DIM),)
    return tuple(spans)


QUALITY = (
    ("samples", "samples", True),
    ("classes present", "classes_present", True),
    ("rank of the means", "rank_used", True),
    ("cosines resolved to", "resolution_floor", True),
    ("means moved by", "mean_shift", True),
    ("share of variance", "movement_share", True),
    ("features of length 0", "zero_norm", False),
    ("not finite", "nonfinite", False),
)
"""How far a window can be trusted: label, figure, and whether 0 is worth a line."""
MEASURED = ("resolution_floor", "mean_shift", "movement_share")
"""Of these what is no count."""


def _trust(detail: Detail, splits: Sequence[str], layer: str) -> Iterator[tuple[str, list[str]]]:
    """Yield what says how far the numbers of the last windows can be trusted, one line a figure."""
    windows = [detail.latest[split] for split in splits]
    yield "", ["exact" if window.exact else "streaming" for window in windows]
    yield "steps looked at", [f"{window.sampled_steps}/{window.steps}" if window.steps else "-" for window in windows]
    for label, name, zero in QUALITY:
        figures = [window.layers[layer].quality.get(name) if layer in window.layers else None for window in windows]
        if any(figure or (zero and figure is not None) for figure in figures):
            whole = name not in MEASURED
            yield (
                label,
                ["-" if figure is None else f"{figure:,.0f}" if whole else number(figure) for figure in figures],
            )


def _side(detail: Detail, width: int, height: int) -> list[Row]:
    """Return the panel of wide terminals: the readings of the last windows, and the configuration.

    Where there is no room for both the configuration keeps some of it, and each says that there is more.
    """
    rows: list[Row] = []
    layer = detail.layer.name if detail.layer is not None else ""
    splits = [split for split in detail.splits if split in detail.latest][:2]
    name_width = max(width - 11 * len(splits) - 1, 8)
    heading = "".join(f" {fit(printable(split), 9).rstrip():>10}" for split in splits)
    rows.append(((fit(" last window", name_width + 1) + heading, palette.BOLD),))
    for name, values in _trust(detail, splits, layer):
        rows.append(
            ((fit(f" {name}", name_width + 1), palette.DIM), ("".join(f" {v:>10}" for v in values), palette.DIM))
        )
    names: list[str] = []
    for split in splits:
        found = detail.latest[split].layers.get(layer)
        names += [name for name in (found.readings if found is not None else {}) if name not in names]
    for name in names:
        values = []
        for split in splits:
            found = detail.latest[split].layers.get(layer)
            reading = found.readings.get(name) if found is not None else None
            values.append(number(reading.value if reading is not None else None))
        style = palette.BOUND if name.startswith("cert") else palette.NULL
        rows.append(((fit(f" {name}", name_width + 1), style), ("".join(f" {v:>10}" for v in values), palette.NULL)))
    config: list[Row] = [(), ((" config", palette.BOLD),)]
    for key, value in detail.run.config.items():
        text = number(value) if isinstance(value, float) else str(value)
        config.append(((fit(f" {key}", 16), palette.DIM), (fit(f" {text}", max(width - 16, 1)), palette.NULL)))
    room = max(height - len(rows), min(height // LEAST_CONFIG, len(config)))
    shown = _cut(config, room)
    return _cut(rows, height - len(shown), ", y copies all of them") + shown


def _cut(rows: list[Row], room: int, rest: str = "") -> list[Row]:
    """Return as many rows as have room; the last one says how many there are beside them."""
    if len(rows) <= room:
        return rows
    kept = max(room - 1, 0)
    return [*rows[:kept], ((f" … {len(rows) - kept} more{rest}", palette.DIM),)][:room]
