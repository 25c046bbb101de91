"""Trainings with a cyclic rate as a user calls them: members, figures written out, references, resuming."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Answer, call, folders, ok, refused, results
from safetensors.torch import load_file

from modeconn_cli.errors import Interrupted
from modeconn_cli.networks import open_networks
from modeconn_cli.work import saving

SMALL = ["dataset.train_size=300", "dataset.validation_size=50", "architecture.width=8", "endpoints.epochs=10"]
NORMS = [*SMALL, "architecture.norm=batch"]
COMMANDS = {
    "fge": ["fge.epochs=6"],
    "snapshot": ["snapshot.members=2", "snapshot.trace=0"],
    "swa": ["swa.epochs=6", "swa.keep=true", "swa.cycle=2", "swa.lr=0.05", "swa.lr_min=0.02"],
    "swag": ["swag.epochs=6", "swag.rank=2", "swag.samples=3", "swag.cycle=2", "swag.lr=0.05", "swag.lr_min=0.02"],
}
QUICK_PATH = ["interpolation.points=3", "interpolation.search_max=0", "interpolation.bootstrap=20"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Answer]]:
    """Each command run once, networks with norms. Read it, change nothing."""
    root = tmp_path_factory.mktemp("kept") / "outputs"
    return root, {name: made(name, root) for name in COMMANDS}


def made(name: str, root: Path, *more: str) -> Answer:
    return ok(name, *NORMS, *COMMANDS[name], *more, f"runtime.output_dir={root}", "--json")


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as f:
        return [*csv.DictReader(f)]


def weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in state.items() if "running" not in k and "num_batches" not in k}


# --------------------------------------------------------------------------------------- fge, snapshot


def test_members_are_kept_and_averaged(lab: tuple[Path, dict[str, Answer]]) -> None:
    root, answers = lab
    answer, run = answers["fge"], folders(answers["fge"])["fge"]
    found = answer.json["results"][0]
    members = rows(run / "members.csv")
    assert [float(m["epoch"]) for m in members] == [9, 11, 13]
    ensemble = ok("ensemble", f"{run}#*", *NORMS, f"runtime.output_dir={root}", "--json")
    (beside,) = ensemble.json["results"]
    for name in ("error", "nll", "brier", "ece", "nll_tempered", "auroc_epistemic"):
        assert found["metrics"][name] == pytest.approx(beside["metrics"][name], rel=1e-4), name
    each = beside["tables"][1]["rows"]
    assert [float(m["nll"]) for m in members] == pytest.approx([r["nll"] for r in each], rel=1e-4)
    assert float(members[-1]["first_nll"]) == pytest.approx(found["metrics"]["nll"])
    assert members[0]["first_nll"] == members[0]["nll"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == {"before": 8, "with_a_cyclic_rate": 6}
    assert summary["network_files"] == [f"member-{k}.safetensors" for k in (1, 2, 3)]
    # The network that training went on from is kept from the whole training, which is there to compare with.
    start = folders(answer)["train-endpoints"]
    assert {p.name for p in start.glob("*.safetensors")} == {"checkpoint.safetensors", "checkpoint-epoch8.safetensors"}


def test_the_rate_and_the_test_split_are_traced(lab: tuple[Path, dict[str, Answer]]) -> None:
    run = folders(lab[1]["fge"])["fge"]
    trace, members = rows(run / "trace.csv"), rows(run / "members.csv")
    assert [float(r["epoch"]) for r in trace] == [*range(7)]
    assert [r["kept"] for r in trace] == ["0", "1"] * 3 + ["0"]
    at_members = [float(r["test_nll"]) for r in trace if r["kept"] == "1"]
    assert at_members == pytest.approx([float(m["nll"]) for m in members], rel=1e-5)
    assert (run / "trace.png").stat().st_size > 1000
    last = rows(run / "metrics.csv")
    assert [float(r["lr"]) for r in last] == pytest.approx([0.01, 0.05] * 3)


def test_measuring_on_the_way_changes_nothing(lab: tuple[Path, dict[str, Answer]]) -> None:
    root, answers = lab
    untraced = folders(ok("fge", *NORMS, *COMMANDS["fge"], "fge.trace=0", f"runtime.output_dir={root}", "--json"))[
        "fge"
    ]
    for file in ("member-1.safetensors", "member-3.safetensors", "members.csv", "metrics.csv"):
        assert (untraced / file).read_bytes() == (folders(answers["fge"])["fge"] / file).read_bytes(), file


def test_members_have_statistics_of_their_own_weights(lab: tuple[Path, dict[str, Answer]]) -> None:
    run = folders(lab[1]["fge"])["fge"]
    first, last = (load_file(run / f"member-{k}.safetensors") for k in (1, 3))
    means = [k for k in first if k.endswith("running_mean")]
    assert means
    assert all(not torch.equal(first[k], last[k]) for k in means)


def test_a_member_is_a_network_by_reference(lab: tuple[Path, dict[str, Answer]]) -> None:
    root, answers = lab
    run = folders(answers["fge"])["fge"]
    out = [f"runtime.output_dir={root}"]
    answer = ok("interpolate", *NORMS, *QUICK_PATH, f"endpoints.from=[{run}#1,{run}#3]", *out, "--json")
    assert answer.json["verdicts"][0]["endpoints"] == "member 1 of FGE of seed 0 and member 3 of FGE of seed 0"
    message = refused("interpolate", *NORMS, f"endpoints.from=[{run},{run}#1]", *out)
    assert f"holds 3 networks: give one, as {run}#2." in message
    assert "holds 3 networks: member 1" in refused("interpolate", *NORMS, f"endpoints.from=[{run}#4,{run}#1]", *out)
    assert "every network of a run" in refused("train-endpoints", *NORMS, f"endpoints.init_from={run}#*", *out)
    assert open_networks(f"{run}#*", root).names == ["member 1", "member 2", "member 3"]
    # Any network is a start.
    again = ok("fge", f"{run}#2", *NORMS, "fge.epochs=4", "fge.trace=0", *out, "--json")
    assert len(rows(folders(again)["fge"] / "members.csv")) == 2
    assert not (folders(again)["fge"] / "trace.png").exists()


@pytest.mark.parametrize("name", ["fge", "swag"])
def test_stopped_at_any_step_it_ends_in_the_same_bytes(
    name: str, lab: tuple[Path, dict[str, Answer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after every few of its saves, in the training before too, until it is through."""
    root, _ = lab
    seen = 0

    def stop(self: saving.Saver) -> None:
        nonlocal seen
        seen += 1
        if seen % 7 == 0:
            raise Interrupted(2)

    monkeypatch.setattr(saving.Saver, "stop_if_asked", stop)
    monkeypatch.setattr(saving.Saver, "due", True)
    words = [name, *NORMS, *COMMANDS[name], f"runtime.output_dir={tmp_path}", "-q"]
    codes = []
    while not codes or codes[-1] == 130:
        codes.append(call(*words).code)
    assert codes[-1] == 0
    assert len(codes) > 4
    found = results(tmp_path)
    assert {k: v for k, v in results(root).items() if k in found} == found
    assert any(k.startswith(f"{name}/") for k in found)


