"""Networks by reference through the command line: as endpoints, to train on from, and out of the laboratory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import call, compose, folders, no_pictures, ok, refused, statuses, tree
from safetensors.torch import load_file
from torch import Tensor

from modeconn_cli.networks import CHECKPOINT, open_networks
from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.find import Found, endpoints_behind
from modeconn_cli.work.context import Context
from modeconn_cli.work.reporting import Silent

NETS = """
from torch import nn


class Net(nn.Module):
    '''BatchNorm, and one layer that stands under two names.'''

    def __init__(self, width=6):
        super().__init__()
        self.first, self.norm, self.middle = nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, width)
        self.again = nn.Linear(width, width)
        self.again.weight = self.middle.weight
        self.last = nn.Linear(width, 2)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.last(self.again(self.middle(x).relu()).relu())
"""
SETTINGS = [
    "dataset=two_spirals",
    "dataset.examples=400",
    "architecture=custom",
    "architecture.target=nets.py:Net",
    "endpoints.epochs=25",
    "endpoints.batch_size=100",
    "endpoints.lr=0.2",
    "curve.epochs=2",
    "curve.batch_size=100",
    "interpolation.points=5",
    "interpolation.search_max=0",
    "interpolation.bootstrap=20",
]


@dataclass
class Lab:
    """A fitted curve, its endpoints with kept epochs, and both measured paths."""

    root: Path
    ends: list[Path]
    stages: dict[str, Path]

    def digest(self, stage: str) -> str:
        return self.stages[stage].parent.name.rsplit("-", 1)[-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        no_pictures(patch)
        (root / "nets.py").write_text(NETS)
        answer = ok("fit-curve", *SETTINGS, "endpoints.keep_epochs=[0,1]", "curve.bends=2", "--json", "-q")
    ends = [root / r["directory"] for r in answer.json["stages"] if r["stage"] == "train-endpoints"]
    return Lab(root, ends, {k: root / v for k, v in folders(answer).items()})


@pytest.fixture
def here(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the lab to work in."""
    place = tmp_path / "here"
    shutil.copytree(lab.root, place)
    monkeypatch.chdir(place)
    no_pictures(monkeypatch)
    return place


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return {*a} == {*b} and all(torch.equal(v, b[k]) for k, v in a.items())


# ------------------------------------------------------------------------------------------------------ export

PLAIN = """
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeconn_cli":
            raise ImportError("modeconn is not here")


sys.meta_path.insert(0, Refuse())
import json
import numpy as np
import torch
from safetensors.torch import load_file
sys.path.insert(0, ".")
from nets import Net

data = np.load("test.npz")
x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
errors = {}
for file in sys.argv[1:]:
    net = Net()
    state = load_file(file) if file.endswith(".safetensors") else torch.load(file, weights_only=True)
    net.load_state_dict(state)
    net.eval()
    with torch.no_grad():
        errors[file] = 100 * float((net(x).argmax(1) != y).double().mean())
print(json.dumps(errors))
"""


def test_plain_pytorch_loads_what_is_exported_and_measures_what_modeconn_did(lab: Lab, here: Path) -> None:
    data = Context(compose(*SETTINGS), Silent()).data_on_host
    np.savez("test.npz", x=data.inputs(data.test, slice(None)).numpy(), y=data.test.y.numpy())
    wanted = {}
    for k, (file, end) in enumerate([("end.safetensors", lab.ends[0]), ("end.pt", lab.ends[1])]):
        answer = ok("export", end.parent.name, "-o", file, "--json").json
        assert answer["network"] == f"seed {k}"
        assert (answer["what"], answer["tensors"]) == ("endpoint", 13)
        wanted[file] = json.loads((end / "summary.json").read_text())["metrics"]["test_error"]
    for stage in ("interpolate", "evaluate"):
        table = pd.read_csv(lab.stages[stage] / "path.csv").set_index("t")
        for t in (0.0, 0.25, 0.5, 1.0):
            file = f"{stage}{t}.safetensors"
            assert ok("export", f"{stage}/{lab.stages[stage].parent.name}@t={t:g}", "-o", file).out.strip() == file
            wanted[file] = table["test_error"][t]
    (here / "plain.py").write_text(PLAIN)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "plain.py", *wanted], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(wanted, abs=1e-9)
    assert len({round(v, 6) for v in wanted.values()}) > 2, "the figures tell the networks apart"


