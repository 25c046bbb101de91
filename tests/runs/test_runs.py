"""Run directories: what identifies a result, who may write it, what is found again, and nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
import time
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import SPIRALS, folders, leftovers, no_pictures, ok, processes, statuses, tree

from modeconn_cli import settings
from modeconn_cli.data.options import SplitBy, TwoSpirals
from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.evaluation.options import PathOf
from modeconn_cli.models.options import MLP
from modeconn_cli.runs.directory import Identity, Run, claim, locate
from modeconn_cli.runs.find import Found, find, find_all, require_done
from modeconn_cli.runs.provenance import git_commit
from modeconn_cli.settings import Config
from modeconn_cli.work.options import ChannelsLast, Runtime, TrackerName
from modeconn_cli.work.plan import make_plan
from modeconn_cli.work.reporting import Silent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)


# ------------------------------------------------------------------------------------------------- digests


def config(**groups: Any) -> Config:
    """A small problem; keyword arguments change fields of groups."""
    made = Config(
        dataset=TwoSpirals(name="two_spirals", source="two_spirals", examples=60),
        architecture=MLP(width=4),
    )
    if "seed" in groups:
        made.seed = groups.pop("seed")
    for group, changes in groups.items():
        setattr(made, group, dataclasses.replace(getattr(made, group), **changes))
    return made


def digests(made: Config, command: str = "fit-curve") -> dict[str, str]:
    """The digest of every stage, endpoints by their place."""
    stages = make_plan(command, made, Silent()).stages
    names = ["start", "end", *(s.name for s in stages[2:])]
    return {n: s.identity.digest for n, s in zip(names, stages, strict=True)}


ALL = {"start", "end", "interpolate", "fit-curve", "evaluate", "plot"}
# A valid value other than the default, for fields where one cannot be made up from the type.
OTHER: dict[str, dict[str, Any]] = {
    "dataset.validation_size": {"validation_size": 7},
    "dataset.classes": {"classes": 12},
    "dataset.validation_split": {"validation_size": 7, "validation_split": SplitBy.random},
    "dataset.use_test": {"validation_size": 7, "use_test": False},
    "dataset.train_size": {"train_size": 50},
    "dataset.mean": {"mean": [0.1]},
    "dataset.std": {"std": [0.7]},
    "endpoints.nesterov": {"nesterov": True},
    "endpoints.betas": {"betas": [0.8, 0.99]},
    "endpoints.milestones": {"milestones": [0.3, 0.6]},
    "endpoints.warmup_epochs": {"warmup_epochs": 1.5},
    "endpoints.keep_epochs": {"keep_epochs": [1]},
    "endpoints.keep_steps": {"keep_steps": [1]},
    "endpoints.init_seed": {"init_seed": 9},
    "endpoints.data_seed": {"data_seed": 9},
    "curve.kind": {"kind": "chain"},
    "curve.seed": {"seed": 9},
    "interpolation.bn_examples": {"bn_examples": 10},
    "interpolation.train_examples": {"train_examples": 10},
}
# Fields that identify nothing, that other tests change, or that this problem cannot take.
ASIDE = {
    "dataset.name", "dataset.source", "dataset.data_dir", "dataset.download", "dataset.test_size", "dataset.shrink",
    "dataset.pad_to", "dataset.crop_padding", "dataset.flip", "dataset.cutout", "dataset.statistics",
    "architecture.name", "architecture.family",
    "endpoints.seeds", "endpoints.checkpoints", "endpoints.from", "endpoints.init_from", "endpoints.strip",
    "endpoints.fuse",
    "curve.init_from",
    "interpolation.path", "interpolation.batch_size", "interpolation.bootstrap", "interpolation.confidence",
    "interpolation.connected_below", "interpolation.verdict_odds",
}  # fmt: skip
CHANGES = {"dataset": ALL, "architecture": ALL, "endpoints": ALL, "curve": {"fit-curve", "evaluate", "plot"},
           "interpolation": {"interpolate", "evaluate", "plot"}}  # fmt: skip
IDENTIFYING = [
    f"{group}.{f.name}"
    for group in CHANGES
    for f in dataclasses.fields(getattr(config(), group))
    if f"{group}.{f.name}" not in ASIDE
]


def changed(group: str, name: str) -> dict[str, Any]:
    """A change of one field, valid beside the defaults."""
    for key in (f"{group}.{name}", f"endpoints.{name}"):
        if key in OTHER and (group == key.split(".")[0] or group == "curve"):
            return OTHER[key]
    value = getattr(getattr(config(), group), name)
    if isinstance(value, bool):
        return {name: not value}
    if isinstance(value, Enum):
        return {name: next(v for v in type(value) if v is not value)}
    if isinstance(value, int):
        return {name: value + 1}
    assert isinstance(value, float), name
    return {name: value * 0.5 + 0.1}


def test_the_fields_below_are_all_there_are() -> None:
    assert len(IDENTIFYING) > 50
    assert "curve.bends" in IDENTIFYING


@pytest.mark.parametrize("key", IDENTIFYING)
def test_every_identifying_field_changes_its_digests_and_no_others(key: str) -> None:
    group, name = key.split(".")
    change = changed(group, name)
    base = {k: v for k, v in change.items() if k != name} if len(change) > 1 else {}
    before, after = digests(config(**{group: base})), digests(config(**{group: change}))
    assert {n for n in ALL if before[n] != after[n]} == CHANGES[group]


def test_seeds_change_what_they_are_seeds_of() -> None:
    before = digests(config())
    assert not {*before.values()} & {*digests(config(seed=1)).values()}
    shared = digests(config(endpoints={"seeds": [0, 5]}))
    assert shared["start"] == before["start"]
    assert shared["end"] != before["end"]
    assert shared["fit-curve"] != before["fit-curve"]
    swapped = digests(config(endpoints={"seeds": [1, 0]}))
    assert (swapped["start"], swapped["end"]) == (before["end"], before["start"])
    assert swapped["interpolate"] != before["interpolate"]


@pytest.mark.parametrize(
    ("group", "change"),
    [
        ("runtime", {"device": "cpu"}),
        ("runtime", {"threads": 1}),
        ("runtime", {"channels_last": ChannelsLast.off}),
        ("runtime", {"deterministic": False}),
        ("runtime", {"save_every": 1.0}),
        ("runtime", {"output_dir": "elsewhere"}),
        ("runtime", {"force": True}),
        ("runtime", {"dry_run": True}),
        ("runtime", {"trackers": [TrackerName.tensorboard]}),
        ("dataset", {"name": "other"}),
        ("dataset", {"data_dir": "/data"}),
        ("dataset", {"download": True}),
        ("architecture", {"name": "other"}),
        ("interpolation", {"path": PathOf.segment}),
        ("interpolation", {"batch_size": 7}),
        ("interpolation", {"bootstrap": 77}),
        ("interpolation", {"confidence": 0.5}),
        ("interpolation", {"connected_below": 9.0}),
        ("interpolation", {"verdict_odds": 9.0}),
    ],
)
def test_how_and_where_it_runs_changes_no_digest(group: str, change: dict[str, Any]) -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        assert digests(config(**{group: change})) == digests(config())
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def test_every_runtime_field_is_tried_above() -> None:
    tried = {
        "device",
        "threads",
        "channels_last",
        "deterministic",
        "save_every",
        "output_dir",
        "force",
        "dry_run",
        "trackers",
    }
    assert {f.name for f in dataclasses.fields(Runtime)} == tried


def test_commands_share_their_stages() -> None:
    whole = digests(config())
    for command in ("interpolate", "evaluate"):
        for name, digest in digests(config(), command).items():
            assert name == "plot" or digest == whole[name]


def test_digests_are_the_same_in_another_process(tmp_path: Path) -> None:
    """Another process hashes strings and orders sets otherwise."""
    here = [r["directory"] for r in ok("fit-curve", *SPIRALS, "--dry-run", "--json").json["stages"]]
    answer = processes().run(["fit-curve", *SPIRALS, "--dry-run", "--json"], tmp_path)
    assert [r["directory"] for r in answer.json["stages"]] == here


def test_a_digest_is_pinned() -> None:
    """As the README of old results would name it: the recipe of digests itself must not change unnoticed."""
    one = Identity("train-endpoints", 1, "a-b-s0", {"b": [1, 2.5, None], "a": {"x": True}}, ["0123456789"])
    assert one.digest == "64d54a9eb6"
    assert dataclasses.replace(one, label="other").digest == one.digest
    assert dataclasses.replace(one, fields={"a": {"x": True}, "b": [1, 2.5, None]}).digest == one.digest
    for change in ({"stage": "x"}, {"version": 2}, {"fields": {}}, {"upstream": []}):
        assert dataclasses.replace(one, **change).digest != one.digest


# ------------------------------------------------------------------------------------------- versions, damage

ONE = Identity("interpolate", 1, "a-b", {"x": 1})


def finish(run: Run, **files: str) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    for name, text in (files or {"path": "t\n0\n1\n"}).items():
        run.write_text(f"{name}.csv", text)
    run.finish()


def where(run: Run) -> tuple[str, str]:
    return run.folder.name, run.status


def test_the_next_step_of_a_request(tmp_path: Path) -> None:
    assert where(locate(ONE, tmp_path)) == ("v1", "run")
    assert locate(ONE, tmp_path).why == "never computed"
    assert tree(tmp_path) == {}, "looking writes nothing"
    folder = tmp_path / "interpolate" / f"a-b-{ONE.digest}"
    (folder / "v1").mkdir(parents=True)
    assert where(locate(ONE, tmp_path)) == ("v1", "resume")
    assert where(locate(ONE, tmp_path, force=True)) == ("v1", "resume")
    finish(locate(ONE, tmp_path))
    assert where(locate(ONE, tmp_path)) == ("v1", "cached")
    assert where(locate(ONE, tmp_path, force=True)) == ("v2", "run")
    (folder / "v2").mkdir()
    assert where(locate(ONE, tmp_path)) == ("v1", "cached")
    assert where(locate(ONE, tmp_path, force=True)) == ("v2", "resume")
    for number in range(2, 12):
        finish(Run(folder / f"v{number}", "run", ""))
    assert where(locate(ONE, tmp_path)) == ("v11", "cached"), "versions are numbers, not words"
    assert where(locate(dataclasses.replace(ONE, version=2), tmp_path)) == ("v1", "run")
    (folder / "v12.bak").mkdir()
    (folder / "v13").write_text("not a directory")
    assert where(locate(ONE, tmp_path, force=True)) == ("v12", "run")


@pytest.mark.parametrize("harm", ["truncated", "longer", "missing", "DONE"])
def test_a_damaged_version_is_never_taken_nor_overwritten(harm: str, tmp_path: Path) -> None:
    finish(locate(ONE, tmp_path), path="t\n0\n1\n", summary="x")
    folder = locate(ONE, tmp_path).folder
    file = folder / ("DONE" if harm == "DONE" else "path.csv")
    if harm == "missing":
        file.unlink()
    else:
        file.write_text({"truncated": "t\n0\n", "longer": "t\n0\n1\n2\n", "DONE": "{"}[harm])
    before = tree(folder)
    again = locate(ONE, tmp_path)
    assert where(again) == ("v2", "run")
    assert again.why.startswith("v1: ")
    assert ("DONE" if harm == "DONE" else "path.csv") in again.why
    finish(again)
    assert where(locate(ONE, tmp_path)) == ("v2", "cached")
    assert tree(folder) == before
    assert Found(folder).status != "done"
    with pytest.raises(RunFailed):
        require_done(Found(folder))


def test_a_truncated_file_is_computed_again_through_the_command(tmp_path: Path) -> None:
    first = ok("interpolate", *SPIRALS, "--json")
    table = folders(first)["interpolate"] / "path.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:-40])
    again = ok("interpolate", *SPIRALS, "--json")
    assert statuses(again)[2] == ("interpolate", "run")
    assert "path.csv" in again.json["stages"][2]["why"]
    assert (folders(again)["interpolate"] / "path.csv").read_bytes() == whole
    assert folders(again)["interpolate"].name == "v2"
    assert table.read_bytes() == whole[:-40]
    assert statuses(ok("interpolate", *SPIRALS, "--json"))[2] == ("interpolate", "cached")


# --------------------------------------------------------------------------------------------------- writing


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "run", "")
    run.write_text("a.txt", "old")

    def fail(name: str, error: type[BaseException], half: bool) -> None:
        with run.writing(name) as path:
            if half:
                path.write_text("half")
            raise error

    for name, error, half in (
        ("a.txt", ZeroDivisionError, True),
        ("b", KeyboardInterrupt, True),
        ("c", OSError, False),
    ):
        with pytest.raises(error):
            fail(name, error, half)
    assert tree(tmp_path) == {"a.txt": b"old"}
    run.write_text("a.txt", "new")
    assert tree(tmp_path) == {"a.txt": b"new"}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    run = Run(tmp_path, "run", "")
    run.write_text("a.txt", "0" * 100_000)
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add((len(text := (tmp_path / "a.txt").read_text()), len({*text})))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 60):
        run.write_text("a.txt", str(number % 10) * 100_000)
    stop.set()
    reader.join()
    assert seen == {(100_000, 1)}


def test_rows_are_written_in_full(tmp_path: Path) -> None:
    run = Run(tmp_path, "run", "")
    run.write_rows("a.csv", [{"t": 0.1 + 0.2, "n": 3}, {"t": 1e-300, "n": 4}])
    assert (tmp_path / "a.csv").read_text() == "t,n\n0.30000000000000004,3\n1e-300,4\n"
    with pytest.raises(ValueError):
        run.write_json("a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()
    assert leftovers(tmp_path) == []


def test_finishing_records_every_file_and_drops_what_only_a_resumed_run_needs(tmp_path: Path) -> None:
    run = Run(tmp_path, "run", "")
    run.write_text("a.txt", "four")
    (tmp_path / "earlier.txt").write_text("by the process before")
    (tmp_path / "state.pt").write_bytes(b"state")
    run.log("a line")
    run.finish()
    done = json.loads((tmp_path / "DONE").read_text())
    assert done["files"] == {"a.txt": 4, "earlier.txt": 21}
    assert not (tmp_path / "state.pt").exists()


# --------------------------------------------------------------------------------------------------- claiming


def test_of_two_who_ask_one_computes_and_the_other_waits_and_is_answered(tmp_path: Path) -> None:
    computing, waiting = threading.Event(), threading.Event()
    seen: list[tuple[str, str]] = []

    def first() -> None:
        with claim(ONE, tmp_path, False, lambda _: None) as run:
            computing.set()
            assert waiting.wait(20)
            time.sleep(0.1)
            seen.append(where(run))
            finish(run)

    thread = threading.Thread(target=first)
    thread.start()
    assert computing.wait(20)
    with claim(ONE, tmp_path, False, lambda _: waiting.set()) as run:
        seen.append(where(run))
    thread.join()
    assert seen == [("v1", "run"), ("v1", "cached")]


def test_who_waited_for_one_that_failed_computes_it(tmp_path: Path) -> None:
    """Also a forced one: the version that the failed one began is gone on with, not the old answer given."""
    for force in (False, True):
        computing, waiting = threading.Event(), threading.Event()

        def first(force: bool = force, computing: Any = computing, waiting: Any = waiting) -> None:
            with claim(ONE, tmp_path, force, lambda _: None):
                computing.set()
                assert waiting.wait(20)

        thread = threading.Thread(target=first)
        thread.start()
        assert computing.wait(20)
        with claim(ONE, tmp_path, force, lambda _, waiting=waiting: waiting.set()) as run:
            assert where(run) == (("v2" if force else "v1"), "resume")
            finish(run)
        thread.join()


def test_what_a_killed_process_left_behind_is_swept(tmp_path: Path) -> None:
    folder = ONE.folder(tmp_path) / "v1"
    folder.mkdir(parents=True)
    (folder / ".path.csv.tmp").write_text("half")
    (folder / "state.pt").write_text("state")
    with claim(ONE, tmp_path, False, lambda _: None) as run:
        assert where(run) == ("v1", "resume")
        assert {p.name for p in folder.iterdir()} == {"state.pt"}


def test_a_finished_one_needs_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    finish(locate(ONE, tmp_path))
    before = tree(tmp_path)
    with claim(ONE, tmp_path, False, lambda _: None) as run:
        assert where(run) == ("v1", "cached")
    assert tree(tmp_path) == before


def test_two_processes_asking_for_the_same_run_compute_it_once(tmp_path: Path) -> None:
    words = ["train-endpoints", *SPIRALS, "endpoints.seeds=[0]", "endpoints.epochs=400", "--json"]
    both = [processes().start(words, tmp_path) for _ in range(2)]
    answers = [p.wait() for p in both]
    assert [a.code for a in answers] == [0, 0]
    assert sorted(statuses(a)[0][1] for a in answers) == ["cached", "run"]
    assert answers[0].json["endpoints"] == answers[1].json["endpoints"]
    log = (folders(answers[0])["train-endpoints"] / "log.txt").read_text()
    assert log.count("finished") == 1


# ---------------------------------------------------------------------------------------------------- finding


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Two runs of one stage and one of another, the first in three versions: done, done, unfinished."""
    root = tmp_path / "outputs"
    for identity in (ONE, dataclasses.replace(ONE, fields={"x": 2}), Identity("evaluate", 1, "a-b-bezier1", {"x": 3})):
        for _ in range(2 if identity is ONE else 1):
            finish(locate(identity, root, force=True))
    (ONE.folder(root) / "v3").mkdir()
    return root


