"""Re-basin as a stage: the aligned endpoint is the same function, the line to it is low, REPAIR does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from cli_helpers import DIGITS, SPIRALS, compose, folders, no_pictures, ok, refused, statuses, tree
from safetensors.torch import load_file
from torch import Tensor, nn

from modeconn_cli.evaluation.repair import Repair
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.weights import FlatModule


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    no_pictures(monkeypatch)


WIDE = ["architecture.width=256", "endpoints.epochs=15", *[o for o in DIGITS if "width" not in o and "epochs" not in o]]


@pytest.mark.parametrize("method", ["weight", "activation"])
def test_rebasin_joins_wide_networks_and_says_that_they_compute_the_same(method: str) -> None:
    answer = ok("rebasin", *WIDE, "dataset.train_size=1000", f"rebasin={method}", "--json")
    barrier = {b["path"]: b["above_mean"]["value"] for b in answer.json["barriers"] if b["metric"] == "train_loss"}
    assert [*barrier] == ["segment", "aligned segment", "aligned segment + REPAIR", "aligned segment + RESCALE"]
    assert barrier["aligned segment"] < 0.1 * barrier["segment"]
    folder = folders(answer)["rebasin"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["certificate"]["difference"] < 1e-12
    assert summary["certificate"]["control"] > 1e-6
    assert [a["certificate"] for a in answer.json["aligned"]] == [summary["certificate"]]
    assert summary["objective"][-1] >= summary["objective"][0]
    ends = [Path(r["directory"]) for r in answer.json["stages"] if r["stage"] == "train-endpoints"]
    recorded = [json.loads((f / "summary.json").read_text())["metrics"] for f in (ends[1], folder)]
    assert recorded[0] == pytest.approx(recorded[1], rel=1e-4)


@pytest.mark.parametrize("method", ["straight_through", "sinkhorn"])
def test_trained_methods_as_a_stage(method: str) -> None:
    answer = ok("rebasin", *DIGITS, f"rebasin={method}", "rebasin.steps=25", "--json")
    summary = json.loads((folders(answer)["rebasin"] / "summary.json").read_text())
    assert summary["objective_is"] == "midpoint loss"
    assert summary["certificate"]["difference"] < 1e-12
    segment, aligned = (
        next(b["midpoint"]["value"] for b in answer.json["barriers"] if (b["path"], b["metric"]) == (p, "train_loss"))
        for p in ("segment", "aligned segment")
    )
    assert aligned < segment
    again = ok("rebasin", *DIGITS, f"rebasin={method}", "rebasin.steps=25", "rebasin.restarts=7", "--json")
    assert {s["status"] for s in again.json["stages"]} == {"cached"}  # restarts are no part of these methods


def test_the_files_are_usable_without_this_project() -> None:
    answer = ok("rebasin", *DIGITS, "--json")
    folder = folders(answer)["rebasin"]
    a, b = (load_file(Path(r["directory"]) / "checkpoint.safetensors") for r in answer.json["stages"][:2])
    aligned, merged = load_file(folder / "checkpoint.safetensors"), load_file(folder / "merged.safetensors")
    moves = load_file(folder / "permutation.safetensors")
    for name, value in b.items():
        for dim in range(value.dim()):
            if f"{name}:{dim}" in moves:
                value = value.index_select(dim, moves[f"{name}:{dim}"])
        assert torch.equal(value, aligned[name])
        assert torch.equal(merged[name], torch.lerp(a[name], aligned[name], 0.5))
    assert {m.split(":")[0] for m in moves} == {*b} - {"head.bias"}


def test_interpolate_and_fit_curve_use_the_aligned_endpoint() -> None:
    line = ok("interpolate", *DIGITS, "rebasin=weight", "--json")
    assert [v["path"] for v in line.json["verdicts"]] == ["aligned segment"]
    curve = ok("fit-curve", *DIGITS, "rebasin=weight", "--json")
    assert dict(statuses(curve))["rebasin"] == "cached"
    found = [v["path"] for v in curve.json["verdicts"]]
    assert found == ["aligned segment", "Bezier curve, 1 bend, to the aligned end"]
    table = pd.read_csv(folders(line)["interpolate"] / "path.csv")
    whole = ok("rebasin", *DIGITS, "--json")
    both = [b for b in whole.json["barriers"] if b["path"] == "aligned segment" and b["metric"] == "train_loss"]
    assert both[0]["max"] == table["train_loss"].max()
    assert ok("run", *DIGITS, "rebasin=weight", "pipeline.paths=[segment]", "--json").json["verdicts"][0]["path"] == (
        "aligned segment"
    )


def test_a_network_with_batch_norm_is_also_shown_with_its_statistics_reset(tmp_path: Path) -> None:
    images = ["dataset.train_size=100", "architecture=resnet20", "architecture.width=0.25", "architecture.depth=8"]
    quick = [o for o in DIGITS if "width" not in o and "train_size" not in o]
    answer = ok("rebasin", *quick, *images, "--json")
    assert [v["path"] for v in answer.json["verdicts"]] == [
        "segment with averaged statistics",
        "aligned segment with averaged statistics",
        "aligned segment",
        "aligned segment + REPAIR",
        "aligned segment + RESCALE",
    ]
    names = [row["name"] for row in answer.json["stages"] if row["stage"] == "interpolate"]
    assert len({*names}) == 5
    assert names[-1].endswith("-weight-segment-rescale")


def test_settings_of_another_method_are_said_to_change_nothing() -> None:
    remark = "rebasin.temperature changes nothing with rebasin=weight"
    assert remark in ok("rebasin", *DIGITS, "rebasin.temperature=2", "rebasin.sweeps=5", "--dry-run").err
    assert remark not in ok("rebasin", *DIGITS, "rebasin.sweeps=5", "--dry-run").err


BRANCHING = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 16), nn.Linear(16, 2)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h) if x.sum() > -1e9 else -self.last(h)
"""


