"""Which text a model is looked at with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.inspection.embeddings import held_out_text
from ant_hf.model.texts import ENGLISH

# A few thousand tokens: seconds on a laptop, and more than the residual stream has dimensions.
MAX_CHARACTERS = 20_000
_HELD_OUT_TOKENS = 2_048


@dataclass(frozen=True)
class Text:
    """A text and where it is from, in words."""

    content: str
    source: str


def choose_text(given: str | None, tokens: Path | None, tokenizer: Any) -> Text:
    """What the user gave (a file or the text itself), else the run's held-out text, else plain English.

    Args:
        tokens: the run's packed tokens, if they are at hand.

    Raises:
        AntError: the text is empty, or the file is missing or no UTF-8.
    """
    if given is None:
        held_out = held_out_text(tokens, tokenizer, _HELD_OUT_TOKENS) if tokens else ""
        if held_out:
            return Text(held_out, "the beginning of the run's held-out text")
        return Text("\n".join(ENGLISH), "four plain English paragraphs, none from any training set")
    content, source = given, "the text given"
    if _is_file(given):
        source = Path(given).name
        try:
            content = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AntError(f"{given} cannot be read as UTF-8 text: {error}") from None
    elif _looks_like_file(given):
        raise AntError(f"text file not found: {given}", hint="To pass a text itself, write it with a space.")
    if not content.strip():
        raise AntError("there is no text to read", seen=content[:20], hint="--text takes a text or a file.")
    if len(content) > MAX_CHARACTERS:
        return Text(content[:MAX_CHARACTERS], f"the first {MAX_CHARACTERS:,} characters of {source}")
    return Text(content, source)


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with a zero byte
        return False


def _looks_like_file(given: str) -> bool:
    one_word = not any(character.isspace() for character in given)
    return one_word and (given.endswith((".txt", ".md", ".json", ".jsonl")) or "/" in given)
