"""What is said: lines, tables and bars of ours, on the first process only, and not those of libraries."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from ant_hf.errors import without_control_codes

_LIBRARIES = ("transformers", "huggingface_hub", "datasets", "lm_eval", "torch.onnx")


class _Console(Console):
    """Rich's own codes reach the terminal, and none of the texts that are printed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=without_control_codes(segment.text))


_console = _Console(highlight=False, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this process speaks for all; known from the launcher before torch starts."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """Print a line as it is."""
    if is_first_process():
        _console.print(without_control_codes(text), markup=False)


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
