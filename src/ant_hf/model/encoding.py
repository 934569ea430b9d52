"""Text to token ids and back by the rules of anyone's tokenizer, and how many ids a model takes at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import LARGE_INTEGER

# As lm-eval takes them, in its order.
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_ANY_LENGTH = 2048


def context_length(model: PreTrainedModel, tokenizer: Any) -> int:
    """Tokens that a model takes at once: by its config, else by its tokenizer, else 2,048 (as in lm-eval).

    Mamba, Bloom and MPT have no limit of their own.
    """
    config = model.config.get_text_config(decoder=True)
    for key in _LENGTHS:
        if (length := getattr(config, key, None)) is not None:
            return int(length)
    # A tokenizer without a limit says so by a very large number.
    limit = int(tokenizer.model_max_length)
    return limit if limit < LARGE_INTEGER else _ANY_LENGTH


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text and nothing else; names of special tokens in it are read as plain text."""
    ids: list[int] = tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return ids


def added_ids(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before every text by its own rule: Gemma's `<bos>`; often nothing."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=added) for added in (False, True))
    starts = range(len(whole) - len(plain) + 1)
    return list(whole[: next((at for at in starts if whole[at : at + len(plain)] == plain), 0)])


def first_ids(tokenizer: Any) -> list[int]:
    """What stands before the first token of a text that is scored.

    The tokenizer's own rule; without one the beginning- or end-of-text token, as in lm-eval, else nothing.
    """
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return added_ids(tokenizer) or [each for each in tokens if each is not None][:1]


def decode(tokenizer: Any, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
    """The text of token ids; ids of the model that the tokenizer has no entry for stand for nothing."""
    known = list(ids)
    if not tokenizer.is_fast:
        # Tokenizers written in Python fail on such ids instead.
        entries = set(tokenizer.get_vocab().values())
        known = [index for index in known if index in entries]
    return str(
        tokenizer.decode(known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    )
