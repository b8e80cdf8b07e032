"""Every command on a real store: what people read, what machines read, and that both say the same."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

import ncmon
from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS
from ncmon.store import schema
from tests.ncmon.cli.conftest import Run

LISTINGS = [
    ("runs",),
    ("show", "digits-bn"),
    ("history", "digits-bn", "--metric", "nc1_pinv"),
    ("history", "digits-bn", "--metric", "cert_intra", "--class", "1"),
    ("bounds", "digits-bn", "--per-class"),
    ("compare", "run0", "run2"),
    ("metrics",),
    ("query", "SELECT run_id, metric, value FROM history WHERE metric = 'alpha'"),
]


@pytest.mark.parametrize("arguments", LISTINGS, ids=" ".join)
def test_all_formats_hold_the_same_rows_at_full_precision(run: Run, arguments: tuple[str, ...]) -> None:
    as_json = json.loads(run(*arguments, "--format", "json").stdout)
    as_lines = [json.loads(line) for line in run(*arguments, "--format", "jsonl").stdout.splitlines()]
    as_csv = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv").stdout)))
    assert as_json
    assert as_lines == as_json
    assert len(as_csv) == len(as_json)
    assert list(as_csv[0]) == list(as_json[0])
    for record, fields in zip(as_json, as_csv, strict=True):
        for key, value in record.items():
            if isinstance(value, float):
                assert float(fields[key]) == value
            elif value is None:
                assert fields[key] == ""
    text = run(*arguments).stdout
    assert text.strip()
    assert "\x1b" not in text
    assert not any(ord(letter) < 32 and letter != "\n" for letter in text)


def test_history_is_what_the_store_holds(run: Run, made: Path) -> None:
    rows = json.loads(run("history", "digits-bn", "--metric", "nc1_pinv", "--split", "test", "--format", "json").stdout)
    with ncmon.open(made) as store:
        history = store.run("digits-bn").history("nc1_pinv", split="test")
    assert [row["value"] for row in rows] == history.value.tolist()
    assert [row["epoch"] for row in rows] == history.epoch.tolist()
    text = run("history", "digits-bn", "--metric", "nc1_pinv", "--split", "test").stdout.splitlines()
    assert text[0].split() == ["STEP", "EPOCH", "KIND", "VALUE"]
    assert float(text[1].split()[-1]) == pytest.approx(history.value[0], rel=1e-3)
    alias = run("history", "digits-bn", "--metric", "nc1", "--split", "test", "--format", "json")
    if alias.exit_code == 0:
        assert json.loads(alias.stdout) == rows


def test_runs_shows_the_newest_first_and_short(run: Run) -> None:
    lines = run("runs").stdout.splitlines()
    assert lines[0].split()[:3] == ["RUN", "NAME", "STATUS"]
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert len(run("runs", "--limit", "1").stdout.splitlines()) == 2


def test_show_tells_every_metric_or_why_not(run: Run) -> None:
    text = run("show", "digits-bn").stdout
    for metric in METRICS:
        if metric.scope in ("layer", "classifier", "window"):
            assert f"\n{metric.name} " in text, metric.name
    assert "streaming" in text
    assert "(exact)" in text
    one = json.loads(run("show", "digits-bn", "--split", "test", "--layer", "blocks.0", "--format", "json").stdout)
    assert {row["layer"] for row in one} == {"blocks.0"}
    assert {row["split"] for row in one} == {"test"}
    assert all((row["value"] is None) == (row["reason"] is not None) for row in one)
    early = json.loads(run("show", "digits-bn", "--epoch", "2", "--format", "json").stdout)
    assert {row["epoch"] for row in early} == {2}


def test_bounds_puts_guarantee_beside_measurement(run: Run) -> None:
    rows = json.loads(run("bounds", "digits-bn", "--per-class", "--format", "json").stdout)
    assert {row["bound"] for row in rows} == {bound.name for bound in BOUNDS if bound.scope != "pair"}
    for row in rows:
        assert row["standing"] == ("guarantee" if row["exact"] else "estimate")
        if row["value"] is not None:
            assert row["state"] == "holds"
            expected = row["measured"] - row["value"] if row["side"] == "lower" else row["value"] - row["measured"]
            assert row["slack"] == pytest.approx(expected)
        else:
            assert row["reason"]
    text = run("bounds", "digits-bn").stdout
    for part in ("intra_cos_min", ">= cert_intra_min", "SLACK", "The bounds assume", "Source: "):
        assert part in text


def test_metrics_explains_one_or_all(run: Run) -> None:
    assert run("metrics").stdout.count("\n\n") == len(METRICS) + len(BOUNDS) - 1
    text = run("metrics", "nc1_pinv").stdout
    assert text.startswith("nc1_pinv")
    assert "at collapse 0" in text
    for alias in (alias for metric in METRICS for alias in metric.aliases):
        assert run("metrics", alias).exit_code == 0


def test_query_counts_and_cuts(run: Run) -> None:
    done = run("query", "SELECT run_id FROM runs", "--max-rows", "2", "--format", "csv")
    assert len(done.stdout.splitlines()) == 3
    assert "only the first 2 rows" in done.stderr
    piped = run("query", "-", "--format", "json", input="SELECT count(*) AS n, count(*) AS n FROM runs")
    assert json.loads(piped.stdout) == [{"n": 4, "n_2": 4}]


def test_watch_without_a_terminal_prints_what_there_is(run: Run, made: Path) -> None:
    text = run("watch", str(made))
    assert text.exit_code == 0, text.stderr
    assert "digits-bn" in text.stdout
    assert "\x1b" not in text.stdout
    record = json.loads(run("watch", str(made), "--format", "json").stdout)
    assert record["state"] == "REPLAY"
    assert [one["name"] for one in record["runs"]].count("digits-bn") == 1
    assert all(not isinstance(value, float) or math.isfinite(value) for one in record["runs"] for value in one.values())


def test_a_hostile_name_moves_no_cursor(run: Run) -> None:
    for arguments in (("runs",), ("show", "run3"), ("bounds", "run3"), ("query", "SELECT name FROM runs")):
        done = run(*arguments)
        assert done.exit_code == 0, done.stderr
        for letter in ("\x1b", "\x07", "\u202e"):
            assert letter not in done.stdout


def test_bounds_for_all_but_a_share_of_the_classes(run: Run, made: Path) -> None:
    rows = json.loads(run("bounds", "digits-bn", "--delta", "0.5", "--format", "json").stdout)
    some = [row for row in rows if row["exceptions"]]
    names = {f"sharp_{kind}" for kind in ("intra", "nc3", "inter")} | {
        f"thm_{kind}" for kind in ("intra", "nc3", "inter")
    }
    names |= {"thm_tight_intra", "thm_tight_inter"}
    assert {row["bound"] for row in some} == names
    assert {row["exceptions"] for row in some} == {2}
    for row in some:
        with ncmon.open(made) as store:
            intra = sorted(store.run("digits-bn").classes("intra_cos", split=row["split"], step=row["step"]).values[-1])
        if row["quantity"] == "intra_cos_min":
            assert row["measured"] == intra[2]
        if row["quantity"] == "inter_cos_max":
            # Of four classes two are left: the pair that is farthest apart.
            with ncmon.open(made) as store:
                matrix = store.run("digits-bn").matrix("inter_cos", split=row["split"], step=row["step"])
            assert row["measured"] == np.nanmin(matrix[~np.eye(len(matrix), dtype=bool)])
        assert row["value"] is None or row["value"] <= row["measured"]
        assert (row["value"] is None) == (row["reason"] is not None)
    text = run("bounds", "digits-bn").stdout
    for part in ("ASSUMPTION", "the weights stood still", "weight decay on the classifier"):
        assert part in text


ALIASES = sorted({alias for metric in METRICS for alias in metric.aliases})
PUBLISHED = (
    *("nc1_pinv", "nc1_svd", "nc1_quot", "nc1_cdnv", "nc2_etf_err", "nc2g_dist", "nc2g_log"),
    *("nc3_cos", "nc3_dual", "nc3_dual_err", "nc3_self_dual", "nc3u_uni_dual", "nc4_agree"),
)
"""Names of rhubarbwu/neural-collapse."""


def test_other_names_are_understood_by_every_command(run: Run, tmp_path: Path) -> None:
    one, two = "digits-bn", "vit-small-wd1e-4"
    for name in dict.fromkeys([*PUBLISHED, *ALIASES]):
        known = json.loads(run("metrics", name, "--format", "json").stdout)[0]["name"]
        by_name, by_alias = (
            json.loads(run("history", one, "--metric", text, "--format", "json").stdout) for text in (known, name)
        )
        assert by_alias == by_name
        assert len(by_alias) > 1
    option = [part for name in PUBLISHED for part in ("--metric", name)]
    for arguments in (("compare", one, two, *option), ("runs", *option), ("runs", "--sort", "nc1_quot")):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
    assert run("compare", one, two, "--first", "nc1_quot<9").exit_code == 0
    assert run("runs", "--where", "nc2g_dist<9").exit_code == 0
    drawn = run("plot", one, "--metric", "nc1_quot", "-o", str(tmp_path / "a.svg"))
    assert drawn.exit_code == 0, drawn.output
    exported = run("export", one, "-o", str(tmp_path / "a.csv"), *option)
    assert exported.exit_code == 0, exported.output
    text = (tmp_path / "a.csv").read_text()
    assert "nc1_trace_ratio" in text
    assert "nc3_centred_cos_mean" in text
    joined = "SELECT count(*) AS n FROM history JOIN aliases USING (metric) WHERE alias = 'nc1_quot'"
    assert json.loads(run("query", joined, "--format", "json").stdout)[0]["n"] > 0


def test_show_says_how_far_its_numbers_can_be_trusted(run: Run) -> None:
    text = run("show", "digits-bn").stdout
    assert "rank 3, cosines resolved to 1e-07\n  means moved by 0.2 since the window before: about " in text
    (record, *_) = json.loads(run("show", "digits-bn", "--split", "test", "--format", "json").stdout)
    assert record["mean_shift"] == pytest.approx(0.2)
    assert record["movement_share"] is None
    assert record["rank_used"] == 3


@pytest.mark.parametrize("name", schema.QUALITY)
def test_how_far_numbers_can_be_trusted_has_a_history(run: Run, name: str) -> None:
    found = json.loads(run("history", "digits-bn", "--metric", name, "--format", "json").stdout)
    assert len(found) == 12
    assert all(record["value"] is not None for record in found)
