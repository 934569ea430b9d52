"""What a corpus is and how long its preparation takes, from a few seconds of reading; nothing is written."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants

from ant_hf.data.corpus import Corpus, Document
from ant_hf.data.packing import (
    CHUNK_CHARACTERS,
    CHUNKS_WITHOUT_WORKERS,
    Encoder,
    chunks,
    packing_inputs,
    unfit,
)
from ant_hf.data.sources import HubDataset, LocalFiles, Source
from ant_hf.data.tokenizer import load_tokenizer, most_entries, train_on, trained_before
from ant_hf.data.tokens import TRAIN, VALIDATION, packed_before
from ant_hf.errors import AntError
from ant_hf.hub import hub_or_cache
from ant_hf.recipe import Recipe, TokenizerRecipe
from ant_hf.utils.hardware import available_cores
from ant_hf.utils.names import TOKENIZER


@dataclass(frozen=True)
class Survey:
    """A recipe's text and the seconds to prepare it on this machine; None is what cannot be told."""

    what: str
    """What was read, in words."""
    text_bytes: int | None = None
    """Of all text, estimated where it was not read to its end."""
    sample_bytes: int = 0
    """Of the text that was prepared, and its times measured."""
    is_whole: bool = False
    """Whether the tokens are counted and not estimated."""
    vocab_size: int | None = None
    """Of the tokenizer."""
    train_tokens: int | None = None
    validation_tokens: int | None = None
    tokens_by_part: dict[str, int] = field(default_factory=dict)
    """Of the training split, where the text is a mix and they can be told."""
    tokenizer_seconds: float | None = None
    """0 where the tokenizer is there and fits."""
    packing_seconds: float | None = None
    """0 where the tokens are there and fit."""


class Rates(NamedTuple):
    """Bytes of text a second."""

    reading: float
    training: float
    """A tokenizer."""
    encoding: float
    """On all cores."""


def survey(
    recipe: Recipe,
    model_max_length: int,
    seconds: float = 3.0,
    sample_bytes: int = 5_000_000,
    base: Path | None = None,
) -> Survey:
    """Open a recipe's text, read it for some seconds, and prepare a part of it in memory.

    Args:
        sample_bytes: of text, of which a tokenizer is trained, and which is encoded: as given, two or three
            seconds on two cores.
        base: as of `make_tokenizer`.

    Raises:
        AntError: what `make_data` would refuse, as far as it shows in that time: the text is missing, cannot
            be read, lacks the column, or is too small; or the folder holds other tokens or another tokenizer.
    """
    corpus = Corpus.from_recipe(recipe.corpus)
    tokenizer, _ = trained_before(recipe, corpus, model_max_length, base)
    if tokenizer and (packed := packed_before(recipe.tokens_dir, packing_inputs(recipe, corpus))):
        train, held_out = (packed["splits"][name] for name in (TRAIN, VALIDATION))
        if problem := unfit(recipe, packed):
            raise problem
        size = train["bytes"] + held_out["bytes"]
        what = f"{size:,} bytes of text, packed in {recipe.tokens_dir}"
        entries = tokenizer.get_vocab_size()
        by_part = {name: part[TRAIN]["tokens"] for name, part in packed.get("parts", {}).items()}
        return Survey(what, size, size, True, entries, train["tokens"], held_out["tokens"], by_part, 0.0, 0.0)
    for member in corpus.members:
        _look_into_every_file(member.source, seconds / len(corpus.members))
    # Here and not while the clock runs: the evaluation sets are read when the first text is compared.
    corpus.sets.sharing("")
    beginnings = []
    for member in corpus.members:
        member.source = _Beginning(member.source, seconds, sample_bytes)
        beginnings.append(member.source)
    is_of_hub = any(isinstance(beginning.source, HubDataset) for beginning in beginnings)
    with hub_or_cache() if is_of_hub else nullcontext():
        sample = _Sample(corpus, beginnings, sample_bytes)
    counts, size = corpus.counts, sample.text_bytes()
    what = (
        f"{sample.read_bytes:,} bytes of text in {counts.read:,} documents "
        f"({counts.empty:,} empty, {counts.duplicate:,} duplicates, {counts.contaminated:,} shared with "
        "evaluation sets)"
    )
    if not sample.is_whole:
        of = f", of about {size:,} bytes" if size else ""
        what = f"the first {what}{of}"
    try:
        return _estimated(recipe, sample, base or (tokenizer and recipe.tokenizer_dir), what)
    except AntError as error:
        if sample.is_whole:
            raise
        # All of the text may do where its beginning does not.
        return Survey(f"{what}; they allow no estimate: {error}", size)


