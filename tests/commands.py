"""Command lines run in the test process, which saves the seconds that importing torch again takes.

Nothing is left behind: environment, working directory, arguments and threads are as before. Where the
process itself is what is tested, start one: `in_a_process`.
"""

import io
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import psutil
import torch

from ant_hf.utils import console

ROOT = Path(__file__).parents[1]
ANT_HF = "from ant_hf.cli.main import main; main()"
# Within these many seconds a signal ends a command.
STOP_SECONDS = 3.0
# What a terminal would make of the output is the same on every machine.
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def in_a_process(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in the repository, in a process of its own; `ant-hf` and `python` are these here."""
    program, *arguments = map(str, words)
    start = {"python": [sys.executable], "ant-hf": [sys.executable, "-c", ANT_HF]}
    command = [*start.get(program, [program]), *arguments]
    options = {"cwd": ROOT, "env": os.environ | PLAIN, "capture_output": True, "text": True} | options
    return subprocess.run(command, **options)


class Stopped(NamedTuple):
    """How a command ended after a signal."""

    returncode: int
    output: str
    """Of stdout and stderr."""
    seconds: float
    """From the signal until the command and every process that it had started were gone; at most 15."""
    left_over: list[str]
    """Command lines of its processes that were still there then; they are ended."""

    def faults(self, *kept: str) -> list[str]:
        """What is not as it must be of exit code, time, processes and the one line; [] if all is."""
        lines = [line for line in self.output.splitlines() if "stopped     by SIG" in line]
        rules = {
            f"exit code {self.returncode}": self.returncode == 75,
            f"ended after {self.seconds:.1f} s": self.seconds < STOP_SECONDS,
            f"left over: {self.left_over}": not self.left_over,
            f"{len(lines)} lines say that it stopped": len(lines) == 1,
            "a traceback": "Traceback" not in self.output and "Error:" not in self.output,
            "noise of libraries": "Warning" not in self.output and "Exception" not in self.output,
            f"not said: {kept}": all(word in self.output for word in kept),
        }
        return [rule for rule, holds in rules.items() if not holds]


def stop_command(
    *words: object,
    at: str | Callable[[], bool] = "",
    after: float = 0.0,
    by: int = signal.SIGINT,
    **options: object,
) -> Stopped | None:
    """Run a command line as `in_a_process`, and signal all of its process group, as a terminal does.

    Args:
        at: the moment: these words in its output, or a function that is asked every 10 ms.
        after: seconds past that moment.

    Returns:
        None if the command ended before the signal.
    """
    program, *arguments = map(str, words)
    start = {"python": [sys.executable], "ant-hf": [sys.executable, "-c", ANT_HF]}
    command = [*start.get(program, [program]), *arguments]
    # A shell in the background has SIGINT ignored, which its children would inherit.
    own = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    options = {"cwd": ROOT, "env": os.environ | PLAIN} | options | own
    with tempfile.TemporaryFile("w+b") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
        try:

            def said() -> str:
                return os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace")

            while not (at() if callable(at) else at in said()):
                if process.poll() is not None:
                    return None
                time.sleep(0.01)
            with suppress(subprocess.TimeoutExpired):
                process.wait(after)
                return None
            family = _family(process.pid)
            os.killpg(process.pid, by)
            sent = time.monotonic()
            left = family
            while (left or process.poll() is None) and time.monotonic() - sent < 5 * STOP_SECONDS:
                time.sleep(0.01)
                left = {child for child in family | _family(process.pid) if _is_alive(child)}
            seconds = time.monotonic() - sent
            left_over = [" ".join(p.cmdline()) for p in left if p.pid != process.pid]
            return Stopped(process.poll(), said(), seconds, left_over)
        finally:
            for child in _family(process.pid):
                with suppress(psutil.Error):
                    child.kill()
            process.wait()


def _family(leader: int) -> set[psutil.Process]:
    """The processes of a group, and what they have started outside it."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader:
                found |= {process, *process.children(recursive=True)}
    return found


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def run_here(
    *words: object, cwd: Path = ROOT, joined: bool = False, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run `ant-hf ...`, `python script.py ...` or `python -c ...` as that does, in this process.

    Args:
        joined: what is said on stderr stands in `stdout`, where it was said.
        environment: variables of the command; None: not there.
    """
    program, *arguments = map(str, words)
    out = io.StringIO()
    err = out if joined else io.StringIO()
    with _own_state(cwd, environment), redirect_stdout(out), redirect_stderr(err), _handlers_write_to(err):
        try:
            if program == "ant-hf":
                from ant_hf.cli.main import main

                sys.argv = [program, *arguments]
                main()
            elif arguments[0] == "-c":
                sys.argv = ["-c", *arguments[2:]]
                exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
            else:
                sys.argv = arguments
                # As the interpreter does for a script.
                sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
                runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except SystemExit as left:
            code = left.code or 0
            if isinstance(code, str):
                err.write(code + "\n")
                code = 1
        except Exception:
            traceback.print_exc(file=err)
            code = 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), "" if joined else err.getvalue())


@contextmanager
def _own_state(cwd: Path, environment: dict[str, str | None]) -> Iterator[None]:
    before, threads, argv, path = Path.cwd(), torch.get_num_threads(), sys.argv, list(sys.path)
    # Imported by the first command of a test process, it would keep that one's width.
    console._console._width = None
    # Commands set switches of libraries in the environment.
    with mock.patch.dict(os.environ, PLAIN):
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.chdir(cwd)
        try:
            yield
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)
            sys.argv, sys.path[:] = argv, path


@contextmanager
def _handlers_write_to(stream: io.StringIO) -> Iterator[None]:
    """The libraries' log handlers hold on to the stderr of their import."""
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if hasattr(logger, "handlers")]
    handlers = [h for logger in loggers for h in logger.handlers if type(h) is logging.StreamHandler]
    before = [handler.stream for handler in handlers]
    for handler in handlers:
        handler.stream = stream
    try:
        yield
    finally:
        for handler, own in zip(handlers, before, strict=True):
            handler.stream = own
