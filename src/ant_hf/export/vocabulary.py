"""A byte-level BPE tokenizer as llama.cpp's `gpt2`, or a refusal.

llama.cpp knows pre-tokenizers by name and has no way to describe one. `smollm` cuts out every digit and then
applies GPT-2's expression, which is what `Digits(individual_digits=True)` followed by `ByteLevel` does
here; `gpt-2` applies the expression alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.questions import end_ids

# token_type in GGUF, as in llama.cpp's llama_token_type.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# The names under which llama.cpp looks for ends of a text.
ENDS = ("eos", "eot", "eom")
# What llama.cpp's BPE does not have.
_BPE_OPTIONS = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
    "ignore_merges",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer."""

    pre_tokenizer: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    """By name in GGUF: `bos`, `pad` and `unk`, if they are there, and the ends of a text as `ENDS`."""
    other_ends: list[int]
    """Ends of a text for which there is no name."""
    adds_bos: bool
    adds_eos: bool
    chat_templates: dict[str, str]
    """By name; the usual one is `default`."""

    @property
    def ends(self) -> list[int]:
        """Ends of a text that have a name in GGUF."""
        return [self.special_ids[name] for name in ENDS if name in self.special_ids]

    @property
    def named(self) -> list[int]:
        """Entries that are found in a text by their name, wherever it stands."""
        return [index for index, kind in enumerate(self.types) if kind in (CONTROL, USER_DEFINED)]

    def names(self, ids: Iterable[int]) -> list[str]:
        return [self.tokens[index] for index in ids]


def read_vocabulary(model: PreTrainedModel, tokenizer: Any) -> Vocabulary:
    """Translate a tokenizer, with the ends of a text that the model's generation config names.

    Rows of the model's embeddings without an entry are filled up as unused.

    Raises:
        AntError: llama.cpp cannot tokenize in the same way, or a text would never end; says what is missing.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        raise _refused("there is no tokenizer.json", type(tokenizer).__name__)
    values = json.loads(backend.to_str())
    if not (ends := end_ids(model, tokenizer)):
        raise AntError(
            "GGUF needs an end-of-text token: without one, llama.cpp would take token 11, whatever that is",
            seen="no eos_token_id in generation_config.json, config.json or the tokenizer",
            hint="Set eos_token_id in generation_config.json, or export to ONNX, which needs none: --to onnx",
        )
    pre_tokenizer, bpe = _pre_tokenizer(values), values["model"]
    if bpe.get("type") != "BPE":
        raise _refused("its model is not BPE", bpe.get("type"))
    if used := {name: bpe[name] for name in _BPE_OPTIONS if bpe.get(name)}:
        raise _refused("its BPE has options that llama.cpp lacks", used)
    tokens, types = _entries(values, model.config.vocab_size)
    if unknown := [index for index in ends if not 0 <= index < len(types) or types[index] == UNUSED]:
        raise AntError(
            "eos_token_id in generation_config.json is a token that the tokenizer does not have",
            seen=unknown[0],
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "unk")}
    special_ids = {name: index for name, index in ids.items() if index is not None}
    special_ids |= dict(zip(ENDS, ends, strict=False))
    templates = tokenizer.chat_template or {}
    return Vocabulary(
        pre_tokenizer=pre_tokenizer,
        tokens=tokens,
        types=types,
        # llama.cpp does not load a file without any: this one merges what no byte-level text has.
        merges=merges or ["\u2047 \u2047"],
        special_ids=special_ids,
        other_ends=ends[len(ENDS) :],
        **dict(zip(("adds_bos", "adds_eos"), _added(tokenizer), strict=True)),
        chat_templates={"default": templates} if isinstance(templates, str) else templates,
    )


def _pre_tokenizer(values: dict[str, Any]) -> str:
    """llama.cpp's name for a tokenizer's pre-tokenizer."""
    if values.get("normalizer") is not None:
        raise _refused("it normalizes the text first", values["normalizer"])
    given = values.get("pre_tokenizer") or {}
    steps = given.get("pretokenizers", []) if given.get("type") == "Sequence" else [given]
    # trim_offsets concerns offsets only; use_regex was not written by older versions.
    steps = [{"use_regex": True, **step} if step.get("type") == "ByteLevel" else step for step in steps]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    if steps == [_DIGITS, _BYTE_LEVEL]:
        return "smollm"
    if steps == [_BYTE_LEVEL]:
        return "gpt-2"
    raise _refused("llama.cpp does not know its pre-tokenizer", steps)


def _entries(values: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Entries and their types by id."""
    by_id = {index: entry for entry, index in values["model"]["vocab"].items()}
    added = values.get("added_tokens", [])
    by_id |= {token["id"]: token["content"] for token in added}
    if sorted(by_id) != list(range(len(by_id))) or len(by_id) > vocab_size:
        raise _refused("its ids have gaps, or there are more than the model has", f"{len(by_id)} entries")
    kinds = dict.fromkeys(by_id, NORMAL)
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refused(
                f"its token {token['content']} strips spaces around it or matches whole words only", token
            )
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    tokens = [by_id.get(index, f"<unused{index}>") for index in range(vocab_size)]
    return tokens, [kinds.get(index, UNUSED) for index in range(vocab_size)]


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
        f"llama.cpp cannot tokenize as this tokenizer does: {why}",
        seen=json.dumps(seen, ensure_ascii=True)[:200],
        expected="byte-level BPE with GPT-2's pattern, with digits split one by one or not at all",
        hint="Export to ONNX, which leaves the tokenizer as it is: --to onnx",
    )
