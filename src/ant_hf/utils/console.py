"""What is said: lines, tables and bars of ours, on the first process only, and not those of libraries."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

_console = Console(highlight=False, soft_wrap=True)
# Between two lines of progress where there is no terminal.
_LINE_SECONDS = 30
_LIBRARIES = ("transformers", "huggingface_hub", "datasets", "lm_eval", "torch.onnx")


def is_first_process() -> bool:
    """Whether this process speaks for all; known from the launcher before torch starts."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """Print a line as it is."""
    if is_first_process():
        _console.print(text, markup=False)


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
def progress_bar(label: str, unit: str = "") -> Iterator[Callable[[float, float | None], None]]:
    """A bar on a terminal's stderr, gone when done; elsewhere a line every half minute.

    Call what it yields with the newly done and the total, or None where that is not known.

    Args:
        unit: `B` for bytes.
    """
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        *(
            (DownloadColumn(), TransferSpeedColumn())
            if unit == "B"
            else (TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),)
        ),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=0)
        started = said = time.monotonic()
        all_done = 0.0

        def advance(done: float, total: float | None) -> None:
            nonlocal said, all_done
            all_done += done
            progress.update(task, advance=done, total=total)
            now = time.monotonic()
            if not console.is_terminal and is_first_process() and now - said >= _LINE_SECONDS:
                said = now
                line = _progress_line(all_done, total, now - started, decimal if unit == "B" else _counted)
                console.print(f"{label:<11} {line}", markup=False)

        yield advance


def _counted(value: int) -> str:
    return f"{value:,}"


def _progress_line(done: float, total: float | None, seconds: float, amount: Callable[[int], str]) -> str:
    """What is done, how fast it goes and how long it will take, for a log."""
    rate = done / seconds
    line = amount(int(done)) + (f" of {amount(int(total))}" if total else "")
    line += f", {amount(int(rate))} a second" if rate >= 1 else f", {seconds / max(done, 1):,.0f} s each"
    if total and rate:
        line += f", about {timedelta(seconds=round(max(total - done, 0) / rate))} left"
    return line


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
