"""SIGINT and SIGTERM end a command within three seconds, with one line that says what is kept.

The first signal raises `KeyboardInterrupt`, so that locks, temporary folders and workers are put away as
after an error. Where that takes too long (a library computes and never looks up), a thread ends the process
and its children. What this package writes is whole or absent in any case.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from ant_hf.errors import Interrupted
from ant_hf.utils.console import is_first_process

_GRACE_SECONDS = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What is being done, and what is kept of it: the innermost last.
_phases: list[tuple[str, str | Callable[[], str]]] = []


@contextmanager
def phase(doing: str, kept: str | Callable[[], str]) -> Iterator[None]:
    """Name what a block does, for the line of a signal that ends it.

    Args:
        doing: completes "stopped while ...".
        kept: what is kept and how to go on, in whole sentences; or a function that gives them.
    """
    _phases.append((doing, kept))
    try:
        yield
    finally:
        _phases.pop()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end a command; also a decorator. Handlers that code within sets have precedence.

    Raises:
        Interrupted: a signal came; the line has been said.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop()
    before = {number: signal.signal(number, stop.on_signal) for number in _SIGNALS}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=stop.watch, args=(reader,), daemon=True).start()
    try:
        yield
    except BaseException:
        # Whatever the interruption became on its way, a worker's broken pipe for example.
        if not stop.line:
            raise
        stop.say()
        raise Interrupted(stop.line) from None
    finally:
        stop.is_over = True
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()


class _Stop:
    """The one signal that ends a command."""

    def __init__(self) -> None:
        self.line, self.is_over = "", False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Raise in the main thread, once: the cleaning up that follows is not interrupted again."""
        if not self.line:
            self.line = _line(number)
            # What is raised inside a destructor is only printed.
            sys.unraisablehook = lambda _: None
            raise KeyboardInterrupt

    def watch(self, reader: socket.socket) -> None:
        """In a thread, which the system's own handler wakes even while the main thread computes."""
        while number := reader.recv(1):
            # Training takes signals as requests.
            if signal.getsignal(number[0]) == self.on_signal:
                time.sleep(_GRACE_SECONDS)
                if self.is_over:
                    return
                if not self.line:
                    self.line = _line(number[0])
                    self.say()
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        child.kill()
                os._exit(Interrupted.exit_code)

    def say(self) -> None:
        if is_first_process():
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.write(f"{self.line}\n")
                sys.stderr.flush()


def _line(number: int) -> str:
    doing, kept = _phases[-1] if _phases else ("", "Run the same command again.")
    during = f" while {doing}" if doing else ""
    return (
        f"stopped     by {signal.Signals(number).name}{during}. {kept if isinstance(kept, str) else kept()}"
    )
