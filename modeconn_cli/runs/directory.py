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
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modeconn_cli.errors import UserError


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


# ---------------------------------------------------------------------------------------- finding them again
