"""A dashboard for Grafana over what `ncmon serve --metrics` answers Prometheus: many nodes' runs on one page.

Made from the registry, as the figures are: a reading that Prometheus is told has its panel, with its definition.
"""

from __future__ import annotations

from typing import Any

from ncmon.metrics import METRICS
from ncmon.store.queries import OVERVIEW

SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, TALL, LOW = 24, 8, 4
"""Of the page, of a chart and of a figure, in Grafana's grid."""
LOGARITHMIC = ("ce_loss", "nc1_pinv")
RUN = 'run=~"$run",instance=~"$instance"'
NODE = 'instance=~"$instance"'
SILENT_S = 300.0
"""A live run that is silent for so long is marked."""

FIGURES = (
    ("Runs alive", f'count(ncmon_silence_seconds{{{RUN},status="live"}}) or vector(0)', ""),
    ("Clients connected", f"sum(ncmon_connected{{{NODE}}})", ""),
    ("Messages stored a second", f"sum(rate(ncmon_messages_stored_total{{{NODE}}}[5m]))", "cps"),
    ("Rejected, last hour", f"sum(increase(ncmon_messages_rejected_total{{{NODE}}}[1h]))", ""),
    ("Open alerts", f"sum(ncmon_alerts_open{{{RUN}}}) or vector(0)", ""),
    ("Waiting", f"sum(ncmon_waiting{{{NODE}}})", ""),
    ("Longest wait to be evaluated", f"max(ncmon_lag_s{{{NODE}}})", "s"),
    ("Longest silence of a live run", f'max(ncmon_silence_seconds{{{RUN},status="live"}}) or vector(0)', "s"),
)
"""Title, expression and unit."""


def dashboard() -> dict[str, Any]:
    """Return what Grafana (9 and later) takes under Dashboards, New, Import."""
    panels: list[dict[str, Any]] = []
    step = WIDTH // len(FIGURES)
    for place, (title, expression, unit) in enumerate(FIGURES):
        panels.append(_figure(title, expression, unit, x=place * step))
    entries = {metric.name: metric for metric in METRICS}
    for place, name in enumerate(OVERVIEW):
        entry = entries[name]
        collapse = f"\n\nAt collapse: {entry.at_collapse}" if entry.at_collapse else ""
        panels.append(
            _chart(
                f"{entry.title} ({name})",
                f'ncmon_reading{{{RUN},metric="{name}"}}',
                "{{run}} {{split}}",
                description=entry.definition + collapse,
                logarithmic=name in LOGARITHMIC,
                x=(place % 3) * 8,
                y=LOW + (place // 3) * TALL,
                width=8,
            )
        )
    below = LOW + -(-len(OVERVIEW) // 3) * TALL
    panels.append(
        _chart("Windows stored a minute", f"60 * deriv(ncmon_windows{{{RUN}}}[5m])", "{{run}} {{split}}", x=0, y=below)
    )
    panels.append(
        _chart(
            "Silence of live runs",
            f'max by (run, run_id) (ncmon_silence_seconds{{{RUN},status="live"}})',
            "{{run}} ({{run_id}})",
            unit="s",
            x=12,
            y=below,
            threshold=SILENT_S,
        )
    )
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "title": "Neural collapse (ncmon)",
        "uid": "ncmon-overview",
        "description": "What ncmon's daemons measure: the latest reading of every run, and how delivery does.",
        "tags": ["ncmon"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("instance", "Daemon", "label_values(ncmon_connected, instance)"),
                _variable("run", "Run", f"label_values(ncmon_windows{{{NODE}}}, run)"),
            ]
        },
        "annotations": {"list": []},
        "panels": panels,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _figure(title: str, expression: str, unit: str, *, x: int) -> dict[str, Any]:
    return {
        "type": "stat",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": 0, "w": WIDTH // len(FIGURES), "h": LOW},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": expression, "instant": True}],
        "fieldConfig": {"defaults": {"unit": unit or "short", "min": 0}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "none"},
    }


def _chart(
    title: str,
    expression: str,
    legend: str,
    *,
    x: int,
    y: int,
    width: int = 12,
    unit: str = "short",
    description: str = "",
    logarithmic: bool = False,
    threshold: float | None = None,
) -> dict[str, Any]:
    custom: dict[str, Any] = {"lineWidth": 2, "showPoints": "never", "spanNulls": False}
    if logarithmic:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    defaults: dict[str, Any] = {"unit": unit, "custom": custom}
    if threshold is not None:
        custom["thresholdsStyle"] = {"mode": "line"}
        steps = [{"color": "green", "value": None}, {"color": "orange", "value": threshold}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": TALL},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": expression, "legendFormat": legend}],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }
