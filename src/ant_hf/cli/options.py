"""Arguments and options that several commands share, and what they are turned into."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

if TYPE_CHECKING:
    from ant_hf.recipe import Recipe

Config = Annotated[
    Path, Option("--config", "-c", help="Recipe, for example configs/recipes/quickstart.yaml.")
]
Data = Annotated[
    str | None,
    Option(
        help="Train on local text instead of the recipe's corpus: a file, a folder or a quoted glob "
        "(txt, jsonl, parquet, each also .gz)."
    ),
]
OutputDir = Annotated[str | None, Option(help="Folder of the run, instead of the recipe's.")]
Set = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the recipe, for example training.max_steps=100. May be repeated.",
    ),
]
Model = Annotated[
    str, Argument(help="Model folder or Hub id, for example runs/quickstart/final or GODELEV/Ant-10M.")
]
Final = Annotated[Path, Argument(help="A run's final folder, for example runs/quickstart/final.")]
Repo = Annotated[
    str, Option("--repo", metavar="OWNER/NAME", help="Hub repository, for example GODELEV/Ant-10M.")
]
License = Annotated[
    str, Option("--license", metavar="ID", help="Licence of the model, as the Hub spells it.")
]
Tokens = Annotated[
    Path | None,
    Option(help="Folder of the run's packed tokens, if it was moved; its held-out text is scored."),
]


def read_recipe(
    config: Path, data: str | None, output_dir: str | None, overrides: list[str] | None, **training: Any
) -> Recipe:
    """The recipe of a command line; options of their own have the last word.

    Args:
        training: values for keys of the section `training`; None leaves a key alone.
    """
    from ant_hf.recipe import load_recipe

    changes = {f"training.{key}": value for key, value in training.items() if value is not None}
    if data is not None:
        changes |= {"corpus.source": "files", "corpus.path": data}
        # What the recipe says of its own text is not true of this one; --set may say it again.
        overrides = ["corpus.language=null", "corpus.sources=[]", *(overrides or ())]
    if output_dir is not None:
        changes["output_dir"] = output_dir
    return load_recipe(config, overrides or (), changes)


def switch_libraries(*more: str) -> None:
    """Set switches that the libraries of Hugging Face read when they are imported; the user's own win.

    Always: no bars, which would be drawn over ours, and no telemetry.
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_TELEMETRY", *more):
        if not os.environ.get(name):
            os.environ[name] = "1"