def test_an_end_of_a_path_is_its_endpoint_with_its_own_buffers(lab: Lab, here: Path) -> None:
    ends = [load_file(e / CHECKPOINT) for e in lab.ends]
    for stage in ("interpolate", "fit-curve", "evaluate"):
        run = lab.digest(stage)
        count = 2 if stage == "interpolate" else 4
        for k, (t, number) in enumerate([(0, 1), (1, count)]):
            for reference in (f"{run}@t={t}", f"{run}#{number}"):
                assert same(open_networks(reference)[0].state(), ends[k]), reference


def test_a_point_of_a_path_has_the_weights_and_the_statistics_of_the_definition(lab: Lab, here: Path) -> None:
    """Against sums in float64 and the statistics of one layer's input over the whole training split."""
    points = load_file(lab.stages["fit-curve"] / CHECKPOINT)
    t = 0.3
    bernstein = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    cases = {f"{lab.digest('evaluate')}@t={t}": bernstein, f"{lab.digest('fit-curve')}#3": [0, 0, 1, 0]}
    data = Context(compose(*SETTINGS), Silent()).data_on_host
    x = data.inputs(data.train, slice(None)).double()
    for reference, c in cases.items():
        state = open_networks(reference)[0].state()
        for name in ("first.weight", "norm.bias", "last.weight"):
            exact = sum(c_k * points[f"{k}.{name}"].double() for k, c_k in enumerate(c))
            torch.testing.assert_close(state[name].double(), exact, rtol=1e-5, atol=1e-6)
        assert torch.equal(state["middle.weight"], state["again.weight"])
        units = x @ state["first.weight"].double().T + state["first.bias"].double()
        torch.testing.assert_close(state["norm.running_mean"].double(), units.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state["norm.running_var"].double(), units.var(0), rtol=1e-4, atol=1e-5)


def test_export_writes_over_nothing_unless_it_is_told(lab: Lab, here: Path) -> None:
    run = lab.ends[0].parent.name
    Path("net.pt").write_text("mine")
    assert "--force" in refused("export", run, "-o", "net.pt")
    assert Path("net.pt").read_text() == "mine"
    ok("export", run, "-o", "net.pt", "--force")
    assert same(torch.load("net.pt", weights_only=True), load_file(lab.ends[0] / CHECKPOINT))
    assert ".safetensors" in refused("export", run, "-o", "net.onnx")
    ok("export", f"{run}@epoch=1", "-o", "new/folder/kept.safetensors")
    assert same(load_file("new/folder/kept.safetensors"), load_file(lab.ends[0] / "checkpoint-epoch1.safetensors"))


