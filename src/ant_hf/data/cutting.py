"""A single text, or very few, cut so that a part of it can be held out.

The unit is the paragraph: blank lines end it; where it is too long, its sentences do, or blocks of a size.
Blocks of neighbouring paragraphs are held out, chosen by the hash of their text until they are the share that
was asked for. What stands between two of them stays together, in documents of 16,000 characters: several
times the longest context of these models, and little to lose where one quotes an evaluation set. Long
paragraphs that come again are left out, as equal documents are, and short ones ("* * *", "Yes.") where they
are held out and trained on as well: no paragraph is on both sides.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

# With another value a text is cut in other places: part of the identity of what is packed.
CUT_VERSION = 1
_BLANK_LINES = re.compile(r"(?:\r\n|\n|\r(?!\n))(?:[ \t]*(?:\r\n|\n|\r(?!\n)))+")
_SENTENCE_END = re.compile(
    r"""[.!?\u2026\u061f\u0964]+["'\u201d\u2019\xbb)\]]*\s+|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*\s*"""
)
# A paragraph may be as long; blocks are smaller where the share is of a small text.
_LONGEST_PARAGRAPH = 4096
_SMALLEST_BLOCK, _LARGEST_BLOCK = 512, 4096
# So many hit the share, from many places.
_BLOCKS_WANTED = 16
_DOCUMENT_CHARACTERS = 16_000
_LONG_PARAGRAPH = 64
# Two blocks at least, and something to learn from.
SMALLEST_TEXT = 4096
_LEFT_OUT, _TRAINING, _HELD_OUT = range(3)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text, each with the white space after it: joined they are the text."""
    for paragraph in _ended_by(_BLANK_LINES, text):
        if len(paragraph) <= _LONGEST_PARAGRAPH:
            yield paragraph
            continue
        for sentence in _ended_by(_SENTENCE_END, paragraph):
            while len(sentence) > _LONGEST_PARAGRAPH:
                end = max(sentence.rfind(space, 0, _LONGEST_PARAGRAPH) for space in "\n ") + 1
                yield sentence[: end or _LONGEST_PARAGRAPH]
                sentence = sentence[end or _LONGEST_PARAGRAPH :]
            yield sentence


def _ended_by(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    start = 0
    for match in pattern.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]


@dataclass(frozen=True)
class Cut:
    """What becomes of each paragraph of a corpus."""

    sides: bytes
    """One a paragraph, in their order."""
    characters: int
    held_out: int
    """Blocks, some of which may be neighbours."""
    repeated: int
    """Paragraphs that are left out."""

    @classmethod
    def of(cls, texts: Iterable[str], fraction: float) -> Cut | None:
        """Decide it for a corpus; None where it is too short, or repeats itself too much, for two parts.

        Needs about 100 bytes of memory a paragraph.

        Args:
            texts: its different documents, in NFC.
        """
        hashes, sizes, firsts = array("Q"), array("I"), array("Q")
        for text in texts:
            firsts.append(len(hashes))
            for paragraph in paragraphs(text):
                hashes.append(_hash(paragraph))
                sizes.append(len(paragraph))
        hash_of, size = np.frombuffer(hashes, np.uint64), np.frombuffer(sizes, np.uint32).astype(np.int64)
        if size.sum() < SMALLEST_TEXT:
            return None
        _, first, inverse, times = np.unique(
            hash_of, return_index=True, return_inverse=True, return_counts=True
        )
        is_kept, is_long = np.zeros(len(size), np.bool_), size >= _LONG_PARAGRAPH
        is_kept[first] = True
        is_kept |= ~is_long
        # In the text that is kept, nothing equals it.
        is_single = is_kept & (is_long | (times == 1)[inverse])
        kept = np.where(is_kept, size, 0)
        wanted = fraction * kept.sum()
        block = int(np.clip(wanted / _BLOCKS_WANTED, _SMALLEST_BLOCK, _LARGEST_BLOCK))
        number = (np.cumsum(kept) - kept) // block
        begins = np.diff(number, prepend=-1) > 0
        begins[np.frombuffer(firsts, np.uint64)] = True
        starts = np.flatnonzero(begins)
        # Of what would be held out of it.
        characters = np.add.reduceat(np.where(is_single, size, 0), starts)
        digest = np.add.reduceat(np.where(is_kept, hash_of, np.uint64(0)), starts)
        large = np.flatnonzero(characters >= block // 2)
        if len(large) < 2:
            return None
        by_hash = large[np.argsort(digest[large], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(characters[by_hash]), wanted)) + 1
        chosen = by_hash[: min(enough, len(large) - 1)]
        is_held_out = np.isin(np.cumsum(begins) - 1, chosen)
        sides = np.where(is_held_out, _HELD_OUT, _TRAINING).astype(np.uint8)
        sides[~is_kept] = _LEFT_OUT
        again = is_held_out & is_kept & ~is_single
        trained = hash_of[~is_held_out & is_kept & ~is_single]
        sides[again] = np.where(np.isin(hash_of[again], trained), _LEFT_OUT, _HELD_OUT)
        return cls(sides.tobytes(), int(size.sum()), len(chosen), int((sides == _LEFT_OUT).sum()))

    def documents(self, texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
        """The texts that this was decided for as documents, each with whether it is held out."""
        sides = iter(self.sides)
        for text in texts:
            document, side = "", _TRAINING
            for paragraph, of_this in zip(paragraphs(text), sides, strict=False):
                if of_this == _LEFT_OUT:
                    continue
                if document and (of_this != side or len(document) >= _DOCUMENT_CHARACTERS):
                    yield document, side == _HELD_OUT
                    document = ""
                document, side = document + paragraph, of_this
            if document:
                yield document, side == _HELD_OUT


def _hash(paragraph: str) -> int:
    text = paragraph.strip().replace("\r\n", "\n").replace("\r", "\n")
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
