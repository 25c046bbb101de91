"""Damage is noticed before anything builds on it, and only what modeconn wrote and nobody needs is removed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from modeconn_cli.errors import Interrupted, RunFailed, UserError
from modeconn_cli.networks import CHECKPOINT, write_state
from modeconn_cli.runs import lock as locks
from modeconn_cli.runs.directory import Identity, Run, cell, claim, damage_of, locate, version_number
from modeconn_cli.runs.find import Found, find_all, removable, remove, require_done
from modeconn_cli.runs.lock import Lock, held, holder, in_use, used
from modeconn_cli.runs.sums import seal, sealed_well, sha256
from modeconn_cli.settings import Config
from modeconn_cli.stages.referenced import networks_of, referenced
from modeconn_cli.work.context import Context, safe
from modeconn_cli.work.options import Runtime
from modeconn_cli.work.reporting import Silent
from modeconn_cli.work.saving import Saver
from modeconn_cli.work.signals import HANGUP, Signals

ONE = Identity("interpolate", 1, "a-b", {"x": 1})
CONFIG = "seed: 0\narchitecture: {}\nruntime: {}\n"


def made(root: Path, identity: Identity = ONE, upstream: tuple[Path, ...] = (), force: bool = False) -> Found:
    """A finished run with one file of every kind."""
    run = locate(identity, root, force)
    run.folder.mkdir(parents=True)
    run.write_text("config.yaml", CONFIG)
    run.write_json("provenance.json", {"modeconn": "0", "kind": "endpoint", "upstream": [*map(str, upstream)]})
    run.write_json("summary.json", {"metrics": {"test_error": 1.0}})
    run.write_rows("metrics.csv", [{"epoch": 1, "loss": 0.5}])
    write_state(run, CHECKPOINT, {"w": torch.arange(600.0)})
    run.finish()
    return Found(run.folder)


def flip(file: Path, place: int, bit: int = 4) -> None:
    """Change one bit and neither the size nor the times of a file."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[place] ^= 1 << bit
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


# ------------------------------------------------------------------------------------------------------ sums


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "summary.json", "metrics.csv", CHECKPOINT])
def test_one_flipped_bit_anywhere_is_named_and_computed_again(name: str, tmp_path: Path) -> None:
    run = made(tmp_path)
    size = (run.folder / name).stat().st_size
    assert locate(ONE, tmp_path).status == "cached"
    for place in (0, size // 3, size // 2, size - 1):
        flip(run.folder / name, place)
        again = locate(ONE, tmp_path)
        assert (again.folder.name, again.status, again.why) == ("v2", "run", f"v1: {name} is damaged"), place
        with pytest.raises(RunFailed, match=rf"{name} is damaged\. Run its command again"):
            require_done(run)
        assert run.status != "done" or name == CHECKPOINT
        flip(run.folder / name, place)
        assert locate(ONE, tmp_path).status == "cached"


def test_a_network_of_a_damaged_run_is_refused_by_every_kind_of_reference(tmp_path: Path) -> None:
    run = made(tmp_path)
    file = run.folder / CHECKPOINT
    flip(file, file.stat().st_size - 3)
    for text in (run.digest, str(run.folder), str(file), f"{run.digest}#1"):
        with pytest.raises(UserError, match=f"{CHECKPOINT} is damaged"):
            referenced(text, tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        networks_of(str(file), tmp_path)
    flip(file, file.stat().st_size - 3)
    assert referenced(str(file), tmp_path).content == hashlib.sha256(file.read_bytes()).hexdigest()


def test_runs_from_before_there_were_sums_go_on_working(tmp_path: Path) -> None:
    run = made(tmp_path)
    done = json.loads((run.folder / "DONE").read_text())
    assert done.pop("sha256").keys() == done["files"].keys()
    (run.folder / "DONE").write_text(json.dumps(done))
    assert damage_of(run.folder) == ""
    flip(run.folder / CHECKPOINT, 700)
    assert damage_of(run.folder) == "", "as before: nothing is known of it but its size"
    for name in ("summary.json", "metrics.csv"):  # what is no text is noticed all the same
        before = (run.folder / name).read_bytes()
        (run.folder / name).write_bytes(bytes(len(before)))
        assert damage_of(run.folder) == f"{name} is damaged"
        (run.folder / name).write_bytes(before)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "", '{"files": 3}', '{"files": {}, "sha256": []}', "\x00\x01"])
def test_a_damaged_list_of_files_is_damage(content: str, tmp_path: Path) -> None:
    run = made(tmp_path)
    (run.folder / "DONE").write_text(content)
    assert damage_of(run.folder) == "DONE is unreadable"


