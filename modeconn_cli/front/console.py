"""Where a person is told how work goes: the two consoles, a line for each stage, a bar while it works."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from modeconn_cli.runs.directory import Run

# A pipe or a file has no width to fold names for.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 1000)
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
        err.print(f"[{STATUS_STYLE[run.status]}]{run.status:>7}[/] {stage} [dim]({run.why})[/]")
        if err.is_terminal:
            self._bar = Progress(
                TextColumn("        "),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
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
            err.print(f"[green] cached[/] {stage} [dim]({run.why})[/]")
        else:
            err.print(f"[green]   done[/] {stage} [dim]in {seconds:.1f} s[/]")

    def say(self, line: str) -> None:
        if not self.quiet:
            err.print(f"        {line}", markup=False)

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
                err.print(
                    f"[{style}]{word:>7}[/] job {job['job'] + 1} {what} [dim]({len(seen)} of {len(overrides)})[/]"
                )

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