def test_snapshots_are_the_ends_of_cycles(lab: tuple[Path, dict[str, Answer]]) -> None:
    (row,) = lab[1]["snapshot"].json["stages"]
    run = Path(row["directory"])
    assert [float(m["epoch"]) for m in rows(run / "members.csv")] == [5, 10]
    rates = [float(r["lr"]) for r in rows(run / "metrics.csv")]
    assert rates[:5] == pytest.approx(rates[5:])
    assert rates[4] < 0.01 < rates[0] < 0.05
    assert not (run / "trace.csv").exists()


# ------------------------------------------------------------------------------------------- swa, swag


def test_the_average_is_the_mean_of_the_networks_kept(lab: tuple[Path, dict[str, Answer]]) -> None:
    root, answers = lab
    run = folders(answers["swa"])["swa"]
    kept = [load_file(run / f"member-{k}.safetensors") for k in (1, 2, 3)]
    average = load_file(run / "checkpoint.safetensors")
    for name, found in weights(average).items():
        wanted = torch.stack([weights(k)[name] for k in kept]).mean(0)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6), name
    # Statistics are re-estimated at the average and are no mean of theirs.
    name = next(k for k in average if k.endswith("running_var"))
    assert not torch.allclose(average[name], torch.stack([k[name] for k in kept]).mean(0), rtol=1e-3)
    found = answers["swa"].json["results"][0]
    imported = ok("train-endpoints", *NORMS, f"endpoints.from=[{run}]", f"runtime.output_dir={root}", "--json")
    measured = json.loads((folders(imported)["train-endpoints"] / "summary.json").read_text())["metrics"]
    assert measured == pytest.approx(found["metrics"], rel=1e-5)
    assert open_networks(run, root).names == ["network", "member 1", "member 2", "member 3"]
    compared = {r["network"]: float(r["nll"]) for r in rows(run / "compared.csv")}
    assert [*compared] == ["average", "last network", "seed 0, whole training"]
    assert compared["average"] == pytest.approx(found["metrics"]["test_nll"])
    assert compared["last network"] == pytest.approx(float(rows(run / "trace.csv")[-1]["test_nll"]), rel=1e-5)