def _look_into_every_file(source: Source, seconds: float) -> None:
    """Read the first document of each file, for some seconds."""
    if not isinstance(source, LocalFiles) or len(source.files) == 1:
        return
    end = time.perf_counter() + seconds
    for file in source.files:
        next(dataclasses.replace(source, files=(file,)).documents(), None)
        if time.perf_counter() > end:
            return


class _Beginning:
    """A source that ends after some seconds, and knows how much of it was read."""

    def __init__(self, source: Source, most_seconds: float, sample_bytes: int) -> None:
        self.source, self._most_seconds, self._sample_bytes = source, most_seconds, sample_bytes
        self.bytes, self.seconds, self.is_whole = 0, 0.0, False

    def identity(self) -> dict[str, Any]:
        return self.source.identity()

    def text_bytes(self) -> int | None:
        return self.bytes if self.is_whole else self.source.text_bytes()

    def documents(self) -> Iterator[str]:
        # A text that is cut is read twice.
        self.bytes, self.is_whole = 0, False
        source, is_enough = self.source, False
        if isinstance(source, HubDataset) and not constants.HF_HUB_OFFLINE:
            # A whole download would take its time; without the network only one of those is of use.
            source = HubDataset(source.recipe.model_copy(update={"streaming": True}))
        began = time.perf_counter()
        for text in source.documents():
            if not self.bytes and isinstance(source, HubDataset):
                # Finding the files of a dataset is not a reading.
                began = time.perf_counter()
            self.bytes += len(text.encode(errors="replace"))
            yield text
            self.seconds = time.perf_counter() - began
            is_enough = isinstance(source, HubDataset) and self.bytes >= self._sample_bytes
            if is_enough or self.seconds > self._most_seconds:
                return
        self.is_whole = True


class _Sample(Corpus):
    """The first documents of a corpus, and the bytes of all that were read by split.

    Args:
        beginnings: the sources of its members.
    """

    def __init__(self, corpus: Corpus, beginnings: list[_Beginning], most_bytes: int) -> None:
        self._kept: list[Document] = []
        self.sizes: Counter[str] = Counter()
        self.sizes_of_parts: Counter[tuple[int, str]] = Counter()
        for document in corpus:
            if self.sizes.total() < most_bytes:
                self._kept.append(document)
            size = len(document.text.encode())
            self.sizes[document.split] += size
            self.sizes_of_parts[document.part, document.split] += size
        self.validation_fraction, self.counts = corpus.validation_fraction, corpus.counts
        self._corpus, self.beginnings = corpus, beginnings
        self.read_bytes = sum(part.bytes for part in beginnings)
        # They were read in turn, in the same seconds.
        self.seconds = max(part.seconds for part in beginnings)
        self.is_whole = all(part.is_whole for part in beginnings)

    @property
    def members(self) -> Sequence[Corpus]:
        return self._corpus.members

    def __iter__(self) -> Iterator[Document]:
        return iter(self._kept)