@pytest.fixture
def branching(tmp_path: Path) -> list[str]:
    """Words for a network whose graph depends on its input."""
    (tmp_path / "nets.py").write_text(BRANCHING)
    return [*[o for o in SPIRALS if "architecture" not in o], "architecture=custom", "architecture.target=nets.py:Net"]


def test_a_network_that_cannot_be_traced_is_refused_before_anything_is_written(
    tmp_path: Path, branching: list[str]
) -> None:
    before = tree(tmp_path)
    message = refused("rebasin", *branching)
    assert "Net cannot be traced past nets.py:12 `return self.last(h) if x.sum() > -1e9" in message
    assert "rebasin.groups=groups.yaml" in message
    assert tree(tmp_path) == before


def test_groups_may_be_written_by_hand(tmp_path: Path, branching: list[str]) -> None:
    begun = ok("symmetries", *branching, "--output", "groups.yaml")
    assert "cannot be traced" in begun.err
    assert "groups.yaml has all its tensors" in begun.err
    assert begun.out == ""
    file = tmp_path / "groups.yaml"
    assert file.read_text().splitlines() == [
        *("first.weight: [16, 2]", "first.bias: [16]", "last.weight: [2, 16]", "last.bias: [2]")
    ]
    assert "there already" in refused("symmetries", *branching, "--output", "groups.yaml")
    assert "names no dimension" in refused("rebasin", *branching, "rebasin.groups=groups.yaml")
    file.write_text(file.read_text().replace("16", "h"))
    answer = ok("rebasin", *branching, "rebasin.groups=groups.yaml", "--json")
    summary = json.loads((folders(answer)["rebasin"] / "summary.json").read_text())
    assert [g["size"] for g in summary["groups"]] == [16]
    assert summary["certificate"]["difference"] < 1e-12
    moved = file.rename(tmp_path / "elsewhere.yaml")
    again = ok("rebasin", *branching, f"rebasin.groups={moved.name}", "--json")
    assert dict(statuses(again))["rebasin"] == "cached"  # the same groups in another file
    assert "takes the graph" in refused("rebasin", *branching, "rebasin=activation", f"rebasin.groups={moved.name}")
    assert "groups.yaml is not there" in refused("rebasin", *branching, "rebasin.groups=groups.yaml")
    assert ". is a directory" in refused("rebasin", *branching, "rebasin.groups=.")


