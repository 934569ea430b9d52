"""The `ant-hf` command and the two entry scripts: which commands there are, and how mistakes are told."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

import ant_hf
from ant_hf.cli import models, release, train
from ant_hf.cli.options import expanding_home
from ant_hf.errors import AntError, Interrupted, RunStopped
from ant_hf.utils.console import flush, show_anything
from ant_hf.utils.stopping import stopped_by_signals


def _complete(command: Callable[..., None]) -> Callable[..., None]:
    """What every command does: `~` in paths, and an end in one line when it is told to stop."""
    return stopped_by_signals()(expanding_home(command))


_typer = partial(typer.Typer, no_args_is_help=True, pretty_exceptions_enable=False)
app = _typer(help="Train, check and publish tiny Llama language models with stock Transformers.")
for command in (
    *(release.audit, release.card, release.verify, release.publish),
    *(models.inspect, models.demo, models.export),
    *(train.train, train.new, train.study, train.tokenizer, train.pack, train.params),
    *(models.generate, models.perplexity, models.evaluate, models.compare),
    train.plots,
):
    app.command()(_complete(command))
# Under the name of the script too.
app.command(hidden=True)(_complete(train.pretrain))
pretrain_app, tokenizer_app = _typer(add_completion=False), _typer(add_completion=False)
pretrain_app.command()(_complete(train.pretrain))
tokenizer_app.command()(_complete(train.tokenizer))


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ant-hf {ant_hf.__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run(command: typer.Typer) -> None:
    """Run a command line; a mistake of the user's ends in one message and exit code 2.

    So does what the system refuses (a full disk, a missing right). 75: stopped, to be continued.
    """
    show_anything()
    try:
        command()
    except AntError as error:
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f" (process {rank})"
        sys.stderr.write(f"error{who}: {error}\n")
        sys.exit(2)
    except RunStopped as stopped:
        # It has been said already, before the launcher could end this process.
        if not isinstance(stopped, Interrupted):
            # Where a run is reported to, its end is sent then.
            atexit._run_exitfuncs()
        flush()
        # Threads that still compute would be waited for, or end the interpreter with an abort, and to take
        # torch's modules down takes seconds.
        os._exit(stopped.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        sys.stderr.write(f"error: {error.strerror}: {error.filename or 'no file named'}\n")
        sys.exit(2)
    finally:
        flush()


def main() -> None:
    """Entry point of `ant-hf`."""
    run(app)
