"""Every command as a person or a script uses it: answers, files, messages, exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from cli_helpers import (
    BIN,
    DIGITS,
    QUICK,
    SPIRALS,
    Answer,
    call,
    folders,
    no_pictures,
    ok,
    refused,
    results,
    statuses,
    tree,
)
from safetensors.torch import load_file

from modeconn_cli import __version__
from modeconn_cli.front import console
from modeconn_cli.stages.endpoints import CHECKPOINT

COMMANDS = [
    "train-endpoints",
    "interpolate",
    "fit-curve",
    "rebasin",
    "run",
    "evaluate",
    "plot",
    "report",
    "gather",
    "ensemble",
    "budgets",
    "fge",
    "soup",
    "snapshot",
    "swa",
    "swag",
    "uncertainty",
    "connect",
    "export",
    "reproduce",
    "symmetries",
    "runs",
    "doctor",
    "completion",
]
RUNS = ["list", "show", "compare", "path", "gc"]
METRICS = [f"{split}_{metric}" for split in ("train", "test") for metric in ("loss", "nll", "error")]
CONVENTIONS = ["above_line", "above_mean", "above_max", "midpoint"]


@pytest.fixture
def pictures() -> None:
    """Asked for by tests whose pictures are to be drawn."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "pictures" not in request.fixturenames:
        no_pictures(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    monkeypatch.setattr(console.out, "_width", 200)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **more}


# ------------------------------------------------------------------------------------------- a whole request


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """One fit-curve on digits whose maximum is searched for, and where its runs are. Read it, change nothing."""
    root = tmp_path_factory.mktemp("lab") / "outputs"
    wanted = [*DIGITS, "endpoints.epochs=8", "curve.epochs=4", "interpolation.points=5", "interpolation.search_max=3"]
    return root, ok("fit-curve", *wanted, f"runtime.output_dir={root}", "--json")


def measured(lab: tuple[Path, Answer]) -> list[tuple[str, pd.DataFrame, dict[str, Any], Path]]:
    places = folders(lab[1])
    return [
        (stage, pd.read_csv(places[stage] / "path.csv"), json.loads((places[stage] / "summary.json").read_text()), p)
        for stage in ("interpolate", "evaluate")
        for p in [places[stage]]
    ]


def test_fit_curve_runs_every_stage_in_order(lab: tuple[Path, Answer]) -> None:
    root, answer = lab
    content = answer.json
    assert (content["command"], content["exit_code"]) == ("fit-curve", 0)
    stages = ["train-endpoints", "train-endpoints", "interpolate", "fit-curve", "evaluate", "plot"]
    assert statuses(answer) == [(s, "run") for s in stages]
    for row in content["stages"]:
        folder = Path(row["directory"])
        assert folder.parent.parent == root / row["stage"]
        assert re.fullmatch(re.escape(row["name"]) + "-[0-9a-f]{10}", folder.parent.name)
        assert folder.name == "v1"
    assert answer.err == ""


def test_every_directory_says_where_it_comes_from(lab: tuple[Path, Answer]) -> None:
    wanted = {
        "train-endpoints": {"checkpoint.safetensors", "metrics.csv", "summary.json"},
        "fit-curve": {"checkpoint.safetensors", "metrics.csv", "summary.json"},
        "interpolate": {"path.csv", "summary.json", "scores.safetensors"},
        "evaluate": {"path.csv", "summary.json", "scores.safetensors"},
        "plot": {"plot.png", "plot.svg", "summary.json"},
    }
    upstream = {"train-endpoints": 0, "fit-curve": 2, "interpolate": 2, "evaluate": 1, "plot": 2}
    always = {"config.yaml", "provenance.json", "log.txt", "DONE"}
    for row in lab[1].json["stages"]:
        folder = Path(row["directory"])
        assert {p.name for p in folder.iterdir()} == wanted[row["stage"]] | always
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["modeconn"] == __version__
        assert provenance["torch"] == torch.__version__
        assert provenance["identity"]["stage"] == row["stage"]
        assert folder.parent.name.endswith(provenance["identity"]["digest"])
        assert len(provenance["upstream"]) == upstream[row["stage"]]
        assert all((Path(p) / "DONE").is_file() for p in provenance["upstream"])
        assert re.fullmatch("[0-9a-f]{64}", provenance["dataset_sha256"])
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["architecture"]["width"], config["dataset"]["train_size"]) == (8, 200)
        done = json.loads((folder / "DONE").read_text())["files"]
        assert done == {n: (folder / n).stat().st_size for n in {*done}}
        assert {*done} >= wanted[row["stage"]] | {"config.yaml", "provenance.json"}


def test_provenance_holds_a_command_that_can_be_typed_again(lab: tuple[Path, Answer]) -> None:
    provenance = json.loads((folders(lab[1])["evaluate"] / "provenance.json").read_text())
    command, *words = shlex.split(provenance["command"])
    assert Path(command).name == "modeconn"
    assert words[0] == "fit-curve"
    assert {"architecture.width=8", "endpoints.epochs=8"} <= {*words}
    assert {status for _, status in statuses(ok(*(w for w in words if w != "--json"), "--json"))} == {"cached"}