def _estimated(recipe: Recipe, sample: _Sample, tokenizer: Path | None, what: str) -> Survey:
    """What the tokenizer, the tokens and the time will be.

    Args:
        tokenizer: its folder, where it need not be trained.
    """
    settings = recipe.tokenizer or TokenizerRecipe()
    began = time.perf_counter()
    trained = load_tokenizer(tokenizer) if tokenizer else train_on(sample, settings, most_entries(recipe))[0]
    training_seconds = time.perf_counter() - began
    documents, tokens, encoded = Counter[str](), Counter[str](), Counter[str]()
    parts = Counter[int]()
    with tempfile.TemporaryDirectory() as scratch:
        if not tokenizer:
            trained.save(str(Path(scratch, TOKENIZER)))
        encoder = Encoder((tokenizer or Path(scratch)) / TOKENIZER)
    began = time.perf_counter()
    for chunk in chunks(sample):
        for document in encoder.encode(chunk):
            documents[document.split] += 1
            tokens[document.split] += len(document.ids) // 2
            encoded[document.split] += document.size
            parts[document.part] += len(document.ids) // 2 if document.split == TRAIN else 0
    rates = Rates(
        reading=sample.read_bytes / max(sample.seconds, 1e-9),
        training=encoded[TRAIN] / max(training_seconds, 1e-9),
        encoding=encoded.total() / max(time.perf_counter() - began, 1e-9),
    )
    total, limit = sample.text_bytes(), recipe.corpus.max_tokens
    is_limited = limit is not None and tokens[TRAIN] > limit
    is_counted = sample.is_whole and encoded == sample.sizes and not is_limited
    if is_counted:
        held_out = {"documents": documents[VALIDATION], "tokens": tokens[VALIDATION]}
        counts = sample.counts.as_written(documents.total())
        if problem := unfit(recipe, {"splits": {VALIDATION: held_out}, "documents": counts}):
            raise problem
    if not encoded[TRAIN]:
        raise AntError(
            "the part of the corpus that was read has no text to train on",
            seen=what,
            hint="Check what corpus.path (--data) names.",
        )
    # Tokens of each split in a byte that is read.
    per_byte = tokens.total() / encoded.total()
    density = {name: size / sample.read_bytes * per_byte for name, size in sample.sizes.items()}
    packed = min(total or math.inf, limit / density[TRAIN] if limit else math.inf)
    known = {name: round(packed * value) for name, value in density.items()} if packed < math.inf else {}
    if is_counted:
        known = dict(tokens)
    learnt = min(settings.max_bytes, (total or math.inf) * sample.sizes[TRAIN] / sample.read_bytes)
    return Survey(
        what,
        total,
        encoded.total(),
        is_counted,
        trained.get_vocab_size() if tokenizer or is_counted else None,
        known.get(TRAIN),
        known.get(VALIDATION, 0) if known else None,
        _tokens_by_part(recipe, sample, per_byte, parts if is_counted else None),
        0.0 if tokenizer else learnt / rates.reading + learnt / rates.training,
        packing_seconds(rates, packed, available_cores()) if known else None,
    )


def _tokens_by_part(
    recipe: Recipe, sample: _Sample, density: float, counted: Counter[int] | None
) -> dict[str, int]:
    """Of the training split of a mix, with so many tokens in a byte; nothing where they cannot be told."""
    found, limit = {}, recipe.corpus.max_tokens
    for number, (name, part) in enumerate(recipe.corpus.parts.items()):
        source = sample.beginnings[number]
        if counted:
            found[name] = counted[number]
        elif source.bytes and (size := source.text_bytes() or limit):
            there = size * density * sample.sizes_of_parts[number, TRAIN] / source.bytes
            found[name] = round(min(there, limit * part.weight if limit else there))
        else:
            return {}
    return found


def packing_seconds(rates: Rates, size: float, cores: int) -> float:
    """For so many bytes of text: this process alone at first, then workers on all cores beside it."""
    alone = min(size, CHUNKS_WITHOUT_WORKERS * CHUNK_CHARACTERS)
    # This process only reads by then, which no core can do faster than it does.
    shared = max(1 / rates.reading, 1 / rates.encoding + 1 / (cores * rates.reading))
    return alone * (1 / rates.reading + 1 / rates.encoding) + (size - alone) * shared
