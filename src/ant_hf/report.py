"""What the commands print: plain lines and a few tables, on the first process only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ant_hf.published import PublishedModel

_console = Console(highlight=False, soft_wrap=True)


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


def ledger_table(
    rows: list[tuple[str, int]], total: int, equation: str, published: PublishedModel | None
) -> Table:
    """Parameters by component, with the published figure and its difference below."""
    table = Table(title="Parameters", title_justify="left", caption=equation, caption_justify="left")
    table.add_column("component")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for name, count in rows:
        table.add_row(name, f"{count:,}", f"{count / total:.1%}")
    table.add_section()
    table.add_row("total (computed from the model)", f"{total:,}", "100.0%", style="bold")
    if published:
        rounded = ", rounded there" if published.parameters_rounded else ""
        table.add_row(f"published for {published.name}{rounded}", f"{published.parameters:,}", "")
        table.add_row("published - computed", f"{published.parameters - total:+,}", "")
    return table


def facts_table(title: str, facts: list[tuple[str, str]]) -> Table:
    """Two columns of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
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
