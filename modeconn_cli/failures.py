"""What to say of an exception that nobody foresaw: whose code raised it, and where, in one line."""

from __future__ import annotations

import contextlib
import errno
import site
import sysconfig
import time
import traceback
from pathlib import Path

from modeconn_cli.errors import CodeFailed, RunFailed, UserError, one_line

PACKAGE = Path(__file__).parent
INSTALLED = [
    Path(p).resolve()
    for p in {*site.getsitepackages(), *(sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib"))}
]
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # whoever writes there says so
SESSIONS = ("<stdin>", "<ipython-input", "<doctest")  # code that is in no file


def place_of(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line from outside: neither this package's nor that of an installed one or of Python's library."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f for f in reversed(frames) if _from_outside(f.filename)), None)


def _from_outside(name: str) -> bool:
    if name.startswith(SESSIONS):
        return True
    file = Path(name)
    if not file.is_file():
        return False
    file = file.resolve()
    return not any(file.is_relative_to(place) for place in (PACKAGE, *INSTALLED))


def raised_outside(error: BaseException) -> bool:
    """Whether code from outside raised an exception itself, rather than an operation that it asked for."""
    place = place_of(error)
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    if place is None or (innermost[0].filename, innermost[0].lineno) != (place.filename, place.lineno):
        return False
    return not isinstance(error, RuntimeError) or (place.line or "").startswith("raise")


def said(error: BaseException) -> str:
    """``ValueError in net.py:12: what it says``, without its further lines; the place only where it is from outside."""
    place = place_of(error)
    where = "" if place is None else f" in {_short(place.filename)}:{place.lineno}"
    text = one_line(next((line for line in str(error).splitlines() if line.strip()), ""))
    return f"{type(error).__name__}{where}" + (f": {text}" if text else "")


def _short(name: str) -> str:
    with contextlib.suppress(ValueError, OSError):
        return str(Path(name).resolve().relative_to(Path.cwd()))
    return name


def refused(error: Exception, line: str) -> UserError | RunFailed:
    """What to raise for an exception that code from outside met while it was tried, and that a line tells of.

    What it raised itself is its own failure; what an operation refused is a request that does not suit it.
    """
    return CodeFailed(line) if raised_outside(error) else UserError(line)


def unforeseen(error: Exception, folder: Path | None = None) -> RunFailed:
    """The failure that an exception is, its traceback left in ``log.txt`` of a folder where one is given.

    An exception that passed through code from outside is that code's; any other is a fault of this package.
    """
    if isinstance(error, UserError | RunFailed) or (isinstance(error, OSError) and error.errno in DISK):
        raise error
    line = out_of_memory(error)
    if line is not None:
        return RunFailed(line)
    text = said(error)
    text += "" if text.endswith((".", "!", "?")) else "."
    where = "" if folder is None else _logged(error, folder)
    if place_of(error) is not None:
        return CodeFailed(f"{text}{where}")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(PACKAGE)]
    inside = f" ({Path(frames[-1].filename).relative_to(PACKAGE.parent)}:{frames[-1].lineno})" if frames else ""
    return RunFailed(f"{text}{where} This is a fault of modeconn's{inside}: please report it.")


def _logged(error: Exception, folder: Path) -> str:
    """Leave a traceback in a folder's log; where it is, for a message."""
    file = folder / "log.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {''.join(traceback.format_exception(error))}")
    except OSError:  # a disk that is full, perhaps what went wrong in the first place
        return ""
    return f" The traceback is in {file}."


def out_of_memory(error: BaseException) -> str | None:
    """One line for a device or a machine without room, None for any other error."""
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        return (
            "out of memory; lower endpoints.batch_size, curve.batch_size or interpolation.batch_size, "
            "or take a device with more."
        )
    return None