def test_path_csv_has_the_columns_and_rows_of_the_contract(lab: tuple[Path, Answer]) -> None:
    for stage, table, _, folder in measured(lab):
        assert list(table.columns) == ["t", "length", "l2", *METRICS, *(f"{m}_se" for m in METRICS), "searched"]
        assert table["t"].is_monotonic_increasing
        assert table["t"].is_unique
        grid = table[table["searched"] == 0]
        np.testing.assert_array_equal(grid["t"], np.linspace(0, 1, 5))
        assert 1 <= (table["searched"] == 1).sum() <= 3
        assert {*table["searched"]} == {0, 1}
        assert np.isfinite(table.to_numpy()).all()
        assert table["length"].iloc[0] == 0
        assert (table["length"].diff()[1:] > 0).all(), stage
        assert not re.search(r"\r|np\.|nan|inf", (folder / "path.csv").read_text())
        decay = 5e-4 / 2 * table["l2"] ** 2
        for split in ("train", "test"):
            np.testing.assert_allclose(table[f"{split}_loss"], table[f"{split}_nll"] + decay, rtol=1e-12)
            assert table[f"{split}_error"].between(0, 100).all()
            assert (table[f"{split}_nll_se"] > 0).all()


def test_both_paths_share_their_ends(lab: tuple[Path, Answer]) -> None:
    (_, segment, _, _), (_, curve, _, _) = measured(lab)
    for row in (0, -1):
        for column in ["l2", *METRICS, *(f"{m}_se" for m in METRICS)]:
            assert segment[column].iloc[row] == pytest.approx(curve[column].iloc[row], rel=1e-6), column
    endpoints = lab[1].json["endpoints"]
    for row, endpoint in zip((0, -1), endpoints, strict=True):
        for metric in ("train_nll", "train_error", "test_nll", "test_error"):
            assert segment[metric].iloc[row] == pytest.approx(endpoint[metric], rel=1e-5), metric
    assert curve["length"].iloc[-1] > segment["length"].iloc[-1]


def test_summary_is_what_path_csv_says(lab: tuple[Path, Answer]) -> None:
    for _, table, summary, _ in measured(lab):
        assert {*summary["columns"]} == {"l2", *METRICS}
        for name, found in summary["columns"].items():
            values = table[name].to_numpy()
            wanted = {
                "start": values[0],
                "end": values[-1],
                "min": values.min(),
                "max": values.max(),
                "mean": values[(table["searched"] == 0).to_numpy()].mean(),
                "integral": np.trapezoid(values, table["length"]),
            }
            assert found == pytest.approx(wanted, rel=1e-12), name
        assert summary["length"] == table["length"].iloc[-1]
        assert summary["grid_points"] == 5
        assert summary["maximum"]["searched_between_grid_points"] is True
        assert summary["maximum"]["t"] == table["t"][table["train_loss"].idxmax()]
        assert summary["splits"]["train"] == {"split": "train", "examples": 200, "whole": True, "augmented": False}
        assert summary["splits"]["test"]["examples"] == 360


def test_barriers_are_those_of_path_csv_by_every_convention(lab: tuple[Path, Answer]) -> None:
    for _, table, summary, _ in measured(lab):
        assert {*summary["barriers"]} == {*METRICS}
        t = table["t"].to_numpy()
        for name, found in summary["barriers"].items():
            values = table[name].to_numpy()
            a, b = values[0], values[-1]
            wanted = {
                "above_line": (values - (1 - t) * a - t * b).max(),
                "above_mean": values.max() - (a + b) / 2,
                "above_max": values.max() - max(a, b),
                "midpoint": values[t == 0.5][0] - (a + b) / 2,
            }
            assert {k: v["value"] for k, v in found.items()} == pytest.approx(wanted, abs=1e-12), name
            for interval in found.values():
                assert interval["low"] <= interval["corrected"] <= interval["value"] <= interval["high"]
        verdict = summary["verdict"]
        # Frankle et al. 2020, whose threshold it is, measure above the endpoints' mean.
        assert (verdict["metric"], verdict["convention"], verdict["below"]) == ("test_error", "above_mean", 2.0)
        barrier = summary["barriers"]["test_error"]["above_mean"]
        assert [verdict[k] for k in ("value", "low", "high")] == [barrier[k] for k in ("value", "low", "high")]
        half = NormalDist().inv_cdf(3 / 5) * barrier["se"]  # odds of 3 to 2
        low, high = barrier["corrected"] - half, barrier["corrected"] + half
        connected = "yes" if high < 2 else "no" if low >= 2 else "undecided"
        assert verdict["connected"] == connected


def test_the_json_answer_repeats_the_summaries(lab: tuple[Path, Answer]) -> None:
    content = lab[1].json
    summaries = {s["path"]: s for _, _, s, _ in measured(lab)}
    assert len(content["barriers"]) == 4
    for row in content["barriers"]:
        summary = summaries[row["path"]]
        assert row["max"] == summary["columns"][row["metric"]]["max"]
        assert {c: row[c] for c in CONVENTIONS} == summary["barriers"][row["metric"]]
    assert [v["connected"] for v in content["verdicts"]] == [s["verdict"]["connected"] for s in summaries.values()]
    assert Path(content["plot"]).read_bytes().startswith(b"\x89PNG")


def test_metrics_csv_has_a_row_an_epoch(lab: tuple[Path, Answer]) -> None:
    for stage, epochs in (("train-endpoints", 8), ("fit-curve", 4)):
        table = pd.read_csv(folders(lab[1])[stage] / "metrics.csv")
        assert list(table["epoch"]) == list(range(1, epochs + 1))
        assert list(table["step"]) == [2 * e for e in range(1, epochs + 1)]  # 200 examples in batches of 128
        assert np.isfinite(table.to_numpy()).all()


