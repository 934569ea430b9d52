"""Worker processes that end with the process that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

# Spawned and not forked: the parent may have threads (torch, tokenizers) that a fork would break.
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def worker_processes(
    number: int, start: Callable[..., object], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Processes for tasks. An error in the block ends them at once, with the tasks that they are at.

    Args:
        start: what each calls first, with `arguments`.
    """
    with ProcessPoolExecutor(number, SPAWN, _begin, (start, arguments)) as pool:
        try:
            # Ctrl-C in a terminal reaches all processes; it is this one that ends the others.
            with interrupts_held():
                # They start with the first tasks.
                for _ in range(number):
                    pool.submit(os.getpid)
            yield pool
        except BaseException as error:
            # Whoever reads what a killed process was writing, or writes what it was reading, would wait
            # for ever: this process has both ends of each pipe open. A broken pool closes them itself.
            if not isinstance(error, BrokenProcessPool):
                pool._result_queue._writer.close()  # type: ignore[attr-defined]
                pool._call_queue._reader.close()  # type: ignore[attr-defined]
            for process in multiprocessing.active_children():
                process.kill()
            raise


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Block SIGINT in this thread, and in the processes that it starts for as long as they live."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(start: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