def test_an_epoch_and_its_last_step_are_the_same_kept_network(lab: Lab, here: Path) -> None:
    run = lab.ends[1].parent.name
    assert same(open_networks(f"{run}@epoch=1")[0].state(), open_networks(f"{run}@step=4")[0].state())


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nothing", "no run 'nothing'"),
        ("nothing.pt", "no file nothing.pt"),
        ("END@epoch=2", "kept are epoch 0, epoch 1"),
        ("END@step=3", "not kept"),
        ("END@t=0.5", "no path"),
        ("END#4", "holds 3 networks"),
        ("CURVE", "CURVE@t=0.5"),
        ("CURVE#5", "holds 4 networks"),
        ("CURVE@t=1.5", "0 to 1"),
        ("LINE", "LINE#2"),
        ("LINE#3", "holds 2 networks"),
        ("PICTURE", "no network"),
        ("CURVEFILE", "its run"),
    ],
)
def test_a_mistaken_reference_is_answered_in_one_line_and_nothing_is_written(
    reference: str, said: str, lab: Lab, here: Path
) -> None:
    places = {
        "END": f"train-endpoints/{lab.ends[0].parent.name}",
        "CURVEFILE": os.path.relpath(lab.stages["fit-curve"] / CHECKPOINT, lab.root),
        "CURVE": lab.digest("fit-curve"),
        "LINE": lab.digest("interpolate"),
        "PICTURE": f"plot/{lab.stages['plot'].parent.name}",
    }

    def put(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    before = tree(here)
    message = refused("export", put(reference), "-o", "net.pt")
    assert put(said) in message
    other = lab.ends[1].parent.name
    assert put(said) in refused("interpolate", *SETTINGS, f"endpoints.from=[{put(reference)},{other}]", "-q")
    assert tree(here) == before


# ------------------------------------------------------------------------------------------------ as endpoints


def test_endpoints_from_runs_are_the_networks_that_are_meant(lab: Lab, here: Path) -> None:
    first, curve = lab.ends[0].parent.name, lab.digest("evaluate")
    words = [*SETTINGS, f"endpoints.from=[{first}@epoch=1,{curve}@t=0.5]"]
    answer = ok("interpolate", *words, "--json", "-q")
    a, b = (Path(r["directory"]) for r in answer.json["stages"][:2])
    assert same(load_file(a / CHECKPOINT), load_file(lab.ends[0] / "checkpoint-epoch1.safetensors"))
    assert same(load_file(b / CHECKPOINT), open_networks(f"{curve}@t=0.5")[0].state())
    assert "seed 0 at epoch 1 and bezier at t=0.5" in answer.json["verdicts"][0]["sentence"]
    measured = pd.read_csv(lab.stages["evaluate"] / "path.csv").set_index("t")["test_error"][0.5]
    assert json.loads((b / "summary.json").read_text())["metrics"]["test_error"] == pytest.approx(measured)
    provenance = json.loads((a / "provenance.json").read_text())
    assert [Path(u).name for u in provenance["upstream"]] == ["v1"]
    assert Path(provenance["upstream"][0]).parent.name == first
    assert endpoints_behind(Found(folders(answer)["interpolate"])) == [Found(a), Found(b)]
    again = ok("interpolate", *words, "--json", "-q")
    assert {s for _, s in statuses(again)} == {"cached"}


def test_connect_takes_references(lab: Lab, here: Path) -> None:
    first, curve = lab.ends[0].parent.name, lab.digest("evaluate")
    words = [w for w in SETTINGS if not w.startswith(("dataset=", "architecture"))]
    asked = ["connect", first, f"{curve}@t=0.5", "--model", "nets.py:Net", "--data", "two_spirals", "--no-curve"]
    answer = ok(*asked, *words, "--json", "-q").json
    assert [e["from"] for e in answer["endpoints"][:2]] == ["seed 0", "bezier at t=0.5"]
    assert "seed 0 and bezier at t=0.5" in answer["verdict"]["sentence"]
    measured = pd.read_csv(lab.stages["evaluate"] / "path.csv").set_index("t")["test_error"]
    assert [e["test_error"] for e in answer["endpoints"][:2]] == pytest.approx([measured[0.0], measured[0.5]])


def test_run_joins_references_in_pairs(lab: Lab, here: Path) -> None:
    names = [lab.ends[0].parent.name, lab.ends[1].parent.name, f"{lab.ends[0].parent.name}@epoch=1"]
    words = ["run", *SETTINGS, f"endpoints.from=[{','.join(names)}]", "pipeline.paths=[segment]", "pipeline.pairs=all"]
    answer = ok(*words, "--json", "-q").json
    called = ["seed 0", "seed 1", "seed 0 at epoch 1"]
    joined = {v["endpoints"] for v in answer["verdicts"]}
    assert joined == {f"{called[i]} and {called[k]}" for i, k in ((0, 1), (0, 2), (1, 2))}
    said = refused("run", *SETTINGS, f"endpoints.from=[{','.join(names)}]", "pipeline.paths=[segment]", "-q")
    assert "3" in said


def test_a_sweep_goes_over_references(lab: Lab, here: Path) -> None:
    first, second, curve = *(e.parent.name for e in lab.ends), lab.digest("fit-curve")
    pairs = [f"[{first},{second}]", f"[{first},{curve}@t=0.5]", f"[{first}@epoch=1,{curve}#2]"]
    answer = ok("interpolate", *SETTINGS, "-m", f"endpoints.from={','.join(pairs)}", "--json", "-q").json
    joined = [job["verdicts"][0]["endpoints"] for job in answer["jobs"]]
    assert joined == [
        "seed 0 and seed 1",
        "seed 0 and bezier at t=0.5",
        "seed 0 at epoch 1 and bezier control point 2",
    ]


def test_a_reference_to_an_endpoint_is_identified_by_what_it_holds(lab: Lab, here: Path) -> None:
    """By a run, by the file in it, by a copy of the file elsewhere, by the end of a path: one endpoint."""
    first, second = (e.parent.name for e in lab.ends)
    ok("train-endpoints", *SETTINGS, f"endpoints.from=[{first},{second}]", "-q")
    shutil.copy(lab.ends[0] / CHECKPOINT, "copy.safetensors")
    line = lab.digest("interpolate")
    for words in (
        f"endpoints.from=[copy.safetensors,{line}#2]",
        f"endpoints.from=['{line}@t=0',\"{lab.digest('fit-curve')}@t=1\"]",
        f"endpoints.checkpoints=[copy.safetensors,{os.path.relpath(lab.ends[1] / CHECKPOINT, lab.root)}]",
    ):
        answer = ok("train-endpoints", *SETTINGS, words, "--json", "-q")
        assert {s for _, s in statuses(answer)} == {"cached"}, words
    assert "same network" in refused("interpolate", *SETTINGS, f"endpoints.from=[{first},{line}#1]", "-q")


def test_the_setting_is_shown_completed_and_kept_from_others(lab: Lab, here: Path) -> None:
    first, second = (e.parent.name for e in lab.ends)
    shown = ok("interpolate", *SETTINGS, f"endpoints.from=[{first},{second}@epoch=1]", "--cfg", "job").out
    assert f"  from:\n  - {first}\n  - {second}@epoch=1\n" in shown
    completed = ok("_complete", "modeconn interpolate endpoints.fr").out.split()
    assert completed == ["endpoints.from="]
    assert f"endpoints.from=[train-endpoints/{first}" in ok("_complete", "modeconn interpolate endpoints.from=[t").out
    assert f"train-endpoints/{first}" in ok("_complete", "modeconn export train").out
    for other in ("endpoints.seeds=[0,1]", "endpoints.checkpoints=[a.pt,b.pt]", f"endpoints.init_from={first}"):
        assert "drop one" in refused("interpolate", *SETTINGS, f"endpoints.from=[{first},{second}]", other, "-q")
    assert "endpoints.from" in refused("interpolate", *SETTINGS, "endpoints.from=[]", "-q")


def test_files_of_one_name_are_told_apart_and_align_too(lab: Lab, here: Path) -> None:
    for name, end in zip("ab", lab.ends, strict=True):
        (here / "runs" / name).mkdir(parents=True)
        shutil.copy(end / CHECKPOINT, here / "runs" / name / "model.safetensors")
    files = [f"runs/{name}/model.safetensors" for name in "ab"]
    answer = ok(
        "interpolate", *SETTINGS, f"endpoints.checkpoints=[{','.join(files)}]", "rebasin=weight", "rebasin.restarts=0",
        "--json", "-q",
    )  # fmt: skip
    both = "a/model.safetensors and b/model.safetensors"
    assert f"{both} aligned" in answer.json["verdicts"][0]["sentence"]
    assert [e["from"] for e in answer.json["endpoints"]][:2] == both.split(" and ")
    aligned = folders(answer)["rebasin"].parent.name
    assert open_networks(f"rebasin/{aligned}").names == ["aligned", "midpoint"]
    np.savez("data.npz", **_arrays())
    told = ok(
        "connect", *files, "--model", "nets.py:Net", "--data", "data.npz", *SETTINGS[4:], "--no-curve", "--json", "-q"
    )
    assert both in told.json["verdict"]["sentence"]
    assert both in told.json["verdicts"][0]["sentence"]
    for name in "ab":  # the same networks by other names
        shutil.copy(f"runs/{name}/model.safetensors", f"{name}.safetensors")
    words = ["connect", "a.safetensors", "b.safetensors", "--model", "nets.py:Net", "--data", "data.npz", *SETTINGS[4:]]
    again = ok(*words, "--no-curve", "--json", "-q").json
    assert "a.safetensors and b.safetensors" in again["verdict"]["sentence"]
    assert "a.safetensors and b.safetensors" in again["verdicts"][0]["sentence"]
    assert {row["status"] for row in again["stages"]} == {"cached"}
    written = sorted(Path("outputs").rglob("*"))
    planned = ok(*words, "--dry-run", "--json").json["stages"]
    assert sorted(Path("outputs").rglob("*")) == written
    assert {"cached", "run"} == {row["status"] for row in planned}
    assert "evaluate" in {row["stage"] for row in planned}
    forced = ok(*words, "--no-curve", "--force", "--json", "-q").json["stages"]
    assert {Path(r["directory"]).name for r in forced if r["stage"] == "interpolate"} == {"v2"}
    assert all(r["status"] == "cached" for r in forced if r["stage"] == "train-endpoints")


def _arrays() -> dict[str, Any]:
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 60, 2)).astype(np.float32)
    y = (x[..., 0] > 0).astype(int)
    return {"x_train": x[0], "y_train": y[0], "x_test": x[1], "y_test": y[1]}


