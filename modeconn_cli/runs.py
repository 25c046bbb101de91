"""Run directories: where a result lives, whether it is there already, and who may write it.

    <output_dir>/<stage>/<label>-<digest>/v<N>/

The digest names what determines the result. Every file is written beside its place and renamed, DONE last, so
a directory with DONE is whole and one without it can be resumed. A lock that the kernel drops with its
process keeps two writers apart.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modeconn_cli import __version__
from modeconn_cli.errors import RunFailed, UserError


@dataclass(frozen=True)
class Identity:
    """What determines a result: its stage and that stage's version, identifying fields, and upstream digests."""

    stage: str
    version: int
    label: str
    fields: Mapping[str, Any]
    upstream: Sequence[str] = ()

    @cached_property
    def digest(self) -> str:
        """Ten hexadecimal digits."""
        what = {"stage": self.stage, "version": self.version, "fields": self.fields, "upstream": list(self.upstream)}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]

    def folder(self, root: Path) -> Path:
        return root / self.stage / f"{self.label}-{self.digest}"


@dataclass
class Run:
    """One version of one result: a directory, and whether it has to be computed.

    status: "run", "resume" or "cached"; why: the reason, in a few words.
    """

    folder: Path
    status: str
    why: str
    files: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write a file under; it takes its name when the block ends, and is gone if it fails."""
        target = self.folder / name
        beside = self.folder / f".{name}.tmp"
        try:
            yield beside
            with open(beside, "rb+") as f:
                os.fsync(f.fileno())
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        self.files[name] = target.stat().st_size

    def write_text(self, name: str, text: str) -> None:
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A CSV file; floats in full, so that what is read back is what was measured."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: repr(float(v)) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        self.write_text(name, buffer.getvalue())

    def log(self, line: str) -> None:
        """Append a dated line to log.txt."""
        with open(self.folder / "log.txt", "a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def finish(self) -> None:
        """Mark the directory whole; what only a resumed run would need is removed."""
        (self.folder / "state.pt").unlink(missing_ok=True)
        self.files = {
            p.name: p.stat().st_size
            for p in sorted(self.folder.iterdir())
            if p.is_file() and not p.name.startswith(".") and p.name not in ("log.txt", "DONE")
        }
        self.write_json("DONE", {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": self.files})


def locate(identity: Identity, root: Path, force: bool = False) -> Run:
    """What a request for this result would do now: answer from a finished version, resume one, or compute."""
    folder = identity.folder(root)
    versions = sorted(int(p.name[1:]) for p in folder.glob("v*") if p.name[1:].isdigit() and p.is_dir())
    damage: dict[int, str] = {v: _damage(folder / f"v{v}") for v in versions}
    whole = [v for v in versions if damage[v] == ""]
    newest = versions[-1] if versions else 0
    if whole and not force:
        return Run(folder / f"v{whole[-1]}", "cached", f"finished as v{whole[-1]}")
    if versions and damage[newest] == "unfinished":
        return Run(folder / f"v{newest}", "resume", f"v{newest} was begun and not finished")
    why = "never computed" if not versions else "--force" if force else f"v{newest}: {damage[newest]}"
    return Run(folder / f"v{newest + 1}", "run", why)


def _damage(version: Path) -> str:
    """Empty for a whole directory, "unfinished" without DONE, else which file is not as it was finished."""
    done = version / "DONE"
    if not done.exists():
        return "unfinished"
    try:
        files: dict[str, int] = json.loads(done.read_text())["files"]
    except (ValueError, KeyError):
        return "DONE is unreadable"
    for name, size in files.items():
        path = version / name
        if not path.exists() or path.stat().st_size != size:
            return f"{name} is missing or was changed"
    return ""


@contextmanager
def claim(identity: Identity, root: Path, force: bool, on_wait: Callable[[Path], None]) -> Iterator[Run]:
    """The sole right to compute a result. Waits while another process has it, then looks again.

    ``on_wait`` is called again and again while waiting, and may raise to give up.

    Raises:
        UserError: the directory cannot be written.
    """
    folder = identity.folder(root)
    found = locate(identity, root, force)
    if found.status == "cached":
        yield found
        return
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - held open for as long as the lock
    with lock:
        before = locate(identity, root).folder
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                on_wait(folder)
                time.sleep(0.1)
        run = locate(identity, root)
        if force and not (run.status == "cached" and run.folder != before):  # not computed while this one waited
            run = locate(identity, root, force)
        if run.status != "cached":
            with writable(run.folder):
                run.folder.mkdir(exist_ok=True)
                for leftover in run.folder.glob(".*.tmp"):
                    leftover.unlink()
        yield run


@contextmanager
def writable(place: Path, setting: str = "runtime.output_dir=DIR") -> Iterator[None]:
    """Turn the operating system's refusal to write into one line for the user, who may change ``setting``."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # some libraries' own errors are OSErrors too
            raise
        where = re.sub(r"\.([^/\\]+)\.tmp$", r"\1", str(error.filename or place))
        raise UserError(
            f"cannot write {where}: {error.strerror}. Give a writable place with enough room: {setting}."
        ) from None


