"""`ant-hf demo`: parse, call the library."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("demo")(demo)


def demo(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id, for example runs/quickstart/final.")],
    other: Annotated[str | None, typer.Argument(help="A second one, to compare side by side.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also give it a public address, through Gradio's servers.")
    ] = False,
) -> None:
    """Try a model on a page in the browser, on this computer only.

    Streams its text with the card's sampling, shows the surprise of every fragment, and warns of loops.
    """
    from ant_hf.errors import AntError
    from ant_hf.offline import choose_network

    models = [model] if other is None else [model, other]
    # Folders need no Hub, and nothing waits for one.
    if remote := [name for name in models if not Path(name).is_dir()]:
        choose_network(remote[0], None)
    if importlib.util.find_spec("gradio") is None:
        raise AntError("the demo needs Gradio", hint="pip install 'ant-hf[demo]'")
    from ant_hf.demo.serving import serve

    serve(models, port, share)
