"""Nothing that was done is lost to a signal, whenever it comes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeconn_cli.errors import Interrupted
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import Config
from modeconn_cli.work.context import Context
from modeconn_cli.work.fitting import fit
from modeconn_cli.work.options import Runtime
from modeconn_cli.work.reporting import Silent
from modeconn_cli.work.saving import Saver


class Counting:
    """A trainer whose steps do nothing."""

    total_steps = 5
    recent_loss = 0.0

    def __init__(self) -> None:
        self.step, self.rows = 0, list[Any]()

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def run(self, watch: Callable[[Counting], None]) -> None:
        while self.step < self.total_steps:
            self.step += 1
            watch(self)


class Interrupting(Silent):
    """A signal comes while the first step is reported: after it was asked whether to save, before whether to stop."""

    context: Context

    def progress(self, done: int, total: int, note: str) -> None:
        if done == 1:
            self.context.signals.received = signal.SIGINT


@pytest.fixture
def context(tmp_path: Path) -> Context:
    reporter = Interrupting()
    reporter.context = Context(Config(runtime=Runtime(output_dir=str(tmp_path), save_every=1e6)), reporter)
    return reporter.context


def test_what_stops_was_saved_first(context: Context, tmp_path: Path) -> None:
    trainer: Any = Counting()
    with pytest.raises(Interrupted):
        fit(trainer, Run(tmp_path, "run", ""), context)
    assert trainer.step == 2
    assert torch.load(tmp_path / "state.pt", weights_only=True) == {"step": 2}


def test_a_signal_that_came_since_waits_for_the_next_save(context: Context, tmp_path: Path) -> None:
    saver = Saver(Run(tmp_path, "run", ""), context)
    assert not saver.due
    context.signals.received = signal.SIGTERM
    saver.stop_if_asked()
    assert saver.due
    with pytest.raises(Interrupted):
        saver.stop_if_asked()
