"""Run: one layer of one run over time, in four pictures, with the last values below."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Footer

from ncmon.feed import Detail, RunState, Snapshot, target_of
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store.results import Columns, RunSummary
from ncmon.tui import palette
from ncmon.tui.format import age, fit, number, percent, printable
from ncmon.tui.screens.base import DataScreen
from ncmon.tui.widgets.chart import Chart, Level, Line, Picture
from ncmon.tui.widgets.lines import Row, Span
from ncmon.tui.widgets.status import Text

AXES = ("epoch", "step", "minutes")
NC1 = ("nc1_pinv", "nc1_cdnv", "nc1_trace_ratio")
PANELS = ("nc1", "cosine", "nc23", "loss")
WIDE, TALL_ENOUGH, WIDE_ENOUGH = 120, 14, 60


class RunScreen(DataScreen):
    """Screen 2."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left_square_bracket", "layer(-1)", "Layer", key_display="[ ]"),
        Binding("right_square_bracket", "layer(1)", "Next layer", show=False),
        Binding("L", "log", "Log"),
        Binding("x", "axis", "Axis"),
        Binding("b", "bounds", "Bounds"),
        Binding("m", "metric", "Metric", show=False),
        Binding("z", "maximise", "Zoom"),
        Binding("escape,q", "back", "Back", key_display="q"),
    ]

    def __init__(self) -> None:
        super().__init__(id="run")
        self._log = True
        self._axis = 0
        self._bounds = True
        self._nc1 = 0
        self._large: str | None = None

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Text(id="status")
        with Container(id="body"):
            with Container(id="charts"):
                for name in PANELS:
                    chart = Chart(id=name, ascii=self.ncmon.ascii_only)
                    chart.can_focus = True
                    yield chart
            yield Text(id="side")
        yield Text(id="values")
        yield Footer(show_command_palette=False)

    def on_resize(self, event: events.Resize) -> None:
        """Small terminals show one chart, wide ones the readings and the configuration beside them."""
        self._arrange(event.size.width, event.size.height)

    def _arrange(self, width: int, height: int) -> None:
        small = width < WIDE_ENOUGH or height < TALL_ENOUGH
        self.set_class(small, "-small")
        self.set_class(height < 4, "-tiny")
        self.query_one("#side").display = width >= WIDE and not small
        large = self._large or (PANELS[0] if small else None)
        charts = self.query_one("#charts")
        charts.set_class(large is not None, "-one")
        for name in PANELS:
            self.query_one(f"#{name}").display = large in (None, name)
        self.call_after_refresh(self.again)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        detail = snapshot.detail
        if detail is None:
            self.status([(" no run", palette.BOLD)], snapshot)
            return
        summary = next((s for s in snapshot.runs if s.run.run_id == detail.run.run_id), None)
        self.status(self._heading(detail, summary, snapshot), snapshot)
        for name in PANELS:
            chart = self.query_one(f"#{name}", Chart)
            if chart.display:
                chart.show(self._picture(name, detail))
        values = self.query_one("#values", Text)
        values.show([_values(detail, values.size.width)])
        side = self.query_one("#side", Text)
        if side.display:
            side.show(_side(detail, side.size.width))

    def _heading(self, detail: Detail, summary: RunSummary | None, snapshot: Snapshot) -> list[Span]:
        spans: list[Span] = [(f" {printable(detail.run.name)}", palette.BOLD)]
        if detail.layer is not None:
            names = [key.name for key in detail.layers]
            place = names.index(detail.layer.name) + 1
            spans.append((f"  {printable(detail.layer.name)} [{place}/{len(names)}]", palette.NULL))
        if summary is not None and summary.epoch is not None:
            total = detail.run.config.get("epochs")
            done = summary.epoch + 1
            spans.append((f"  epoch {done}/{total}" if isinstance(total, int) else f"  epoch {done}", palette.NULL))
        if summary is not None:
            state = snapshot.state(summary)
            text = state.value
            if state is RunState.STALE and detail.run.last_seen is not None:
                text = f"STALE {age(snapshot.taken_at - detail.run.last_seen)}"
            if state is not RunState.LIVE:
                spans.append((f"  {text}", palette.RUN_STYLES[state]))
        if detail.gaps:
            spans.append((f"  {detail.gaps} gaps", palette.RUN_STYLES[RunState.STALE]))
        return spans

    def _picture(self, name: str, detail: Detail) -> Picture:
        classes = detail.run.n_classes
        at_classifier = detail.layer is None or detail.layer.name == CLASSIFIER_INPUT
        only = "only at the classifier's input: press ] for the last layer"
        x_title = AXES[self._axis]
        if name == "nc1":
            metric = NC1[self._nc1]
            title = {"nc1_pinv": "NC1", "nc1_cdnv": "NC1 cdnv", "nc1_trace_ratio": "NC1 traces"}[metric]
            return Picture(title=title, lines=self._by_split(detail, metric), log=self._log, x_title=x_title)
        if name == "cosine":
            lines = [
                *self._lines(detail, "intra_cos_min", "intra", 0),
                *self._lines(detail, "inter_cos_max", "inter", 1),
            ]
            if self._bounds and at_classifier:
                lines += self._lines(detail, "cert_intra_min", "bound", 2)
            target = target_of("inter_cos_max", classes)
            levels = (Level(name="simplex", value=target),) if target is not None else ()
            low = min([-0.2, *(float(np.nanmin(line.y)) for line in lines if np.isfinite(line.y).any())])
            return Picture(title="cosine", lines=tuple(lines), levels=levels, x_title=x_title, span=(low - 0.05, 1.05))
        if name == "nc23":
            lines = [
                *self._lines(detail, "nc2_equinorm", "norms", 0),
                *self._lines(detail, "nc2_maxangle", "angles", 1),
                *self._lines(detail, "nc3_cos_min", "1-NC3", 2, flip=True),
            ]
            return Picture(title="NC2 NC3", lines=tuple(lines), log=self._log, x_title=x_title)
        if not at_classifier:
            lines = list(self._by_split(detail, "ncc_acc", error=True))
            return Picture(title="NCC error", lines=tuple(lines), log=self._log, x_title=x_title, empty="no NCC error")
        lines = [
            *self._lines(detail, "ce_loss", "loss", 0),
            *self._lines(detail, "ce_bound_m", "floor", 1),
            *self._lines(detail, "ce_gap", "gap", 2),
        ]
        return Picture(title="loss", lines=tuple(lines), log=self._log, x_title=x_title, empty=only)

    def _by_split(self, detail: Detail, metric: str, *, error: bool = False) -> tuple[Line, ...]:
        """Return one line a split, of one metric."""
        lines = []
        for number_, split in enumerate(detail.splits):
            columns = detail.series.get(split, {}).get(metric)
            if columns is not None and len(columns):
                lines.append(
                    Line(
                        name=printable(split),
                        x=self._x(columns, detail),
                        y=1.0 - columns.value if error else columns.value,
                        style=palette.SERIES[number_ % len(palette.SERIES)],
                        pattern=palette.PATTERNS[number_ % len(palette.PATTERNS)],
                    )
                )
        return tuple(lines)

    def _lines(self, detail: Detail, metric: str, name: str, place: int, *, flip: bool = False) -> list[Line]:
        """Return the line of one metric, of the split that the run trains on."""
        split = _main_split(detail)
        columns = detail.series.get(split, {}).get(metric)
        if columns is None or not len(columns):
            return []
        style = palette.BOUND if metric.startswith("cert") else palette.SERIES[place]
        y = 1.0 - columns.value if flip else columns.value
        return [Line(name=name, x=self._x(columns, detail), y=y, style=style, pattern=palette.PATTERNS[place])]

    def _x(self, columns: Columns, detail: Detail) -> np.ndarray:
        if AXES[self._axis] == "epoch" and (columns.epoch >= 0).all():
            return columns.epoch.astype(np.float64)
        if AXES[self._axis] == "minutes":
            return (columns.time - detail.run.started) / 60.0
        return columns.step.astype(np.float64)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_layer(self, by: int) -> None:
        """Show the layer before or behind, in the order of the forward pass."""
        snapshot = self.ncmon.shown
        if snapshot is None or snapshot.detail is None or snapshot.detail.layer is None:
            return
        names = [key.name for key in snapshot.detail.layers]
        place = names.index(snapshot.detail.layer.name) + by
        self.ncmon.select(layer=names[min(max(place, 0), len(names) - 1)])

    def action_log(self) -> None:
        """Logarithmic or linear."""
        self._log = not self._log
        self.again()

    def action_axis(self) -> None:
        """The next x-axis: epoch, step, minutes."""
        self._axis = (self._axis + 1) % len(AXES)
        self.again()

    def action_bounds(self) -> None:
        """Show or hide what is guaranteed."""
        self._bounds = not self._bounds
        self.again()

    def action_metric(self) -> None:
        """The next way to measure NC1."""
        self._nc1 = (self._nc1 + 1) % len(NC1)
        self.again()

    def action_maximise(self) -> None:
        """The focused chart alone, and back."""
        focused = self.focused.id if self.focused is not None else None
        self._large = None if self._large else (focused if focused in PANELS else PANELS[0])
        self._arrange(self.size.width, self.size.height)

    def action_back(self) -> None:
        """Back to the overview, from a large chart to all of them first."""
        if self._large:
            self.action_maximise()
        else:
            self.ncmon.action_screen("overview")

    def values_text(self) -> str:
        """Return the line of values as text, for the clipboard."""
        snapshot = self.ncmon.shown
        if snapshot is None or snapshot.detail is None:
            return ""
        return "".join(text for text, _ in _values(snapshot.detail, 500)).strip()


