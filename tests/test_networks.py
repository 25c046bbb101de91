"""References to networks, what they are called, and the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.networks import (
    CHECKPOINT,
    open_networks,
    read_metadata,
    read_networks,
    read_state,
    require_kept,
    save_state,
    write_control_points,
    write_state,
)
from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.find import Found, endpoints_behind, removable
from modeconn_cli.runs.references import Reference, file_names, parse, told_apart
from modeconn_cli.states import pack
from modeconn_cli.weights import FlatModule


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3fa2", Reference("3fa2", "3fa2")),
        ("outputs/x/y-3fa2/v1", Reference("outputs/x/y-3fa2/v1", "outputs/x/y-3fa2/v1")),
        ("3fa2@epoch=20", Reference("3fa2@epoch=20", "3fa2", epoch=20)),
        ("3fa2@step=0", Reference("3fa2@step=0", "3fa2", step=0)),
        ("a/b-3fa2/v2@t=0.3", Reference("a/b-3fa2/v2@t=0.3", "a/b-3fa2/v2", t=0.3)),
        ("3fa2@t=1", Reference("3fa2@t=1", "3fa2", t=1.0)),
        ("3fa2#2", Reference("3fa2#2", "3fa2", number=2)),
        ("me@home/3fa2@t=1e-3", Reference("me@home/3fa2@t=1e-3", "me@home/3fa2", t=0.001)),
    ],
)
def test_a_reference_is_taken_apart(text: str, wanted: Reference) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("3fa2@t=1.01", "0 to 1"),
        ("3fa2@t=-0.1", "0 to 1"),
        ("3fa2@t=nan", "0 to 1"),
        ("3fa2@t=half", "0 to 1"),
        ("3fa2@epoch=1.5", "whole number"),
        ("3fa2@when=3", "@when selects nothing"),
        ("3fa2#0", "from 1"),
        ("3fa2#-1", "from 1"),
        ("3fa2#first", "from 1"),
        ("gone.pt@t=0.5", "gone.pt"),
    ],
)
def test_a_reference_that_means_nothing_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse(text).run(Path("outputs"))
    assert "\n" not in str(caught.value)


def test_a_file_of_the_very_name_is_that_file() -> None:
    for name in ("model#2.safetensors", "model@t=0.5.safetensors"):
        save_file({"w": torch.ones(2)}, name)
        assert parse(name).file == Path(name)
        assert torch.equal(open_networks(name)[0].state()["w"], torch.ones(2))


FILES = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4), min_size=1, max_size=5)


@given(FILES)
def test_names_are_told_apart_and_none_is_longer_than_it_must_be(parts: list[list[str]]) -> None:
    files = [Path(*p, "model.pt") for p in dict.fromkeys(map(tuple, parts))]
    names = told_apart([file_names(f) for f in files])
    assert all(str(f).endswith(name) for f, name in zip(files, names, strict=True))
    for i, (file, name) in enumerate(zip(files, names, strict=True)):
        shorter = name.partition("/")[2]
        if shorter:  # it would be another's name, or the beginning of one that had to grow together with it
            assert any(str(f).endswith(f"/{shorter}") or str(f) == shorter for j, f in enumerate(files) if j != i), file
    whole = {f.parts for f in files}
    ends_of_others = [f for f in files if any(g != f and g.parts[-len(f.parts) :] == f.parts for g in files)]
    if not ends_of_others:
        assert len({*names}) == len(whole)


def test_one_file_is_called_by_its_name_alone() -> None:
    assert told_apart([file_names(Path("runs/a/model.pt")), file_names(Path("runs/a/other.pt"))]) == [
        "model.pt",
        "other.pt",
    ]
    assert told_apart([["x"], ["x"]]) == ["x", "x"]


# ------------------------------------------------------------------------------------------------------ files


def test_control_points_are_written_and_read_as_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = FlatModule(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    W_kp = torch.randn(3, len(net.point))
    write_control_points(Run(tmp_path, "run", ""), net, W_kp, "chain")
    assert read_metadata(tmp_path / CHECKPOINT) == {"path": "chain", "control_points": 3}
    assert {*load_file(tmp_path / CHECKPOINT)} == {f"{k}.{n}" for k in range(3) for n in net.names}
    found = read_networks(tmp_path / CHECKPOINT)
    assert found.family == "chain"
    assert found.names == ["control point 1 of 3", "control point 2 of 3", "control point 3 of 3"]
    assert torch.equal(found.points(net), W_kp)
    assert {n.what for n in found} == {"control point"}


def test_more_than_ten_control_points_keep_their_rows(tmp_path: Path) -> None:
    """Row 1 is not rows 1, 10 and 11."""
    net = FlatModule(nn.Linear(2, 1))
    W_kp = torch.arange(36.0).reshape(12, 3)
    write_control_points(Run(tmp_path, "run", ""), net, W_kp, "chain")
    assert torch.equal(read_networks(tmp_path / CHECKPOINT).points(net), W_kp)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_saved_state_is_what_pytorch_reads(suffix: str, tmp_path: Path) -> None:
    shared = torch.randn(3, 3)
    state = {"a": shared, "tied": shared, "part": torch.arange(12.0).reshape(3, 4).T, "n": torch.tensor(3)}
    file = tmp_path / f"net{suffix}"
    save_state(state, file)
    plain = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    assert {*plain} == {*state}
    assert all(torch.equal(plain[k], v) for k, v in state.items())
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    assert all(torch.equal(v, state[k]) for k, v in read_state(file).items())


def test_a_network_that_files_cannot_hold_is_refused_before_it_is_trained() -> None:
    require_kept(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(UserError, match="weight is complex128"):
        require_kept(nn.Linear(2, 2, dtype=torch.complex128))


@pytest.mark.parametrize("extra", [{"version": 2}, torch.ones(2)])
def test_extra_state_is_saved_as_the_module_gave_it(extra: Any, tmp_path: Path) -> None:
    state = {"w": torch.ones(1), "_extra_state": pack(extra, "")}
    save_state(state, tmp_path / "net.pt")
    found = torch.load(tmp_path / "net.pt", weights_only=True)["_extra_state"]
    assert torch.equal(found, extra) if isinstance(extra, Tensor) else found == extra
    if isinstance(extra, Tensor):
        save_state(state, tmp_path / "net.safetensors")
        assert torch.equal(load_file(tmp_path / "net.safetensors")["_extra_state"], extra)
    else:
        with pytest.raises(UserError, match=r"safetensors holds tensors alone, and _extra_state is none; name it \.pt"):
            save_state(state, tmp_path / "net.safetensors")
        assert [f.name for f in tmp_path.iterdir()] == ["net.pt"]


# ------------------------------------------------------------------------------------------------------- runs


def made(
    root: Path, stage: str, name: str, provenance: dict[str, Any], *files: str, summary: dict[str, Any] | None = None
) -> Found:
    """A finished run directory with these checkpoints."""
    folder = root / stage / name / "v1"
    folder.mkdir(parents=True)
    run = Run(folder, "run", "")
    for file in files:
        write_state(run, file, {"w": torch.ones(1)})
    run.write_json("provenance.json", provenance)
    run.write_json("summary.json", summary or {})
    run.finish()
    return Found(folder)


def test_a_run_lists_its_kept_networks_in_the_order_of_training(tmp_path: Path) -> None:
    kept = [f"checkpoint-{k}.safetensors" for k in ("step3", "epoch10", "epoch9", "step20")]
    run = made(tmp_path / "outputs", "any", "net-aaaa", {"kind": "endpoint", "upstream": []}, CHECKPOINT, *kept)
    found = open_networks(str(run.folder))
    assert found.names == ["endpoint", "epoch 9", "epoch 10", "step 3", "step 20"]
    assert open_networks("net-a").names == found.names
    assert open_networks("any/net-aaaa").names == found.names


def test_a_run_without_networks_says_so(tmp_path: Path) -> None:
    made(tmp_path / "outputs", "any", "net-bbbb", {"upstream": []})
    with pytest.raises(UserError, match="holds no network"):
        open_networks("net-b")


def test_endpoints_are_found_by_their_kind_and_in_older_directories_by_what_they_found(tmp_path: Path) -> None:
    old = made(tmp_path, "train-endpoints", "old-0000", {"upstream": []}, CHECKPOINT, summary={"metrics": {}})
    tuned = made(tmp_path, "anything", "tuned-1111", {"kind": "endpoint", "upstream": [str(old.folder)]}, CHECKPOINT)
    above = {"upstream": [str(old.folder), str(tuned.folder)]}
    found = {"metrics": {}, "objective_after": 1.0}
    aligned = made(tmp_path, "rebasin", "al-2222", above, CHECKPOINT, summary=found)
    path = made(tmp_path, "p", "path-3333", {"kind": "path", "upstream": [str(tuned.folder), str(aligned.folder)]})
    assert endpoints_behind(old) == [old]
    assert endpoints_behind(tuned) == [tuned]
    assert endpoints_behind(aligned) == [old, tuned]
    assert endpoints_behind(path) == [tuned, old]


def test_what_unfinished_work_is_trained_on_from_is_kept(tmp_path: Path) -> None:
    parent = made(tmp_path, "train-endpoints", "parent-0000", {"kind": "endpoint", "upstream": []}, CHECKPOINT)
    begun = tmp_path / "train-endpoints" / "tuned-1111" / "v1"
    begun.mkdir(parents=True)
    (begun / "provenance.json").write_text(json.dumps({"kind": "endpoint", "upstream": [str(parent.folder)]}))
    other = made(tmp_path, "train-endpoints", "other-2222", {"kind": "endpoint", "upstream": []}, CHECKPOINT)
    for folder in (parent.folder, begun, other.folder):
        (folder / "config.yaml").write_text("seed: 0\narchitecture: {}\nruntime: {}\n")
    assert [r.run for r in removable(tmp_path, {"train-endpoints"}, ["tuned"])] == [other]