def test_a_curves_checkpoint_holds_its_control_points(lab: tuple[Path, Answer]) -> None:
    places = folders(lab[1])
    points = load_file(places["fit-curve"] / CHECKPOINT)
    ends = [load_file(Path(r["directory"]) / CHECKPOINT) for r in lab[1].json["stages"][:2]]
    assert {k.split(".", 1)[0] for k in points} == {"0", "1", "2"}
    for k, end in ((0, ends[0]), (2, ends[1])):
        for name, value in end.items():
            assert torch.equal(points[f"{k}.{name}"], value)


def test_the_second_time_everything_is_cached(lab: tuple[Path, Answer], tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    shutil.copytree(lab[0], root)
    first = lab[1].json
    words = [o for o in first["overrides"] if not o.startswith("runtime.")]
    before = tree(root)
    again = ok("fit-curve", *words, "--json")
    assert {s for _, s in statuses(again)} == {"cached"}
    assert tree(root) == before
    for key in ("endpoints", "barriers", "verdicts"):
        assert again.json[key] == first[key]
    planned = ok("fit-curve", *words, "--dry-run", "--json")
    assert {s for _, s in statuses(planned)} == {"cached"}
    assert sum(r["gradient_steps"] for r in planned.json["stages"]) == 0


# -------------------------------------------------------------------------------------------- other requests


def test_force_computes_its_own_stages_again_to_the_same_bytes(tmp_path: Path) -> None:
    first = ok("fit-curve", *SPIRALS, "--json")
    again = ok("fit-curve", *SPIRALS, "--json", "--force")
    assert [s for _, s in statuses(again)] == ["cached", "cached", "cached", "run", "run", "run"]
    assert [r["why"] for r in again.json["stages"]][3:] == ["--force"] * 3
    old, new = folders(first), folders(again)
    for stage in ("fit-curve", "evaluate", "plot"):
        assert (new[stage].parent, new[stage].name) == (old[stage].parent, "v2")
        for file in results(old[stage]):
            assert (new[stage] / file).read_bytes() == (old[stage] / file).read_bytes(), f"{stage}/{file}"
    assert (new["evaluate"] / "path.csv").is_file()
    for stage in ("interpolate", "train-endpoints"):
        assert not (old[stage].parent / "v2").exists()
    provenance = json.loads((new["evaluate"] / "provenance.json").read_text())
    assert provenance["upstream"] == [str(new["fit-curve"])]
    evaluated = ok("evaluate", *SPIRALS, "--force", "--json")
    assert [s for _, s in statuses(evaluated)] == ["cached", "cached", "cached", "cached", "run", "run"]
    assert folders(evaluated)["evaluate"].name == "v3"
    assert {s for _, s in statuses(ok("fit-curve", *SPIRALS, "--json"))} == {"cached"}


@pytest.mark.parametrize("words", [[], ["--json"], ["--multirun", "seed=0,1"], ["--multirun", "seed=0,1", "--json"]])
def test_dry_run_writes_nothing(words: list[str], tmp_path: Path) -> None:
    ok("train-endpoints", *SPIRALS, "endpoints.seeds=[1]", "-q")
    before = tree(tmp_path)
    answer = ok("fit-curve", *SPIRALS, "--dry-run", *words)
    assert tree(tmp_path) == before
    if "--json" not in words:
        for part in ("train-endpoints", "cached", "never computed", "outputs/evaluate/", "parameters", "steps"):
            assert part in answer.out
        return
    content = answer.json
    for job in content.get("jobs", [content]):
        assert job["parameters"] == 2 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * 2 + 2
        for row in job["stages"]:
            assert {*row} == {"stage", "name", "status", "why", "directory", "gradient_steps"}
            assert row["directory"].startswith(f"outputs/{row['stage']}/{row['name']}-")
    first = content.get("jobs", [content])[0]
    assert [(r["status"], r["gradient_steps"]) for r in first["stages"]] == [
        ("run", 2),
        ("cached", 0),
        ("run", 0),
        ("run", 2),
        ("run", 0),
        ("run", 0),
    ]
    assert "finished as v1" in first["stages"][1]["why"]


def test_a_plan_names_the_directories_that_the_run_then_writes() -> None:
    planned = ok("fit-curve", *SPIRALS, "--dry-run", "--json").json["stages"]
    done = ok("fit-curve", *SPIRALS, "--json").json["stages"]
    assert [r["directory"] for r in planned] == [r["directory"] for r in done]


def test_seed_is_a_replicate() -> None:
    config = ["train-endpoints", *SPIRALS, "--dry-run", "--json"]

    def names(*words: str) -> list[str]:
        return [r["name"] for r in ok(*config, *words).json["stages"]]

    assert names() == ["two_spirals-mlp-s0", "two_spirals-mlp-s1"]
    assert names("seed=5") == ["two_spirals-mlp-s10", "two_spirals-mlp-s11"]
    assert names("endpoints.seeds=[3,5]") == ["two_spirals-mlp-s3", "two_spirals-mlp-s5"]
    assert names("endpoints.seeds=[7]") == ["two_spirals-mlp-s7"]
    by_replicate = ok("train-endpoints", *SPIRALS, "seed=5", "--dry-run", "--json").json["stages"]
    by_name = ok("train-endpoints", *SPIRALS, "endpoints.seeds=[10,11]", "--dry-run", "--json").json["stages"]
    assert by_replicate == by_name


def test_a_sweep_is_one_object_with_a_job_a_value(tmp_path: Path) -> None:
    answer = ok("fit-curve", *SPIRALS, "-m", "seed=0,1", "--json")
    assert answer.err == ""
    jobs = answer.json["jobs"]
    assert [j["overrides"][-1] for j in jobs] == ["seed=0", "seed=1"]
    assert [j["endpoints"][0]["name"] for j in jobs] == ["two_spirals-mlp-s0", "two_spirals-mlp-s2"]
    assert all(len(j["barriers"]) == 4 for j in jobs)
    table = ok("fit-curve", *SPIRALS, "-m", "seed=0,1", "-q")
    assert table.err == ""
    assert table.out.startswith("Sweep")
    assert table.out.count("segment") == 3  # each job's, and their mean
    assert ok("fit-curve", *SPIRALS, "seed=1", "--json").json["barriers"] == jobs[1]["barriers"]


def test_a_failed_job_of_a_sweep_does_not_stop_the_others() -> None:
    answer = call("train-endpoints", *SPIRALS, "-m", "endpoints.lr=1e20,0.1", "--json")
    assert answer.code == 1
    bad, good = answer.json["jobs"]
    assert "step" in bad["error"]
    assert "error" not in good
    assert len(good["endpoints"]) == 2
    assert answer.line.removeprefix("modeconn: ") == bad["error"]
    shown = call("train-endpoints", *SPIRALS, "-m", "endpoints.lr=1e20,0.1", "-q")
    assert shown.code == 1
    assert "two_spirals-mlp-s1" in shown.out


def test_results_are_on_stdout_and_progress_on_stderr() -> None:
    answer = ok("fit-curve", *SPIRALS)
    assert "above_line" in answer.out
    assert "path.csv" in answer.out
    assert "picture: outputs/plot/" in answer.out
    for word in ("never computed", " done "):
        assert word in answer.err
        assert word not in answer.out
    assert "\x1b[" not in answer.out + answer.err
    quiet = ok("fit-curve", *SPIRALS, "--quiet")
    assert quiet.err == ""
    assert quiet.out == answer.out


PIPED = """
import contextlib, json, sys
from modeconn_cli import cli
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    with contextlib.suppress(SystemExit):
        cli.main()
    print("--", flush=True)
"""


def test_a_pipe_gets_whole_paths_and_names_whatever_the_width() -> None:
    commands = [["interpolate", *SPIRALS], ["interpolate", *SPIRALS, "--dry-run"], ["runs", "list"]]
    for columns in (40, 80):
        piped = [sys.executable, "-c", PIPED, json.dumps(commands)]
        done = subprocess.run(piped, capture_output=True, text=True, env=environment(COLUMNS=str(columns)), check=True)
        measured, planned, listed, _ = done.stdout.split("--\n")
        assert any(re.fullmatch(r"outputs/interpolate/\S+/v1/path.csv", line) for line in measured.splitlines())
        assert re.search(r"^outputs/interpolate/\S+/v1$", planned, re.M)
        rows = ok("runs", "list", "--json").json["runs"]
        assert len(rows) == 4
        assert [w for r in rows for w in r["name"].rsplit("-", 1) if w not in listed.split()] == []


def test_evaluate_measures_again_with_other_settings() -> None:
    first = ok("fit-curve", *SPIRALS, "--json")
    again = ok("evaluate", *SPIRALS, "interpolation.points=2", "--json")
    assert dict(statuses(again))["fit-curve"] == "cached"
    assert dict(statuses(again))["evaluate"] == "run"
    assert len(pd.read_csv(folders(again)["evaluate"] / "path.csv")) == 2
    assert folders(again)["evaluate"].parent != folders(first)["evaluate"].parent
    segment = ok("evaluate", *SPIRALS, "interpolation.path=segment", "--json")
    assert [s for s, _ in statuses(segment)] == ["train-endpoints", "train-endpoints", "interpolate", "plot"]
    assert dict(statuses(segment))["interpolate"] == "cached"


def test_endpoints_may_keep_checkpoints() -> None:
    answer = ok(
        "train-endpoints", *SPIRALS, "endpoints.seeds=[0]", "endpoints.keep_epochs=[0]", "endpoints.keep_steps=[1]",
        "--json",
    )  # fmt: skip
    folder = folders(answer)["train-endpoints"]
    kept = [load_file(folder / f"checkpoint{n}.safetensors") for n in ("-epoch0", "-step1", "")]
    assert {tuple(k) for k in kept} == {tuple(kept[0])}
    flat = [torch.cat([v.flatten() for v in k.values()]) for k in kept]
    assert not torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[1], flat[2])
    plain = ok("train-endpoints", *SPIRALS, "endpoints.seeds=[0]", "--json")
    assert torch.equal(
        torch.cat([v.flatten() for v in load_file(folders(plain)["train-endpoints"] / CHECKPOINT).values()]), flat[2]
    )


