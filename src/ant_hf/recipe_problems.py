"""What is wrong with a recipe, in the words of a recipe and not of pydantic."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel


def explained(item: Any, recipe: type[BaseModel]) -> str:
    """One violation as pydantic gives it, as a line.

    Args:
        recipe: the model that was violated, for the names of its keys.
    """
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = _nearest_key(item["loc"], recipe)
        return f"{location} is no key of a recipe" + (f"; did you mean {near}?" if near else "")
    if item["type"] == "missing":
        return f"{location} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    if item["type"] == "string_pattern_mismatch" and not (item["input"] and item["input"].isprintable()):
        message = "must not be empty or hold control characters"
    return f"{location} is {item['input']!r}; {message[0].lower()}{message[1:]}"


def _nearest_key(location: tuple[Any, ...], recipe: type[BaseModel]) -> str | None:
    """The key that was meant, as it is typed: this name in another section, or one like it, nearby first."""
    name, section = str(location[-1]), location[:-1]
    here = [".".join(map(str, (*section, key))) for key in _keys_at(section, recipe)]
    top = _keys_at((), recipe)
    everywhere = [f"{each}.{key}" for each in top for key in _keys_at((each,), recipe)] + top
    for keys, likeness in ((everywhere, 1.0), (here, 0.6), (everywhere, 0.6)):
        by_name = {key.rpartition(".")[2]: key for key in keys}
        if near := difflib.get_close_matches(name, by_name, n=1, cutoff=likeness):
            return by_name[near[0]]
    return None


def _keys_at(location: tuple[Any, ...], recipe: type[BaseModel]) -> list[str]:
    section = recipe
    for name in location:
        field = section.model_fields.get(name)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        section = models[0]
    return list(section.model_fields)
