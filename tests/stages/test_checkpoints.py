"""Networks through the command line: every architecture, the user's own, and endpoints from files of every kind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_helpers import (
    QUICK,
    ROOT,
    SPIRALS,
    compose,
    folders,
    no_pictures,
    ok,
    refused,
    statuses,
    tree,
    write_images,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeconn_cli import settings
from modeconn_cli.front.overrides import node_of
from modeconn_cli.networks import read_metadata, write_state
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.endpoints import CHECKPOINT
from modeconn_cli.stages.plot import Plot
from modeconn_cli.work.plan import make_plan
from modeconn_cli.work.reporting import Silent
from modeconn_cli.work.stage import execute


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)


# --------------------------------------------------------------------------------------------- architectures

# What makes a choice small enough for a test, by its family. The depths are the families' least.
SMALL: dict[str, list[str]] = {
    "mlp": ["architecture.width=16"],
    "convfc": [],
    "vgg": ["architecture.width=0.05"],
    "resnet": ["architecture.depth=8", "architecture.width=0.25"],
    "preresnet": ["architecture.depth=8"],
    "wrn": ["architecture.depth=10", "architecture.widen=1"],
    "vit": ["architecture.dim=24", "architecture.depth=2"],
    "torchvision": ["architecture.model=squeezenet1_1", "dataset.pad_to=36"],
    "custom": ["architecture.target=net.py:Net"],
}
CHOICES = sorted(p.stem for p in (ROOT / "conf" / "architecture").glob("*.yaml"))
NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, in_shape, classes, width=4):
        features = 1
        for n in in_shape:
            features *= n
        super().__init__(nn.Flatten(), nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(),
                         nn.Linear(width, classes))
"""


def test_every_family_is_among_the_choices() -> None:
    nodes = {node_of("architecture", choice) for choice in CHOICES}
    assert nodes == {*settings.choices("architecture").values()}
    assert {*SMALL} == {*settings.choices("architecture")}


