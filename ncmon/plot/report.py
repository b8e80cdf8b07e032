"""One run as one HTML file: numbers, pictures, bounds with their assumptions, layers and configuration.

Nothing in it is fetched from anywhere and nothing runs: it can be sent, kept and printed. Every name in it comes from
somebody else and is escaped.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ncmon.alerts import title_of
from ncmon.bounds import BOUNDS
from ncmon.errors import NcmonError
from ncmon.metrics import METRICS
from ncmon.model import CLASSIFIER_INPUT, Alert, Reading
from ncmon.plot import epochs, layers, series, style
from ncmon.store.results import WindowReadings
from ncmon.store.runs import StoredRun
from ncmon.store.selection import flat_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROFILE = ("nc1_pinv", "intra_cos_min", "inter_cos_max", "nc2_equinorm", "ncc_acc", "alpha")
"""Of every layer."""
MOST_CLASSES = 100
"""Rows of the table of classes."""

_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1100px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: .6em 0; font-size: .92em }
th, td { padding: .22em .8em .22em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } .q { color: #666 } .bad { font-weight: bold }
img { max-width: 100%; height: auto } figure { margin: 1em 0 } code { font-size: .95em } .wide { overflow-x: auto }
pre { background: #f6f6f6; padding: .8em; overflow: auto }
@media print { h2 { break-after: avoid } figure { break-inside: avoid } }
"""


