"""Two ranks under torchrun and one daemon: the readings are those of one process that saw all samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ncmon
from tests.end_to_end.site import Site

pytestmark = [pytest.mark.sockets, pytest.mark.training, pytest.mark.timeout(180)]

RANKS = Path(__file__).with_name("ranks.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def trained(site: Site, how: str, *more: str) -> list[dict[str, Any]]:
    launcher = () if how == "plain" else TORCHRUN
    child = site.start(*launcher, str(RANKS), "--endpoint", site.endpoint, "--how", how, *more, log=how)
    assert child.wait(timeout=120) == 0, site.read(f"{how}.err")
    reports = [json.loads(line) for line in site.read(f"{how}.out").splitlines() if line.startswith("{")]
    assert len({report["run_id"] for report in reports}) == 1, "the ranks are not one run"
    for report in reports:
        assert report["acknowledged"] == report["accepted"], report
        assert report["error"] == "", report
    site.settle()
    return sorted(reports, key=lambda report: report["rank"])


def readings(site: Site, run: str) -> dict[tuple[str, str, int], float | None]:
    with ncmon.open(site.database) as store:
        rows = store.sql(
            f"SELECT layer, metric, step, value FROM history WHERE run_name = '{run}'", max_rows=100_000, timeout_s=10
        ).rows
    return {(str(layer), str(metric), int(step)): value for layer, metric, step, value in rows}


def windows(site: Site, run_id: str) -> list[tuple[Any, ...]]:
    with ncmon.open(site.database) as store:
        query = (
            "SELECT window.step, window.world_size, window.ranks FROM window JOIN run USING (run_key)"
            f" WHERE run_id = '{run_id}' ORDER BY window.step"
        )
        return [tuple(row) for row in store.sql(query, max_rows=100, timeout_s=10).rows]


def test_two_ranks_are_one_process_that_saw_all_samples(site: Site) -> None:
    site.daemon()
    # A sharded classifier is copied while a pass has it whole: it is the one of the last pass, one small step behind.
    for how in ("ddp", "fsdp", "plain"):
        ranks = trained(site, how, "--lr", "1e-4")
        assert [report["rank"] for report in ranks] == ([0] if how == "plain" else [0, 1])
    alone = readings(site, "plain")
    # The classifier is whole, also where its parameter is in shards.
    assert alone["classifier-input", "nc3_cos_min", 12] is not None
    assert {layer for layer, _, _ in alone} == {"0", "classifier-input"}
    for how in ("ddp", "fsdp"):
        merged = readings(site, how)
        assert merged.keys() == alone.keys()
        compared = 0
        for key, value in alone.items():
            assert (merged[key] is None) == (value is None), key
            # A streaming window's nearest-class decisions are by each rank's own means of the window before.
            if value is None or key[1].startswith("ncc"):
                continue
            np.testing.assert_allclose(merged[key], value, rtol=2e-4, atol=1e-5, err_msg=f"{how} {key}")
            compared += 1
        assert compared > 50


def test_a_rank_that_is_not_there_is_shown(site: Site) -> None:
    site.daemon()
    ranks = trained(site, "ddp", "--leave")
    found = windows(site, ranks[0]["run_id"])
    assert [(step, world) for step, world, _ in found] == [(4, 2), (8, 2), (12, 2)]
    assert [json.loads(str(present)) for _, _, present in found] == [[0, 1], [0], [0]]


def test_a_job_that_torchrun_restarts_goes_on_as_one_run(site: Site, tmp_path: Path) -> None:
    site.daemon()
    launcher = (*TORCHRUN, "--max-restarts", "1")
    options = ("--endpoint", site.endpoint, "--how", "ddp", "--checkpoint", str(tmp_path / "checkpoint.pt"))
    child = site.start(*launcher, str(RANKS), *options, log="elastic")
    assert child.wait(timeout=150) == 0, site.read("elastic.err")
    assert "this rank dies, once" in site.read("elastic.err")
    reports = [json.loads(line) for line in site.read("elastic.out").splitlines() if line.startswith("{")]
    (run_id,) = {report["run_id"] for report in reports}
    site.settle()
    # Four steps an epoch, a window every two: the checkpoint is that of step 4, the last window before the end 10.
    with ncmon.open(site.database) as store:
        (run,) = store.runs()
        assert (run.run_id, run.run.attempt) == (run_id, 2)
        assert sorted(set(run.window_columns().step.tolist())) == [2, 4, 6, 8, 10, 12]
        (tail,) = run.superseded()
        assert (tail.run_id, tail.attempt, tail.steps[0]) == (f"{run_id}@1", 1, 6)
        assert tail.steps[1] in (10, 11)
        attempts = store.sql(
            f"SELECT step, window.attempt FROM window JOIN run USING (run_key) WHERE run_id = '{run_id}'"
        ).rows
        assert dict(attempts) == {2: 1, 4: 1, 6: 2, 8: 2, 10: 2, 12: 2}
    assert [json.loads(str(ranks)) for _, _, ranks in windows(site, run_id)] == [[0, 1]] * 6
