"""Experiment trackers: what they are sent, what they keep, and that no result depends on them."""

from __future__ import annotations

import csv
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from cli_helpers import SPIRALS, Answer, call, compose, folders, ok, refused, results, statuses, versions

from modeconn_cli import described, tracking
from modeconn_cli.errors import Interrupted
from modeconn_cli.tracking import Trackers, flat, installed
from modeconn_cli.work.options import Runtime, TrackerName
from modeconn_cli.work.saving import Saver

FIT = ["fit-curve", *SPIRALS, "endpoints.epochs=3", "curve.epochs=2", "--json"]
ENDPOINT = ["train-endpoints", *SPIRALS, "endpoints.epochs=3", "endpoints.seeds=[5]", "--json"]
CURVE_COLUMNS = ["epoch", "lr", "train_loss", "train_error"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


class Recorder:
    """A tracker that remembers what it is told."""

    packages: ClassVar[tuple[str, ...]] = ()
    told: ClassVar[list[tuple[Any, ...]]] = []
    threads: ClassVar[set[str]] = set()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getattr__(self, method: str) -> Any:
        def remember(*values: Any) -> None:
            self.told.append((method, *values))
            self.threads.add(threading.current_thread().name)

        return remember


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """Stands where TensorBoard does."""
    monkeypatch.setitem(tracking.TRACKERS, TrackerName.tensorboard, Recorder)
    monkeypatch.setattr(Recorder, "told", [])
    return Recorder


pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader:DeprecationWarning"
)  # MLflow's own, of SQLAlchemy
RECORDED = "runtime.trackers=[tensorboard]"


