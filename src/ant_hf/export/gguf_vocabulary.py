"""A byte-level BPE tokenizer as llama.cpp's `gpt2` vocabulary, or a refusal.

llama.cpp knows pre-tokenizers by name and has no way to describe one. `smollm` cuts out every digit and then
applies GPT-2's expression, which is what `Digits(individual_digits=True)` followed by `ByteLevel` does
here; `gpt-2` applies the expression alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import read_json

# token_type in GGUF, as in llama.cpp's llama_token_type.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer."""

    pre_tokenizer: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unknown_id: int | None
    adds_bos: bool
    adds_eos: bool


def read_vocabulary(folder: Path, tokenizer: Any, vocab_size: int) -> Vocabulary:
    """Translate `tokenizer.json`.

    Args:
        tokenizer: the same tokenizer as transformers loads it, for what it adds to a text.
        vocab_size: rows of the model's embeddings; rows without an entry are filled up as unused.

    Raises:
        AntError: llama.cpp has nothing that cuts texts the same way; says what it lacks.
    """
    values = read_json(
        folder / "tokenizer.json", "tokenizer", "Only byte-level BPE in that file is exported."
    )
    pre_tokenizer = _pre_tokenizer(values)
    _check_model(values["model"])
    tokens, types = _entries(values, vocab_size)
    adds_bos, adds_eos = _added(tokenizer)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    return Vocabulary(
        pre_tokenizer,
        tokens,
        types,
        merges,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        adds_bos,
        adds_eos,
    )


def _pre_tokenizer(values: dict[str, Any]) -> str:
    """llama.cpp's name for a tokenizer's pre-tokenizer."""
    if values.get("normalizer") is not None:
        raise _refused("it normalizes texts", values["normalizer"])
    given = values.get("pre_tokenizer") or {}
    steps = given.get("pretokenizers", []) if given.get("type") == "Sequence" else [given]
    # trim_offsets concerns offsets only; use_regex was not written by older versions.
    steps = [{"use_regex": True, **step} if step.get("type") == "ByteLevel" else step for step in steps]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    if steps == [_DIGITS, _BYTE_LEVEL]:
        return "smollm"
    if steps == [_BYTE_LEVEL]:
        return "gpt-2"
    raise _refused("its pre-tokenizer is another one", steps)


def _check_model(model: dict[str, Any]) -> None:
    """Byte-level BPE without any of the options that llama.cpp does not have."""
    if model.get("type") != "BPE":
        raise _refused("its model is no BPE", model.get("type"))
    options = (
        "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
        "ignore_merges",
    )  # fmt: skip
    if used := {name: model[name] for name in options if model.get(name)}:
        raise _refused("its BPE has options", used)


def _entries(values: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Entries and their types by id."""
    by_id = {index: entry for entry, index in values["model"]["vocab"].items()}
    added = values.get("added_tokens", [])
    by_id |= {token["id"]: token["content"] for token in added}
    if sorted(by_id) != list(range(len(by_id))) or len(by_id) > vocab_size:
        raise _refused("its ids have gaps, or are more than the model has", f"{len(by_id)} entries")
    kinds = dict.fromkeys(by_id, NORMAL)
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refused(
                f"the token {token['content']} takes spaces around it or wants a whole word", token
            )
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unused = range(len(by_id), vocab_size)
    tokens = [by_id[index] for index in range(len(by_id))] + [f"<unused{index}>" for index in unused]
    return tokens, [kinds[index] for index in range(len(by_id))] + [UNUSED] * len(unused)


def _added(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a beginning and an end of text is added to every text; anything else is refused."""
    bare, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    for bos in ([], [tokenizer.bos_token_id]):
        for eos in ([], [tokenizer.eos_token_id]):
            if whole == [*bos, *bare, *eos]:
                return bool(bos), bool(eos)
    raise _refused("it adds tokens to a text that are neither its beginning nor its end", whole)


def _refused(why: str, seen: object) -> AntError:
    return AntError(
        f"llama.cpp cannot cut texts as this tokenizer does: {why}",
        seen=json.dumps(seen, ensure_ascii=True)[:200],
        expected="byte-level BPE after GPT-2's expression, with digits split singly or not at all",
        hint="Export to ONNX, which leaves the tokenizer as it is: --to onnx",
    )