def test_groups_that_the_network_does_not_have_are_refused_before_anything_is_written(
    tmp_path: Path, branching: list[str]
) -> None:
    (tmp_path / "wrong.yaml").write_text("first.weight: [h, 2]\nfirst.bias: [h]\nlast.weight: [2, k:16]\n")
    before = tree(tmp_path)
    message = refused("rebasin", *branching, "rebasin.groups=wrong.yaml")
    assert "the groups in wrong.yaml are not the network's" in message
    assert "first.weight, last.weight" in message
    assert "the groups in wrong.yaml are not" in refused("symmetries", *branching, "rebasin.groups=wrong.yaml")
    assert tree(tmp_path) == before
    assert "cannot write" in refused("symmetries", *branching, "--output", "/proc/groups.yaml")


def test_rebasin_by_no_method_is_refused() -> None:
    for word in ("rebasin=none", "rebasin.method=none"):
        assert "modeconn interpolate" in refused("rebasin", *SPIRALS, word)
    assert "method: weight" in ok("rebasin", *SPIRALS, "--cfg", "job").out


def test_a_sweep_over_methods_groups_by_what_each_depends_on() -> None:
    words = [*SPIRALS, "rebasin.steps=2", "endpoints.epochs=2"]
    ok("rebasin", *words, "seed=0", "rebasin=sinkhorn")
    answer = ok("rebasin", *words, "-m", "seed=0,1", "rebasin=weight", "--json")
    rows = {row["path"]: row for row in answer.json["gathered"]}
    assert rows["segment"]["n"] == rows["aligned segment"]["n"] == 2
    assert "rebasin.steps" not in rows["segment"]
    gathered = ok("gather", "--json").json["rows"]
    settings = {k for row in gathered for k in row if k.startswith("rebasin.")}
    assert settings == {"rebasin.method"}  # what one method alone uses is said by the method
    assert {row["rebasin.method"] for row in gathered} == {"none", "weight", "sinkhorn"}
    assert "inner product" in ok("runs", "list", "weight").out


def test_a_permuted_copy_is_brought_back_to_where_it_came_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.build("mlp", (2,), 2, width=8).eval()
    symmetry = trace(module, torch.randn(2, 2))
    state = {k: v.clone() for k, v in module.state_dict().items()}
    torch.save(state, "a.pt")
    torch.save(symmetry.permute(state, [torch.randperm(g.size) for g in symmetry.groups]), "b.pt")
    answer = ok("rebasin", *SPIRALS, "endpoints.checkpoints=[a.pt,b.pt]", "--json")
    aligned = load_file(folders(answer)["rebasin"] / "checkpoint.safetensors")
    assert all(torch.equal(aligned[k], state[k]) for k in state)
    matched = [b for b in answer.json["barriers"] if b["path"] == "aligned segment" and b["metric"] == "train_loss"]
    assert [b["above_mean"]["value"] for b in matched] == [pytest.approx(0, abs=1e-6)]
    assert "the same network" in refused("interpolate", *SPIRALS, "endpoints.checkpoints=[a.pt,a.pt]")


def test_symmetries_shows_the_groups() -> None:
    found = ok("symmetries", "architecture.width=8", "architecture.depth=2", "--json").json
    assert [g["size"] for g in found["groups"]] == [8, 8]
    assert found["groups"][0]["along"] == ["hidden.0.weight[0]", "hidden.0.bias[0]", "hidden.2.weight[1]"]
    assert found["in_place"] == ["head.bias"]
    assert found["log10_symmetries"] == pytest.approx(2 * 4.605520523)  # 8! twice
    assert "2 groups" in ok("symmetries", "architecture.width=8", "architecture.depth=2").out
    words = ["architecture.width=8", "architecture.depth=1", "dataset=cifar10", "--json"]  # which is not here
    assert ok("symmetries", *words, "--input", "3,4,4").json["parameters"] == 49 * 8 + 9 * 10
    assert ok("symmetries", *words, "--input", "3x4x4", "--classes", "3").json["parameters"] == 49 * 8 + 9 * 3
    for wrong in ("3,", "a,b", "3,0"):
        assert "is not a shape" in refused("symmetries", "--input", wrong)