# ------------------------------------------------------------------------------------------- to train on from


def test_fine_tunes_of_one_parent_each_have_their_own_order(lab: Lab, here: Path) -> None:
    parent = lab.ends[0]
    words = ["train-endpoints", *SETTINGS, "endpoints.keep_epochs=[0]", "endpoints.epochs=1", "--json", "-q"]
    answer = ok(*words, f"endpoints.init_from={parent.parent.name}")
    tuned = [Path(r["directory"]) for r in answer.json["stages"]]
    starts = [load_file(f / "checkpoint-epoch0.safetensors") for f in tuned]
    assert all(same(s, load_file(parent / CHECKPOINT)) for s in starts)
    first, second = (load_file(f / CHECKPOINT) for f in tuned)
    assert not torch.equal(first["first.weight"], second["first.weight"])
    for folder in tuned:
        provenance = json.loads((folder / "provenance.json").read_text())
        assert [Path(u).parent.name for u in provenance["upstream"]] == [parent.parent.name]
        assert endpoints_behind(Found(folder)) == [Found(folder)]
    # What is identified is the parent's content: elsewhere, it is the same parent.
    shutil.copy(parent / CHECKPOINT, "elsewhere.safetensors")
    assert {s for _, s in statuses(ok(*words, "endpoints.init_from=elsewhere.safetensors"))} == {"cached"}
    other = ok(*words, f"endpoints.init_from={lab.ends[1].parent.name}", "--dry-run")
    assert {s for _, s in statuses(other)} == {"run"}
    assert {s for _, s in statuses(ok(*words, "--dry-run"))} == {"run"}, "those of the seeds alone are others still"
    # The parent stays for as long as one of them does.
    going = ok("runs", "gc", "--keep", tuned[0].parent.name, "--json").json["runs"]
    assert str(parent.relative_to(lab.root)) not in [r["directory"] for r in going]
    assert str(lab.ends[1].relative_to(lab.root)) in [r["directory"] for r in going]


