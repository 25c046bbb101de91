"""Ctrl-C, SIGTERM and a terminal that is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modeconn_cli.errors import Interrupted

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # which Windows has not


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP as a flag that loops look at between steps; a second one stops at once.

    Not a second SIGHUP: a closing terminal may send several. One that is ignored, as nohup has it, stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
            before[HANGUP] = signal.signal(HANGUP, self._receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number != HANGUP:
            raise Interrupted(number)
        self.received = self.received or number

    def check(self) -> None:
        """Raise Interrupted when a signal has come."""
        if self.received:
            raise Interrupted(self.received)
