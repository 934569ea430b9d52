"""One model looked at from all sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ant_hf.errors import AntError
from ant_hf.inspection.activations import Activations, read_activations
from ant_hf.inspection.embeddings import Embeddings, count_tokens, read_embeddings
from ant_hf.inspection.fragments import NextTokens, Reading, next_tokens, prefix_ids, read_text
from ant_hf.inspection.heads import Head, read_heads
from ant_hf.inspection.texts import Text
from ant_hf.inspection.vocabulary import Vocabulary, vocabulary
from ant_hf.inspection.weights import Matrix, check_finite, layers_of, read_matrices
from ant_hf.model.architecture import Ledger, parameter_ledger
from ant_hf.model.loading import Subject

CANDIDATES = 20
Advance = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Advance]]


@dataclass(frozen=True)
class Place:
    """What a model expects at one place of the text."""

    position: int
    """Tokens before it."""
    before: str
    """The end of what comes before it, readable."""
    expected: NextTokens


@dataclass(frozen=True)
class Inspection:
    """Everything that is shown of a model."""

    name: str
    facts: list[tuple[str, str]]
    """Name and value of what shapes the model, the same names in the same order for every model."""
    ledger: Ledger
    matrices: list[Matrix]
    heads: list[Head]
    embeddings: Embeddings
    activations: Activations
    reading: Reading
    text_source: str
    place: Place
    entries: Vocabulary

    @property
    def uniform_nats(self) -> float:
        """Loss of giving every token the same probability."""
        return math.log(len(self.embeddings.counts))

    @property
    def invalid_utf8_share(self) -> float:
        """Probability on bytes that cannot follow, mean over the text's places."""
        return float(np.mean([e.invalid_utf8_share for e in self.reading.expected if e is not None]))

    @property
    def entropy_bits(self) -> float:
        """Entropy of the next token, mean over the text's places."""
        return float(np.mean([e.entropy_bits for e in self.reading.expected if e is not None]))


def inspect_model(
    subject: Subject,
    text: Text,
    tokens: Path | None,
    position: int | None,
    bar: Bar,
    beside: Inspection | None = None,
) -> Inspection:
    """Measure a loaded model and read the text with it.

    Args:
        tokens: packed tokens of the training, for the frequencies; else the text's own are taken.
        position: token of the text whose distribution is shown, 0 the first; None: the one after the last.
        bar: makes a progress bar of a label.
        beside: another model's, whose place in the text is taken instead of `position`.

    Raises:
        AntError: not built like a Llama, not finite, a tokenizer that cannot be read, or no such position.
    """
    model, tokenizer = subject.model, subject.tokenizer
    layers_of(model)
    check_finite(model)
    entries = vocabulary(tokenizer)
    reading = read_text(model, tokenizer, text.content, CANDIDATES)
    place = _place(subject, reading, _same_position(beside, reading) if beside else position)
    with bar("spectra") as advance:
        matrices = read_matrices(model, advance)
    ids = [fragment.token_id for fragment in reading.fragments]
    size = model.config.vocab_size
    if tokens:
        with bar("counting tokens") as advance:
            counts, counted = count_tokens(tokens, size, advance), "the training tokens"
    else:
        counts, counted = np.bincount(ids, minlength=size), f"the text ({text.source})"
    return Inspection(
        name=subject.name,
        facts=_facts(subject),
        ledger=parameter_ledger(model.config),
        matrices=matrices,
        heads=read_heads(model),
        embeddings=read_embeddings(model, counts, counted, from_training=tokens is not None),
        activations=read_activations(model, prefix_ids(tokenizer) + ids),
        reading=reading,
        text_source=text.source,
        place=place,
        entries=entries,
    )


def _same_position(beside: Inspection, reading: Reading) -> int | None:
    """The token at the byte where the other model's place begins; None for the end of the text."""
    place, others = beside.place.position, beside.reading.fragments
    if place == len(others):
        return None
    return next(i for i, fragment in enumerate(reading.fragments) if fragment.end > others[place].start)


def _place(subject: Subject, reading: Reading, position: int | None) -> Place:
    fragments = reading.fragments
    end = len(fragments)
    position = end if position is None else position
    if not 0 <= position <= end:
        raise AntError(
            "no such position in the text", seen=position, expected=f"0 to {end}, its number of tokens"
        )
    before = "".join(fragment.text for fragment in fragments[max(0, position - 12) : position])
    if position < end:
        expected = reading.expected[position]
        if expected is None:
            raise AntError(
                "nothing comes before position 0, and this tokenizer has no beginning-of-text token"
            )
        return Place(position, before, expected)
    ids = prefix_ids(subject.tokenizer) + [fragment.token_id for fragment in fragments]
    return Place(position, before, next_tokens(subject.model, subject.tokenizer, ids, CANDIDATES))


def _facts(subject: Subject) -> list[tuple[str, str]]:
    config = subject.model.config
    attention: Any = layers_of(subject.model)[0].self_attn
    size = attention.head_dim
    heads, groups = (projection.out_features // size for projection in (attention.q_proj, attention.k_proj))
    hidden, layers = config.hidden_size, config.num_hidden_layers
    ledger = parameter_ledger(config)
    prefix = prefix_ids(subject.tokenizer)
    names = "".join(vocabulary(subject.tokenizer).text(index) for index in prefix)
    mlp = getattr(config, "intermediate_size", None)
    return [
        ("parameters", f"{ledger.total:,}"),
        ("of them embeddings", f"{ledger.embedding_share:.1%}"),
        ("hidden size (width)", f"{hidden:,}"),
        ("layers (depth)", f"{layers:,}"),
        ("width / depth", f"{hidden / layers:.1f}"),
        ("query heads x head size", f"{heads} x {size}"),
        ("key-value heads", f"{groups} (1 for {heads // groups} query heads)"),
        ("key-value width", f"{groups * size} ({groups * size / hidden:.1%} of the hidden size)"),
        ("MLP width", f"{mlp:,} ({mlp / hidden:.2f} x the hidden size)" if mlp else "not in the config"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("context", f"{subject.context_length:,} tokens"),
        ("embeddings and output tied", "yes" if ledger.tied else "no"),
        ("read before a text", names or "nothing"),
    ]
