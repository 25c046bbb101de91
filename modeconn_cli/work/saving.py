"""Saved states of unfinished work."""

from __future__ import annotations

import io
import time
from typing import Any

import torch

from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.sums import seal, sealed_well
from modeconn_cli.work.context import Context


class Saver:
    """Saves a stage's state at intervals, and whenever a signal asks the run to stop."""

    def __init__(self, run: Run, context: Context) -> None:
        self.run, self.context = run, context
        self._last = time.monotonic()
        self._seen = 0

    def begun(self) -> dict[str, Any] | None:
        """The state that an earlier process left, if any."""
        path = self.run.folder / "state.pt"
        if not path.exists():
            return None
        try:
            content = path.read_bytes()
            # PyTorch's reader raises whatever it likes, and takes changed numbers for right.
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            whole = sealed_well(content) and isinstance(state, dict)
        except Exception:
            whole = False
        if not whole:
            self.run.log("state.pt is damaged; starting over")
            self.context.reporter.say(f"{path} is damaged; this stage starts over")
            return None
        return dict(state)

    def save(self, state: dict[str, Any]) -> None:
        # Through memory: torch.save names its archive after the file, and the bytes should not depend on it.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with self.run.writing("state.pt") as path, open(path, "wb") as f:
            for part in seal(buffer.getbuffer()):
                f.write(part)
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save: a while has passed, or a signal has come."""
        self._seen = self.context.signals.received
        return bool(self._seen) or time.monotonic() - self._last > self.context.config.runtime.save_every

    def stop_if_asked(self) -> None:
        """Raise Interrupted for a signal that :attr:`due` saw; one that came since would stop what is not saved."""
        if self._seen:
            self.context.signals.check()