def by_run(told: list[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    """What was told between begin and end, by stage; of several runs of a stage, the last."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    stage = ""
    for method, *values in told:
        if method == "begin":
            assert stage == "", "one run at a time"
            stage = values[0].partition("/")[0]
            found[stage] = []
        found[stage].append((method, *values))
        stage = "" if method == "end" else stage
    assert stage == ""
    return found


def table(file: Path) -> list[dict[str, float]]:
    with open(file) as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def stopping_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run saves at each step, and is stopped by a signal at one of them."""
    left = calls

    def stop(self: Saver) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted(15)

    monkeypatch.setattr(Saver, "stop_if_asked", stop)


# ------------------------------------------------------------------------------------------ what is sent


def test_every_stage_sends_what_its_files_hold(recorder: type[Recorder], tmp_path: Path) -> None:
    answer = ok(*FIT, RECORDED)
    assert threading.current_thread().name not in recorder.threads
    told = by_run(recorder.told)
    assert list(told) == ["train-endpoints", "interpolate", "fit-curve", "evaluate", "plot"]
    for stage, folder in folders(answer).items():
        begin, *between, end = told[stage]
        assert begin[1] == "/".join(folder.parts[-3:])
        assert begin[2].startswith(f"{folder.parent.name.rsplit('-', 1)[-1]}-v1-")
        assert begin[3] is False
        assert begin[4] == flat(yaml.safe_load((folder / "config.yaml").read_text()))
        assert end == ("end", "finished")
        metrics = [values for method, *values in between if method == "metrics"]
        summaries = [values for method, values, *_ in between if method == "summary"]
        file = folder / ("metrics.csv" if stage in ("train-endpoints", "fit-curve") else "path.csv")
        if not file.exists():
            assert between == [("figure", "paths", Path("outputs") / folder.relative_to("outputs") / "plot.png")]
            continue
        rows = table(file)
        steps = [int(row.pop("step", i)) for i, row in enumerate(rows)]
        assert metrics == [[step, row] for step, row in zip(steps, rows, strict=True)]
        if file.name == "metrics.csv":
            assert list(metrics[0][1]) == CURVE_COLUMNS
        if file.name == "path.csv":
            summary = json.loads((folder / "summary.json").read_text())
            assert summaries == [{"verdict": summary["verdict"]["connected"], **flat(summary["barriers"])}]
            assert (
                summaries[0]["test_error.above_mean.value"] == summary["barriers"]["test_error"]["above_mean"]["value"]
            )
        if stage == "train-endpoints":
            recorded = json.loads((folder / "summary.json").read_text())["metrics"]
            assert summaries == [flat({"measured": recorded})]


def test_what_is_cached_sends_nothing(recorder: type[Recorder]) -> None:
    ok(*ENDPOINT)
    answer = ok(*ENDPOINT, RECORDED)
    assert statuses(answer) == [("train-endpoints", "cached")]
    assert recorder.told == []


def test_an_epoch_is_sent_as_it_ends(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    told_at: list[int] = []

    def look(self: Saver) -> None:
        time.sleep(0.02)
        told_at.append(sum(method == "metrics" for method, *_ in recorder.told))

    monkeypatch.setattr(Saver, "stop_if_asked", look)
    ok(*ENDPOINT, RECORDED)
    assert told_at[0] == 0
    assert set(told_at) == {0, 1, 2, 3}


def test_a_resumed_run_has_the_same_key_and_sends_every_epoch_again(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*ENDPOINT, RECORDED, "runtime.save_every=1e-9"]
    with monkeypatch.context() as patch:
        stopping_after(3, patch)  # two steps an epoch: in the middle of the second
        assert call(*words).code == 143
    first, recorder.told[:] = list(recorder.told), []
    assert [method for method, *_ in first] == ["begin", "metrics", "end"]
    assert first[-1] == ("end", "stopped")
    answer = ok(*words)
    assert statuses(answer) == [("train-endpoints", "resume")]
    second = by_run(recorder.told)["train-endpoints"]
    assert first[0][1:3] == second[0][1:3]
    assert (first[0][3], second[0][3]) == (False, True)
    assert second[1] == first[1], "the epoch before the signal, the same"
    assert [values[1]["epoch"] for method, *values in second if method == "metrics"] == [1, 2, 3]


def test_a_forced_run_and_another_place_have_keys_of_their_own(recorder: type[Recorder]) -> None:
    ok(*ENDPOINT, RECORDED)
    ok(*ENDPOINT, RECORDED, "--force")
    ok(*ENDPOINT, RECORDED, "runtime.output_dir=other")
    begun = [values for method, *values in recorder.told if method == "begin"]
    assert len({key for _, key, *_ in begun}) == 3
    assert [name.rpartition("/")[2] for name, *_ in begun] == ["v1", "v2", "v1"]


def test_a_failed_run_is_told_so(recorder: type[Recorder]) -> None:
    assert call(*ENDPOINT, RECORDED, "endpoints.lr=1e30").code == 1
    assert recorder.told[-1] == ("end", "failed")


def test_run_follows_every_replicate_by_its_own_configuration(recorder: type[Recorder]) -> None:
    ok("run", *SPIRALS, "pipeline.replicates=[0,1]", "pipeline.paths=[segment]", RECORDED, "--json")
    begun = [values for method, *values in recorder.told if method == "begin"]
    assert len(begun) == 8
    assert {config["seed"] for _, _, _, config in begun} == {0, 1}


# --------------------------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.skipif(not installed(n), reason=f"no {n}")) for n in TrackerName]
)
def test_results_are_the_same_bytes_with_and_without_a_tracker(name: str) -> None:
    ok(*FIT, "runtime.output_dir=without")
    answer = ok(*[w for w in FIT if w != "--json"], "runtime.output_dir=with", f"runtime.trackers=[{name}]")
    assert "tracker" not in answer.err, "it did not fail"
    without, tracked = results(Path("without")), results(Path("with"))
    tracked = {k: v for k, v in tracked.items() if not k.startswith(".tracking")}
    assert {Path(k).name for k in without} == {
        *("checkpoint.safetensors", "metrics.csv", "path.csv", "scores.safetensors", "summary.json", "plot.png")
    }
    assert tracked == without
    files = {str(v.relative_to("without")) for v in versions(Path("without"))}
    assert files == {str(v.relative_to("with")) for v in versions(Path("with"))}
    assert not list(Path().glob("*.db"))
    assert {p.name for p in Path().iterdir()} == {"without", "with"}


def test_a_tracker_that_fails_is_left_out_with_one_line(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Recorder, step: int, values: Any) -> None:
        raise OSError("[/disk] is full\nand more")

    monkeypatch.setattr(recorder, "metrics", fail, raising=False)
    words = [w for w in FIT if w != "--json"]
    answer = ok(*words, RECORDED)
    (line,) = [line for line in answer.err.splitlines() if "tracker" in line]
    assert line.strip() == "tracker tensorboard failed (OSError: [/disk] is full); going on without it"
    assert [method for method, *_ in recorder.told] == ["begin"]
    assert ok(*FIT, "--force", RECORDED, "--quiet").err == ""


def test_a_tracker_that_cannot_be_made_is_left_out(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Recorder, folder: Path) -> None:
        raise RuntimeError

    monkeypatch.setattr(recorder, "__init__", fail)
    answer = ok(*[w for w in ENDPOINT if w != "--json"], RECORDED)
    assert answer.err.count("tracker tensorboard failed (RuntimeError: )") == 1


def test_a_slow_tracker_delays_only_the_end_and_not_for_long(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    monkeypatch.setattr(recorder, "begin", lambda *_: held.wait(60), raising=False)
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    started = time.monotonic()
    answer = ok(*[w for w in ENDPOINT if w != "--json"], RECORDED)
    held.set()
    assert time.monotonic() - started < 30
    assert answer.err.count("tracker tensorboard is still sending; not waiting for it") == 1


def test_digests_do_not_know_of_trackers(recorder: type[Recorder]) -> None:
    first = ok(*ENDPOINT, "--dry-run").json["stages"][0]["directory"]
    assert ok(*ENDPOINT, "--dry-run", RECORDED).json["stages"][0]["directory"] == first


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", list(TrackerName))
def test_a_missing_package_is_named_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "installed", lambda package: False)
    words = [w for w in ENDPOINT if w != "--json"]
    message = refused(*words, f"runtime.trackers=[{name}]")
    assert f"pip install 'modeconn[{name}]'" in message
    assert not Path("outputs").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not installed("no_such_tracker")
    assert installed("json")


@pytest.mark.parametrize(("wrong", "near"), [("wandbb", "wandb"), ("Tensorboard", "tensorboard"), ("mflow", "mlflow")])
def test_an_unknown_tracker_is_answered_with_the_nearest(wrong: str, near: str) -> None:
    message = refused("train-endpoints", f"runtime.trackers=[{wrong}]")
    assert f"{wrong} is not one of tensorboard, wandb, mlflow" in message
    assert f"did you mean runtime.trackers=[{near}]?" in message


def test_a_tracker_named_twice_is_one() -> None:
    names = compose("runtime.trackers=[mlflow,mlflow]").runtime.trackers
    assert Trackers([], Path(), print).names == []
    if installed("mlflow"):
        assert Trackers(names, Path(), print).names == [TrackerName.mlflow]


def test_lists_of_enumerations_are_known_for_completion() -> None:
    assert described.allowed_items(Runtime, "trackers") == list(TrackerName)
    assert described.allowed_items(Runtime, "threads") == []


# ------------------------------------------------------------------------------------ what each one keeps


def interrupted_then_finished(trackers: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Answer, list[dict[str, float]]]:
    """A run stopped in its second epoch and taken up again; its answer and its metrics.csv."""
    words = [*ENDPOINT, trackers, "runtime.save_every=1e-9"]
    monkeypatch.setattr(tracking, "HURRIED", 60)  # a first import on a busy machine
    with monkeypatch.context() as patch:
        stopping_after(3, patch)
        assert call(*words).code == 143
    time.sleep(1.1)  # W&B names an offline directory by the second
    answer = ok(*words)
    assert statuses(answer) == [("train-endpoints", "resume")]
    return answer, table(folders(answer)["train-endpoints"] / "metrics.csv")


def test_tensorboard_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> EventAccumulator:
        events = EventAccumulator(str(Path("outputs/.tracking/tensorboard") / folder.relative_to("outputs")))
        return events.Reload()

    _, rows = interrupted_then_finished("runtime.trackers=[tensorboard]", monkeypatch)
    done = folders(ok(*FIT, "runtime.trackers=[tensorboard]"))
    (endpoint,) = Path("outputs/train-endpoints").glob("*-s5-*/v1")
    events = read(endpoint)
    losses = [(e.step, e.value) for e in events.Scalars("train_loss")]
    assert losses == [(row["step"], pytest.approx(row["train_loss"])) for row in rows], "each epoch once"
    assert {"lr", "train_error", "epoch", "summary/measured.test_error"} <= set(events.Tags()["scalars"])
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    path = read(done["evaluate"])
    assert [e.value for e in path.Scalars("t")] == [0, 0.5, 1]
    assert "summary/test_error.above_mean.low" in path.Tags()["scalars"]
    assert "summary/verdict/text_summary" in path.Tags()["tensors"]
    assert read(done["plot"]).Tags()["images"] == ["paths"]


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then blocks as LevelDB writes its logs."""
    from wandb.proto import wandb_internal_pb2

    content, at, record = file.read_bytes(), 7, b""
    while at < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def test_wandb_reads_back_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")

    def items(part: Any) -> dict[str, Any]:
        return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in part}

    answer, rows = interrupted_then_finished("runtime.trackers=[wandb]", monkeypatch)
    assert answer.err == ""
    files = sorted(Path("outputs/.tracking/wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    records = list(wandb_records(files[-1]))
    begun = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    folder = folders(answer)["train-endpoints"]
    assert begun.display_name == "/".join(folder.parts[-3:])
    assert begun.run_id in files[0].name, "both processes' files are of one run"
    assert begun.project == "modeconn"
    assert items(begun.config.update)["endpoints.epochs"] == 3
    history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    assert [(h["_step"], h["train_loss"]) for h in history] == [(row["step"], row["train_loss"]) for row in rows]
    summary: dict[str, Any] = {}
    for r in records:
        summary |= items(r.summary.update) if r.WhichOneof("record_type") == "summary" else {}
    assert summary["measured.train_nll"] == json.loads((folder / "summary.json").read_text())["metrics"]["train_nll"]
    ok(*FIT, "runtime.trackers=[wandb]")
    assert list(Path("outputs/.tracking/wandb").glob("*/files/media/images/paths_*.png"))


def test_mlflow_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    _, rows = interrupted_then_finished("runtime.trackers=[mlflow]", monkeypatch)
    done = folders(ok(*FIT, "runtime.trackers=[mlflow]"))
    client = MlflowClient(tracking_uri=f"sqlite:///{Path('outputs/.tracking/mlflow/mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("modeconn")
    assert experiment is not None
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert len(client.search_runs([experiment.experiment_id])) == 7, "the resumed run is one of them, and one"
    (endpoint,) = (r for name, r in runs.items() if "-s5-" in name)
    assert endpoint.info.status == "FINISHED"
    assert endpoint.data.params["endpoints.epochs"] == "3"
    history = client.get_metric_history(endpoint.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(row["step"], row["train_loss"]) for row in rows]
    path = runs["/".join(done["evaluate"].parts[-3:])]
    summary = json.loads((done["evaluate"] / "summary.json").read_text())
    assert path.data.tags["verdict"] == summary["verdict"]["connected"]
    assert path.data.metrics["test_error.above_mean.high"] == summary["barriers"]["test_error"]["above_mean"]["high"]
    assert sorted(m.value for m in client.get_metric_history(path.info.run_id, "t")) == [0, 0.5, 1]
    plot = runs["/".join(done["plot"].parts[-3:])]
    assert [a.path for a in client.list_artifacts(plot.info.run_id)] == ["plot.png"]
