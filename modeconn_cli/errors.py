"""The ways a run can end other than well. Every message is one line: the thing, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Sequence


def one_line(text: str) -> str:
    """Text from a file or from another's code, fit for a message: spaces for what breaks lines, ? for control codes."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class UserError(Exception):
    """The request cannot be carried out as asked (bad value, missing file). Exit code 2, nothing written."""


class RunFailed(Exception):  # noqa: N818 - named for what happened
    """The request was sound but its computation failed (a loss became NaN, a check did not hold). Exit code 1."""


class CodeFailed(RunFailed):
    """Code from outside, a network's or an objective's or a data set's, raised an exception: the cause. Exit code 1."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; its state is saved. Exit code 128 + signal number.

    Not an Exception, so that no handler of failed jobs takes it for one and starts the next.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by signal {signum}")
