"""The `ant-hf` command and the two entry scripts: which commands there are, and how mistakes are told."""

from __future__ import annotations

import os
import sys
from functools import partial

import typer

from ant_hf.cli import models, release, train
from ant_hf.errors import AntError, RunStopped
from ant_hf.utils.console import flush, show_anything

_typer = partial(typer.Typer, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app = _typer(help="Train, check and publish tiny Llama language models with stock Transformers.")
for command in (
    *(release.audit, release.card, release.verify, release.publish),
    *(models.inspect, models.demo, models.export),
    *(train.tokenizer, train.pack, train.params),
    *(models.generate, models.perplexity, models.evaluate),
    train.plots,
):
    app.command()(command)
pretrain_app, tokenizer_app = _typer(), _typer()
pretrain_app.command()(train.pretrain)
tokenizer_app.command()(train.tokenizer)


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
        sys.exit(stopped.exit_code)
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
