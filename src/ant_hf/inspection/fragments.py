"""A text as the model meets it: fragments with their bytes, and what was expected at each place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.inspection.vocabulary import Vocabulary, readable, vocabulary

# Tokens whose probabilities over the vocabulary are held at once.
_PIECE = 256


@dataclass(frozen=True)
class Fragment:
    """A token in its place."""

    token_id: int
    raw: bytes
    text: str
    """Readable form: white space visible, bytes that are no character of their own as `<E2>`."""
    nats: float | None
    """-ln p(token | tokens before it); None if nothing comes before it."""
    start: int
    end: int
    """Byte offsets in the text's UTF-8."""


class Candidate(NamedTuple):
    """A token that could come next."""

    token_id: int
    raw: bytes
    probability: float


@dataclass(frozen=True)
class NextTokens:
    """What a model expects at one place."""

    entropy_bits: float
    candidates: list[Candidate]
    """The most probable, best first."""
    invalid_utf8_share: float
    """Probability on tokens whose bytes cannot follow in valid UTF-8."""


@dataclass(frozen=True)
class Reading:
    """A text's fragments, and for each what the model expected there (None if nothing came before)."""

    text: str
    fragments: list[Fragment]
    expected: list[NextTokens | None]

    @property
    def nats(self) -> float:
        return sum(fragment.nats or 0.0 for fragment in self.fragments)

    @property
    def scored(self) -> int:
        """Tokens that have a loss."""
        return sum(fragment.nats is not None for fragment in self.fragments)

    @property
    def bits_per_byte(self) -> float:
        """Over the scored tokens' bytes."""
        size = sum(len(fragment.raw) for fragment in self.fragments if fragment.nats is not None)
        return self.nats / (math.log(2) * size)


@dataclass(frozen=True)
class Predictability:
    """A token's mean loss over its places in a text."""

    token_id: int
    raw: bytes
    text: str
    count: int
    nats: float


def read_fragments(model: PreTrainedModel, tokenizer: Any, text: str) -> list[Fragment]:
    """Split a text into its tokens and score each, as `read_text` does.

    Raises:
        AntError: the text is empty or no valid Unicode, or the tokenizer is of a kind that cannot be read.
    """
    return read_text(model, tokenizer, text, top=0).fragments


@torch.no_grad()
def read_text(model: PreTrainedModel, tokenizer: Any, text: str, top: int = 5) -> Reading:
    """Fragments of a text with what the model expected in each one's place.

    The beginning- or end-of-text token stands before the first token, as in evaluation; without
    either in the tokenizer the first token has no loss. Texts longer than the context are read in
    windows that stand end to end, as `score_tokens` reads them. Names of special tokens in the text
    are read as plain text.

    Args:
        top: candidates kept a place.

    Raises:
        AntError: the text is empty or no valid Unicode, or the tokenizer is of a kind that cannot be read.
    """
    if not text:
        raise AntError("there is no text to read", hint="Pass some: --text 'In the beginning'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AntError(f"the text is no valid Unicode: {error}") from None
    entries = vocabulary(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    prefix = prefix_ids(tokenizer)
    nats: list[float | None] = [] if prefix else [None]
    expected: list[NextTokens | None] = [] if prefix else [None]
    for logits_TV, targets in _pieces(model, prefix + ids):
        log_p_TV = torch.log_softmax(logits_TV, dim=-1)
        nats += (-log_p_TV.gather(1, torch.tensor(targets)[:, None])[:, 0]).tolist()
        # Without a prefix the first token is none of the targets.
        done = len(expected)
        pendings = [entries.pending(ids[max(0, i - 3) : i]) for i in range(done, done + len(targets))]
        expected += [
            _next_tokens(log_p_V, entries, pending, top)
            for log_p_V, pending in zip(log_p_TV, pendings, strict=True)
        ]
    return Reading(text, _located(text, ids, nats, entries), expected)


@torch.no_grad()
def next_tokens(
    model: PreTrainedModel, tokenizer: Any, token_ids: Sequence[int], top: int = 20
) -> NextTokens:
    """The distribution of the token after `token_ids`, which are taken as they are.

    Without any, the beginning- or end-of-text token stands before; of too many, the last are read.

    Raises:
        AntError: there is nothing to go on from, or the tokenizer is of a kind that cannot be read.
    """
    entries = vocabulary(tokenizer)
    ids = list(token_ids) or prefix_ids(tokenizer)
    if not ids:
        raise AntError("nothing comes before the token, and the tokenizer has no beginning-of-text token")
    context = model.config.max_position_embeddings
    input_ids = torch.tensor([ids[-context:]], device=model.device)
    logits_V = model(input_ids=input_ids, use_cache=False).logits[0, -1].float().cpu()
    return _next_tokens(torch.log_softmax(logits_V, dim=-1), entries, entries.pending(ids[-4:]), top)


def prefix_ids(tokenizer: Any) -> list[int]:
    """The token before the first of a text: beginning-of-text, else end-of-text, else none."""
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if prefix is None else [prefix]


def _pieces(model: PreTrainedModel, ids: list[int]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Logits in fp32 on the CPU, shape (T, V), with their T targets, each token but the first once.

    Pieces of a window, because large vocabularies make large tables.
    """
    context = model.config.max_position_embeddings
    for start in range(0, len(ids) - 1, context):
        window = ids[start : start + context + 1]
        inputs_1T = torch.tensor([window[:-1]], device=model.device)
        logits_1TV = model(input_ids=inputs_1T, use_cache=False).logits
        for first in range(0, len(window) - 1, _PIECE):
            yield logits_1TV[0, first : first + _PIECE].float().cpu(), window[1 + first :][:_PIECE]


def _next_tokens(log_p_V: torch.Tensor, entries: Vocabulary, pending: bytes, top: int) -> NextTokens:
    p_V = log_p_V.exp()
    invalid_V = entries.invalid_after(pending, len(p_V))
    best = torch.topk(p_V, min(top, len(p_V)))
    return NextTokens(
        entropy_bits=-float((p_V * log_p_V.clamp(min=-1e4)).sum()) / math.log(2),
        candidates=[
            Candidate(index, entries.of(index), p)
            for index, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        invalid_utf8_share=float(p_V[invalid_V].sum()),
    )


def _located(text: str, ids: list[int], nats: list[float | None], entries: Vocabulary) -> list[Fragment]:
    """Give each token its bytes and its place.

    SentencePiece may put a space before the text, which belongs to no byte of it.
    """
    raws = [entries.of(index) for index in ids]
    if raws and b"".join(raws) == b" " + text.encode():
        raws[0] = raws[0][1:]
    fragments, start = [], 0
    for index, raw, loss in zip(ids, raws, nats, strict=True):
        fragments.append(Fragment(index, raw, readable(raw), loss, start, start + len(raw)))
        start += len(raw)
    return fragments


def by_predictability(fragments: Iterable[Fragment], min_count: int = 1) -> list[Predictability]:
    """Tokens of a text, the most predictable (lowest mean loss) first.

    Args:
        min_count: leave out tokens that are scored less often.
    """
    losses: dict[int, list[float]] = defaultdict(list)
    raws: dict[int, bytes] = {}
    for fragment in fragments:
        if fragment.nats is not None:
            losses[fragment.token_id].append(fragment.nats)
            raws[fragment.token_id] = fragment.raw
    found = [
        Predictability(index, raws[index], readable(raws[index]), len(values), sum(values) / len(values))
        for index, values in losses.items()
        if len(values) >= min_count
    ]
    return sorted(found, key=lambda token: (token.nats, token.token_id))
