"""A call from Python: the process is afterwards as it was before, and progress shows where somebody looks."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.failures import out_of_memory, place_of, unforeseen
from modeconn_cli.runs.directory import Run
from modeconn_cli.training.precision import arithmetic
from modeconn_cli.training.recipe import Precision
from modeconn_cli.work.machine import deterministic_kernels
from modeconn_cli.work.reporting import Silent

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def undisturbed() -> Iterator[None]:
    """Every switch and generator of the process that the work inside sets, afterwards as before.

    Inside, gradients are on and autocast and default devices off, whatever surrounds the call.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    environment, python, numpy = dict(os.environ), random.getstate(), np.random.get_state()  # noqa: NPY002 - the caller's
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(arithmetic(Precision.float32))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_hydra_aside())
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            deterministic_kernels(deterministic, warns)
            torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)


@contextmanager
def _hydra_aside() -> Iterator[None]:
    """Hydra as if no application of the caller's ran under it, which it would not compose beside."""
    if "hydra" not in sys.modules:
        yield
        return
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton

    instances = Singleton._instances
    own: dict[type, Any] = {kind: instances.pop(kind) for kind in (GlobalHydra, HydraConfig) if kind in instances}
    try:
        yield
    finally:
        for kind in (GlobalHydra, HydraConfig):
            instances.pop(kind, None)
        instances.update(own)


@contextmanager
def at_work(progress: bool | None) -> Iterator[Listener]:
    """The work of one call, undisturbed, and who is told how it goes.

    progress: whether a bar shows; None: where this is a notebook or a terminal.

    Raises:
        RunFailed: there was no room in memory, besides what the work itself raises.
        CodeFailed: code of the caller's raised an exception, which is the cause.
    """
    reporter = Bar() if _watched(progress) else Listener()
    try:
        with undisturbed():
            yield reporter
    except (UserError, RunFailed):
        raise
    except Exception as error:
        if out_of_memory(error) is None and place_of(error) is None:
            raise
        raise unforeseen(error) from error
    finally:
        if isinstance(reporter, Bar):
            reporter.close()


@contextmanager
def directory(output_dir: str | Path | None) -> Iterator[Path]:
    """Where results are kept; None: nowhere, a directory of the system's that is gone afterwards."""
    if output_dir is not None:
        yield Path(output_dir)
        return
    with tempfile.TemporaryDirectory(prefix="modeconn-") as scratch:
        yield Path(scratch)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _watched(progress: bool | None) -> bool:
    return progress if progress is not None else _in_notebook() or sys.stderr.isatty()


class Listener(Silent):
    """Who shows nothing and keeps the remarks."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def say(self, line: str) -> None:
        self.notes.append(line)


class Bar(Listener):
    """A bar that is gone when the work is done; rich draws it in a notebook as in a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = ""
        self._bar: Progress | None = None
        self._task: Any = None

    def begin(self, stage: str, run: Run) -> None:
        self._stage = stage.partition(" ")[0]
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task("", total=None)

    def progress(self, done: int, total: int, note: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"{self._stage}  {note}")

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    console = Console(stderr=not _in_notebook(), highlight=False)
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
