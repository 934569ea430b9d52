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
from typing import Any

import psutil

from ant_hf.errors import Interrupted
from ant_hf.utils.console import is_first_process, labelled, long_work

_GRACE_SECONDS, _LOOK_SECONDS = 2.0, 0.05
# torchrun passes on what the terminal has already sent to every process.
_ONE_PRESS_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What is being done, and what is kept of it: the innermost last.
_phases: list[tuple[str, str | Callable[[], str]]] = []
_open: list[_Stop] = []


def _forget() -> None:
    """In a forked process, whose signals would wake its parent: libraries end their pools by SIGTERM."""
    if _open:
        _open.clear()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def phase(doing: str, kept: str | Callable[[], str]) -> Iterator[None]:
    """Name what a block does, for the line of a signal that ends it and for a log.

    Args:
        doing: completes "stopped while ...".
        kept: what is kept and how to continue, in whole sentences; or a function that gives them.
    """
    _phases.append((doing, kept))
    try:
        with long_work(doing):
            yield
    finally:
        _phases.pop()


@contextmanager
def stopped_by_signals(request: Callable[[signal.Signals], None] | None = None) -> Iterator[None]:
    """Let SIGINT and SIGTERM end a command; also a decorator. Handlers that code within sets have precedence.

    Args:
        request: hears of the first signal, which ends nothing then; the second one does.

    Raises:
        Interrupted: a signal came; the line has been said.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop(request)
    _open.append(stop)
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
        _open.remove(stop)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()


class _Stop:
    """The one signal that ends a command, after one that is a request if there is something that takes it."""

    def __init__(self, request: Callable[[signal.Signals], None] | None) -> None:
        self.line, self.is_over, self._is_said, self._is_lost = "", False, False, False
        self._request = request
        self._is_ending = request is None
        # When each of the two threads below met the request: the main one may compute for a while first.
        self._heard: float | None = None
        self._seen: float | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Raise in the main thread, once: the cleaning up that follows is not interrupted again."""
        now = time.monotonic()
        if self._request and not self._is_ending and self._heard is None:
            self._heard = now
            self._request(signal.Signals(number))
        elif (self._is_ending or now - (self._heard or now) > _ONE_PRESS_SECONDS) and (
            self._is_lost or not self.line
        ):
            self.line, self._is_lost = self.line or _line(number), False
            sys.unraisablehook = self._lose
            raise KeyboardInterrupt

    def _lose(self, unraisable: Any) -> None:
        """What is raised inside a destructor ends there, and has to be raised again."""
        self._is_lost = self._is_lost or unraisable.exc_type is KeyboardInterrupt

    def watch(self, reader: socket.socket) -> None:
        """In a thread, which the system's own handler wakes even while the main thread computes."""
        with reader:
            while number := reader.recv(1):
                # Of code within that has handlers of its own, this knows nothing.
                if signal.getsignal(number[0]) == self.on_signal and self._ends():
                    self._end(number[0])

    def _ends(self) -> bool:
        """Whether a signal that the watching thread meets is none that is taken as a request."""
        now = time.monotonic()
        self._seen = self._seen or now
        self._is_ending = self._is_ending or now - self._seen > _ONE_PRESS_SECONDS
        return self._is_ending

    def _end(self, number: int) -> None:
        until = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < until:
            # Without a line the main thread has not met the signal: it began to wait for a lock just then, or
            # another thread was woken instead.
            if (self._is_lost or not self.line) and hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, number)
            time.sleep(_LOOK_SECONDS)
            if self.is_over:
                return
        self.line = self.line or _line(number)
        self.say()
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        os._exit(Interrupted.exit_code)

    def say(self) -> None:
        """Say the line, once: by whichever thread comes first."""
        if is_first_process() and not self._is_said:
            self._is_said = True
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.write(f"{self.line}\n")
                sys.stderr.flush()


def _line(number: int) -> str:
    doing, kept = _phases[-1] if _phases else ("", "Run the same command again.")
    during = f" while {doing}" if doing else ""
    told = kept if isinstance(kept, str) else kept()
    return labelled("stopped", f"by {signal.Signals(number).name}{during}. {told}")
