"""What is said: lines, tables and bars of ours, on the first process only, and not those of libraries."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_console = Console(highlight=False, soft_wrap=True)
_UNSEEN = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10})
_LIBRARIES = ("transformers", "huggingface_hub", "datasets", "lm_eval", "torch.onnx")


def is_first_process() -> bool:
    """Whether this process speaks for all; known from the launcher before torch starts."""
    return os.environ.get("RANK", "0") == "0"


def show_anything() -> None:
    """Let stdout and stderr show what their encoding lacks as escapes, `\\u0444`: output must not end a run.

    Bytes that stdin's encoding lacks come as surrogates, as they do in arguments.
    """
    streams = {sys.stdout: "backslashreplace", sys.stderr: "backslashreplace", sys.stdin: "surrogateescape"}
    for stream, errors in streams.items():
        # Notebooks and tests have streams of their own.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def flush() -> None:
    """Write out what stdout still holds, unless its reader has left, as `head` does."""
    with contextlib.suppress(AttributeError):  # a stdout that was closed from the start is None
        _Lasting(sys.stdout).flush()


def _write_nowhere(stream: TextIO) -> None:
    with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), stream.fileno())


class _Lasting:
    """A stream whose reader may leave: what is written from then on is lost, and nobody fails of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            _write_nowhere(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _write_nowhere(self._stream)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Go on where nobody reads the output any more: Ctrl-C in `pretrain.py | tee log` ends `tee` as well."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def say(text: str = "") -> None:
    """Print a line as it is."""
    if is_first_process():
        _console.print(text, markup=False)


@functools.cache
def say_once(text: str) -> None:
    """Print a line the first time that it is said."""
    say(text)


def write(text: str) -> None:
    """Put a piece of a text on stdout at once, without a line end."""
    # A model may have learnt the codes that move a terminal's cursor.
    print(text.translate(_UNSEEN) if _console.is_terminal else text, end="", flush=True)


def remark(text: str) -> None:
    """Print a line beside the output, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(table: Table) -> None:
    """Print a table."""
    if is_first_process():
        _console.print(table)


def facts_table(title: str, facts: list[tuple[str, str]]) -> Table:
    """Two columns of names and values."""
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in facts:
        table.add_row(name, value)
    return table


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr, gone when done; call what it yields with the newly done and the total."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=0)

        def advance(done: int, total: int) -> None:
            progress.update(task, advance=done, total=total)

        yield advance


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No notes below errors and no progress bars of the libraries that are loaded."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    shown = list(_shown_bars())
    for hide, _ in shown:
        hide()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for _, show in shown:
            show()


def _shown_bars() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """What hides and what shows the bars of each library that is loaded and shows them."""
    if "transformers" in sys.modules:
        from transformers.utils import logging as bars

        if bars.is_progress_bar_enabled():
            yield bars.disable_progress_bar, bars.enable_progress_bar
    if "datasets" in sys.modules:
        import datasets

        if not datasets.are_progress_bars_disabled():
            yield datasets.disable_progress_bars, datasets.enable_progress_bars
