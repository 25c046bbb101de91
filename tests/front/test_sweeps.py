"""Whole experiments and sweeps: over pairs, through every launcher, gathered into one table."""

from __future__ import annotations

import fcntl
import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import SPIRALS, call, leftovers, no_pictures, ok, refused, results, statuses, tree
from scipy import stats

from modeconn_cli.report.gather import aggregate
from modeconn_cli.work.machine import _device

SWEEP = ["fit-curve", *SPIRALS, "-m", "seed=0,1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    no_pictures(monkeypatch)


# ---------------------------------------------------------------------------------------------------- sweeps


def test_a_parallel_sweep_writes_what_a_sequential_one_writes_byte_for_byte(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ok(*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "runtime.output_dir=a", "--json").json
    inturn = ok(*SWEEP, "runtime.output_dir=b", "--json").json
    a, b = (
        {k: v for k, v in results(tmp_path / d).items() if "plot" not in k}  # drawn in workers, here not
        for d in "ab"
    )
    assert a == b
    assert len(a) == 2 * (2 * 3 + 2 * 3 + 3)
    assert [j["barriers"] for j in parallel["jobs"]] == [j["barriers"] for j in inturn["jobs"]]
    assert not (tmp_path / "a" / "sweeps").exists()


FATES = f"""
import os
from torch import nn

def build(in_shape, classes, fate):
    if fate == "deadly" and "MODECONN_JOB" in os.environ:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    network = nn.Sequential(nn.Flatten(), nn.Linear(in_shape[0], classes))
    if fate == "bad":
        nn.init.constant_(network[1].weight, float("inf"))
    return network
"""


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_launcher_runs_every_job_and_says_which_failed(launcher: str, tmp_path: Path) -> None:
    """Where every job has a process of its own, one that dies takes only its job."""
    package = {"submitit_local": "submitit"}.get(launcher, launcher)
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")
    (tmp_path / "fates.py").write_text(FATES)
    mine = [o for o in SPIRALS if not o.startswith("architecture")]
    own = ["train-endpoints", *mine, "architecture=custom", "architecture.target=fates.py:build"]
    sweep = [*own, "-m", f"hydra/launcher={launcher}", "architecture.kwargs.fate=good,bad"]
    answer = call(*sweep[:-1], sweep[-1] + (",deadly" if package == "submitit" else ""), "--json")
    assert answer.code == 1
    good, bad, *dead = answer.json["jobs"]
    assert "error" not in good
    assert [e["name"] for e in good["endpoints"]] == ["two_spirals-custom-s0", "two_spirals-custom-s1"]
    assert "learning rate" in bad["error"]
    assert ["job 3 ended without a word" in job["error"] for job in dead] == [True] * (package == "submitit")
    assert "outputs/sweeps/" in answer.err
    assert {s for _, s in statuses(ok(*own, "architecture.kwargs.fate=good", "--json"))} == {"cached"}
    text = call(*sweep)
    assert "job 2" in text.err
    assert "failed" in text.out


def test_a_launcher_that_is_not_there_is_named() -> None:
    assert "did you mean hydra/launcher=joblib?" in refused(*SWEEP, "hydra/launcher=jblib")


def test_a_missing_launcher_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'modeconn[ray]'" in refused(*SWEEP, "hydra/launcher=ray")
    assert tree(tmp_path) == {}


def test_jobs_are_spread_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    seen = []
    for job in range(4):
        monkeypatch.setenv("MODECONN_JOB", str(job))
        seen.append(_device("spread"))
    assert seen == [torch.device("cuda", i) for i in (0, 1, 2, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _device("spread") == torch.device("cpu")


# ------------------------------------------------------------------------------------------------------- run


def test_run_computes_what_its_parts_compute(tmp_path: Path) -> None:
    whole = ok("run", *SPIRALS, "pipeline.replicates=[0,2]", "runtime.output_dir=a", "--json").json
    for seed in (0, 2):
        ok("fit-curve", *SPIRALS, f"seed={seed}", "runtime.output_dir=b", "-q")
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert [v["endpoints"] for v in whole["verdicts"]] == ["seed 0 and seed 1"] * 2 + ["seed 4 and seed 5"] * 2
    assert {row["n"] for row in whole["gathered"]} == {2}
    again = ok("run", *SPIRALS, "pipeline.replicates=[0,2]", "runtime.output_dir=a", "--json")
    assert {s for _, s in statuses(again)} == {"cached"}
    assert again.json["barriers"] == whole["barriers"]


def test_every_pair_of_the_endpoints_or_one_after_another() -> None:
    four = ["run", *SPIRALS, "endpoints.seeds=[0,1,2,3]", "pipeline.paths=[segment]", "--dry-run", "--json"]
    names = [r["name"] for r in ok(*four, "pipeline.pairs=all").json["stages"] if r["stage"] == "interpolate"]
    pairs = ("0-1", "0-2", "0-3", "1-2", "1-3", "2-3")
    assert names == [f"two_spirals-mlp-s{pair}-segment" for pair in pairs]
    rows = ok(*four).json["stages"]
    assert [r["name"] for r in rows if r["stage"] == "interpolate"] == [
        "two_spirals-mlp-s0-1-segment",
        "two_spirals-mlp-s2-3-segment",
    ]
    assert sum(r["stage"] == "train-endpoints" for r in rows) == 4
    assert "pipeline.pairs=all" in refused("run", *SPIRALS, "endpoints.seeds=[0,1,2]")


def test_a_failing_branch_does_not_stop_the_others(tmp_path: Path) -> None:
    options = ["run", *SPIRALS, "pipeline.replicates=[0,1]", "curve.lr=1e20"]
    answer = call(*options, "--json")
    assert answer.code == 1
    rows = answer.json["stages"]
    assert [(r["stage"], r["status"]) for r in rows] == [
        ("train-endpoints", "run"),
        ("train-endpoints", "run"),
        ("interpolate", "run"),
        ("fit-curve", "failed"),
        ("evaluate", "skipped"),
        ("plot", "skipped"),
    ] * 2
    assert [v["path"] for v in answer.json["verdicts"]] == ["segment"] * 2
    text = call(*options)
    assert text.code == 1
    assert "Not done" in text.out
    failed = next(r for r in rows if r["status"] == "failed")
    assert f"{failed['directory']}/log.txt" in text.out
    assert "learning rate" in (tmp_path / failed["directory"] / "log.txt").read_text()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("curve.init_from=nowhere.safetensors", "curve.init_from"),
        ("curve.nesterov=true curve.optimizer=adam", "curve.nesterov"),
        ("interpolation.points=1", "interpolation.points=1"),
        ("pipeline.replicates=[1,1]", "different seeds"),
        ("pipeline.replicates=[1] endpoints.seeds=[0,1]", "drop one"),
        ("pipeline.replicates=[1] seed=5", "seed=5 another"),
        ("pipeline.paths=[]", "pipeline.paths"),
        ("pipeline.paths=[curves]", "pipeline.paths"),
    ],
)
def test_a_wrong_setting_of_a_later_stage_is_found_before_the_first_one(
    override: str, said: str, tmp_path: Path
) -> None:
    assert said in refused("run", *SPIRALS, *override.split())
    assert tree(tmp_path) == {}


# ---------------------------------------------------------------------------------------------------- gather


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lab")
    for width in (4, 8):
        sweep = ["-m", "seed=0,1,2", f"architecture.width={width}", f"runtime.output_dir={root}"]
        ok("interpolate", *[o for o in SPIRALS if "width" not in o], *sweep, "-q")
    return root


def summaries(lab: Path, width: int) -> list[dict[str, Any]]:
    found = []
    for file in sorted(lab.glob("interpolate/*/v1/summary.json")):
        if f"width: {width}\n" in (file.parent / "config.yaml").read_text():
            found.append(json.loads(file.read_text()))
    return found


def test_gather_gives_mean_std_and_interval_over_seeds(lab: Path) -> None:
    rows = ok("gather", str(lab), "--by", "architecture.width", "--over", "seed", "--json").json["rows"]
    assert [(r["path"], r["architecture.width"], r["n"]) for r in rows] == [("segment", 4, 3), ("segment", 8, 3)]
    for row, width in zip(rows, (4, 8), strict=True):
        values = [s["barriers"]["train_loss"]["above_mean"]["value"] for s in summaries(lab, width)]
        found = row["metrics"]["train_loss.above_mean"]
        mean = sum(values) / 3
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
        half = 4.302652729696142 * std / math.sqrt(3)  # 97.5% of Student's t with 2 degrees of freedom, from a table
        assert found["mean"] == pytest.approx(mean)
        assert found["std"] == pytest.approx(std)
        assert [found["low"], found["high"]] == pytest.approx([mean - half, mean + half])


def test_gather_makes_a_row_of_what_differs_and_refuses_to_mix(lab: Path) -> None:
    assert len(ok("gather", str(lab), "--json").json["rows"]) == 2
    (both,) = ok("gather", str(lab), "--over", "architecture.width", "--json").json["rows"]
    assert both["n"] == 6
    message = refused("gather", str(lab), "--by", "dataset")
    assert "architecture.width (4, 8)" in message
    assert "--over architecture.width" in message
    assert "no setting 'curve.bend'" in refused("gather", str(lab), "--by", "curve.bend")
    assert "test_error.max" in refused("gather", str(lab), "--metric", "test_err")
    assert "holds no finished run" in refused("gather", "nowhere")
    assert "bootstrap" in refused("gather", str(lab), "--interval", "z")


def test_gather_takes_patterns_and_the_newest_version(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.parent)
    (row,) = ok("gather", f"{lab.name}/interpolate/*-s0-1-segment-*", "--over", "architecture", "--json").json["rows"]
    assert row["n"] == 2
    (ends,) = ok("gather", f"{lab.name}/train-endpoints", "--over", "architecture", "--json").json["rows"]
    assert (ends["path"], ends["n"]) == ("endpoint", 12)
    assert {*ends["metrics"]} == {"train_nll", "test_error"}


def test_gather_does_not_mix_data_that_differ_nor_count_a_run_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        x, y = rng.normal(size=(80, 3)).astype(np.float32), rng.integers(0, 2, 80)
        np.savez(tmp_path / f"{name}.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    quick = [o for o in SPIRALS if "dataset" not in o]
    for seed, name in enumerate("ab"):
        ok("interpolate", "dataset=arrays", f"dataset.path={name}.npz", f"seed={seed}", *quick, "-q")
    rows = ok("gather", "--json").json["rows"]
    assert [r["n"] for r in rows] == [1, 1]
    assert len({r["dataset.sha256"] for r in rows}) == 2
    twice = ok("gather", "outputs", str(tmp_path / "outputs"), "--json").json["rows"]
    assert [r["n"] for r in twice] == [1, 1]


def test_gather_prints_csv_markdown_and_latex(lab: Path) -> None:
    where = ["gather", str(lab), "--metric", "test_error.max"]
    rows = ok(*where, "--json").json["rows"]
    lines = [line.split(",") for line in ok(*where, "--format", "csv").out.splitlines()]
    assert lines[0] == [
        "path",
        "architecture.width",
        "n",
        *(f"test_error.max.{p}" for p in ("mean", "std", "low", "high")),
    ]
    assert [float(line[3]) for line in lines[1:]] == [r["metrics"]["test_error.max"]["mean"] for r in rows]
    markdown = ok(*where, "--format", "markdown").out.splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    latex = ok(*where, "--format", "latex").out
    assert r"test\_error.max" in latex
    assert latex.count(r"\\") == 3


def test_runs_that_share_an_endpoint_are_said_to() -> None:
    words = ["run", *SPIRALS, "endpoints.seeds=[0,1,2]", "pipeline.pairs=all", "pipeline.paths=[segment]"]
    assert "share an endpoint" in ok(*words, "-q").out
    assert "share an endpoint" not in ok("interpolate", *SPIRALS, "-m", "seed=0,1", "-q").out


def test_bootstrap_intervals_narrow_with_n_and_hold_the_mean() -> None:
    rng = np.random.default_rng(0)
    few, many = (aggregate(list(rng.normal(3, 1, n)), "bootstrap", 0.95) for n in (8, 200))
    for a in (few, many):
        assert a.low < a.mean < a.high
    assert many.high - many.low < few.high - few.low
    normal = stats.norm.ppf(0.975) * many.std / math.sqrt(many.n)
    assert (many.high - many.low) / 2 == pytest.approx(normal, rel=0.1)
    assert math.isnan(aggregate([1.0], "t", 0.95).std)


# -------------------------------------------------------------------------------------------------- runs gc


def test_gc_removes_what_nothing_kept_needs_after_showing_it(tmp_path: Path) -> None:
    ok("fit-curve", *SPIRALS, "-q")
    ok("fit-curve", *SPIRALS, "--force", "-q")
    before = tree(tmp_path)
    shown = ok("runs", "gc").out
    assert "v2 is newer" in shown
    assert "nothing was removed" in shown
    assert tree(tmp_path) == before
    going = ok("runs", "gc", "--yes", "--json").json
    # The second curve was computed on the same endpoints and segment; everything of the first but those goes.
    assert sorted(r["directory"].split("/")[1] for r in going["runs"]) == ["evaluate", "fit-curve", "plot"]
    assert all(r["directory"].endswith("/v1") for r in going["runs"])
    assert not any(Path(r["directory"]).exists() for r in going["runs"])
    assert {s for _, s in statuses(ok("fit-curve", *SPIRALS, "--json"))} == {"cached"}
    assert "can go" in ok("runs", "gc").out


def test_gc_keeps_what_kept_runs_are_built_on(tmp_path: Path) -> None:
    ok("fit-curve", *SPIRALS, "-q")
    ok("fit-curve", *SPIRALS, "seed=1", "-q")
    ok("runs", "gc", "--keep", "evaluate/two_spirals-mlp-s2-3", "--yes")
    left = [f"{r['stage']} {r['name'].rsplit('-', 1)[0]}" for r in ok("runs", "list", "--json").json["runs"]]
    assert sorted(left) == [
        "evaluate two_spirals-mlp-s2-3-bezier1",
        "fit-curve two_spirals-mlp-s2-3-bezier1",
        "train-endpoints two_spirals-mlp-s2",
        "train-endpoints two_spirals-mlp-s3",
    ]
    assert "no run has this" in refused("runs", "gc", "--keep", "nothing")


def test_gc_removes_damaged_runs_but_none_that_is_begun_or_busy(tmp_path: Path) -> None:
    rows = ok("train-endpoints", *SPIRALS, "--json").json["stages"]
    first, second = (Path(r["directory"]) for r in rows)
    (first / "checkpoint.safetensors").unlink()
    (second / "DONE").unlink()
    with open(first.parent / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ok("runs", "gc", "--json").json["runs"] == []
    (row,) = ok("runs", "gc", "--yes", "--json").json["runs"]
    assert row["directory"] == str(first)
    assert not first.parent.exists()
    assert second.exists()


def test_nothing_is_left_of_a_run_but_runs(tmp_path: Path) -> None:
    ok("run", *SPIRALS, "-q")
    assert leftovers(tmp_path) == []