def provenance(upstream: Sequence[Run], more: Mapping[str, Any]) -> dict[str, Any]:
    """Where a result comes from: versions, machine, command, the upstream directories, and what the stage adds."""
    import numpy
    import torch

    return {
        "modeconn": __version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "threads": torch.get_num_threads(),
        "command": command_line(),
        "upstream": [str(r.folder) for r in upstream],
        **more,
    }


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, marked when it is modified; None elsewhere."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists() or shutil.which("git") is None:
        return None
    said = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or None


# ---------------------------------------------------------------------------------------- finding them again


@dataclass(frozen=True)
class Found:
    """A run directory on disk."""

    folder: Path

    @property
    def stage(self) -> str:
        return self.folder.parent.parent.name

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def digest(self) -> str:
        return self.name.rsplit("-", 1)[-1]

    @property
    def status(self) -> str:
        """ "done", "unfinished", or which file is damaged."""
        return _damage(self.folder) or "done"

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files; empty where it is not there."""
        path = self.folder / name
        if not path.exists():
            return {}
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def size(self) -> int:
        """Bytes on disk."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())


def find_all(root: Path) -> list[Found]:
    """Every run directory under an output directory, oldest first."""
    folders = [p for p in root.glob("*/*/v*") if p.name[1:].isdigit() and p.is_dir()]
    return [Found(p) for p in sorted(folders, key=lambda p: (p.stat().st_mtime, str(p)))]


def find(root: Path, wanted: str) -> Found:
    """The run a person means: a directory, or the beginning of a digest or name (its newest finished version).

    Raises:
        UserError: none or several fit.
    """
    given = Path(wanted)
    for folder in (given, given.parent):
        if folder.is_dir() and folder.name[:1] == "v" and folder.name[1:].isdigit():
            return Found(folder)
    every = find_all(root)
    fitting = [r for r in every if r.folder.parent == given or (given.is_dir() and r.folder.parent.samefile(given))]
    if not fitting:
        bare, _, version = wanted.partition("/v")
        stage, slash, bare = bare.rpartition("/")
        fitting = [
            r
            for r in every
            if (r.digest.startswith(bare) or r.name.startswith(bare))
            and (not slash or r.stage == stage)
            and (not version or r.version == f"v{version}")
        ]
    names = sorted({f"{r.stage}/{r.name}" for r in fitting})
    if len(names) > 1:
        raise UserError(
            f"{wanted!r} fits {len(names)} runs: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}; "
            "give more of it: the stage as STAGE/NAME, the digest at its end."
        )
    if not fitting:
        raise UserError(f"no run {wanted!r} under {root}/: `modeconn runs list` shows what is there.")
    done = [r for r in fitting if r.status == "done"]
    return max(done or fitting, key=lambda r: int(r.version[1:]))


