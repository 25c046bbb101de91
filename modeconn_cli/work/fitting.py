"""Running the training loop inside a run directory: progress, saved states, kept checkpoints, the log of epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from modeconn_cli.errors import RunFailed
from modeconn_cli.runs.directory import Run
from modeconn_cli.training.loop import Trainer
from modeconn_cli.work.context import Context
from modeconn_cli.work.saving import Saver


class Gathering(Protocol):
    """What is gathered along a training and saved with its state, under ``gathered``."""

    def state(self) -> dict[str, Any]:
        """As Trainer.state."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""


def fit(
    trainer: Trainer,
    run: Run,
    context: Context,
    keep: Callable[[Trainer], None] = lambda _: None,
    gathering: Gathering | None = None,
) -> None:
    """Train to the end, going on from a saved state where there is one, and write metrics.csv.

    ``keep`` is called at every step, the starting one included, and may write checkpoints, and add to what is gathered.
    """

    def state() -> dict[str, Any]:
        return trainer.state() | ({} if gathering is None else {"gathered": gathering.state()})

    saver = Saver(run, context)
    begun = saver.begun()
    if begun is not None:
        trainer.load(begun)
        if gathering is not None:
            gathering.load(begun["gathered"])
        run.log(f"resumed at step {trainer.step} of {trainer.total_steps}")
    else:
        keep(trainer)
        saver.save(state())
    context.trackers.rows(trainer.rows)
    shown = 0.0

    def watch(t: Trainer) -> None:
        nonlocal shown
        keep(t)
        context.trackers.rows(t.rows)
        if saver.due:
            saver.save(state())
        now = time.monotonic()
        if now - shown > 0.1:
            shown = now
            context.reporter.progress(t.step, t.total_steps, f"loss {t.recent_loss:.4f}")
        saver.stop_if_asked()

    context.reporter.progress(trainer.step, trainer.total_steps, "")
    try:
        trainer.run(watch)
    except RunFailed as failure:
        raise RunFailed(f"{failure} It is in {run.folder}.") from None
    context.reporter.progress(trainer.total_steps, trainer.total_steps, f"loss {trainer.recent_loss:.4f}")
    run.write_rows("metrics.csv", trainer.rows)
