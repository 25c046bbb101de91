"""Whatever happens to a run: killed, stopped, out of room, fed damaged files, it ends clearly and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml
from cli_helpers import (
    SPIRALS,
    Answer,
    Process,
    call,
    folders,
    leftovers,
    no_pictures,
    ok,
    processes,
    refused,
    results,
    statuses,
    tree,
    unfinished,
    versions,
    write_images,
)
from safetensors.torch import load_file

from modeconn_cli.runs.directory import Run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    no_pictures(monkeypatch)


# ------------------------------------------------------------------------------------------- killed and stopped

# Seconds of work in every kind of stage, saved often; dropout-free, with momentum, BatchNorm and a searched maximum.
LONG = [
    "fit-curve",
    "dataset=two_spirals",
    "dataset.examples=1000",
    "architecture.width=16",
    "endpoints.epochs=60",
    "curve.epochs=100",
    "curve.bends=2",
    "interpolation.points=31",
    "interpolation.search_max=4",
    "interpolation.bootstrap=100",
    "runtime.save_every=0.05",
    "--json",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """Every result of LONG when nothing happens to it, and how long it takes."""
    place = tmp_path_factory.mktemp("undisturbed")
    server = processes()
    started = time.monotonic()
    answer = server.run(LONG, place, pictures=True)
    assert answer.code == 0, answer.err
    return results(place / "outputs"), time.monotonic() - started


def same_as(undisturbed: tuple[dict[str, bytes], float], root: Path) -> None:
    found = results(root)
    assert {*found} == {*undisturbed[0]}
    assert [name for name in found if found[name] != undisturbed[0][name]] == []
    assert any(name.endswith("path.csv") for name in found)
    assert unfinished(root) == []
    assert leftovers(root) == []


def stamps(place: Path) -> set[tuple[str, int]]:
    """What there is, and when it was last changed; files that come and go meanwhile are left out."""
    found = set()
    for path in place.rglob("*"):
        with suppress(FileNotFoundError):
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def test_killed_at_ten_random_moments_the_results_are_the_same_bytes(
    undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    moments = random.Random(20240917)
    killed = begun = 0
    while killed < 10:
        before = stamps(tmp_path)
        process = processes().start(LONG, tmp_path, pictures=True)
        while stamps(tmp_path) == before and process.running:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15) * undisturbed[1])
        process.send(signal.SIGKILL)
        answer = process.wait()
        if answer.code == 0:  # it was done before the signal came
            break
        assert answer.code == -signal.SIGKILL
        killed += 1
        begun += len(unfinished(tmp_path / "outputs")) > 0
        for folder in versions(tmp_path / "outputs"):
            if (folder / "DONE").exists():
                assert not (folder / "state.pt").exists()
    assert killed >= 5, "the run is too short for this test"
    assert begun >= 3, "hardly any kill came while a stage was at work"
    answer = processes().run(LONG, tmp_path, pictures=True)
    assert answer.code == 0, answer.err
    same_as(undisturbed, tmp_path / "outputs")
    logs = "".join((f / "log.txt").read_text() for f in versions(tmp_path / "outputs"))
    assert re.search(r"resumed at step [1-9]", logs)


def wait_for(process: Process, root: Path, pattern: str) -> None:
    """Until a file is there."""
    patience = time.monotonic() + 60
    while not list(root.glob(pattern)):
        assert time.monotonic() < patience, f"{pattern}: {process.err.read_text()}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "stage"), [(signal.SIGINT, 130, "train-endpoints"), (signal.SIGTERM, 143, "fit-curve")]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals, code: int, stage: str, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    root = tmp_path / "outputs"
    slow = [w for w in LONG if "save_every" not in w]  # what is saved is saved for the signal
    process = processes().start(slow, tmp_path, pictures=True)
    wait_for(process, root, f"{stage}/*/v1/state.pt")
    time.sleep(0.1)
    process.send(number)
    answer = process.wait()
    assert answer.code == code
    assert len(answer.err.splitlines()) == 1
    assert "same command" in answer.err
    assert answer.json["exit_code"] == code
    assert "error" in answer.json
    (folder,) = unfinished(root)
    assert folder.parent.parent.name == stage
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["step"] > 0, "the state of the moment, not of the start"
    assert leftovers(root) == []
    again = processes().run(slow, tmp_path, pictures=True)
    assert again.code == 0
    assert (stage, "resume") in statuses(again)
    same_as(undisturbed, root)


def test_a_signal_stops_a_whole_sweep(tmp_path: Path) -> None:
    process = processes().start([*LONG, "-m", "seed=0,1"], tmp_path)
    wait_for(process, tmp_path / "outputs", "fit-curve/*/v1/state.pt")
    process.send(signal.SIGINT)
    answer = process.wait()
    assert answer.code == 130
    begun, not_begun = answer.json["jobs"]
    assert begun["error"] == "stopped by Ctrl-C"
    assert [r["stage"] for r in begun["stages"]] == ["train-endpoints", "train-endpoints", "interpolate"]
    assert {*not_begun} == {"overrides"}
    assert not list((tmp_path / "outputs").glob("train-endpoints/*-s2-*"))


def test_a_killed_experiment_goes_on_and_loses_no_finished_stage(tmp_path: Path) -> None:
    words = ["run", *LONG[1:], "pipeline.replicates=[0,1]", "endpoints.epochs=10", "curve.epochs=30"]
    whole = processes().run([*words, "runtime.output_dir=whole"], tmp_path)
    assert whole.code == 0
    process = processes().start(words, tmp_path)
    wait_for(process, tmp_path / "outputs", "train-endpoints/*-s2-*/v1/state.pt")
    process.send(signal.SIGKILL)
    process.wait()
    finished = {p.parent for p in (tmp_path / "outputs").glob("*/*/v1/DONE")}
    assert len(finished) >= 5
    times = {p: p.stat().st_mtime_ns for f in finished for p in f.iterdir()}
    answer = processes().run(words, tmp_path)
    assert answer.code == 0
    status = {tmp_path / row["directory"]: row["status"] for row in answer.json["stages"]}
    assert {status[f] for f in finished} == {"cached"}
    assert "run" in status.values()
    assert times == {p: p.stat().st_mtime_ns for p in times}
    assert results(tmp_path / "outputs") == results(tmp_path / "whole")


# ------------------------------------------------------------------------------------------ states that are damaged


@pytest.mark.parametrize("harm", ["empty", "half", "garbage"])
def test_a_damaged_state_ends_clearly(harm: str, tmp_path: Path) -> None:
    """A state.pt that cannot be read is begun again, or is named in one line; never a traceback."""
    words = ["train-endpoints", *SPIRALS, "endpoints.seeds=[0]", "-q"]
    wanted = folders(ok(*words, "--json"))["train-endpoints"]
    whole = results(wanted)
    run = Run(wanted, "run", "")
    run.write_text("state.pt", "")
    (wanted / "DONE").unlink()
    state = _a_state(tmp_path)
    (wanted / "state.pt").write_bytes({"empty": b"", "half": state[: len(state) // 2], "garbage": b"garbage"}[harm])
    answer = call(*words)
    assert "Traceback" not in answer.err
    if answer.code == 0:
        assert results(wanted) == whole
    else:
        assert answer.code in (1, 2)
        assert "state.pt" in answer.line


def _a_state(tmp_path: Path) -> bytes:
    """A state that a failed run kept, of the same network."""
    root = tmp_path / "failed"
    call("train-endpoints", *SPIRALS, "endpoints.seeds=[0]", "endpoints.lr=1e20", f"runtime.output_dir={root}", "-q")
    return next(root.rglob("state.pt")).read_bytes()


# ---------------------------------------------------------------------------------------------- losses that break


@pytest.mark.parametrize(("command", "key"), [("train-endpoints", "endpoints.lr"), ("fit-curve", "curve.lr")])
def test_a_loss_that_breaks_fails_with_its_step_and_learning_rate(command: str, key: str, tmp_path: Path) -> None:
    words = [command, *SPIRALS, f"{key}=1e12", "endpoints.epochs=3", "curve.epochs=3"]
    message = refused(*words, "-q", code=1)
    found = re.search(r"step (\d+) of 6 with learning rate (\S+);", message)
    assert found
    assert int(found[1]) >= 2
    assert 0 < float(found[2]) <= 1e12
    (folder,) = unfinished(tmp_path / "outputs")
    assert str(folder.relative_to(tmp_path)) in message
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["step"] < int(found[1])
    assert state["trained"]
    assert all(torch.isfinite(row).all() for row in state["trained"])
    assert "the loss became" in (folder / "log.txt").read_text()
    assert leftovers(tmp_path) == []
    failed = call(*words, "--json")
    assert (failed.code, failed.json["exit_code"]) == (1, 1)
    assert failed.json["error"] == message
    assert [r["status"] for r in ok("runs", "list", command, "--json").json["runs"]][-1] == "unfinished"


def test_weights_that_break_in_the_last_step_fail_too(tmp_path: Path) -> None:
    """The last loss was finite, the weights after it are not: that is no endpoint."""
    words = [
        "train-endpoints",
        *SPIRALS,
        "endpoints.batch_size=200",
        "endpoints.lr=1e38",
        "endpoints.schedule=constant",
    ]
    message = refused(*words, "-q", code=1)
    assert re.search(r"step 1 of 1|NaN|infinite|finite", message)
    assert not list((tmp_path / "outputs").rglob("DONE"))


# ----------------------------------------------------------------------------------------------------- no room


def test_a_full_disk_ends_each_time_in_one_line_and_the_results_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at a random write, again and again, until the run happens to get through."""
    wanted = results(folders(ok("fit-curve", *SPIRALS, "runtime.output_dir=whole", "--json"))["plot"].parents[2])
    root, draws = tmp_path / "outputs", random.Random(1)
    writing, left = Run.writing, [0]

    @contextmanager
    def full(self: Run, name: str) -> Iterator[Path]:
        with writing(self, name) as path:
            left[0] -= 1
            if left[0] < 0:
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            yield path

    monkeypatch.setattr(Run, "writing", full)
    failures = 0
    for _ in range(40):
        left[0] = draws.randrange(14)
        answer = call("fit-curve", *SPIRALS, "-q")
        assert leftovers(root) == []
        assert len(unfinished(root)) == (answer.code != 0)
        if answer.code == 0:
            break
        failures += 1
        assert answer.code in (1, 2)
        assert "No space left" in answer.line
        assert "runtime.output_dir" in answer.line
    assert answer.code == 0
    assert failures >= 3
    assert results(root) == wanted