def report(run: StoredRun, *, version: str, alerts: Sequence[Alert] = ()) -> str:
    """Return the report of a run as HTML. `version` is ncmon's."""
    windows = run.readings()
    parts = [
        _head(run, windows),
        _section("Alerts", _alerts(alerts)) if alerts else "",
        _section("Over epochs", _picture(lambda: epochs.metrics([run]), "Metrics of the classifier's input")),
        _section("Last values", _values(run, windows)) if windows else "<p>No window yet.</p>",
        _section(
            "Measured against guaranteed",
            _picture(lambda: epochs.bounds(run), "Bounds beside measurements"),
            _bounds(windows),
        ),
        _section(
            "Over layers",
            _picture(lambda: layers.depth([run]), "Depth profiles"),
            _picture(lambda: layers.heat(run), "Layers by epochs"),
            _layers(windows),
        ),
        _section("Classes", _picture(lambda: layers.classes(run), "Pairs of classes"), _classes(run, windows)),
        _section("Configuration", _config(run)),
        _section("Where this comes from", _origin(run, version)),
    ]
    title = escape(_clean(f"{run.name} ({run.run_id})"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _head(run: StoredRun, windows: Sequence[WindowReadings]) -> str:
    one = run.run
    last = max((window.epoch for window in windows), default=-1)
    facts = [
        f"<b>{one.status}</b>",
        f"began {_moment(one.started)}",
        f"ended {_moment(one.ended)}" if one.ended is not None else "",
        f"{last + 1} epochs" if last >= 0 else "",
        f"{run.windows()} windows",
        f"{one.n_classes} classes",
        f"{len(run.layers)} layers",
        f"host {escape(_clean(one.host))}" if one.host else "",
        f"{one.world_size} ranks" if one.world_size > 1 else "",
    ]
    lines = [f"<h1>{escape(_clean(one.name))}</h1>", f'<p class="q">{escape(one.run_id)}</p>']
    lines.append(f"<p>{', '.join(fact for fact in facts if fact)}</p>")
    if one.tags:
        lines.append(f"<p>Tags: {escape(_clean(', '.join(one.tags)))}</p>")
    if one.note:
        lines.append(f"<pre>{escape(_clean(one.note))}</pre>")
    gaps = len(run.gaps())
    if gaps:
        lines.append(f'<p class="bad">{gaps} windows were lost on the way.</p>')
    return "\n".join(lines)


def _alerts(alerts: Sequence[Alert]) -> str:
    """Return what rules raised, a line an alert."""
    rows = [
        [
            escape(title_of(one.rule)),
            "info" if one.severity == "info" else f'<span class="bad">{one.severity}</span>',
            _moment(one.since),
            "open" if one.open else _moment(one.cleared),
            "yes" if one.acknowledged is not None else "",
            f"<code>{escape(_clean(one.layer))}</code>" if one.layer else "",
            escape(_clean(one.text)),
        ]
        for one in alerts
    ]
    return _table(["what", "severity", "since", "until", "seen", "layer", "text"], rows)


def _values(run: StoredRun, windows: Sequence[WindowReadings]) -> str:
    """Return every metric of the classifier's input, a column a split."""
    found = [(window, window.layers[CLASSIFIER_INPUT]) for window in windows if CLASSIFIER_INPUT in window.layers]
    heads = ["metric", *(_clean(_window_name(window)) for window, _ in found), "at collapse", "meaning"]
    rows = []
    for metric in METRICS:
        if metric.scope not in ("layer", "classifier", "window"):
            continue
        cells = [_reading(run, layer.readings.get(metric.name)) for _, layer in found]
        rows.append(
            [
                f"<code>{metric.name}</code>",
                *cells,
                escape(metric.at_collapse),
                f'<span class="q">{escape(metric.title)}</span>',
            ]
        )
    return _table(heads, rows, numbers=range(1, 1 + len(found)))


def _bounds(windows: Sequence[WindowReadings]) -> str:
    rows = []
    for window in windows:
        layer = window.layers.get(CLASSIFIER_INPUT)
        for bound in BOUNDS:
            reading = layer.readings.get(bound.name) if layer is not None else None
            if layer is None or reading is None:
                continue
            measured = layer.readings.get(bound.of)
            slack = None
            if reading.value is not None and measured is not None and measured.value is not None:
                slack = measured.value - reading.value if bound.side == "lower" else reading.value - measured.value
            rows.append(
                [
                    escape(_clean(_window_name(window))),
                    f"<code>{bound.of}</code>",
                    _number(None if measured is None else measured.value),
                    f"{'&ge;' if bound.side == 'lower' else '&le;'} <code>{bound.name}</code>",
                    _number(reading.value),
                    _number(slack),
                    ("guarantee" if window.exact else "estimate")
                    if reading.value is not None
                    else escape(reading.reason),
                ]
            )
    heads = ["window", "quantity", "measured", "bound", "value", "slack", "standing"]
    assumptions = dict.fromkeys(text for bound in BOUNDS for text in bound.assumptions)
    listed = "".join(f"<li>{escape(text)}</li>" for text in assumptions)
    sources = "; ".join(dict.fromkeys(bound.source for bound in BOUNDS))
    return (
        _table(heads, rows, numbers=(2, 4, 5))
        + "<p>Slack is not negative when a bound holds. On windows whose weights moved it is an estimate, not a"
        f" guarantee. The bounds assume:</p><ul>{listed}</ul><p class='q'>{escape(sources)}</p>"
    )


def _layers(windows: Sequence[WindowReadings]) -> str:
    if not windows:
        return ""
    window = windows[0]
    rows = [
        [
            str(found.key.index),
            f"<code>{escape(_clean(name))}</code>",
            escape(_clean(found.module)),
            str(found.n_features),
            *(_number(_value(found.readings.get(metric))) for metric in PROFILE),
        ]
        for name, found in window.layers.items()
    ]
    heads = ["#", "layer", "module", "features", *PROFILE]
    return f"<p>{escape(_clean(_window_name(window)))}</p>" + _table(heads, rows, numbers=(0, *range(3, len(heads))))


def _classes(run: StoredRun, windows: Sequence[WindowReadings]) -> str:
    found = [window for window in windows if CLASSIFIER_INPUT in window.layers]
    if not found:
        return ""
    window = next((one for one in found if one.exact), found[0])
    arrays = window.layers[CLASSIFIER_INPUT].class_arrays
    names = [name for name, entry in series.ENTRIES.items() if entry.scope == "class" and name in arrays]
    rows = [
        [str(c), escape(_clean(run.run.class_name(c))), *(_number(float(arrays[name][c])) for name in names)]
        for c in range(min(run.run.n_classes, MOST_CLASSES))
    ]
    more = (
        f"<p>The first {MOST_CLASSES} of {run.run.n_classes} classes.</p>" if run.run.n_classes > MOST_CLASSES else ""
    )
    return (
        f"<p>{escape(_clean(_window_name(window)))}</p>"
        + _table(["class", "name", *names], rows, numbers=(0, *range(2, 2 + len(names))))
        + more
    )


def _config(run: StoredRun) -> str:
    rows = [
        [f"<code>{escape(_clean(key))}</code>", escape(_clean(value if isinstance(value, str) else json.dumps(value)))]
        for key, value in flat_config(run.config).items()
    ]
    return _table(["key", "value"], rows) if rows else "<p>The training named none.</p>"


def _origin(run: StoredRun, version: str) -> str:
    return (
        f"<p>Made by ncmon {escape(version)} from run <code>{escape(run.run_id)}</code>, written by ncmon-client"
        f" {escape(_clean(run.run.client)) or '(unknown)'}. Definitions: <code>ncmon metrics</code>.</p>"
    )


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part)


def _picture(draw: Callable[[], Figure], caption: str) -> str:
    """Return a picture inside the page; where there is nothing to draw, why."""
    try:
        content = base64.b64encode(style.render(draw(), "svg")).decode()
    except NcmonError as error:
        return f'<p class="q">No picture of {escape(caption.lower())}: {escape(_clean(str(error)))}</p>'
    return f'<figure><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{content}"></figure>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """Return a table; heads are text, cells are HTML, `numbers` are the columns that stand right."""
    right = dict.fromkeys(numbers, ' class="n"')
    head = "".join(f"<th{right.get(place, '')}>{escape(text)}</th>" for place, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{right.get(place, '')}>{cell}</td>" for place, cell in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def _reading(run: StoredRun, reading: Reading | None) -> str:
    """Return a number with the classes where it is attained, or the reason why there is none."""
    if reading is None:
        return ""
    if reading.value is None:
        return f'<span class="q">{escape(_clean(reading.reason))}</span>'
    where = " and ".join(run.run.class_name(c) for c in reading.attained_at)
    return _number(reading.value) + (f' <span class="q">({escape(_clean(where))})</span>' if where else "")


def _window_name(window: WindowReadings) -> str:
    at = f"epoch {window.epoch}" if window.epoch >= 0 else f"step {window.step}"
    return f"{window.split}, {at}, {'exact' if window.exact else 'streaming'}"


def _value(reading: Reading | None) -> float | None:
    return None if reading is None else reading.value


def _number(value: float | None) -> str:
    return "&ndash;" if value is None or value != value else f"{value:.4g}"


def _moment(at: float | None) -> str:
    try:
        return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return ""


def _clean(text: Any) -> str:
    """Return text without control characters."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in str(text))
