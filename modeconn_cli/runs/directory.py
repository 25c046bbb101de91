"""Run directories: where a result lives, whether it is there already, and who may write it.

    <output_dir>/<stage>/<label>-<digest>/v<N>/

The digest names what determines the result. Every file is written beside its place and renamed, DONE last, so
a directory with DONE is whole and one without it can be resumed. DONE has the SHA-256 of every file, which they are
held to before anything builds on them. A lock (see runs/lock.py) keeps two writers apart.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modeconn_cli.errors import UserError
from modeconn_cli.runs.lock import Lock
from modeconn_cli.runs.sums import sha256

DONE = "DONE"
SMALL = 2**20  # bytes; whoever only looks at a run checks no larger file's sum
MARKS = "=+-@\t\r"  # what makes a formula of a cell, for a spreadsheet


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
        return root / self.stage / f"{self.label[:200]}-{self.digest}"  # file systems take 255 bytes


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
        writer.writerows({k: cell(v) for k, v in row.items()} for row in rows)
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
        sums = {name: sha256(self.folder / name) for name in self.files}
        self.write_json(DONE, {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": self.files, "sha256": sums})


def cell(value: Any) -> Any:
    """A value as a cell of CSV: floats in full, and no text that a spreadsheet takes for a formula.

    >>> cell("=1+1"), cell("-0.5"), cell(0.1)
    ("'=1+1", '-0.5', '0.1')
    """
    if isinstance(value, float):
        return repr(float(value))
    if not isinstance(value, str) or value[:1] not in (*MARKS,):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def version_number(name: str) -> int | None:
    """N of a directory's name ``v<N>``; None for any other name."""
    return int(name[1:]) if re.fullmatch(r"v[0-9]+", name) else None


def locate(identity: Identity, root: Path, force: bool = False) -> Run:
    """What a request for this result would do now: answer from a finished version, resume one, or compute.

    A finished version is whole when its files have the sums that DONE lists.
    """
    folder = identity.folder(root)
    named = ((version_number(p.name), p) for p in folder.glob("v*"))
    versions = sorted(v for v, p in named if v is not None and p.is_dir())
    newest = versions[-1] if versions else 0
    damage: dict[int, str] = {}
    for version in reversed(versions):  # older ones than a whole one are asked nothing
        damage[version] = damage_of(folder / f"v{version}")
        if not damage[version]:
            break
    whole = [v for v, how in damage.items() if not how]
    if whole and not force:
        return Run(folder / f"v{whole[-1]}", "cached", f"finished as v{whole[-1]}")
    if versions and damage[newest] == "unfinished":
        return Run(folder / f"v{newest}", "resume", f"v{newest} was begun and not finished")
    why = "never computed" if not versions else "--force" if force else f"v{newest}: {damage[newest]}"
    return Run(folder / f"v{newest + 1}", "run", why)


def damage_of(version: Path, largest: int | None = None) -> str:
    """Empty for a whole directory, "unfinished" without DONE, else which file is not as it was finished.

    Args:
        largest: bytes; of a larger file only the size is looked at. None: every sum is checked. Runs from before there
            were sums are held to sizes, and to their texts being texts.
    """
    done = version / DONE
    if not done.exists():
        return "unfinished"
    content = read_json(done)
    files, sums = content.get("files"), content.get("sha256", {})
    if not isinstance(files, dict) or not isinstance(sums, dict):
        return "DONE is unreadable"
    for name, size in files.items():
        path = version / name
        try:
            if not path.is_file() or path.stat().st_size != size:
                return f"{name} is missing or was changed"
            checked = name in sums and (largest is None or size <= largest)
            if sha256(path) != sums[name] if checked else not _looks_whole(path):
                return f"{name} is damaged"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file; empty where there is none, or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _looks_whole(path: Path) -> bool:
    """Whether a file without a sum can be what it is called, as far as that is soon seen."""
    if path.suffix == ".json":
        return bool(read_json(path))
    if path.suffix in (".csv", ".yaml"):
        with open(path, "rb") as f:
            return b"\0" not in f.read(SMALL)
    return True


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
    with Lock(folder) as lock:
        before = locate(identity, root).folder
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            while not lock.take():
                on_wait(folder)
                time.sleep(0.1)
        run = locate(identity, root)
        if force and not (run.status == "cached" and run.folder != before):  # not computed while this one waited
            run = locate(identity, root, force)
        if run.status != "cached":
            with writable(run.folder):
                run.folder.mkdir(parents=True, exist_ok=True)
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


def require_writable(folder: Path) -> None:
    """Raise UserError, as writing would, where a directory cannot be made or nothing can be written in it.

    Nothing is written: it is looked at what there is of the way to it.
    """
    with writable(folder):
        there = folder.absolute()
        while True:
            try:
                is_folder = stat.S_ISDIR(there.stat().st_mode)
                break
            except FileNotFoundError:
                there = there.parent
        if not is_folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
