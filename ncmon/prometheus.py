"""The daemon's figures for Prometheus: counters of delivery, and the latest readings of every run.

The extra `metrics` brings the library. What is asked for is read from the database and from the daemon's own counters
at the moment of the question, in the library's thread; nothing is computed between questions.
"""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncmon.errors import ListenError, NcmonError, UsageError
from ncmon.feed import Feed, Selection

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

COUNTERS = {
    "accepted": "messages that took their turn",
    "stored": "messages that are in the store",
    "rejected": "messages that can never become a window, and refused sessions",
    "deleted": "messages that were deleted with their run before they were evaluated",
    "duplicates": "messages that came again",
}
GAUGES = {
    "connected": "clients that are connected",
    "waiting": "messages that wait to be evaluated, or for other ranks",
    "inbox": "messages that are acknowledged and wait in the store's inbox to be evaluated",
    "inbox_bytes": "bytes of these",
    "lag_s": "seconds for which the oldest of these has waited",
}


def address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; `UsageError` for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"--metrics: expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)


def serve(at: tuple[str, int], database: Path, counters: Callable[[], Mapping[str, float]]) -> Callable[[], None]:
    """Answer Prometheus at an address; return what ends it. `ListenError` where the library or the port is missing."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise ListenError("--metrics needs prometheus_client: pip install 'ncmon[metrics]'") from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_collector(database, counters))
    try:
        server, thread = start_http_server(at[1], at[0], registry)
    except OSError as error:
        raise ListenError(f"--metrics: {at[0]}:{at[1]} cannot be used: {error.strerror or error}") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(2.0)

    return stop


def _collector(database: Path, counters: Callable[[], Mapping[str, float]]) -> Collector:
    class Figures:
        """Reads when it is asked."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def collect(self) -> Iterator[Metric]:
            with self._lock:
                yield from _figures(database, counters())

    return Figures()


def _figures(database: Path, counters: Mapping[str, float]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in COUNTERS.items():
        yield CounterMetricFamily(f"ncmon_messages_{name}", text, value=counters.get(name, 0))
    yield CounterMetricFamily("ncmon_alerts_raised", "alerts since the start", value=counters.get("alerts", 0))
    for name, text in GAUGES.items():
        yield GaugeMetricFamily(f"ncmon_{name}", text, value=counters.get(name, 0))
    labels = ("run_id", "run", "split")
    reading = GaugeMetricFamily(
        "ncmon_reading", "latest reading, at the classifier's input", labels=[*labels, "metric"]
    )
    windows = GaugeMetricFamily("ncmon_windows", "windows of a run in the store", labels=labels)
    age = GaugeMetricFamily("ncmon_silence_seconds", "since a run was last heard of", labels=[*labels, "status"])
    alerts = GaugeMetricFamily(
        "ncmon_alerts_open", "open alerts of a run", labels=["run_id", "run", "rule", "severity", "acknowledged"]
    )
    with Feed(endpoint=None, database=database) as feed:
        try:
            found = feed.read(Selection(detail=False))
        except NcmonError:
            return
        for summary in found.runs:
            run = summary.run
            names = (run.run_id, run.name, summary.split)
            windows.add_metric(names, summary.n_windows)
            heard = run.last_seen if run.last_seen is not None else run.started
            age.add_metric((*names, run.status), max(0.0, found.taken_at - heard))
            for metric, value in summary.values.items():
                if math.isfinite(value):
                    reading.add_metric((*names, metric), value)
        run_names = {summary.run.run_id: summary.run.name for summary in found.runs}
        standing = collections.Counter(
            (
                one.run_id,
                run_names.get(one.run_id, ""),
                one.rule,
                one.severity,
                str(one.acknowledged is not None).lower(),
            )
            for one in found.alerts
            if one.open
        )
        for labels_of, count in standing.items():
            alerts.add_metric(labels_of, count)
    yield alerts
    yield windows
    yield age
    yield reading