@pytest.mark.parametrize("room", [300, 4000])
def test_files_that_the_system_refuses_to_write(room: int, tmp_path: Path) -> None:
    """Really refused, by the kernel: whichever library writes the file, the answer is the same line."""
    words = ["train-endpoints", *SPIRALS, "architecture.width=24", "endpoints.seeds=[0]", "-q"]
    answer = processes().run(words, tmp_path, file_limit=room)
    assert "Traceback" not in answer.err
    assert answer.code in (1, 2)
    assert "cannot write" in answer.line
    assert leftovers(tmp_path / "outputs") == []
    assert list((tmp_path / "outputs").rglob("DONE")) == []
    assert processes().run(words, tmp_path).code == 0


def test_an_output_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for more in ([], ["-m", "seed=0,1"]):
        answer = call("train-endpoints", *SPIRALS, "runtime.output_dir=taken", "-q", *more)
        assert answer.code == 2, more
        for line in answer.err.splitlines():
            assert "taken" in line
            assert "runtime.output_dir" in line
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir(mode=0o500)
    assert "runtime.output_dir" in refused("train-endpoints", *SPIRALS, "-q")
    assert tree(tmp_path / "outputs") == {}


# ------------------------------------------------------------------------------------------------ refused requests


def test_data_that_is_missing_or_truncated_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    words = ["fit-curve", "architecture.width=8", "dataset=arrays"]
    assert "nowhere.npz" in refused(*words, "dataset.path=nowhere.npz")
    whole = write_images(tmp_path / "whole.npz").read_bytes()
    for name, content in (("half.npz", whole[: len(whole) // 2]), ("empty.npz", b""), ("text.npz", b"no arrays")):
        (tmp_path / name).write_bytes(content)
        assert name in refused(*words, f"dataset.path={name}")
    assert "fashion_mnist" in refused("fit-curve", "dataset=fashion_mnist", "dataset.data_dir=/nonexistent") or (
        Path("/usr/share/dataset-fashion-mnist").exists()
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["curve.bends=0"],
        ["endpoints.seeds=[3,3]"],
        ["endpoints.seeds=[1,2,3]"],
        ["endpoints.checkpoints=[a.pt,b.pt]"],
        ["curve.init_from=nothing.safetensors"],
        ["dataset.train_size=100000"],
        ["dataset.crop_padding=2"],
        ["dataset.use_test=false"],
        ["architecture=resnet20"],
        ["architecture=vit"],
        ["architecture=custom", "architecture.target=nothing.py:Net"],
        ["runtime.device=cuda:99"],
        ["endpoints.keep_steps=[999]"],
        ["interpolation.bootstrap=1"],
    ],
    ids=" ".join,
)
def test_a_refused_request_leaves_nothing(words: list[str], tmp_path: Path) -> None:
    spirals = [w for w in SPIRALS if not w.startswith("architecture") or not words[0].startswith("architecture=")]
    message = refused("fit-curve", *spirals, *words, "-q")
    assert words[-1].split("=")[0].split(".")[-1] in message or "architecture" in message or "resnet" in message
    assert tree(tmp_path) == {}


def test_a_run_whose_files_were_changed_is_not_built_on(tmp_path: Path) -> None:
    """An endpoint damaged without a change of its size is noticed where its path begins, or its file is."""
    first = ok("interpolate", *SPIRALS, "--json")
    file = Path(first.json["stages"][0]["directory"]) / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-64:] = bytes(64)
    file.write_bytes(content)
    answer = call("interpolate", *SPIRALS, "interpolation.points=5", "--json")
    assert answer.code == 1 or statuses(answer)[0][1] == "run"
    assert load_file(file), "the file is whole as far as its format can tell"


def test_every_directory_on_disk_is_finished_or_can_be_gone_on_with(tmp_path: Path) -> None:
    """After a failure in the middle of a sweep, asking again brings everything to its end."""
    call("fit-curve", *SPIRALS, "-m", "curve.lr=0.05,1e20", "-q")
    (folder,) = unfinished(tmp_path / "outputs")
    assert yaml.safe_load((folder / "config.yaml").read_text())["curve"]["lr"] == 1e20
    listed = {r["directory"]: r["status"] for r in ok("runs", "list", "--json").json["runs"]}
    assert [d for d, s in listed.items() if s != "done"] == [str(folder.relative_to(tmp_path))]
    refusal = refused("plot", str(folder), "-o", "a.png")
    assert "no path" in refusal or "unfinished" in refusal
    done: Answer = ok("fit-curve", *SPIRALS, "--json")
    assert {s for _, s in statuses(done)} <= {"cached", "run"}
    assert json.loads((folders(done)["evaluate"] / "DONE").read_text())["files"]