# --------------------------------------------------------------------------------------------- configurations


def test_cfg_prints_the_configuration_and_runs_nothing(tmp_path: Path) -> None:
    answer = ok("fit-curve", *SPIRALS, "curve.kind=chain", "--cfg", "job")
    content = yaml.safe_load(answer.out)
    assert (content["curve"]["kind"], content["architecture"]["width"], content["seed"]) == ("chain", 8, 0)
    assert answer.err == ""
    assert tree(tmp_path) == {}
    assert "hydra" in yaml.safe_load(ok("fit-curve", "--cfg", "hydra").out)


def test_info_prints_the_defaults_tree(tmp_path: Path) -> None:
    answer = ok("fit-curve", "--info", "defaults-tree", "dataset=two_spirals")
    assert "dataset: two_spirals" in answer.out
    assert answer.err == ""
    assert tree(tmp_path) == {}


def test_config_dir_adds_a_users_files(tmp_path: Path) -> None:
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "small.yaml").write_text(
        "defaults: [_two_spirals]\nname: small\nsource: two_spirals\nexamples: 60\n"
    )
    wanted = ["train-endpoints", "--config-dir", "mine", "dataset=small", "architecture.width=8", *QUICK]
    answer = ok(*wanted, "--json")
    assert [r["name"] for r in answer.json["stages"]] == ["small-mlp-s0", "small-mlp-s1"]
    summary = json.loads((folders(answer)["train-endpoints"] / "summary.json").read_text())
    assert summary["splits"]["train"]["examples"] == 60
    message = refused("train-endpoints", "--config-dir", "mine", "dataset=smal")
    assert "did you mean dataset=small?" in message
    assert "nowhere" in refused("train-endpoints", "--config-dir", "nowhere")


