"""SHA-256 of files: what a finished run's files, and a saved state, are held to before anything builds on them."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

_MARK = b"modeconn sha256 "
_LENGTH = len(_MARK) + 32


def sha256(file: Path) -> str:
    """In hex; a process reads a file once for it, as long as the file is not changed.

    Raises:
        OSError: it cannot be read.
    """
    found = os.stat(file)
    return _read(os.path.abspath(file), found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _read(file: str, inode: int, size: int, changed: int) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seal(archive: bytes | memoryview) -> list[bytes | memoryview]:
    """A ZIP archive with its SHA-256 as the archive's comment, in parts to be written one after the other.

    Readers of ZIP pass over a comment, so that torch.load reads it as before; it is one file, which is renamed into
    place with its sum. An archive that has a comment already is left as it is.
    """
    if bytes(archive[-2:]) != b"\0\0":
        return [archive]
    sum_of = hashlib.sha256(archive).digest()
    return [archive[:-2], _LENGTH.to_bytes(2, "little"), _MARK, sum_of]


def sealed_well(content: bytes | memoryview) -> bool:
    """Whether what :func:`seal` gave is as it was; also of an archive that nobody sealed."""
    if bytes(content[-_LENGTH:-32]) != _MARK:
        return True
    found = hashlib.sha256(content[: -_LENGTH - 2])
    found.update(b"\0\0")
    return found.digest() == bytes(content[-32:])
