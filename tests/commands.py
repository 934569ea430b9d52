"""Command lines run in the test process, which saves the seconds that importing torch anew takes.

Nothing is left behind: environment, working directory, arguments and threads are as before. Where the
process itself is what is tested, start one: `in_a_process`.
"""

import io
import logging
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).parents[1]
ANT_HF = "from ant_hf.cli.main import main; main()"
# What a terminal would make of the output is the same on every machine.
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def in_a_process(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in the repository, in a process of its own; `ant-hf` and `python` are these here."""
    program, *arguments = map(str, words)
    start = {"python": [sys.executable], "ant-hf": [sys.executable, "-c", ANT_HF]}
    command = [*start.get(program, [program]), *arguments]
    options = {"cwd": ROOT, "env": os.environ | PLAIN, "capture_output": True, "text": True} | options
    return subprocess.run(command, **options)


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