def test_a_fine_tune_may_start_anywhere_on_a_path(lab: Lab, here: Path) -> None:
    words = ["train-endpoints", *SETTINGS, "endpoints.keep_epochs=[0]", "endpoints.epochs=1", "--json", "-q"]
    reference = f"{lab.digest('fit-curve')}@t=0.5"
    answer = ok(*words, "endpoints.seeds=[5]", f"endpoints.init_from={reference}")
    start = load_file(folders(answer)["train-endpoints"] / "checkpoint-epoch0.safetensors")
    assert same(start, open_networks(reference)[0].state())


def test_what_does_not_go_with_a_parent_is_refused(lab: Lab, here: Path) -> None:
    run = lab.ends[0].parent.name
    before = tree(here)
    asked = ["train-endpoints", *SETTINGS, f"endpoints.init_from={run}", "-q"]
    assert "init_seed" in refused(*asked, "endpoints.init_seed=0")
    assert "shape" in refused(*asked, "+architecture.kwargs.width=7")
    assert "no run" in refused("train-endpoints", *SETTINGS, "endpoints.init_from=nothing", "-q")
    assert "same network" in refused("interpolate", *asked[1:], "endpoints.data_seed=0")
    assert tree(here) == before


def test_a_curve_starts_from_the_run_of_another_as_from_its_file(lab: Lab, here: Path) -> None:
    words = ["fit-curve", *SETTINGS, "endpoints.keep_epochs=[0,1]", "curve.bends=2", "curve.seed=9", "--json", "-q"]
    file = os.path.relpath(lab.stages["fit-curve"] / CHECKPOINT, lab.root)
    digests = []
    for reference in (lab.digest("fit-curve"), f"evaluate/{lab.stages['evaluate'].parent.name}", file):
        rows = ok(*words, f"curve.init_from={reference}", "--dry-run").json["stages"]
        digests.append([r["name"] for r in rows])
    assert digests[0] == digests[1] == digests[2]
    assert "whole curve" in refused(*words[:-2], f"curve.init_from={lab.digest('fit-curve')}@t=0.5", "-q")
    assert "holds no curve" in refused(*words[:-2], f"curve.init_from={lab.digest('interpolate')}", "-q")
    made = folders(ok(*words, f"curve.init_from={lab.digest('fit-curve')}"))["fit-curve"]
    upstream = json.loads((made / "provenance.json").read_text())["upstream"]
    assert Path(upstream[-1]).parent.name == lab.stages["fit-curve"].parent.name


def test_changed_data_are_not_taken_for_those_of_the_run(lab: Lab, here: Path) -> None:
    folder = here / lab.stages["evaluate"].relative_to(lab.root)
    file = folder / "provenance.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "dataset_sha256": "0" * len(content["dataset_sha256"])}, indent=2) + "\n")
    Run(folder, "cached", "").finish()  # whole, as it is now
    assert call("runs", "show", str(folder)).code == 0
    assert "data set is not what it was" in refused("export", f"{folder}@t=0.5", "-o", "net.pt")
