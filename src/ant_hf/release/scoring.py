"""Scores of a loaded pair on texts, from the text itself to nats a byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ant_hf.evaluation.perplexity import score_tokens
from ant_hf.release.loading import Loaded
from ant_hf.tokens import TokensInMemory


@dataclass(frozen=True)
class Scores:
    """Sums over the scored tokens; the first token of all is context only."""

    nats: float
    tokens: int
    decoded_bytes: int
    """UTF-8 bytes of the scored tokens' text, special tokens left out."""
    vocab_size: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def byte_perplexity(self) -> float:
        nats = self.nats / self.decoded_bytes
        return math.exp(nats) if nats < 700 else math.inf

    @property
    def uniform_byte_perplexity(self) -> float:
        """Of giving every token the same probability."""
        return float(self.vocab_size ** (self.tokens / self.decoded_bytes))


def score_documents(
    loaded: Loaded, documents: list[str], context: int, batch_size: int, limit: int | None = None
) -> Scores:
    """Encode, join with end-of-text as packing does, and score at most `limit` tokens."""
    tokenizer, model = loaded.tokenizer, loaded.model
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document, add_special_tokens=False, split_special_tokens=True)
        ids += [end] if end is not None else []
        if limit is not None and len(ids) > limit:
            break
    ids = ids[: None if limit is None else limit + 1]
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # wrapped by a decorator of transformers
    scores = score_tokens(model, TokensInMemory(ids), [0] * model.config.vocab_size, context, batch_size)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    first = tokenizer.decode(ids[:1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    size = len(text.encode()) - len(first.encode())
    return Scores(scores.nats, scores.tokens, max(size, 1), model.config.vocab_size)