# --------------------------------------------------------------------------------------------- wrong requests

MISTAKES = [
    (["fit-curve", "curve.bend=2"], "curve.bends"),
    (["fit-curve", "curve.lrr=0.1"], "curve.lr"),
    (["fit-curve", "interpolation.point=3"], "interpolation.points"),
    (["fit-curve", "sed=1"], "seed"),
    (["fit-curve", "digits"], "did you mean dataset=digits?"),
    (["fit-curve", "lr=0.1"], ".lr"),
    (["fit-curve", "bends=2"], "curve.bends"),
    (["fit-curve", "datset=digits"], "dataset"),
    (["fit-curve", "architecture.name=vgg16"], "did you mean architecture=vgg16?"),
    (["symmetries", "architecture=torchvision", "architecture.name=vit_b_16"], "architecture.model=vit_b_16"),
    (["fit-curve", "architecure.width=8"], "architecture.width"),
    (["fit-curve", "dataset=digit"], "dataset=digits"),
    (["fit-curve", "architecture=vgg16bn"], "architecture=vgg16_bn"),
    (["fit-curve", "experiment=garipov_vgg16_cifar"], "experiment=garipov_vgg16_cifar10"),
    (["fit-curve", "-m", "dataset=digits,mnis"], "dataset=mnist"),
    (["fit-curve", "architecture.widen=3"], "wrn"),
    (["fit-curve", "curve.kind=bezir"], "curve.kind=bezier"),
    (["fit-curve", "dataset.source=fashion_mnit"], "dataset.source=fashion_mnist"),
    (["fit-curve", "architecture.family=resnt"], "architecture.family=resnet"),
    (["fit-curve", "task.kind=regres"], "task.kind=regress"),
    (["fit-curve", "curve.optimizer=SGD"], "curve.optimizer=sgd"),
    (["fit-curve", "curve.fix_start=maybe"], "true, false"),
    (["fit-curve", "curve.bends=two"], "whole number"),
    (["fit-curve", "curve.bends=1.5"], "whole number"),
    (["fit-curve", "curve.bends=0"], "at least 1"),
    (["fit-curve", "curve.lr=fast"], "a number"),
    (["fit-curve", "curve.lr="], "a number"),
    (["fit-curve", "endpoints.seeds=3"], "[0,1]"),
    (["fit-curve", "endpoints.seeds=[0]"], "endpoints.seeds=[0,1]"),
    (["fit-curve", "endpoints.seeds=[4,4]"], "different"),
    (["fit-curve", "endpoints.seeds=[0,1"], "endpoints.seeds=[0,1"),
    (["fit-curve", "endpoints.seeds=[99999999999999999999,1]", "--dry-run"], "endpoints.seeds"),
    (["fit-curve", "seed=one"], "whole number"),
    (["fit-curve", "seed=-1"], "at least 0"),
    (["fit-curve", "seed=0,1"], "--multirun"),
    (["fit-curve", "dataset=digits,mnist"], "--multirun"),
    (["fit-curve", "dataset=null"], "dataset=null"),
    (["fit-curve", "~dataset"], "~dataset"),
    (["fit-curve", "+curve.bend=2", "--dry-run"], "curve.bends"),
    (["fit-curve", "+foo=1", "--dry-run"], "foo"),
    (["fit-curve", "seed"], "key=value"),
    (["fit-curve", "runtime.device=gpu"], "cuda"),
    (["fit-curve", "--jsn"], "--json"),
    (["fit-curve", "--dryrun"], "--dry-run"),
    (["fit-curve", "--cfg", "jobs"], "job"),
    (["fit-curve", "--info", "default-tree"], "defaults-tree"),
    (["fitcurve"], "fit-curve"),
    (["train-endpoint"], "train-endpoints"),
    (["runs", "lst"], "list"),
    (["runs", "show", "nothing"], "runs list"),
    (["runs", "compare", "a", "b"], "runs list"),
    (["plot"], "fit-curve"),
    (["plot", "-o", "a.gif"], ".png"),
    (["completion", "fish"], "bash"),
    (["--verson"], "--version"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line_with_the_nearest_right_one(
    words: list[str], said: str, tmp_path: Path
) -> None:
    message = refused(*words)
    assert said in message
    assert len(message) < 500
    assert ".;" not in message
    assert "Traceback" not in message
    assert tree(tmp_path) == {}


def test_a_wrong_job_of_a_sweep_is_found_before_the_first_one_starts(tmp_path: Path) -> None:
    answer = call("fit-curve", *SPIRALS, "-m", "endpoints.seeds=[0,1],[2]", "--json")
    assert answer.code == 2
    good, bad = answer.json["jobs"]
    assert "stages" not in good
    assert "endpoints.seeds=[0,1]" in bad["error"]
    assert tree(tmp_path) == {}


def test_wrong_jobs_of_a_sweep_are_each_named() -> None:
    answer = call("fit-curve", "-m", "seed=a,-1", "-q")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 2
    assert "seed=a" in answer.err
    assert "seed=-1" in answer.err


@pytest.mark.parametrize(
    "words",
    [
        ["fit-curve", "seed=-1"],
        ["fit-curve", "seed=a"],
        ["fit-curve", "sed=1"],
        ["fit-curve", "endpoints.seeds=[0]", "--dry-run"],
        ["fit-curve", "-m", "seed=-1,-2"],
        ["fit-curve", "-m", "sed=1,2"],
        ["fit-curve", "--config-dir", "nowhere"],
        ["fit-curve", "--cfg", "jobs"],
        ["plot"],
        ["runs", "show", "nothing"],
        ["runs", "compare", "a", "b"],
    ],
    ids=" ".join,
)
def test_json_is_one_object_for_errors_too(words: list[str]) -> None:
    answer = call(*words, "--json")
    assert answer.code == 2
    content = answer.json
    errors = [job["error"] for job in content.get("jobs", [content])]
    assert [f"modeconn: {e}" for e in errors] == answer.err.splitlines()
    assert content.get("exit_code", 2) == 2


# ------------------------------------------------------------------------------------------ runs, plot, doctor


def test_runs_list_show_compare_path(lab: tuple[Path, Answer]) -> None:
    root, answer = lab
    where = ["--output-dir", str(root)]
    rows = ok("runs", "list", *where, "--json").json["runs"]
    assert {r["directory"] for r in rows} == {r["directory"] for r in answer.json["stages"]}
    assert {r["status"] for r in rows} == {"done"}
    assert len(ok("runs", "list", "evaluate", *where, "--json").json["runs"]) == 1
    assert ok("runs", "list", "nothing", *where, "--json").json == {"runs": []}
    assert "no runs" in ok("runs", "list", "nothing", *where).out
    listed = ok("runs", "list", *where).out
    assert [w for r in rows for w in r["name"].rsplit("-", 1) if w not in listed.split()] == []
    segment, curve = folders(answer)["interpolate"], folders(answer)["evaluate"]
    digest = segment.parent.name[-10:]
    for wanted in (digest, digest[:6], segment.parent.name, f"{digest}/v1", str(segment), str(segment.parent)):
        assert ok("runs", "path", wanted, *where).out == f"{segment}\n"
    shown = ok("runs", "show", digest, *where, "--json").json
    assert (shown["directory"], shown["status"]) == (str(segment), "done")
    assert shown["summary"] == json.loads((segment / "summary.json").read_text())
    assert shown["files"]["path.csv"] == (segment / "path.csv").stat().st_size
    text = ok("runs", "show", digest, *where).out
    assert "above_line" in text
    assert "path.csv" in text
    for row in rows:
        assert row["name"] in ok("runs", "show", row["directory"], *where).out
    compared = ok("runs", "compare", str(segment), str(curve), *where, "--json").json
    assert compared["runs"] == [str(segment), str(curve)]
    tables = [pd.read_csv(f / "path.csv") for f in (segment, curve)]
    assert compared["results"]["train_loss max"] == [t["train_loss"].max() for t in tables]
    ends = [r["directory"] for r in answer.json["stages"][:2]]
    text = ok("runs", "compare", *ends, *where).out
    values = [e["test_error"] for e in answer.json["endpoints"]]
    assert re.search(
        rf"test_error\s+{values[0]:.4f}\s+{values[1]:.4f}\s+{re.escape(f'{values[1] - values[0]:+.4f}')}", text
    )


def test_runs_takes_the_stage_and_name_that_it_lists(lab: tuple[Path, Answer]) -> None:
    """`runs list`, and the message about several runs, name a run by its stage too."""
    root, answer = lab
    curve = folders(answer)["evaluate"]
    several = refused("runs", "path", curve.parent.name[:-10], "--output-dir", str(root))
    assert f"evaluate/{curve.parent.name}" in several
    assert ok("runs", "path", f"evaluate/{curve.parent.name}", "--output-dir", str(root)).out == f"{curve}\n"


def test_runs_of_different_kinds_are_not_compared_and_a_curve_names_its_measurement(lab: tuple[Path, Answer]) -> None:
    root, answer = lab
    where = ["--output-dir", str(root)]
    by_stage = {r["stage"]: r["directory"] for r in answer.json["stages"]}
    assert "measured by evaluate/" in ok("runs", "show", by_stage["fit-curve"], *where).out
    assert "no result in common" in refused("runs", "compare", by_stage["interpolate"], by_stage["fit-curve"], *where)


def test_list_says_what_tells_runs_of_one_label_apart() -> None:
    for lr in ("0.1", "0.2"):
        ok("train-endpoints", *SPIRALS, f"endpoints.lr={lr}", "endpoints.seeds=[0]", "-q")
    listed = ok("runs", "list").out
    assert "endpoints.lr=0.1" in listed
    assert "endpoints.lr=0.2" in listed
    assert "endpoints.epochs" not in listed


def test_compare_shows_settings_that_differ() -> None:
    ok("train-endpoints", *SPIRALS, "endpoints.seeds=[0]", "-q")
    ok("train-endpoints", *SPIRALS, "endpoints.seeds=[0]", "endpoints.lr=0.2", "-q")
    rows = ok("runs", "list", "--json").json["runs"]
    compared = ok("runs", "compare", *(r["directory"] for r in rows), "--json").json
    assert compared["settings"] == {"endpoints.lr": [0.05, 0.2]}


@pytest.mark.usefixtures("pictures")
def test_plot_draws_the_newest_the_named_and_into_a_file(lab: tuple[Path, Answer], tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    shutil.copytree(lab[0], root)
    newest = ok("plot", "--json").json
    assert [Path(f).name for f in newest["files"]] == ["plot.png", "plot.svg"]
    assert newest["command"] == "plot"
    assert Path(newest["files"][0]).read_bytes().startswith(b"\x89PNG")
    svg = Path(newest["files"][1]).read_text()
    for title in ("segment", "Bezier curve, 1 bend", "mlp on digits"):
        assert title in svg
    before = tree(root)
    assert ok("plot").out.splitlines() == newest["files"]
    assert tree(root) == before
    segment = folders(lab[1])["interpolate"].parent.name[-10:]
    curve = folders(lab[1])["evaluate"].parent.name[-10:]
    for name in ("a.png", "deep/b.svg", "c.pdf"):
        assert ok("plot", segment, curve, "-o", name).out == f"{name}\n"
        assert (tmp_path / name).stat().st_size > 1000
    ok("plot", segment, "-o", "again.png")
    endpoint = folders(lab[1])["train-endpoints"].parent.name[-10:]
    assert "not a measured path" in refused("plot", segment, endpoint)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_is_the_same_bytes_every_time(kind: str, lab: tuple[Path, Answer], tmp_path: Path) -> None:
    for name in "ab":
        ok("plot", "-o", f"{name}.{kind}", "--output-dir", str(lab[0]))
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.usefixtures("pictures")
def test_text_in_an_svg_is_text(lab: tuple[Path, Answer], tmp_path: Path) -> None:
    """report/plots.py asks for svg.fonttype none, so that a figure's words can be edited and searched for."""
    ok("plot", "-o", "a.svg", "--output-dir", str(lab[0]))
    assert re.search(r"<text[^>]*>Train loss, with weight decay</text>", (tmp_path / "a.svg").read_text())


def test_plot_after_a_moved_output_directory(lab: tuple[Path, Answer], tmp_path: Path) -> None:
    """Absolute places in provenance must not tie a figure to where its runs once lay."""
    shutil.copytree(lab[0], tmp_path / "moved")
    answer = ok("plot", "--output-dir", "moved", "--json")
    assert all(Path(f).parts[0] == "moved" for f in answer.json["files"])


def test_doctor() -> None:
    content = ok("doctor", "--json").json
    assert content["versions"]["modeconn"] == __version__
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    rows = {row["dataset"]: row for row in content["datasets"]}
    assert {"digits", "two_spirals", "fashion_mnist", "cifar10", "svhn"} <= {*rows}
    assert all(row["found"] or row["how_to_get"] or not row["looked_in"] for row in rows.values())
    text = ok("doctor").out
    assert __version__ in text
    assert "fashion_mnist" in text
    assert "Traceback" not in text


# ---------------------------------------------------------------------------------------- help and completion


@pytest.mark.parametrize("words", [[], *([c] for c in COMMANDS), *(["runs", c] for c in RUNS)], ids=" ".join)
def test_help(words: list[str]) -> None:
    for flag in ("--help", "-h"):
        answer = call(*words, flag)
        assert answer.code == 0, flag
        assert "Usage: modeconn" in answer.out
        assert answer.err == ""
    if not words:
        assert all(c in answer.out for c in COMMANDS)
    if words in (["fit-curve"], ["interpolate"]):
        for option in ("--multirun", "--dry-run", "--json", "--cfg", "--info", "--config-dir", "--force", "--quiet"):
            assert option in answer.out


def test_version() -> None:
    assert ok("--version").out == f"modeconn {__version__}\n"


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """CPU time, not wall time: other tests may have the machine."""
    seconds = []
    for words in (["--help"], ["fit-curve", "--help"], ["--version"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [BIN / "python", "-X", "importtime", BIN / "modeconn", *words], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        modules = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert "typer" in modules
        assert not modules & {"torch", "hydra", "omegaconf", "numpy", "pandas", "scipy", "matplotlib"}
    assert max(seconds) < 1


def completions(line: str) -> list[str]:
    return [c for c in ok("_complete", line).out.splitlines() if c]


def test_completion_of_commands() -> None:
    assert {c.strip() for c in completions("modeconn ")} == {*COMMANDS}
    assert completions("modeconn fit") == ["fit-curve "]
    assert completions("modeconn pl") == ["plot "]
    assert completions("modeconn do") == ["doctor "]
    assert completions("modeconn comp") == ["completion "]
    assert {c.strip() for c in completions("modeconn runs ")} == {*RUNS}
    assert completions("modeconn runs sh") == ["show "]
    assert completions("modeconn completion b") == ["bash "]


def test_completion_of_keys_and_values() -> None:
    assert completions("modeconn fit-curve curve.be") == ["curve.betas=", "curve.bends="]
    assert completions("modeconn fit-curve datas") == ["dataset=", "dataset."]
    assert completions("modeconn fit-curve dataset=tw") == ["dataset=two_spirals"]
    assert completions("modeconn fit-curve -m dataset=digits,tw") == ["dataset=digits,two_spirals"]
    assert completions("modeconn fit-curve curve.kind=") == [
        "curve.kind=bezier",
        "curve.kind=chain",
        "curve.kind=custom",
    ]
    assert completions("modeconn fit-curve curve.fix_end=t") == ["curve.fix_end=true"]
    assert "architecture.batch_norm=" in completions("modeconn fit-curve architecture=vgg16 architecture.")
    assert "architecture.batch_norm=" not in completions("modeconn fit-curve architecture.")
    assert completions("modeconn interpolate se") == ["seed="]


@pytest.mark.parametrize(
    ("words", "group", "there", "not_there"),
    [
        ("rebasin", "rebasin", "restarts", "temperature"),  # which weight matching has, the command's own choice
        ("rebasin rebasin=sinkhorn", "rebasin", "temperature", "restarts"),
        ("fit-curve rebasin.method=activation", "rebasin", "similarity", "temperature"),
        ("fit-curve", "rebasin", "method", "groups"),
        ("fit-curve -m rebasin=weight,sinkhorn", "rebasin", "temperature", "similarity"),
        ("fit-curve -m rebasin=weight,sinkhorn", "rebasin", "restarts", "target"),
        ("fit-curve curve.kind=custom", "curve", "target", "bends"),
        ("fit-curve architecture=vgg11 architecture.family=wrn", "architecture", "widen", "batch_norm"),
        ("fit-curve dataset=two_spirals", "dataset", "turns", "path"),
        ("fit-curve task=regress", "task", "likelihood", "target"),
    ],
)
def test_completion_offers_what_the_choice_uses(words: str, group: str, there: str, not_there: str) -> None:
    offered = completions(f"modeconn {words} {group}.")
    assert f"{group}.{there}=" in offered
    assert f"{group}.{not_there}=" not in offered
    assert len(offered) == len({*offered})


def test_completion_of_experiments_and_of_what_is_nothing() -> None:
    assert completions("modeconn fit-curve experiment=garipov_wrn") == [
        "experiment=garipov_wrn28x10_cifar10",
        "experiment=garipov_wrn28x10_cifar100",
    ]
    assert completions("modeconn fit-curve nothing") == []


def test_completion_of_flags_is_the_commands_own() -> None:
    assert completions("modeconn fit-curve --dr") == ["--dry-run "]
    assert "--output-dir " in completions("modeconn runs list --")
    assert "--force " not in completions("modeconn runs list --")
    assert "--output " in completions("modeconn plot --o")
    assert {c.strip() for c in completions("modeconn fit-curve --cfg ")} == {"job", "hydra", "all"}


BASH = """
eval "$(modeconn completion bash)"
try() {
  COMP_LINE="$1" COMP_POINT=${#1}
  _modeconn
  printf '%s\\n' "${COMPREPLY[@]}" "--"
}
COMP_WORDBREAKS=$' \\t\\n"'"'"'><=;|&(:'
try "modeconn fit"
try "modeconn fit-curve dataset=tw"
try "modeconn fit-curve -m dataset=digits,tw"
try "modeconn fit-curve curve.kind=b"
try "modeconn fit-curve curve.bend"
COMP_WORDBREAKS=$' \\t\\n'
try "modeconn fit-curve dataset=tw"
complete -p modeconn
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes() -> None:
    done = subprocess.run(["bash", "-c", BASH], capture_output=True, text=True, check=True, env=environment())
    assert done.stderr == ""
    *answers, registered = done.stdout.split("--\n")
    assert [a.splitlines() for a in answers] == [
        ["fit-curve "],
        ["two_spirals"],  # bash takes what follows '=' for a word of its own
        ["digits,two_spirals"],
        ["bezier"],
        ["curve.bends="],
        ["dataset=two_spirals"],
    ]
    assert "_modeconn" in registered


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_reads_its_script(tmp_path: Path) -> None:
    (tmp_path / "c.zsh").write_text(ok("completion", "zsh").out)
    subprocess.run(["zsh", "-n", "c.zsh"], check=True)


def test_the_installed_command_ends_as_it_should(tmp_path: Path) -> None:
    """One real process, for what a call inside this one cannot show: its streams and its exit code."""
    command = [BIN / "modeconn", "train-endpoints", *SPIRALS, "--json"]
    profiled = environment(PYTHONPROFILEIMPORTTIME="1")
    done = subprocess.run(command, capture_output=True, text=True, env=profiled, check=False)
    imports, said = (
        [line for line in done.stderr.splitlines() if line.startswith("import time:") is imported]
        for imported in (True, False)
    )
    assert (done.returncode, said) == (0, [])
    modules = {line.rsplit("|", 1)[-1].strip() for line in imports}
    assert "torch" in modules
    assert not modules & {"torch._inductor", "torch._dynamo", "sympy", "matplotlib"}  # seconds, and no use
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer.json["exit_code"] == 0
    assert folders(answer)["train-endpoints"].is_dir()
    wrong = subprocess.run([BIN / "modeconn", "fitcurve"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    as_module = subprocess.run([BIN / "python", "-m", "modeconn_cli", "--version"], capture_output=True, check=True)
    assert as_module.stdout.decode() == f"modeconn {__version__}\n"
