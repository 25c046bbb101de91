"""Standard output and error that may be closed, full or no longer read: work goes on, and what was lost is said."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any


class Outlet:
    """A stream that fails once and is silent from then on, for nobody's not listening stops a run.

    Attributes:
        failure: what the first failed write raised, if any.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        if self.failure is None:
            try:
                return self.stream.write(text)
            except UnicodeEncodeError:
                return self.write(text.encode("ascii", "backslashreplace").decode())
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except ValueError:
            return False

    def _fail(self, error: Exception) -> None:
        self.failure = error
        with contextlib.suppress(OSError, ValueError):  # what is buffered goes nowhere, and ends the process quietly
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def outlets() -> Iterator[tuple[Outlet, Outlet]]:
    """sys.stdout and sys.stderr as outlets meanwhile; those that are closed from the beginning lead nowhere.

    A closed descriptor would be the next file's that is opened, and what a library prints would stand in a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    out, err = (Outlet(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115 - for the process's life
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def unwritten(out: Outlet) -> str:
    """One line about results that could not be written; empty where all were, or their reader had enough of them."""
    out.flush()
    if out.failure is None or isinstance(out.failure, BrokenPipeError):
        return ""
    why = getattr(out.failure, "strerror", None) or out.failure
    return f"standard output cannot be written ({why}); what was computed is kept: ask again for what it printed."


def visible(text: str) -> str:
    """A text without characters that act on a terminal: escapes, controls and changes of direction become \\x1b.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _ACTING else _escaped(c) for c in text)


_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else character.encode("ascii", "backslashreplace").decode()
