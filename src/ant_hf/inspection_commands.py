"""`ant-hf inspect`: parse, call the library, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("inspect")(inspect)


def inspect(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id, for example runs/quickstart/final.")],
    other: Annotated[str | None, typer.Argument(help="A second model to put beside it.")] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to read with the model, or a UTF-8 file of it. Default: the run's held-out text, "
            "if its tokens are there, else plain English."
        ),
    ] = None,
    position: Annotated[
        int | None,
        typer.Option(
            help="Token of the text whose distribution is shown, 0 the first. Default: after the last."
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="Folder of the run's packed tokens, to count frequencies in, if it was moved."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the report goes. Default: inspection.html in the run's folder; for others, here.",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every figure to this JSON file.")
    ] = None,
) -> None:
    """Look inside any Llama-like model: weights, heads, embeddings, a text in fragments and their losses.

    Prints a summary and writes one HTML file that needs no network.
    """
    from ant_hf.offline import choose_network

    remote = [name for name in (model, other) if name and not Path(name).is_dir()]
    if remote:
        choose_network(remote[0], None)
    from ant_hf.artefacts import write_json
    from ant_hf.inspection.comparison import compare, default_report
    from ant_hf.inspection.record import as_json
    from ant_hf.inspection.report import write_report
    from ant_hf.inspection.terminal import print_inspection
    from ant_hf.report import progress_bar, say

    inspections = compare(model, other, text, position, tokens, progress_bar)
    print_inspection(inspections)
    path = html or default_report(model, other)
    write_report(inspections, path)
    say(f"report      {path}")
    if json:
        write_json(json, {"models": [as_json(each) for each in inspections]})
        say(f"figures     {json}")
