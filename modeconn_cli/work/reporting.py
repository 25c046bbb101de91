"""Who is told how work goes."""

from __future__ import annotations

from typing import Protocol

from modeconn_cli.runs.directory import Run


class Reporter(Protocol):
    """Who is told how work goes; the terminal's lives with the commands."""

    def begin(self, stage: str, run: Run) -> None:
        """A stage starts, or is answered from cache."""

    def progress(self, done: int, total: int, note: str) -> None:
        """Within the stage: steps or points done."""

    def end(self, stage: str, run: Run, seconds: float) -> None:
        """The stage is finished."""

    def say(self, line: str) -> None:
        """A remark worth a line."""


class Silent:
    """A reporter that tells nobody."""

    def begin(self, stage: str, run: Run) -> None: ...

    def progress(self, done: int, total: int, note: str) -> None: ...

    def end(self, stage: str, run: Run, seconds: float) -> None: ...

    def say(self, line: str) -> None: ...