@dataclass(frozen=True)
class Removal:
    """A run directory that nothing kept needs, and why it is not kept itself."""

    run: Found
    why: str


def removable(root: Path, keep: Sequence[str] = ()) -> list[Removal]:
    """What can go: without ``keep``, versions that a newer finished one replaced, and damaged ones.

    With ``keep``, everything but runs whose STAGE/NAME holds one of these texts. What a kept run is built on stays,
    and so does what another process is computing.

    Raises:
        UserError: a text of ``keep`` is in no run's name.
    """
    every = find_all(root)
    newest: dict[Path, int] = {}
    for run in every:
        if run.status == "done":
            newest[run.folder.parent] = max(newest.get(run.folder.parent, 0), int(run.version[1:]))
    for text in keep:
        if not any(text in f"{r.stage}/{r.name}" for r in every):
            raise UserError(f"--keep {text}: no run has this in its name; `modeconn runs list` shows what is there.")

    def reason(run: Found) -> str | None:
        if keep and not any(text in f"{run.stage}/{run.name}" for text in keep):
            return "not among those to keep"
        if run.status not in ("done", "unfinished"):
            return run.status
        last = newest.get(run.folder.parent, 0)
        return f"v{last} is newer" if int(run.version[1:]) < last else None

    reasons = {run: reason(run) for run in every}
    by_place = {run.folder.parts[-3:]: run for run in every}
    needed: set[Found] = set()
    waiting = [run for run, why in reasons.items() if why is None]
    while waiting:
        run = waiting.pop()
        if run not in needed:
            needed.add(run)
            above = [by_place.get(Path(u).parts[-3:]) for u in run.read("provenance.json").get("upstream", [])]
            waiting += [r for r in above if r is not None]
    return [Removal(r, why) for r, why in reasons.items() if why is not None and r not in needed and not _busy(r)]


def remove(run: Found) -> None:
    """Delete a run directory; it is whole or gone, wherever this is stopped."""
    gone = run.folder.with_name(f".{run.folder.name}.removed")
    with writable(run.folder):
        run.folder.rename(gone)
        for leftover in run.folder.parent.glob(".v*.removed"):
            shutil.rmtree(leftover)
        if {p.name for p in run.folder.parent.iterdir()} <= {".lock"}:
            shutil.rmtree(run.folder.parent)


def _busy(run: Found) -> bool:
    """Whether a process holds the lock on this result."""
    path = run.folder.parent / ".lock"
    if not path.exists():
        return False
    with open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def upstream_of(run: Found) -> list[Found]:
    """The runs that a run was made from, looked for beside it first: an output directory may have been moved."""
    found = []
    for folder in map(Path, run.read("provenance.json").get("upstream", [])):
        beside = run.folder.parents[2].joinpath(*folder.parts[-3:])
        found.append(Found(beside if beside.is_dir() else folder))
    return found


def endpoints_of(run: Found) -> tuple[str, ...]:
    """The digests of the endpoints that a run's results stand on, in order."""
    return tuple(endpoint.digest for endpoint in endpoints_behind(run))


def endpoints_behind(run: Found) -> list[Found]:
    """The endpoints that a run's results stand on, in order; itself, for an endpoint."""
    if run.stage == "train-endpoints":
        return [run]
    return [*dict.fromkeys(endpoint for u in upstream_of(run) for endpoint in endpoints_behind(u))]


def command_line() -> str:
    """This process's command as a person would type it again; workers of a sweep inherit their parent's."""
    return os.environ.get("MODECONN_COMMAND") or shlex.join(["modeconn", *sys.argv[1:]])


def require_done(run: Found) -> Found:
    """A run that is whole, or RunFailed saying how it is not."""
    if run.status != "done":
        raise RunFailed(f"{run.folder} is {run.status}; run its command again to finish it.")
    return run