def test_a_file_is_read_once_for_its_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"content")
    assert sha256(file) == hashlib.sha256(b"content").hexdigest()

    def refuse(*_: Any) -> Any:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        assert sha256(file) == hashlib.sha256(b"content").hexdigest()
    file.write_bytes(b"other content")
    assert sha256(file) == hashlib.sha256(b"other content").hexdigest()


def test_every_flipped_bit_of_a_saved_state_is_noticed(tmp_path: Path) -> None:
    context = Context(Config(runtime=Runtime(output_dir=str(tmp_path))), Silent())
    saver = Saver(Run(tmp_path, "run", ""), context)
    state = {"step": 3, "trained": [torch.arange(50.0)], "rows": [{"loss": 0.25}]}
    saver.save(state)
    file = tmp_path / "state.pt"
    assert torch.load(file, weights_only=True)["step"] == 3, "any reader of PyTorch's files reads it"
    found = saver.begun()
    assert found is not None
    assert torch.equal(found["trained"][0], state["trained"][0])
    whole = file.read_bytes()
    for place in range(0, len(whole), 29):
        content = bytearray(whole)
        content[place] ^= 2
        file.write_bytes(content)
        found = saver.begun()  # a bit of the sum's own mark changes no number
        assert found is None or torch.equal(found["trained"][0], state["trained"][0]), place
        assert found is None or found["rows"] == state["rows"], place
    content = bytearray(whole)
    content[whole.index(torch.arange(50.0).numpy().tobytes()) + 7] ^= 1
    assert not sealed_well(content)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file.write_bytes(buffer.getvalue())
    assert saver.begun() is not None, "a state of an earlier version"
    assert b"".join(seal(b"PK comment\1\0")) == b"PK comment\1\0"


# --------------------------------------------------------------------------------------------------- versions


def test_only_whole_numbers_name_versions(tmp_path: Path) -> None:
    names = {"v1": 1, "v10": 10, "v0": 0, "v²": None, "v٣": None, "v-1": None, "v1.bak": None, "v": None, "w1": None}
    assert {n: version_number(n) for n in names} == names
    for name in ("v²", "v٣", "v1a"):
        (ONE.folder(tmp_path) / name).mkdir(parents=True)
    assert find_all(tmp_path) == []
    assert locate(ONE, tmp_path).folder.name == "v1"
    assert damage_of(made(tmp_path).folder) == ""


def test_names_are_no_longer_than_a_file_system_takes(tmp_path: Path) -> None:
    assert safe("a" * 999) == "a" * 80
    assert safe("a/b ²") == "a_b_"
    long = Identity("merge", 1, "-".join(map(str, range(400))), {})
    long.folder(tmp_path).mkdir(parents=True)
    assert long.folder(tmp_path).name.endswith(f"-{long.digest}")


def test_no_cell_is_a_formula_and_numbers_stay_numbers() -> None:
    for text in ("=1+1", "+cmd", "-x", "@a", "\tx", "\r=1"):
        assert cell(text) == f"'{text}"
    assert [*map(cell, ("-0.5", "+1e3", -2, -0.5, "a=b", "", None))] == ["-0.5", "+1e3", -2, "-0.5", "a=b", "", None]


# ------------------------------------------------------------------------------------------------------- locks


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""
    monkeypatch.setattr(locks, "_flock", lambda file: None)


def test_without_the_kernels_locks_a_file_says_who_holds(no_flock: None, tmp_path: Path) -> None:
    with Lock(tmp_path) as first:
        assert first.take()
        assert held(tmp_path)
        with Lock(tmp_path) as second:
            assert not second.take()
        said = holder(tmp_path)
        assert f"process {os.getpid()} on {socket.gethostname()}, since 2" in said
        assert f"delete {tmp_path / '.lock.owner'}" in said
    assert not held(tmp_path)
    assert holder(tmp_path) == ""


def test_a_file_of_a_process_that_is_gone_is_taken_over_and_of_another_host_is_not(
    no_flock: None, tmp_path: Path
) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / ".lock").touch()
    owner = {"host": socket.gethostname(), "process": int(ended.stdout), "since": "2020-01-01 00:00:00"}
    (tmp_path / ".lock.owner").write_text(json.dumps(owner))
    assert not held(tmp_path)
    (tmp_path / ".lock.owner").write_text(json.dumps({**owner, "host": "elsewhere"}))
    assert held(tmp_path)
    assert "on elsewhere, since 2020" in holder(tmp_path)
    (tmp_path / ".lock.owner").write_text("half")
    assert held(tmp_path), "whoever wrote it may be at work"


