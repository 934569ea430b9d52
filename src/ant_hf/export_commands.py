"""`ant-hf export`: parse, call the library, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("export")(export)


def export(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id, for example runs/quickstart/final.")],
    to: Annotated[str, typer.Option(help="gguf (llama.cpp, Ollama, LM Studio) or onnx (ONNX Runtime).")],
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="TYPE", help="GGUF: f32, f16, q8_0 or all (default). May be repeated."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the export, replaced as a whole. "
            "Default: gguf or onnx beside a run's final folder, else under exports/."
        ),
    ] = None,
    repo: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Hub repository it belongs to; names the files."),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence of the model, as the Hub spells it."),
    ] = None,
) -> None:
    """Write a model as GGUF or ONNX, and verify the files in the programs that will load them.

    A file that does not give the same tokens, outputs and likelihoods is not kept; verified.json has the
    figures.
    """
    from ant_hf.export.exporting import Export
    from ant_hf.export.exporting import export as export_model
    from ant_hf.export.table import verified_table
    from ant_hf.report import say, show

    folder, record = export_model(Export(model, to, tuple(types or ()), output, repo, license_id))
    show(verified_table(record))
    for line in record["left_out"]:
        say(f"left out    {line}")
    say(f"export      {folder}")