@pytest.mark.parametrize("choice", CHOICES)
def test_two_steps_and_a_segment_of_every_architecture(choice: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images.npz")
    (tmp_path / "net.py").write_text(NET)
    family = next(f for f in sorted(SMALL, key=len, reverse=True) if choice.startswith(f))
    config = compose(
        "dataset=arrays",
        "dataset.path=images.npz",
        f"architecture={choice}",
        *SMALL[family],
        *QUICK,
        "endpoints.batch_size=10",
        "endpoints.lr=0.01",
    )
    plan = make_plan("interpolate", config, Silent())
    assert [s.gradient_steps for s in plan.stages[:2]] == [2, 2]
    for stage in plan.stages:
        if not isinstance(stage, Plot):
            execute(stage, False)
    first, second = (load_file(s.result.folder / CHECKPOINT) for s in plan.stages[:2])
    assert any(not torch.equal(first[k], second[k]) for k in first)
    table = pd.read_csv(plan.stages[2].result.folder / "path.csv")
    assert list(table["t"]) == [0, 0.5, 1]
    assert bool((table["length"].diff()[1:] > 0).all())
    summary = json.loads((plan.stages[2].result.folder / "summary.json").read_text())
    assert summary["splits"]["test"]["examples"] == 20
    has_norm = any(k.endswith("running_mean") for k in first)
    assert summary["batch_norm"].startswith("reestimate" if has_norm else "none")


def test_a_custom_architecture_from_a_file_and_from_a_module(tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(NET)
    wanted = ["interpolate", *(w for w in SPIRALS if "architecture" not in w), "architecture=custom", "--json"]
    by_file = ok(*wanted, "architecture.target=mynet.py:Net", "+architecture.kwargs.width=6")
    by_module = ok(*wanted, "architecture.target=mynet:Net", "+architecture.kwargs.width=6")
    assert {s for _, s in statuses(by_file)} == {"run"}
    assert by_file.json["barriers"] == by_module.json["barriers"]
    assert load_file(folders(by_file)["train-endpoints"] / CHECKPOINT)["1.weight"].shape == (6, 2)
    (tmp_path / "mynet.py").write_text(NET.replace("ReLU", "Tanh"))
    changed = ok(*wanted, "architecture.target=mynet.py:Net", "+architecture.kwargs.width=6", "--dry-run")
    assert {s for _, s in statuses(changed)} == {"run"}, "the code is part of what determines the result"


@pytest.mark.parametrize("word", ["architecture.kwargs.width=6", "architecture.kwargs={width: 6}"])
def test_arguments_of_a_custom_architecture_need_no_plus(word: str, tmp_path: Path) -> None:
    """They are a documented field, and `+` is Hydra's word for a field that there is not."""
    (tmp_path / "mynet.py").write_text(NET)
    assert compose("architecture=custom", word).architecture.kwargs == {"width": 6}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nothing.py:Net", "nothing.py"),
        ("mynet.py:Nett", "Net"),
        ("mynet.py", "path/to/file.py:name"),
        ("nothing:Net", "nothing"),
        ("mynet.py:broken", "ZeroDivisionError"),
        ("syntax.py:Net", "syntax.py"),
        ("absent.py:Net", "absent.py cannot be imported (ModuleNotFoundError in absent.py:1: No module named"),
        ("raising.py:Net", "raising.py cannot be imported (RuntimeError in raising.py:1: not today)"),
    ],
)
def test_a_custom_architecture_that_cannot_be_made(target: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(f"{NET}\n\ndef broken():\n    return 1 / 0\n")
    (tmp_path / "syntax.py").write_text("class Net(:\n")
    (tmp_path / "absent.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "raising.py").write_text("raise RuntimeError('not today')\n")
    # Code that is there and fails when it is called is no mistake of usage; what cannot be imported is not there.
    code = 1 if "broken" in target else 2
    words = ["train-endpoints", *SPIRALS[:2], "architecture=custom", f"architecture.target={target}"]
    message = refused(*words, code=code)
    assert said in message
    assert not (tmp_path / "outputs").exists()


# ------------------------------------------------------------------------------------------ endpoints from files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The weights of two trained networks, and the segment's results between them."""
    root = tmp_path_factory.mktemp("trained") / "outputs"
    answer = ok("train-endpoints", *SPIRALS, f"runtime.output_dir={root}", "--json")
    return [load_file(Path(r["directory"]) / CHECKPOINT) for r in answer.json["stages"]]


def write(state: Any, file: Path) -> str:
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return file.name


def segment(*files: str) -> list[str]:
    return ["interpolate", *SPIRALS, f"endpoints.checkpoints=[{','.join(files)}]"]


KINDS = {
    "plain.pt": lambda s: s,
    "plain.pth": lambda s: s,
    "plain.safetensors": lambda s: s,
    "prefixed.pt": lambda s: {f"module.{k}": v for k, v in s.items()},
    "model_state.pt": lambda s: {"model_state": s, "epoch": 3},
    "state_dict.pt": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "optimizer": {}},
    "model.pt": lambda s: {"model": s},
    "float64.safetensors": lambda s: {k: v.double() for k, v in s.items()},
}


def test_endpoints_from_files_of_every_kind_give_what_training_them_here_gives(
    trained: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    wanted = ok("interpolate", *SPIRALS, "--json")
    second = write(trained[1], tmp_path / "second.safetensors")
    for name, change in KINDS.items():
        first = write(change(trained[0]), tmp_path / name)
        answer = ok(*segment(first, second), "--json")
        unnamed = [{k: v for k, v in b.items() if k != "endpoints"} for b in answer.json["barriers"]]
        assert unnamed == [{k: v for k, v in b.items() if k != "endpoints"} for b in wanted.json["barriers"]], name
        assert [r["stage"] for r in answer.json["stages"]] == [
            "train-endpoints",
            "train-endpoints",
            "interpolate",
            "plot",
        ]
        copied = load_file(Path(answer.json["stages"][0]["directory"]) / CHECKPOINT)
        assert {*copied} == {*trained[0]}
        assert all(torch.equal(copied[k], v) for k, v in trained[0].items()), name
        provenance = json.loads((Path(answer.json["stages"][0]["directory"]) / "provenance.json").read_text())
        assert len(provenance["identity"]["fields"]["file"]) == 64


def test_a_renamed_file_is_the_same_endpoint_and_a_changed_one_is_not(
    trained: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    a, b = (write(s, tmp_path / f"{n}.safetensors") for s, n in zip(trained, "ab", strict=True))
    ok(*segment(a, b), "--json")
    os.rename(a, "c.safetensors")
    assert {s for _, s in statuses(ok(*segment("c.safetensors", b), "--json"))} == {"cached"}
    write({k: 2 * v for k, v in trained[0].items()}, tmp_path / "c.safetensors")
    assert statuses(ok(*segment("c.safetensors", b), "--dry-run", "--json"))[0] == ("train-endpoints", "run")


def test_a_curve_between_files(trained: list[dict[str, Tensor]], tmp_path: Path) -> None:
    files = [write(s, tmp_path / f"{n}.pt") for s, n in zip(trained, "ab", strict=True)]
    answer = ok("fit-curve", *SPIRALS, f"endpoints.checkpoints=[{','.join(files)}]", "--json")
    assert "a.pt and b.pt" in answer.json["verdicts"][0]["sentence"]
    points = load_file(folders(answer)["fit-curve"] / CHECKPOINT)
    for name, value in trained[0].items():
        assert torch.equal(points[f"0.{name}"], value)


class Malicious:
    """Pickled, it creates a file on being read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch marker",)


def damaged(name: str, state: dict[str, Tensor]) -> Any:
    key = sorted(state)[-1]
    match name:
        case "missing":
            return {k: v for k, v in state.items() if k != key}
        case "extra":
            return {**state, "extra.weight": torch.zeros(2)}
        case "nan":
            return {**state, key: torch.full_like(state[key], torch.nan)}
        case "infinite":
            return {**state, key: torch.full_like(state[key], torch.inf)}
        case "shape":
            return {**state, key: torch.zeros(3, 5, 7)}
        case "transposed":
            wide = next(k for k in state if state[k].dim() == 2 and state[k].shape[0] != state[k].shape[1])
            return {**state, wide: state[wide].T.contiguous()}
        case "empty":
            return {}
        case "list":
            return [*state.values()]
        case "numbers":
            return dict.fromkeys(state, 1.0)
        case "malicious":
            return {**state, "more": Malicious()}
    raise AssertionError(name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "lacks"),
        ("extra", "extra.weight"),
        ("nan", "NaN"),
        ("infinite", "infinite"),
        ("shape", "(3, 5, 7)"),
        ("transposed", "shape"),
        ("empty", ""),
        ("list", "state_dict"),
        ("numbers", "state_dict"),
        ("malicious", "run code"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written(
    kind: str, said: str, suffix: str, trained: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    if suffix == ".safetensors" and kind in ("list", "numbers", "malicious"):
        pytest.skip("safetensors cannot hold it")
    good = write(trained[0], tmp_path / f"good{suffix}")
    bad = write(damaged(kind, trained[1]), tmp_path / f"bad{suffix}")
    before = tree(tmp_path)
    message = refused(*segment(good, bad), "-q")
    assert f"bad{suffix}" in message
    assert said in message
    assert tree(tmp_path) == before, "nothing is written, and no code of the file is run"


def test_the_malicious_file_would_run_code_if_it_were_let(tmp_path: Path) -> None:
    """The test above means something: the same file does its work when it is unpickled."""
    torch.save(Malicious(), "bad.pt")
    torch.load("bad.pt", weights_only=False)
    assert Path("marker").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("left", [0, 10, 0.5, 0.98])
def test_a_truncated_checkpoint(left: float, suffix: str, trained: list[dict[str, Tensor]], tmp_path: Path) -> None:
    good = write(trained[0], tmp_path / f"good{suffix}")
    bad = tmp_path / write(trained[1], tmp_path / f"bad{suffix}")
    content = bad.read_bytes()
    bad.write_bytes(content[: int(left * len(content)) if left < 1 else int(left)])
    before = tree(tmp_path)
    assert f"bad{suffix}" in refused(*segment(good, bad.name), "-q")
    assert tree(tmp_path) == before


def test_a_checkpoint_that_is_a_directory_or_not_there(trained: list[dict[str, Tensor]], tmp_path: Path) -> None:
    good = write(trained[0], tmp_path / "good.pt")
    (tmp_path / "folder.pt").mkdir()
    for wrong in ("folder.pt", "nowhere.pt"):
        assert wrong in refused(*segment(good, wrong), "-q")
    (tmp_path / "hello.pt").write_text("hello")
    assert "hello.pt is not a readable checkpoint; save it again" in refused(*segment(good, "hello.pt"), "-q")
    assert not (tmp_path / "outputs").exists()


def test_a_checkpoint_of_another_width(trained: list[dict[str, Tensor]], tmp_path: Path) -> None:
    good = write(trained[0], tmp_path / "good.pt")
    other = ok("train-endpoints", *SPIRALS, "architecture.width=9", "endpoints.seeds=[0]", "--json")
    wide = folders(other)["train-endpoints"] / CHECKPOINT
    before = tree(tmp_path / "outputs")
    for files in ((good, str(wide)), (str(wide), good)):
        message = refused(*segment(*files), "-q")
        assert "(9" in message
        assert "(8" in message
    assert tree(tmp_path / "outputs") == before


def test_identical_endpoints_are_refused_before_anything_is_written(
    trained: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    """The same seeds, the same file twice, a copy of it, and the same weights in two formats."""
    first = write(trained[0], tmp_path / "a.safetensors")
    copy = write(trained[0], tmp_path / "b.safetensors")
    other = write(trained[0], tmp_path / "c.pt")
    before = tree(tmp_path)
    assert "identical" in refused("fit-curve", *SPIRALS, "endpoints.seeds=[3,3]")
    for files in ((first, first), (first, copy), (first, other)):
        message = refused(*segment(*files), "-q")
        assert "same" in message
        assert tree(tmp_path) == before, files


def test_checkpoints_and_seeds_together_and_other_numbers_of_files(
    trained: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    first = write(trained[0], tmp_path / "a.pt")
    assert "drop one" in refused(*segment(first, first), "endpoints.seeds=[0,1]")
    assert "2" in refused(*segment(), "-q") or "two" in refused(*segment(), "-q")
    assert "two endpoints" in refused(*segment(first), "-q")
    assert "checkpoint" in refused("train-endpoints", *SPIRALS, "endpoints.checkpoints=[]", "-q")


# -------------------------------------------------------------------------------------------- curves from curves


def test_a_checkpoint_is_the_same_bytes_every_time(trained: list[dict[str, Tensor]], tmp_path: Path) -> None:
    """Also with metadata, as a curve's has: curve.init_from is identified by its file's checksum."""
    run, written = Run(tmp_path, "run", ""), set()
    for _ in range(12):
        write_state(run, CHECKPOINT, trained[0], {"path": "bezier", "control_points": "3"})
        written.add((tmp_path / CHECKPOINT).read_bytes())
    assert read_metadata(tmp_path / CHECKPOINT) == {"path": "bezier", "control_points": "3"}
    assert len(written) == 1


def test_a_curve_may_start_from_another(tmp_path: Path) -> None:
    first = folders(ok("fit-curve", *SPIRALS, "--json"))["fit-curve"] / CHECKPOINT
    answer = ok("fit-curve", *SPIRALS, f"curve.init_from={first}", "curve.seed=9", "--json")
    assert folders(answer)["fit-curve"].parent != first.parent.parent
    points = [load_file(f) for f in (first, folders(answer)["fit-curve"] / CHECKPOINT)]
    assert all(torch.equal(points[0][k], points[1][k]) for k in points[0] if not k.startswith("1."))
    assert any(not torch.equal(points[0][k], points[1][k]) for k in points[0] if k.startswith("1."))


@pytest.mark.parametrize(
    ("words", "said"),
    [(["curve.bends=2"], "curve.bends"), (["curve.kind=chain"], "curve.kind"), ([], "control points")],
)
def test_a_curve_that_does_not_fit_is_refused_before_anything_is_written(
    words: list[str], said: str, trained: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    first = folders(ok("fit-curve", *SPIRALS, "--json"))["fit-curve"] / CHECKPOINT
    file = str(first) if words else write(trained[0], tmp_path / "plain.safetensors")
    before = tree(tmp_path / "outputs")
    assert said in refused("fit-curve", *SPIRALS, f"curve.init_from={file}", *words, "-q")
    assert tree(tmp_path / "outputs") == before


def test_a_part_of_a_file_is_taken_by_its_prefix(trained: list[dict[str, Tensor]]) -> None:
    first, second = trained
    both = {f"model.{k}": v for k, v in first.items()} | {f"ema.{k}": v for k, v in second.items()}
    files = write({"state_dict": both}, Path("both.pt")), write(first, Path("first.pt"))
    assert "under model. or under ema. is: give endpoints.strip=model." in refused(*segment(*files), "-q")
    assert "no name in first.pt begins so" in refused(*segment(*files), "endpoints.strip=ema", "-q")
    write({f"ema.{k}": v for k, v in first.items()}, Path("first.pt"))
    row = ok(*segment(*files), "endpoints.strip=ema.", "--json").json["stages"][0]
    assert all(torch.equal(v, second[k]) for k, v in load_file(Path(row["directory"]) / CHECKPOINT).items())
    assert ok(*segment("both.pt", "first.pt"), "endpoints.strip=ema", "--json").json["stages"][0]["status"] == "cached"


def test_a_head_for_more_classes_than_the_data_have_says_what_to_do(trained: list[dict[str, Tensor]]) -> None:
    files = [write(s | {k: torch.cat([s[k], s[k][:1]]) for k in ("head.weight", "head.bias")}, Path(f"{i}.pt"))
             for i, s in enumerate(trained)]  # fmt: skip
    message = refused(*segment(*files), "-q")
    assert message.endswith("is (2, 8). The data have 2 classes: where 3 are told apart, give dataset.classes=3.")
    ok(*segment(*files), "dataset.classes=3", "-q")