# ------------------------------------------------------------------------------------------------------ REPAIR


def statistics(module: nn.Module, layers: list[nn.Module], x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of every channel of layers' outputs on a batch, in float64."""
    kept: dict[int, Tensor] = {}
    # Forward hooks run in the order in which they were added: these see what REPAIR has made of the output.
    handles = [
        layer.register_forward_hook(lambda m, i, o, k=n: kept.__setitem__(k, o.detach().double()))  # type: ignore[misc]
        for n, layer in enumerate(layers)
    ]
    module(x)
    for handle in handles:
        handle.remove()
    dims = [[d for d in range(v.dim()) if d != 1] for v in kept.values()]
    return [(v.mean(d), v.std(d, unbiased=False)) for v, d in zip(kept.values(), dims, strict=True)]


@pytest.mark.parametrize("family", ["mlp", "vgg", "vgg_bn", "resnet"])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_repair_gives_every_layer_the_statistics_between_the_ends(family: str, share: float) -> None:
    options: dict[str, object] = {
        "mlp": {"width": 16},
        "vgg": {"depth": 11, "width": 0.25},
        "vgg_bn": {"depth": 11, "width": 0.25, "batch_norm": True},
        "resnet": {"depth": 8, "width": 0.5},
    }[family]
    x = torch.randn(64, 3, 32, 32)
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = models.build(family.removesuffix("_bn"), (3, 32, 32), 10, **options)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1 * torch.rand_like(p))
            module.train()(x)  # statistics of its own, where it keeps any
        nets.append(FlatModule(module.eval()))
    torch.manual_seed(2)
    between = FlatModule(models.build(family.removesuffix("_bn"), (3, 32, 32), 10, **options).eval())
    repair = Repair(between, lambda: [x], shift=True)
    named = {m: n for n, m in between.module.named_modules()}
    layers = [[dict(net.module.named_modules())[named[s]] for s in repair.sites] for net in nets]
    ends = [statistics(net.module, here, x) for net, here in zip(nets, layers, strict=True)]
    for net in nets:
        between.point.copy_(net.point)
        between.load_rest(net.rest())
        repair.add_end()
    between.point.copy_(torch.lerp(nets[0].point, nets[1].point, share))
    repair.set([1 - share, share])
    found = statistics(between.module, repair.sites, x)
    # BatchNorm estimates the unbiased variance, which differs in the deepest layers of so small a batch.
    tolerance = 2e-2 if family == "vgg_bn" else 2e-3
    for (mean, std), a, b in zip(found, *ends, strict=True):
        scale = torch.lerp(a[1], b[1], share).max()
        assert torch.allclose(mean, torch.lerp(a[0], b[0], share), atol=tolerance * float(scale))
        assert torch.allclose(std, torch.lerp(a[1], b[1], share), atol=tolerance * float(scale))
    repair.release()
    assert len(repair.sites) >= 3
    heads = [m for m in between.module.modules() if isinstance(m, nn.Linear)]
    assert heads[-1] not in repair.sites


def test_renormalised_paths_keep_their_ends_exactly() -> None:
    plain = ok("interpolate", *DIGITS, "--json")
    repaired = ok("interpolate", *DIGITS, "interpolation.renormalise=repair", "--json")
    tables = [pd.read_csv(folders(a)["interpolate"] / "path.csv") for a in (plain, repaired)]
    for end in (0, -1):
        assert tables[0].iloc[end].equals(tables[1].iloc[end])
    assert tables[0].iloc[1]["train_nll"] != tables[1].iloc[1]["train_nll"]
    assert compose("interpolation.renormalise=rescale").interpolation.renormalise == "rescale"
