"""Leaving in good order: on SIGTERM or SIGINT, or before the machine's time is up."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

# torchrun passes on what the terminal has already sent to every process.
_ONE_PRESS_SECONDS = 1.0
# Until a save has been measured: slower than any disk we met, faster than a network mount in trouble.
_ASSUMED_BYTES_PER_SECOND = 20e6
_SAVE_MARGIN = 1.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
REASONS = ("SIGINT", "SIGTERM", "training.max_hours")


class StopRequest:
    """Whether the run should save and leave, asked once after each optimizer step.

    The time budget counts from the start of the process, preparation included. It leaves room for
    the longest step seen (with its evaluation) and for one and a half times the longest save.

    Args:
        max_hours: the budget; None for none.
        checkpoint_bytes: size of a checkpoint, for the time of the first save.
        clock: seconds since the epoch.
        started: when the process began, by the same clock.
    """

    def __init__(
        self,
        max_hours: float | None,
        checkpoint_bytes: int,
        clock: Callable[[], float] = time.time,
        started: float | None = None,
    ) -> None:
        self._budget = None if max_hours is None else max_hours * 3600
        self._clock = clock
        self._started = psutil.Process().create_time() if started is None else started
        self._save_seconds = checkpoint_bytes / _ASSUMED_BYTES_PER_SECOND
        self._save_measured = False
        self._step_seconds = 0.0
        self._last_step: float | None = None
        self._signal: signal.Signals | None = None
        self._signal_time = 0.0

    def save_took(self, seconds: float) -> None:
        """Learn how long a checkpoint takes on this disk."""
        self._save_seconds = max(seconds, self._save_seconds) if self._save_measured else seconds
        self._save_measured = True

    def after_step(self) -> list[float]:
        """One number for each of REASONS: 1 where it asks to stop."""
        now = self._clock()
        if self._last_step is not None:
            self._step_seconds = max(self._step_seconds, now - self._last_step)
        self._last_step = now
        needed = self._step_seconds + _SAVE_MARGIN * self._save_seconds
        out_of_time = self._budget is not None and now - self._started + needed >= self._budget
        return [
            float(self._signal is signal.SIGINT),
            float(self._signal is signal.SIGTERM),
            float(out_of_time),
        ]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as requests while training; a second one ends the process at once."""
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._signal_time = signal.Signals(number), now
            self._tell("saving a checkpoint after this step, then leaving; once more leaves at once")
        elif now - self._signal_time > _ONE_PRESS_SECONDS:
            self._tell("leaving at once; the checkpoints saved before stay complete")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _tell(self, text: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            # Not print(): a handler may interrupt one.
            os.write(sys.stderr.fileno(), f"\n{self._signal.name if self._signal else ''}: {text}\n".encode())
