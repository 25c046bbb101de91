"""Where a person is told how work goes: the two consoles, a line for each stage, a bar while it works."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from modeconn_cli.front.streams import visible
from modeconn_cli.runs.directory import Run


class Terminal(Console):
    """A console to which a text is a text: names are shown as they are, whatever is in them.

    Style comes from :func:`styled` and :func:`joined` alone.
    """

    def __init__(self, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        # A pipe or a file has no width to fold names for.
        width = None if stream is not None and stream.isatty() else 1000
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)


class Sheet(Table):
    """A table as all are here; where a terminal is too narrow its cells go on below, and no figure is cut."""

    def __init__(self, *heads: str, title: str | None = None, **how: Any) -> None:
        usual = {"title_justify": "left", "box": None, "header_style": "bold", "pad_edge": False}
        super().__init__(title=title, **{**usual, **how})
        for head in heads:
            self.add_column(head)

    def add_column(self, *head: Any, **how: Any) -> None:
        super().add_column(*head, **{"overflow": "fold", **how})


def styled(style: str, text: object) -> Text:
    """A text in a style."""
    return Text(visible(str(text)), style)


def joined(*parts: str | Text) -> Text:
    """Texts, styled or not, one after the other."""
    return Text.assemble(*(visible(p) if isinstance(p, str) else p for p in parts))


out, err = Terminal(), Terminal(stderr=True)
STATUS_STYLE = {"run": "yellow", "resume": "cyan", "cached": "green", "done": "green", "unfinished": "cyan"}


class TerminalReporter:
    """A line for each stage as it ends, and a bar with the live loss while it works; silent when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._stage = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = 0.0

    def begin(self, stage: str, run: Run) -> None:
        self._stage = stage
        self._told = time.monotonic()
        if self.quiet or run.status == "cached":
            return
        self._line(STATUS_STYLE[run.status], run.status, stage, f"({run.why})")
        if err.is_terminal:
            self._bar = Progress(
                TextColumn("        "),
                BarColumn(bar_width=30 if err.width > 60 else 8),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=err,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=None)

    def progress(self, done: int, total: int, note: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=note)
        elif not self.quiet and time.monotonic() - self._told > 30:  # a log file wants a line now and then, not a bar
            self._told = time.monotonic()
            err.print(f"        {self._stage}: {done}/{total} {note}")

    def end(self, stage: str, run: Run, seconds: float) -> None:
        self.close()
        if self.quiet:
            return
        if run.status == "cached":
            self._line("green", "cached", stage, f"({run.why})")
        else:
            self._line("green", "done", stage, f"in {seconds:.1f} s")

    @staticmethod
    def _line(style: str, word: str, stage: str, more: str) -> None:
        err.print(joined(styled(style, f"{word:>7}"), f" {stage} ", styled("dim", more)))

    def say(self, line: str) -> None:
        if not self.quiet:
            err.print(f"        {line}")

    def close(self) -> None:
        """Take the bar down, whatever happened."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


@contextmanager
def aside() -> Iterator[None]:
    """While others' code runs: what it prints goes to stderr, for stdout is for results."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def watching(folder: Path, name: str, overrides: Sequence[Sequence[str]], quiet: bool) -> Iterator[None]:
    """Say which jobs of a parallel sweep have ended, as each leaves a file of this name under the folder."""
    ended = threading.Event()

    def watch() -> None:
        seen: set[Path] = set()
        last = False
        while not last:
            last = ended.wait(0.5)  # and look once more after the end
            for file in set(folder.rglob(name)) - seen:
                seen.add(file)
                job = json.loads(file.read_text())
                style, word = ("red", "failed") if job["error"] else ("green", "done")
                what = " ".join(overrides[job["job"]])
                count = styled("dim", f"({len(seen)} of {len(overrides)})")
                err.print(joined(styled(style, f"{word:>7}"), f" job {job['job'] + 1} {what} ", count))

    if quiet:
        yield
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
