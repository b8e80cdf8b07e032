"""What Prometheus is told, over http, is what the store holds."""

from __future__ import annotations

import dataclasses
import urllib.request
from pathlib import Path

import pytest

import ncmon
from ncmon import prometheus
from ncmon.errors import ListenError, UsageError
from ncmon.store.writer import Writer
from tests.ncmon.tui.stage import make_alert, make_store
from tests.ports import free_ports


@pytest.mark.sockets
def test_the_figures_are_those_of_the_store(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    path = make_store(tmp_path / "runs.db", epochs=6, hostile=True)
    port = free_ports()
    counted = {"accepted": 7, "stored": 5, "rejected": 1, "waiting": 1, "connected": 2}
    stop = prometheus.serve(("127.0.0.1", port), path, lambda: counted)
    try:
        with pytest.raises(ListenError, match="cannot be used"):
            prometheus.serve(("127.0.0.1", port), path, lambda: counted)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        stop()
    samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}
    assert values[("ncmon_messages_stored_total",)] == 5
    assert values[("ncmon_waiting",)] == 1
    with ncmon.open(path) as store:
        summaries = store.summary()
    assert len(summaries) > 1
    for summary in summaries:
        labels = {"run_id": summary.run.run_id, "run": summary.run.name, "split": summary.split}
        assert values[("ncmon_windows", *sorted(labels.items()))] == summary.n_windows
        for metric, value in summary.values.items():
            if value == value:
                assert values[("ncmon_reading", *sorted({**labels, "metric": metric}.items()))] == pytest.approx(value)


@pytest.mark.parametrize("text", ["9090", ":9090", "host:", "host:port", "host:99999"])
def test_an_address_is_host_and_port(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        prometheus.address(text)
    assert prometheus.address("127.0.0.1:9090") == ("127.0.0.1", 9090)


@pytest.mark.sockets
def test_open_alerts_are_figures_that_come_and_go(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    path = make_store(tmp_path / "runs.db", epochs=4, others=False)
    port = free_ports()
    counted = {"alerts": 0}
    stop = prometheus.serve(("127.0.0.1", port), path, lambda: counted)

    def said() -> tuple[dict[tuple[str, str, str, str], float], float]:
        """Return how many are open, by run, rule, severity and whether they were seen; and how many there were."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = list(parser.text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples]
        names = ("run", "rule", "severity", "acknowledged")
        found = {
            tuple(sample.labels[name] for name in names): sample.value
            for sample in samples
            if sample.name == "ncmon_alerts_open"
        }
        return found, next(sample.value for sample in samples if sample.name == "ncmon_alerts_raised_total")  # type: ignore[return-value]

    try:
        with Writer.open(path) as writer:
            assert said() == ({}, 0)
            alerts = (
                make_alert(rule="class-dead", run_id="run0", class_index=1),
                make_alert(rule="class-dead", run_id="run0", class_index=2),
                make_alert(rule="nonfinite", run_id="run0", severity="alert"),
            )
            writer.put_alerts(alerts, {})
            counted["alerts"] = 3
            dead, broken = ("digits-bn", "class-dead", "warning"), ("digits-bn", "nonfinite", "alert")
            assert said() == ({(*dead, "false"): 2, (*broken, "false"): 1}, 3)
            # One is over: it is counted no more, but it has been.
            writer.put_alerts([dataclasses.replace(alerts[0], cleared=alerts[0].since + 10)], {})
            assert said() == ({(*dead, "false"): 1, (*broken, "false"): 1}, 3)
            # One was seen: it is still so, and says that it was seen.
            with ncmon.open(path) as store:
                (number,) = (alert.alert_id for alert in store.alerts(only_open=True) if alert.rule == "nonfinite")
            writer.acknowledge([number], now=2.0)
            assert said() == ({(*dead, "false"): 1, (*broken, "true"): 1}, 3)
            over = [dataclasses.replace(alert, cleared=alert.since + 20) for alert in alerts[1:]]
            writer.put_alerts(over, {})
            assert said() == ({}, 3)
    finally:
        stop()
