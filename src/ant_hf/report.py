"""What the commands print: plain lines and a few tables, on the first process only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ant_hf.audit import Finding
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


def audit_table(title: str, findings: Sequence[Finding]) -> Table:
    """What a card claims, what arithmetic gives, and whether the two go together."""
    table = Table(title=escape(title), title_justify="left")
    for column in ("claim", "recomputed", "verdict"):
        table.add_column(column)
    for finding in findings:
        style = "bold" if finding.verdict == "DISAGREES" else None
        table.add_row(escape(finding.claim), escape(finding.recomputed), finding.verdict, style=style)
    return table


def checks_table(title: str, checks: Sequence[dict[str, Any]]) -> Table:
    """The gate's checks with what they saw."""
    table = Table(title=escape(f"Gate: {title}"), title_justify="left")
    for column in ("check", "outcome", "seen"):
        table.add_column(column)
    outcome = {True: "passed", False: "FAILED", None: "not checked"}
    for check in checks:
        style = "bold" if check["passed"] is False else None
        table.add_row(escape(check["name"]), outcome[check["passed"]], escape(check["seen"]), style=style)
    return table


def gate_report(folder: Path) -> None:
    """Show the gate report of a release folder."""
    report = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    show(checks_table(folder.parent.name, report["checks"]))


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