def test_find_by_digest_name_and_directory(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ONE.folder(kept)
    for wanted in (ONE.digest, ONE.digest[:5], folder.name, str(folder), str(folder / "v2"), f"{ONE.digest[:6]}/v2"):
        assert find(kept, wanted).folder.resolve() == folder / "v2", wanted
    assert find(kept, f"{ONE.digest}/v1").folder == folder / "v1"
    assert find(kept, str(folder / "v1" / "path.csv")).folder == folder / "v1"
    assert find(kept, str(folder / "v3")).status == "unfinished"
    assert find(kept, "a-b-bezier1").stage == "evaluate"
    monkeypatch.chdir(folder)
    assert find(kept, "v1").folder.resolve() == folder / "v1"
    assert len(find_all(kept)) == 5


def test_the_name_of_a_stage_is_its_newest_finished_run(kept: Path) -> None:
    newest = dataclasses.replace(ONE, fields={"x": 2}).folder(kept) / "v1"
    for k, folder in enumerate(sorted(kept.glob("interpolate/*/v*"), key=lambda p: p == newest)):
        os.utime(folder, (1e9 + k, 1e9 + k))
    os.utime(ONE.folder(kept) / "v3", (2e9, 2e9))  # which is unfinished
    assert find(kept, "interpolate").folder == newest
    assert find(kept, "evaluate").stage == "evaluate"
    with pytest.raises(UserError, match="runs list"):
        find(kept, "interpol")


def test_find_says_what_is_ambiguous_or_missing(kept: Path) -> None:
    with pytest.raises(UserError, match=r"fits 3 runs.*the digest at its end"):
        find(kept, "a-b")
    for wanted in ("zzz", f"{ONE.digest}/v9"):
        with pytest.raises(UserError, match="runs list"):
            find(kept, wanted)
    with pytest.raises(UserError, match="runs list"):
        find(kept / "nowhere", ONE.digest)


def test_find_refuses_an_empty_word(kept: Path) -> None:
    with pytest.raises(UserError, match="fits 3 runs"):
        find(kept, "")


def test_provenance_of_a_checkout_names_its_commit() -> None:
    commit = git_commit()
    if commit is None:
        pytest.skip("not a checkout")
    said = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(settings.__file__).parent
    )
    assert said.stdout.startswith(commit.removesuffix("-dirty"))