def test_the_gaussian_is_that_of_the_networks_passed_by(lab: tuple[Path, dict[str, Answer]]) -> None:
    """swa and swag go the same way here, so the networks that one keeps are those that the other has moments of."""
    root, answers = lab
    run = folders(answers["swag"])["swag"]
    kept = [weights(load_file(folders(answers["swa"])["swa"] / f"member-{k}.safetensors")) for k in (1, 2, 3)]
    mean, gaussian = weights(load_file(run / "checkpoint.safetensors")), load_file(run / "gaussian.safetensors")
    for name in mean:
        w = torch.stack([k[name] for k in kept])
        assert torch.allclose(gaussian[f"mean.{name}"].double(), mean[name])
        assert torch.allclose(mean[name], w.mean(0), atol=1e-6)
        assert torch.allclose(gaussian[f"variance.{name}"].double(), w.var(0, correction=0), rtol=1e-3, atol=1e-9)
        assert torch.allclose(gaussian[f"deviation.1.{name}"].double(), w[2] - w.mean(0), atol=1e-6)
        assert torch.allclose(gaussian[f"deviation.0.{name}"].double(), w[1] - w[:2].mean(0), atol=1e-6)
    drawn = [weights(load_file(run / f"member-{k}.safetensors")) for k in (1, 2, 3)]
    assert all(not torch.equal(drawn[0][n], drawn[1][n]) for n in mean)
    assert open_networks(run, root).names == ["network", "member 1", "member 2", "member 3"]
    found = answers["swag"].json["results"][0]["metrics"]
    assert found["mean_test_nll"] == pytest.approx(answers["swa"].json["results"][0]["metrics"]["test_nll"], rel=1e-5)
    assert float(rows(run / "members.csv")[-1]["first_nll"]) == pytest.approx(found["nll"])


def test_the_average_of_every_step_and_one_that_decays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = ok("swa", *SMALL, "swa.epochs=2", "swa.trace=0", "swa.every_step=true", "swa.decay=0.5", "--json")
    run = folders(first)["swa"]
    assert json.loads((run / "summary.json").read_text())["averaged"] == 2 * 3
    (start,) = (tmp_path / "outputs").glob("train-endpoints/*/v1/checkpoint-epoch8.safetensors")
    again = ok("swa", f"{start.parent}@epoch=8", *SMALL, "swa.epochs=2", "swa.trace=0", "--json")
    assert json.loads((folders(again)["swa"] / "summary.json").read_text())["averaged"] == 2
    assert "holds 1 network" in refused("train-endpoints", *SMALL, f"endpoints.from=[{run}#2]")


# --------------------------------------------------------------------------------------- what is not usual


def test_numbers_are_averaged_as_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 3)).astype("float32")
    np.savez("numbers.npz", x_train=x[:60], y_train=x[:60].sum(1), x_test=x[60:], y_test=x[60:].sum(1))
    own = ["dataset=arrays", "dataset.path=numbers.npz", "architecture.width=8", "endpoints.epochs=10"]
    answer = ok("fge", *own, "fge.epochs=4", "--json")
    run = folders(answer)["fge"]
    members = rows(run / "members.csv")
    assert {*members[0]} == {"member", "epoch", "mse", "squared_error", "first_mse", "first_squared_error"}
    # The mean answer's squared error is the members' mean less their variance, so never more.
    assert float(members[-1]["first_mse"]) <= np.mean([float(m["mse"]) for m in members]) + 1e-9
    assert answer.json["results"][0]["metrics"]["mse"] == pytest.approx(float(members[-1]["first_mse"]))


def test_what_cannot_be_is_one_line_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("fge", *SMALL, "fge.cycle=3").startswith("fge.cycle=3 is odd")
    assert "is longer than the 2 epochs that are left" in refused("fge", *SMALL, "fge.cycle=4")
    assert "an ensemble needs two" in refused("fge", *SMALL)
    assert "goes on training" in refused("fge", *NORMS, "endpoints.fuse=true", "fge.epochs=6")
    assert "no run" in refused("fge", *SMALL, "endpoints.from=[nothing#*]")
    assert "trained from initialisation" in refused("snapshot", *SMALL, "endpoints.init_from=a.pt")
    assert "whose average is itself" in refused("swa", *SMALL, "swa.epochs=1")
    assert "at most 2" in refused("swag", *SMALL, "swag.rank=3")
    assert [*tmp_path.iterdir()] == []
