"""Lines, tables and progress bars of ours, on the first process only, and without those of libraries."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ant_hf.errors import without_control_codes

# Between two lines of progress where there is no terminal.
_LINE_SECONDS = 30
_LIBRARIES = ("transformers", "huggingface_hub", "datasets", "lm_eval", "torch.onnx", "root")


class _Console(Console):
    """Rich's own codes reach the terminal, and none of the texts that are printed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=without_control_codes(segment.text))


# Brackets and colons of names and texts are shown as they are: no styles, no emoji.
_console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


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
    """A stream whose reader may leave: what is written from then on is lost, and nothing fails for it."""

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
    """Continue when nobody reads the output: Ctrl-C in `pretrain.py | tee log` ends `tee` as well."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


# Of the longest label and two spaces.
_LABEL_WIDTH = 12


def labelled(label: str, text: str | Path) -> str:
    """A line with its label in a column of its own; a longer one is followed by a space."""
    return f"{label + ' ':<{_LABEL_WIDTH}}{text}"


def say(label: str = "", text: str | Path | None = None) -> None:
    """Print a line: a text behind its label, as in a table, or one text alone.

    Args:
        label: one or two words; empty where a line belongs to the one above it.
        text: None: `label` is all there is to print.
    """
    if is_first_process():
        line = label if text is None else labelled(label, text)
        _console.print(without_control_codes(line))


@functools.cache
def say_once(label: str, text: str) -> None:
    """Print a line the first time that it is said."""
    say(label, text)


def write(text: str) -> None:
    """Put a piece of a text on stdout at once, without a line end."""
    # A model may have learnt the codes that move a terminal's cursor.
    print(without_control_codes(text) if _console.is_terminal else text, end="", flush=True)


def remark(text: str) -> None:
    """Print a line beside the output, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(table: Table) -> None:
    """Print a table."""
    if is_first_process():
        _console.print(table)


# For tables of figures: no frame, and as narrow as they can be.
COMPACT: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "pad_edge": False,
    "collapse_padding": True,
    "title_justify": "left",
    "caption_justify": "left",
}


def facts_table(title: str, facts: list[tuple[str, str]]) -> Table:
    """Two columns of names and values."""
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in facts:
        table.add_row(name, value)
    return table


class _Work:
    """Something that takes long, as a log shows it."""

    def __init__(self, label: str, unit: str = "", earlier: float = 0) -> None:
        self.label, self.unit, self.earlier = label, unit, earlier
        self.done, self.figures = 0.0, ""
        self.total: float | None = None
        self.started = time.monotonic()

    def advance(self, done: float, total: float | None, figures: str = "") -> None:
        self.done += done
        self.total, self.figures = total, figures or self.figures

    def line(self) -> str:
        """What is done, how fast it goes and how long it will take."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        if not self.done:
            return f"{self.label}, {timedelta(seconds=round(seconds))} so far"
        amount = decimal if self.unit == "B" else _counted
        rate = self.done / seconds
        all_done = self.earlier + self.done
        line = amount(int(all_done)) + (f" of {amount(int(self.total))}" if self.total else "")
        line += f" {self.unit}" if self.unit not in ("", "B") else ""
        line += f", {amount(int(rate))} per second" if rate >= 1 else f", {1 / rate:,.0f} s each"
        if self.total:
            left = timedelta(seconds=round(max(self.total - all_done, 0) / rate))
            line += f", about {left} left"
        return ", ".join(part for part in (labelled(self.label, line), self.figures) if part)


def _counted(value: int) -> str:
    return f"{value:,}"


def _on_terminal() -> bool:
    return Console(stderr=True).is_terminal


class _Log:
    """A line on stderr for at least every half minute of long work, where there is no terminal for a bar."""

    def __init__(self) -> None:
        self._works: list[_Work] = []
        self._said = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def of(self, work: _Work) -> Iterator[None]:
        if not is_first_process() or _on_terminal():
            yield
            return
        over = threading.Event()
        self._works.append(work)
        # Where a library computes for minutes and calls nothing of ours.
        threading.Thread(target=self._watch, args=(work, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            self._works.remove(work)

    def _watch(self, work: _Work, over: threading.Event) -> None:
        while not over.wait(max(0.05, _LINE_SECONDS / 10)):
            if self._works[-1:] == [work]:
                self.say_if_due()

    def say_if_due(self) -> None:
        """Say how far the innermost work is, unless that was said a moment ago."""
        with self._lock:
            now = time.monotonic()
            if self._works and now - max(self._said, self._works[-1].started) >= _LINE_SECONDS:
                self._said = now
                remark(self._works[-1].line())


_log = _Log()


@contextmanager
def long_work(label: str) -> Iterator[None]:
    """Say every half minute that something is still running, where there is no terminal and no bar within."""
    with _log.of(_Work(label)):
        yield


class Advance(Protocol):
    """What moves a bar: the newly done, the total if it is known, and figures to show beside them."""

    def __call__(self, done: float, total: float | None, figures: str = "") -> None: ...


class _Figures(ProgressColumn):
    """What stands behind the bar; on a narrow terminal it is cut, and not the time that is left."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


@contextmanager
def progress_bar(label: str, unit: str = "", earlier: float = 0) -> Iterator[Advance]:
    """A bar on a terminal's stderr, gone when done; elsewhere a line at least every half minute.

    Args:
        unit: `B` for bytes, or a word that stands behind the count.
        earlier: what was done before, and is in no rate.
    """
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        *(
            (DownloadColumn(), TransferSpeedColumn())
            if unit == "B"
            else (TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}".rstrip()),)
        ),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        _Figures(),
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    work = _Work(label, unit, earlier)
    shown = is_first_process() and _on_terminal()
    with (
        Progress(*columns, console=console, transient=True, disable=not shown) as progress,
        _log.of(work),
    ):
        task = progress.add_task(label, total=0, completed=int(earlier), figures="")

        def advance(done: float, total: float | None, figures: str = "") -> None:
            work.advance(done, total, figures)
            progress.update(task, advance=done, total=total, figures=work.figures)
            _log.say_if_due()

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
