"""Arguments and options that several commands share, and what they are turned into."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ant_hf.errors import AntError
from ant_hf.utils.names import expand_home

if TYPE_CHECKING:
    from ant_hf.recipe import Recipe

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
# Options that hold a text and may name a place; those of type Path always do.
_PLACES = {"model", "other", "text"}

Config = Annotated[
    Path, Option("--config", "-c", help="Recipe: a YAML file, or the name of a shipped one: quickstart.")
]
Data = Annotated[
    list[str] | None,
    Option(
        help="Train on local text instead of the recipe's corpus: a file, a folder or a quoted glob (txt, "
        "md, jsonl, json, csv, parquet, each also .gz, .bz2, .xz, .zst). May be repeated."
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
    str | None,
    Option(
        "--license",
        metavar="ID",
        help="Licence of the model, as the Hub spells it. Default: the one of the model it was trained from, "
        "if any, else apache-2.0.",
    ),
]
Tokens = Annotated[
    Path | None,
    Option(help="Folder of the run's packed tokens, if it was moved; its held-out text is scored."),
]

Vendor = Annotated[
    Path | None,
    Option(
        metavar="FOLDER",
        help="node_modules to take a static page's transformers.js from. Default: npm's registry.",
    ),
]

Onnx = Annotated[
    bool,
    Option("--onnx", help="Export it to ONNX too, and put the graphs into the release, for transformers.js."),
]


def read_recipe(
    config: Path, data: list[str] | None, output_dir: str | None, overrides: list[str] | None, **training: Any
) -> Recipe:
    """The recipe of a command line; options of their own have the last word.

    Args:
        training: values for keys of the section `training`; None leaves a key alone.
    """
    from ant_hf.recipe import load_recipe, other_text

    changes = {f"training.{key}": value for key, value in training.items() if value is not None}
    if data:
        forgotten, of_text = other_text(data)
        changes |= of_text
        overrides = [*forgotten, *(overrides or ())]
    if output_dir is not None:
        changes["output_dir"] = output_dir
    return load_recipe(config, overrides or (), changes)


def whole_number(option: str, text: str) -> int:
    """A number as people write it: 20M, 1.5B, 400k, 8,192.

    Raises:
        AntError: it is not a whole number above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt]?)", text.strip().replace(",", "").replace("_", "").lower())
    value = Decimal(match[1]) * _FACTORS[match[2]] if match else 0
    if value < 1 or value != int(value):
        raise AntError(
            f"{option} is {text!r}", expected="a whole number above 0, such as 20M, 1.5B, 400k or 8192"
        )
    return int(value)


def switch_libraries(*more: str) -> None:
    """Set switches that the libraries of Hugging Face read when they are imported; the user's own win.

    Always: no bars, which would be drawn over ours, and no telemetry.
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_TELEMETRY", *more):
        if not os.environ.get(name):
            os.environ[name] = "1"


def expanding_home(command: Callable[..., None]) -> Callable[..., None]:
    """The command with `~` taken in every path as the shell does, which leaves `--option=~/folder` alone."""

    def expanded(name: str, value: Any) -> Any:
        # The recipe does the same for its own keys, which --data, --output-dir and --set give it.
        if isinstance(value, Path) or (isinstance(value, str) and name in _PLACES):
            return type(value)(expand_home(value))
        return value

    @wraps(command)
    def run(**values: Any) -> None:
        command(**{name: expanded(name, value) for name, value in values.items()})

    return run
