"""Layers: where collapse begins. Every layer over time, every layer now, and how it was earlier."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from ncmon.feed import Snapshot
from ncmon.metrics import by_name
from ncmon.model import CLASSIFIER_INPUT
from ncmon.store.screens import LayerPart
from ncmon.tui import heat, palette
from ncmon.tui.format import cosine, number, percent, printable
from ncmon.tui.look import LAYER_METRICS, Look
from ncmon.tui.raster import Scale, scale_of
from ncmon.tui.screens.base import OneRunScreen, Sheet, shown_split, whole
from ncmon.tui.widgets.chart import Chart, Line, Picture
from ncmon.tui.widgets.heatmap import HeatMap, HeatPicture
from ncmon.tui.widgets.lines import Span
from ncmon.tui.widgets.status import Text
from ncmon.tui.widgets.table import Cell, Column, Table

TITLES = {
    "nc1_pinv": "NC1",
    "nc1_cdnv": "NC1 cdnv",
    "intra_cos_min": "min intra cosine",
    "inter_cos_max": "max inter cosine",
    "nc2_etf_err": "NC2 distance to simplex",
    "ncc_acc": "nearest class mean right",
}
COLUMNS = (
    Column(title="#", width=3, rank=4),
    Column(title="LAYER", width=16, rank=0, right=False, grows=True, most=40),
    Column(title="NC1", width=7, rank=1),
    Column(title="INTRA", width=6, rank=2),
    Column(title="INTER", width=6, rank=3),
    Column(title="NCC%", width=5, rank=2),
    Column(title="NC2", width=6, rank=5),
)
TALLEST = 9
"""Lines of a layer in the map: of few layers it fills its half of the screen all the same."""
WIDE, SMALL_WIDTH, SMALL_HEIGHT = 140, 60, 14


class LayersScreen(OneRunScreen):
    """Screen 3."""

    PANELS = ("heat", "profile", "layer-table")
    HINTS = (
        ("[ ]", "layer"),
        ("m", "metric"),
        ("t", "split"),
        (", .", "time"),
        ("z", "zoom"),
        ("L", "log"),
        ("q", "back"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "metric", "the next metric", id="metric"),
        Binding("L", "log", "logarithmic or linear", id="log"),
        Binding("left,h", "app.travel(-1)", "one window back", show=False),
        Binding("right,l", "app.travel(1)", "one window forward", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="layers")

    @staticmethod
    def metric(look: Look) -> str:
        """Return the metric that is shown over layers."""
        return LAYER_METRICS[look.layer_metric]

    def compose_body(self) -> ComposeResult:
        """Make the widgets."""
        with Container(id="layers-body"):
            yield HeatMap(id="heat")
            with Container(id="layers-below"):
                yield Chart(id="profile", ascii=self.ncmon.ascii_only)
                yield Table(id="layer-table")
        yield Text(id="layers-note")

    def on_mount(self) -> None:
        """The table has the keys."""
        self.query_one("#heat").can_focus = True
        self.query_one("#profile").can_focus = True
        self.query_one(Table).empty = ("No window yet", "the picture fills as the network trains")
        self.query_one(Table).focus()

    def on_resize(self, event: events.Resize) -> None:
        """Wide terminals have the profile and the table beside the map."""
        self.make_panels(event.size.width, event.size.height)

    def make_panels(self, width: int, height: int) -> None:
        """Show the panels that have room."""
        small = width < SMALL_WIDTH or height < SMALL_HEIGHT
        large = self.large or ("layer-table" if small else None)
        self.set_class(width >= WIDE and large is None, "-wide")
        self.set_class(large is not None, "-one")
        self.set_class(height < 5, "-tiny")
        self.query_one("#layers-below").display = large != "heat"
        self.only(large)

    def left(self, snapshot: Snapshot) -> list[Span]:
        """Return the left of the status line."""
        detail = snapshot.detail
        return self.heading(snapshot, shown_split(detail, snapshot.selection.split) if detail is not None else "")

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        detail, part = snapshot.detail, snapshot.layers
        self.show_status(snapshot)
        if detail is None or part is None:
            return
        layer = self._layer(snapshot, part)
        chart, table, picture = self.query_one(Chart), self.query_one(Table), self.query_one(HeatMap)
        if picture.display:
            self._make_room(picture, len(part.layers))
            picture.show(heat_picture(part, layer, following=snapshot.selection.step is None))
        if chart.display:
            chart.show(profile(part, log=self.ncmon.look.log, cursor=part.layers.index(layer) if layer else None))
        if table.display:
            table.show(COLUMNS, part.layers, lambda place: _cells(part, place), cursor=layer or None)
        note = self.query_one("#layers-note", Text)
        note.show([tuple(whole(_note(part), note.size.width))])

    def _make_room(self, picture: HeatMap, layers: int) -> None:
        """Give the map the lines that its layers need, half of the screen at most."""
        if self.has_class("-wide") or self.has_class("-one"):
            picture.styles.height = "1fr"
            return
        room = max((self.size.height - 3) // 2, 4)
        wanted = min(layers * (2 if layers * 2 + 2 <= room else 1) + 2, room)
        if picture.styles.height is None or picture.styles.height.value != wanted:
            picture.styles.height = wanted
            self.call_after_refresh(self.again)

    def _layer(self, snapshot: Snapshot, part: LayerPart) -> str:
        wanted = self.ncmon.selection.layer
        if wanted in part.layers:
            return wanted
        assert snapshot.detail is not None
        return snapshot.detail.layer.name if snapshot.detail.layer is not None else ""

    # -- keys ---------------------------------------------------------------------------------------------------------

    def action_metric(self) -> None:
        """The next metric."""
        look = self.ncmon.look
        look.layer_metric = (look.layer_metric + 1) % len(LAYER_METRICS)
        self.ncmon.select(metric=self.metric(look))

    def action_log(self) -> None:
        """Logarithmic or linear."""
        self.ncmon.look.log = not self.ncmon.look.log
        self.again()

    @on(Table.Moved)
    def moved(self, message: Table.Moved) -> None:
        """The cursor is on another layer."""
        if message.key is not None:
            self.ncmon.select(layer=str(message.key))
            self.again()

    @on(Table.Chosen)
    def chosen(self, message: Table.Chosen) -> None:
        """Open the layer."""
        self.ncmon.action_screen("run")

    def on_heat_map_picked(self, message: HeatMap.Picked) -> None:
        """Look at the layer and the moment that were clicked."""
        part = self.ncmon.shown.layers if self.ncmon.shown is not None else None
        if part is not None and message.row < len(part.layers) and message.column < len(part.step):
            self.ncmon.select(layer=part.layers[message.row], step=int(part.step[message.column]))

    def sheet(self) -> Sheet | None:
        """Return the table of layers."""
        part = self.ncmon.shown.layers if self.ncmon.shown is not None else None
        if part is None:
            return None
        names = list(part.table)
        rows = [(i, layer, *(part.table[name][i] for name in names)) for i, layer in enumerate(part.layers)]
        return ("index", "layer", *names), rows


@lru_cache(maxsize=4)
def _names(layers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(printable, layers))


def heat_picture(part: LayerPart, layer: str, *, following: bool) -> HeatPicture:
    """Return the picture layers x time: the nearer to collapse, the farther right on the scale."""
    metric = by_name(part.metric)
    log = part.metric.startswith(("nc1", "nc2"))
    finite = part.values[:0] if log else part.values[np.isfinite(part.values)]
    if not finite.size:
        scale = scale_of([part.values], log=log)
    elif part.metric.startswith("in"):
        scale = Scale(low=min(-0.2, float(np.floor(finite.min() * 10) / 10)), high=1.0)
    else:
        scale = Scale(low=float(np.floor(min(finite.min(), 0.99) * 10) / 10), high=1.0)
    pool: heat.Pool = "max" if metric.better == "lower" else "min"
    return HeatPicture(
        title=f"{TITLES[part.metric]} of each layer over time",
        values=part.values,
        scale=scale,
        flip=metric.better == "lower",
        row_names=_names(part.layers),
        ticks=_ticks(part),
        row=part.layers.index(layer) if layer in part.layers else -1,
        column=-1 if following else part.place,
        row_pool=pool,
        capacity=_capacity(len(part.step)),
        tall=TALLEST,
        ends=("far", "collapsed"),
    )


def _capacity(windows: int) -> int:
    """Return how many windows the picture has room for: it grows by steps, so that most of it stays when one comes."""
    step = max(10 ** (len(str(windows)) - 1) // 2, 1)
    return -(-windows // step) * step


def _ticks(part: LayerPart) -> list[tuple[int, str]]:
    total = len(part.step)
    if not total:
        return []
    by_epoch = bool((part.epoch >= 0).all())
    at = part.epoch + 1 if by_epoch else part.step
    places = sorted({0, total // 4, total // 2, 3 * total // 4, total - 1})
    word = "epoch" if by_epoch else "step"
    return [(place, f"{word} {at[place]}" if place == 0 else str(at[place])) for place in places]


def profile(part: LayerPart, *, log: bool, cursor: int | None) -> Picture:
    """Return the metric against depth: at the moment looked at, and at a quarter and a sixteenth of the time to it."""
    lines: list[Line] = []
    depth = np.arange(len(part.layers), dtype=np.float64)
    last = len(part.step) - 1
    for number_, place in enumerate(dict.fromkeys((part.place, part.place // 4, part.place // 16))):
        if place < 0:
            continue
        by_epoch = bool((part.epoch >= 0).all())
        name = f"ep{part.epoch[place] + 1}" if by_epoch else f"step {part.step[place]}"
        lines.append(
            Line(
                name="now" if place == last else name,
                x=depth,
                y=part.values[:, place],
                style=palette.SERIES[number_],
                pattern=palette.PATTERNS[number_],
            )
        )
    positive = part.metric.startswith("nc")
    return Picture(
        title=f"{TITLES[part.metric].split()[0]} by depth" if positive else f"{TITLES[part.metric]} by depth",
        lines=tuple(lines),
        log=log and positive and part.metric != "ncc_acc",
        x_title="layer",
        x_whole=True,
        cursor=None if cursor is None else float(cursor),
    )


def _cells(part: LayerPart, place: int) -> list[Cell]:
    def at(name: str) -> float:
        return float(part.table[name][place])

    last = part.layers[place] == CLASSIFIER_INPUT
    plain = palette.BOLD if last else palette.NULL
    solved = at("ncc_acc") >= 0.99
    return [
        (str(place + 1), palette.DIM),
        (printable(part.layers[place]), plain),
        (number(at("nc1_pinv"), 7), plain),
        (cosine(at("intra_cos_min")), plain),
        (cosine(at("inter_cos_max")), plain),
        (percent(at("ncc_acc")), palette.GOOD if solved else plain),
        (number(at("nc2_etf_err"), 6), plain),
    ]


def _note(part: LayerPart) -> list[Span]:
    """Return in words from which layer on the nearest class mean decides."""
    right = part.table["ncc_acc"]
    if not len(right) or np.isnan(right).all():
        return [(" waiting for the first window", palette.DIM)]
    found = np.flatnonzero(right >= 0.99)
    spans = _steepest(part)
    if found.size:
        first = int(found[0])
        spans.append((f" effective depth {first + 1} of {len(part.layers)}", palette.BOLD))
        spans.append((f" ({printable(part.layers[first])}: 99 % right by class means)", palette.DIM))
    else:
        best = percent(float(np.nanmax(right)))
        spans.append((f" NCC 99 %: no layer yet ({best})", palette.DIM))
    return spans


def _steepest(part: LayerPart) -> list[Span]:
    """Return at which layer NC1 falls the most from the layer before: there most of the collapse happens."""
    values = part.table["nc1_pinv"]
    if len(values) < 2:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((values[:-1] > 0) & (values[1:] > 0), values[:-1] / values[1:], np.nan)
    if np.isnan(ratio).all() or np.nanmax(ratio) <= 1:
        return []
    place = int(np.nanargmax(ratio))
    return [(f" NC1 falls most at {printable(part.layers[place + 1])} ({ratio[place]:.1f}-fold) ", palette.BOLD)]