def test_two_who_ask_wait_for_one_another_without_the_kernel_too(no_flock: None, tmp_path: Path) -> None:
    computing, waiting, seen = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        with claim(ONE, tmp_path, False, lambda _: None) as run:
            computing.set()
            assert waiting.wait(20)
            run.write_text("a.txt", "a")
            run.finish()

    thread = threading.Thread(target=first)
    thread.start()
    assert computing.wait(20)
    with claim(ONE, tmp_path, False, lambda _: waiting.set()) as run:
        seen.append(run.status)
    thread.join()
    assert seen == ["cached"]
    assert not (ONE.folder(tmp_path) / ".lock.owner").exists()


def test_it_is_imported_where_there_is_neither_fcntl_nor_sighup() -> None:
    script = (
        "import sys, signal; sys.modules['fcntl'] = None; del signal.SIGHUP\n"
        "import modeconn_cli.cli, modeconn_cli.work.signals as s, modeconn_cli.runs.lock as l\n"
        "assert s.HANGUP is None and l.fcntl is None\nwith s.Signals().caught(): pass"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---------------------------------------------------------------------------------------------------- removing


def test_only_what_modeconn_wrote_is_removed(tmp_path: Path) -> None:
    mine = tmp_path / "src" / "api" / "v1"
    mine.mkdir(parents=True)
    (mine / "main.py").write_text("mine")
    lookalike = tmp_path / "interpolate" / "notes" / "v1"
    lookalike.mkdir(parents=True)
    (lookalike / "DONE").write_text("[]")
    foreign = made(tmp_path, Identity("somebody-elses", 1, "a", {}))
    old, new = made(tmp_path), made(tmp_path, force=True)
    assert [r.run for r in removable(tmp_path, {"interpolate"})] == [old]
    gone = [r.run for r in removable(tmp_path, {"interpolate"}, ["elses"])]
    assert sorted(r.version for r in gone) == ["v1", "v2"]
    for run in gone:
        assert remove(run)
    assert not new.folder.parent.exists()
    assert (mine / "main.py").read_text() == "mine"
    assert lookalike.exists()
    assert foreign.folder.exists()


@pytest.mark.parametrize("harm", ["provenance.json", "config.yaml"])
def test_a_damaged_run_is_still_known_as_ours_by_its_other_file(harm: str, tmp_path: Path) -> None:
    run = made(tmp_path)
    (run.folder / harm).write_bytes(b"\xff\x00{")
    (removal,) = removable(tmp_path, {"interpolate"})
    assert removal.run == run
    assert harm in removal.why
    for name in ("provenance.json", "config.yaml"):
        (run.folder / name).write_bytes(b"\xff\x00{")
    assert removable(tmp_path, {"interpolate"}) == [], "nothing says that it is ours"


def test_what_a_process_works_with_stays_and_what_that_is_built_on(tmp_path: Path) -> None:
    below = made(tmp_path, Identity("interpolate", 1, "below", {}))
    used_run = made(tmp_path, Identity("interpolate", 1, "used", {}), (below.folder,))
    other = made(tmp_path, Identity("interpolate", 1, "other", {}))
    kept = made(tmp_path, Identity("interpolate", 1, "kept", {}))

    def going() -> list[Found]:
        return [r.run for r in removable(tmp_path, {"interpolate"}, ["kept"])]

    assert {*going()} == {below, used_run, other}
    with in_use(tmp_path, [used_run.folder.parent]):
        assert used(tmp_path) == {used_run.folder.parent.resolve()}
        assert going() == [other]
    assert {*going()} == {below, used_run, other}
    with Lock(used_run.folder.parent) as lock:
        assert lock.take()
        assert going() == [other]
        assert not remove(used_run)
    assert kept.folder.exists()
    assert not (tmp_path / ".in-use").exists()


# ----------------------------------------------------------------------------------------------------- signals


@pytest.mark.skipif(HANGUP is None, reason="no such signal here")
def test_a_closed_terminal_stops_a_run_with_its_state_saved_and_no_second_one_at_once() -> None:
    assert HANGUP is not None
    signal.signal(HANGUP, signal.SIG_DFL)  # also where these tests are run under nohup
    signals = Signals()
    with signals.caught():
        signal.raise_signal(HANGUP)
        signal.raise_signal(HANGUP)
        assert signals.received == HANGUP
        with pytest.raises(Interrupted) as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.value.signum == signal.SIGTERM
        with pytest.raises(Interrupted) as stop:
            signals.check()
        assert stop.value.signum == HANGUP


@pytest.mark.skipif(HANGUP is None, reason="no such signal here")
def test_under_nohup_a_closed_terminal_is_nothing() -> None:
    assert HANGUP is not None
    before = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.caught():
            signal.raise_signal(HANGUP)
        assert signals.received == 0
    finally:
        signal.signal(HANGUP, before)
