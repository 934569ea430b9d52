"""Write docs/recipe-keys.md, the list of all keys of a recipe, from the typed recipe itself.

python tools/recipe_reference.py
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ant_hf.recipe import (
    CorpusRecipe,
    MixPart,
    Recipe,
    Replay,
    TextPlace,
    TextSource,
    TokenizerRecipe,
    TrainingRecipe,
)
from ant_hf.utils.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "recipe-keys.md"
_HEAD = """# Keys of a recipe

A recipe is a YAML file of the keys below. Each can also be given on the command line:
`--set training.learning_rate=1e-3`. A misspelt key is refused, and the nearest name is shown. A key
without a default must be given. How recipes are used: [train.md](train.md).

This page is made from `src/ant_hf/recipe.py` by `python tools/recipe_reference.py`.
"""
# Heading, class, what stands before its keys, and what it shares with the text of the corpus.
_SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("The recipe", Recipe, ""),
    ("corpus: the text", CorpusRecipe, "corpus."),
    ("corpus.mix: one part of a mix", MixPart, "corpus.mix.NAME."),
    ("corpus.replay: general text beside your own", Replay, "corpus.replay."),
    ("corpus.sources: the text as the card names it, a list", TextSource, ""),
    ("tokenizer", TokenizerRecipe, "tokenizer."),
    ("training", TrainingRecipe, "training."),
)
_CLASSES = [(section, heading) for heading, section, _ in _SECTIONS]


def _values(annotation: object, notes: list[typing.Any]) -> str:
    """What a key may hold, in words: its kind, its choices and its limits."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_values(part, notes) for part in arguments if part is not type(None))
    if typing.get_origin(annotation) is typing.Annotated:
        return _values(arguments[0], list(arguments[1:]))
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if typing.get_origin(annotation) is list:
        return f"list: {_values(arguments[0], notes)}"
    if typing.get_origin(annotation) is dict or annotation in dict(_CLASSES):
        return "see below"
    names = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    return names[annotation] + _limits(notes)  # type: ignore[index]


def _limits(notes: list[typing.Any]) -> str:
    found = []
    for note in notes:
        for each in (note, *getattr(note, "metadata", ())):
            found += [
                f"{words} {getattr(each, name):,}"
                for name, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))
                if getattr(each, name, None) is not None
            ]
    return "".join(f", {limit}" for limit in dict.fromkeys(found))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None or value == []:
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`".replace('"', "")


def reference() -> str:
    """The page."""
    parts = [_HEAD]
    for heading, section, before in _SECTIONS:
        fields = dict(section.model_fields)
        rows = [f"\n## {heading}"]
        if section in (MixPart, Replay):
            shared = [fields.pop(name) and f"`{name}`" for name in TextPlace.model_fields if name != "source"]
            rows.append(f"{', '.join(shared)} are as those of `corpus`, and also:\n")
        rows += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for name, field in fields.items():
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            values = _values(field.annotation, field.metadata)
            rows.append(f"| `{before}{name}` | {values} | {_default(field)} | {meaning} |")
        parts.append("\n".join(rows) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    write_text(PAGE, reference())