def _main_split(detail: Detail) -> str:
    return "train" if "train" in detail.splits or not detail.splits else detail.splits[0]


def _values(detail: Detail, width: int) -> Row:
    """Return the last values of the layer, each with an arrow for where it went since the window before."""
    spans: list[Span] = []
    series = detail.series.get(_main_split(detail), {})
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
        value = float(columns.value[-1])
        before = float(columns.value[-2]) if len(columns) > 1 else value
        arrow = "▲" if value > before else "▼" if value < before else " "
        spans += [(f" {shown(value)}", palette.BOLD), (f" {name}{arrow} ", palette.DIM)]
    if not spans:
        return ((" waiting for the first window", palette.DIM),)
    return tuple(spans)


def _side(detail: Detail, width: int) -> list[Row]:
    """Return the panel of wide terminals: every reading of the last windows, and the configuration."""
    rows: list[Row] = []
    layer = detail.layer.name if detail.layer is not None else ""
    splits = [split for split in detail.splits if split in detail.latest][:2]
    name_width = max(width - 11 * len(splits) - 1, 8)
    heading = "".join(f" {fit(printable(split), 9).rstrip():>10}" for split in splits)
    rows.append(((fit(" last window", name_width + 1) + heading, palette.BOLD),))
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
    rows += [(), ((" config", palette.BOLD),)]
    for key, value in detail.run.config.items():
        text = number(value) if isinstance(value, float) else str(value)
        rows.append(((fit(f" {key}", 16), palette.DIM), (fit(f" {text}", max(width - 16, 1)), palette.NULL)))
    return rows
