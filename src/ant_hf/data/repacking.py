"""Blocks of documents that are shuffled afresh each pass, of one text or of several in given shares.

Each part of a text is an endless stream: all its documents in an order of their own, then all of them in
another order, and so on. The streams are merged so that at every place each part has given its share of the
tokens, to within a document. The merged stream is cut into blocks, and the blocks are shuffled within rounds,
so that a long document does not fill a step. All of it is a function of the seed and the place: any block of
the run can be read without those before it.

A share of the documents may be read paragraph by paragraph. A blank line then becomes an end of text, and the
paragraphs are shuffled like documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer

from ant_hf.data.dataset import PackedDataset, TrainingOrder, check_one_block
from ant_hf.data.tokens import TRAIN, PackedTokens
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.utils.names import TOKENIZER

# Blocks are shuffled among so many tokens, or among as many as there are: a longer round mixes long
# documents better, and takes more memory, about 30 bytes per document.
ROUND_TOKENS = 1 << 26
# What is read lies in two rounds, or in two passes, where one ends.
_KEPT = 3
# Tokens of a paragraph that can stand alone: a heading or a "Yes." stays with what follows.
SHORTEST_PARAGRAPH = 8

Array = np.ndarray[Any, Any]
Made = TypeVar("Made")


def _recent(kept: dict[int, Made], number: int, make: Callable[[int], Made]) -> Made:
    """What `make` makes of a number, remembered for the latest few."""
    if number not in kept:
        if len(kept) >= _KEPT:
            del kept[next(iter(kept))]
        kept[number] = make(number)
    return kept[number]


class Paragraphs(NamedTuple):
    """Which documents are read paragraph by paragraph, and where those end."""

    share: float
    """Of the documents."""
    newlines: Array
    """Of each token that is nothing else, how many; shape (vocab_size,)."""

    @classmethod
    def of(cls, share: float, tokenizer: Tokenizer) -> Paragraphs:
        """Find what a tokenizer makes of blank lines.

        Raises:
            AntError: it puts a token before every text, or has no token for the end of a line alone.
        """
        texts = (tokenizer.decode([index]) for index in range(tokenizer.get_vocab_size()))
        newlines = np.array([0 if text.strip("\n") else len(text) for text in texts], dtype=np.uint8)
        before, after = (len(tokenizer.encode("a", add_special_tokens=added).ids) for added in (False, True))
        if before != after or not newlines.any():
            raise AntError(
                "training.split_paragraphs needs a tokenizer that has a token for the end of a line, and "
                "puts none before a text",
                hint="Leave it out: --set training.split_paragraphs=0",
            )
        return cls(share, newlines)

    def cut(self, tokens: PackedTokens, rng: np.random.Generator) -> tuple[Array, Array]:
        """Where each paragraph, or whole document, begins and ends, in tokens: two arrays of one shape.

        A blank line is in none of them, but for one token, which becomes the end of text.
        """
        ends = tokens.document_ends
        begins = np.concatenate([[0], ends[:-1]])
        found = self.newlines[tokens.slice(0, len(tokens))]
        change = np.diff((found > 0).astype(np.int8), prepend=0, append=0)
        starts, stops = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
        if not len(starts):
            return begins, ends
        document = np.searchsorted(ends, starts, side="right")
        is_chosen = rng.random(len(ends)) < self.share
        is_blank = (np.add.reduceat(found, starts, dtype=np.int64) >= 2) & is_chosen[document]
        starts, stops, document = starts[is_blank], stops[is_blank], document[is_blank]
        before = starts - np.maximum(np.concatenate([[0], stops])[:-1], begins[document])
        is_cut = np.minimum(before, ends[document] - 1 - stops) >= SHORTEST_PARAGRAPH
        return np.sort(np.r_[begins, stops[is_cut]]), np.sort(np.r_[ends, starts[is_cut] + 1])


class _Pass(NamedTuple):
    """All documents of a part in the order of one pass; every array has the shape (documents,)."""

    order: Array
    ends: Array
    """In tokens of this pass."""
    middles: Array


class _Stream:
    """One part's documents, pass after pass."""

    def __init__(
        self, tokens: PackedTokens, seed: int, number: int, paragraphs: Paragraphs | None = None
    ) -> None:
        ends = tokens.document_ends
        self.starts = np.concatenate([[0], ends[:-1]])
        if paragraphs:
            self.starts, ends = paragraphs.cut(tokens, np.random.default_rng((seed, number, 2)))
        self.lengths = ends - self.starts
        self.size, self._seed, self._number = int(self.lengths.sum()), seed, number
        self._passes: dict[int, _Pass] = {}

    def _pass(self, number: int) -> _Pass:
        # The last number sets these apart from the shuffles of blocks.
        order = np.random.default_rng((self._seed, self._number, number, 1)).permutation(len(self.lengths))
        ends = np.cumsum(self.lengths[order])
        return _Pass(order, ends, ends - self.lengths[order] / 2)

    def _at(self, place: float) -> tuple[int, _Pass, int]:
        """The pass of a place in the stream, and how many of its documents have their middle before it."""
        number = int(place // self.size)
        of_pass = _recent(self._passes, number, self._pass)
        return number, of_pass, int(np.searchsorted(of_pass.middles, place - number * self.size))

    def tokens_before(self, place: float) -> int:
        """Tokens of the documents whose middle is before a place."""
        number, of_pass, rank = self._at(place)
        return number * self.size + (int(of_pass.ends[rank - 1]) if rank else 0)

    def between(self, start: float, stop: float) -> tuple[Array, Array]:
        """The documents with their middle in [start, stop), and those middles."""
        (first, _, begin), (last, _, end) = self._at(start), self._at(stop)
        documents, middles = [], []
        for number in range(first, last + 1):
            of_pass = _recent(self._passes, number, self._pass)
            chosen = slice(begin if number == first else 0, end if number == last else None)
            documents.append(of_pass.order[chosen])
            middles.append(number * self.size + of_pass.middles[chosen])
        return np.concatenate(documents), np.concatenate(middles)


class _Table(NamedTuple):
    """Successive documents of the merged stream; every array has the shape (documents,)."""

    start: int
    """Where the first begins in the stream, in tokens."""
    ends: Array
    parts: Array
    starts: Array
    """Where each begins in the tokens of its part."""

    @property
    def end(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else self.start


class DecayMix(NamedTuple):
    """Other shares while the learning rate decays."""

    begins: int
    """The block of the run that is the first of the decay."""
    shares: Sequence[float]


class RepackedBlocks:
    """The blocks of `sequence_length` tokens that documents give which are shuffled each pass.

    Block 7 is the eighth of the run, whatever the pass: there is no last one, and none is padded. `len()` is
    the number of blocks that are shuffled together, a round.

    Args:
        parts: the tokens of each part.
        shares: of the tokens of the run, which add up to 1.
        decay: where the shares become others, and those.
        paragraphs: what is read paragraph by paragraph, if anything is.

    Raises:
        AntError: there are fewer tokens than one block holds.
    """

    def __init__(
        self,
        parts: Sequence[PackedTokens],
        shares: Sequence[float],
        sequence_length: int,
        seed: int,
        decay: DecayMix | None = None,
        paragraphs: Paragraphs | None = None,
    ) -> None:
        self.parts, self.sequence_length = parts, sequence_length
        self._streams = [_Stream(tokens, seed, number, paragraphs) for number, tokens in enumerate(parts)]
        self.tokens = sum(stream.size for stream in self._streams)
        check_one_block(parts[0].split, self.tokens, sequence_length)
        self._tables: dict[int, _Table] = {}
        self.decay_begins = decay.begins if decay else 0
        # It begins with a round of its own.
        self._change = -(-self.decay_begins // len(self))
        self._shares, self._later = shares, decay.shares if decay else shares

    def __len__(self) -> int:
        return -(-min(self.tokens, ROUND_TOKENS) // self.sequence_length)

    def _given(self, number: int) -> list[float]:
        """What of each part belongs to the rounds before this one, in tokens."""
        span = len(self) * self.sequence_length
        before, after = min(number, self._change) * span, max(0, number - self._change) * span
        return [before * one + after * other for one, other in zip(self._shares, self._later, strict=True)]

    def _table(self, number: int) -> _Table:
        """The documents of a round: each part's, merged by the share of it that was given."""
        start, found = 0, []
        origin, shares = (0, self._shares) if number < self._change else (self._change, self._later)
        bounds = zip(self._given(origin), self._given(number), self._given(number + 1), strict=True)
        for part, (stream, share, (zero, begin, end)) in enumerate(
            zip(self._streams, shares, bounds, strict=True)
        ):
            documents, middles = stream.between(begin, end)
            start += stream.tokens_before(begin)
            of_part = np.full(len(documents), part)
            given = (middles - zero) / share
            found.append((given, of_part, stream.starts[documents], stream.lengths[documents]))
        keys, parts, starts, lengths = map(np.concatenate, zip(*found, strict=True))
        order = np.argsort(keys, kind="stable")
        return _Table(start, start + np.cumsum(lengths[order]), parts[order], starts[order])

    def _table_at(self, place: int) -> tuple[int, _Table]:
        # Documents that lie across its ends belong to the span of their middle.
        number = place // (len(self) * self.sequence_length)
        while (table := _recent(self._tables, number, self._table)).start > place:
            number -= 1
        while (table := _recent(self._tables, number, self._table)).end <= place:
            number += 1
        return number, table

    def pieces(self, index: int) -> Iterator[tuple[int, int, int, bool]]:
        """What block `index` is made of: part, place in its tokens, number of tokens, whether a text ends."""
        place, stop = index * self.sequence_length, (index + 1) * self.sequence_length
        while place < stop:
            _, table = self._table_at(place)
            document = int(np.searchsorted(table.ends, place, side="right"))
            begin = int(table.ends[document - 1]) if document else table.start
            end = int(table.ends[document])
            size = min(end, stop) - place
            start = int(table.starts[document]) + place - begin
            place += size
            yield int(table.parts[document]), start, size, place == end

    def given_before(self, index: int) -> Array:
        """Tokens that each part gives to the blocks before `index` of the stream, shape (parts,)."""
        place = index * self.sequence_length
        number, table = self._table_at(place)
        before = [s.tokens_before(given) for s, given in zip(self._streams, self._given(number), strict=True)]
        sizes = np.diff(np.minimum(table.ends, place), prepend=table.start)
        return before + np.bincount(table.parts, weights=sizes, minlength=len(before)).astype(np.int64)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Several blocks: `input_ids` and `labels`, one int64 tensor of shape (n, sequence_length)."""
        ids = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for row, index in zip(ids, indices, strict=True):
            done = 0
            for part, start, size, is_end in self.pieces(index):
                self.parts[part].read_into(row[done : done + size], start)
                done += size
                if is_end:
                    row[done - 1] = self.parts[part].end_of_text
        input_ids = torch.from_numpy(ids)
        return {"input_ids": input_ids, "labels": input_ids}


class RepackedOrder(TrainingOrder):
    """The blocks of a run where each pass is packed afresh; otherwise as `TrainingOrder`.

    A decay with a mix of its own begins with a new round, and the rest of the one before is not read.
    """

    blocks: RepackedBlocks  # type: ignore[assignment]  # what is used of them is the same

    def block_index(self, position: int) -> int:
        """Which block of the run's endless stream stands at `position`."""
        if position >= self.blocks.decay_begins:
            position += -self.blocks.decay_begins % len(self.blocks)
        return position - position % len(self.blocks) + super().block_index(position)

    def tokens_before(self, position: int) -> int:
        """Tokens in the first `position` blocks."""
        return position * self.blocks.sequence_length

    def tokens_by_part(self) -> list[int]:
        """The tokens that each part gives to the whole run, shape (parts,)."""
        size, decay_begins = len(self.blocks), self.blocks.decay_begins
        counts = np.zeros(len(self.blocks.parts), dtype=np.int64)
        for begin, end in ((0, decay_begins), (decay_begins, self.length)):
            whole = end - (end - begin) % size
            if whole > begin:
                first = begin + -begin % size
                counts += self.blocks.given_before(first + whole - begin) - self.blocks.given_before(first)
            # Of a round that the run leaves early, each block counts for itself.
            for position in range(whole, end):
                for part, _, tokens, _ in self.blocks.pieces(self.block_index(position)):
                    counts[part] += tokens
        return list(map(int, counts))


def training_order(recipe: Recipe, pad_token_id: int) -> TrainingOrder:
    """The blocks of a recipe's run, of packed tokens that are there, in their order.

    Raises:
        AntError: there are fewer tokens than one block holds.
    """
    training, parts = recipe.training, recipe.corpus.parts
    length = training.max_steps * training.sequences_per_step
    if not parts and not training.repack_each_pass:
        tokens = PackedTokens(recipe.tokens_dir, TRAIN)
        return TrainingOrder(
            PackedDataset(tokens, training.sequence_length, pad_token_id), length, training.seed
        )
    texts = [PackedTokens(recipe.tokens_dir, TRAIN, part=name) for name in parts or [None]]
    shares = [part.weight for part in parts.values()] or [1.0]
    decay = None
    if later := [part.decay_weight for part in parts.values() if part.decay_weight is not None]:
        decay = DecayMix(training.decay_begins * training.sequences_per_step, later)
    paragraphs = None
    if training.split_paragraphs:
        tokenizer = Tokenizer.from_file(str(recipe.tokenizer_dir / TOKENIZER))
        paragraphs = Paragraphs.of(training.split_paragraphs, tokenizer)
    blocks = RepackedBlocks(texts, shares, training.sequence_length, training.seed, decay, paragraphs)
    return RepackedOrder(blocks, length, training.seed)  # type: ignore[arg-type]


def given_by_parts(order: TrainingOrder, recipe: Recipe) -> dict[str, dict[str, Any]] | None:
    """What each part of a mix gives to a run: tokens, and how often its text is passed over."""
    if not recipe.corpus.parts or not isinstance(order, RepackedOrder):
        return None
    given = zip(recipe.corpus.parts.items(), order.blocks.parts, order.tokens_by_part(), strict=True)
    return {
        name: {
            "share": part.weight,
            **({} if part.decay_weight is None else {"decay_share": part.decay_weight}),
            "tokens": tokens,
            "documents": text.documents,
            "tokens_of_text": len(text),
            "passes": tokens / len(text),
        }
        for (name, part), text, tokens in given
    }
