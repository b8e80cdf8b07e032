"""What Prometheus is told, over http, is what the store holds."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

import ncmon
from ncmon import prometheus
from ncmon.errors import ListenError, UsageError
from tests.ncmon.tui.stage import make_store
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
