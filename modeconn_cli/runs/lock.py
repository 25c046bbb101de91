"""Locks between processes: the kernel's, which go with their process, or a file where there are none.

Windows and some network file systems have no flock. There a file beside the lock says who holds it: host, process and
since when. It is taken from a process of this host that is gone; of another host nobody can know, so whoever waits is
told which file to delete.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK, OWNER = ".lock", ".lock.owner"
IN_USE = ".in-use"  # of an output directory: which results each process is at work with


class Lock:
    """The sole right to a directory; :meth:`take` asks for it without waiting."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None
        self._owner: Path | None = None

    def take(self) -> bool:
        """Whether it is held now.

        Raises:
            OSError: the directory cannot be written.
        """
        while True:
            file = open(self.folder / LOCK, "a", encoding="utf-8")  # noqa: SIM115 - held open for as long as the lock
            kernel = _flock(file)
            if kernel is False:
                file.close()
                return False
            if not _same_file(file, self.folder / LOCK):  # somebody removed the directory meanwhile
                file.close()
                self.folder.mkdir(parents=True, exist_ok=True)
                continue
            self._file = file
            if kernel or self._take_by_file():
                return True
            self.release()
            return False

    def _take_by_file(self) -> bool:
        owner = self.folder / OWNER
        mine = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        for _ in range(2):
            try:
                handle = os.open(owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not _gone(_read(owner)):
                    return False
                with contextlib.suppress(FileNotFoundError):
                    owner.unlink()
                continue
            with open(handle, "w", encoding="utf-8") as f:
                json.dump(mine, f)
            self._owner = owner
            return True
        return False

    def release(self) -> None:
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
            self._owner = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(folder: Path) -> str:
    """Who holds a directory, where no kernel says so, and what to do if that process is gone; else empty."""
    owner = folder / OWNER
    who = _read(owner)
    if not owner.exists():
        return ""
    named = "process {process} on {host}, since {since}".format(**{"process": "?", "host": "?", "since": "?", **who})
    return f" ({named}; if that is gone, delete {owner})"


def held(folder: Path) -> bool:
    """Whether another process, or another lock of this one, has the sole right to a directory."""
    if not (folder / LOCK).exists():
        return False
    with Lock(folder) as lock:
        try:
            return not lock.take()
        except OSError:  # a directory that cannot be written: whoever may, may be at work
            return True


@contextmanager
def in_use(root: Path, folders: Sequence[Path]) -> Iterator[None]:
    """Say meanwhile that this process works with these results, so that none of them is removed.

    Where it cannot be said, as on a full disk, the work is not kept from being done.
    """
    place = root / IN_USE
    mine = place / f"{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"
    with Lock(mine) as lock:
        try:
            with contextlib.suppress(OSError):
                mine.mkdir(parents=True)
                lock.take()
                (mine / "results").write_text("\n".join(str(f.resolve()) for f in folders), encoding="utf-8")
            yield
        finally:
            lock.release()
            with contextlib.suppress(OSError):
                _sweep(mine)
                used(root)
            with contextlib.suppress(OSError):  # another process is at work
                place.rmdir()


def used(root: Path) -> set[Path]:
    """The results that processes are at work with; what ended ones left behind is swept."""
    found: set[Path] = set()
    for mine in (root / IN_USE).glob("*"):
        if held(mine):
            with contextlib.suppress(OSError):
                found |= {Path(line) for line in (mine / "results").read_text(encoding="utf-8").splitlines()}
        elif time.time() - mine.stat().st_mtime > 60:  # not one that is just beginning
            _sweep(mine)
    return found


def _sweep(place: Path) -> None:
    for file in ("results", OWNER, LOCK):
        (place / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.rmdir()


def _flock(file: IO[str]) -> bool | None:
    """Whether the kernel gives the lock; None where it has no locks for this file."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _read(owner: Path) -> dict[str, Any]:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _gone(who: dict[str, Any]) -> bool:
    """Whether a holder is a process of this host that has ended."""
    if who.get("host") != socket.gethostname() or not isinstance(who.get("process"), int) or os.name != "posix":
        return False
    try:
        os.kill(who["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
