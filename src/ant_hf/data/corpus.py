"""A source becomes a stream of documents: NFC, no duplicates, each on a fixed side of the split.

The side is decided by the document's own hash, so that adding text to a corpus never moves a
validation document into the training split. Documents that quote an evaluation set are left out
where the recipe names such sets. Exact duplicates are found through a private SQLite
database that spills to disk: slower than a set, but its memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ant_hf.data.decontamination import EvaluationSets
from ant_hf.data.sources import Source, open_source
from ant_hf.data.tokens import TRAIN, VALIDATION
from ant_hf.recipe import CorpusRecipe

# Of a sha256, enough to tell documents apart.
DIGEST_BYTES = 16
# Stands for the digest of a document without text.
NO_TEXT = bytes(DIGEST_BYTES)
_DEDUPLICATION_CACHE_KIB = 128 * 1024


class Document(NamedTuple):
    """One text, normalised to NFC, and the split it belongs to."""

    text: str
    split: str

    @property
    def characters(self) -> int:
        return len(self.text)

    @property
    def is_validation(self) -> bool:
        return self.split == VALIDATION


@dataclass
class CorpusCounts:
    """Where every document read went: read = empty + duplicate + contaminated + train + validation."""

    contaminated_by_set: dict[str, int]
    """A document that shares text with two sets counts for both; empty where nothing was compared."""
    read: int = 0
    empty: int = 0
    duplicate: int = 0
    contaminated: int = 0
    train: int = 0
    validation: int = 0

    def as_written(self, documents: int) -> dict[str, Any]:
        """For a manifest whose shards hold so many documents; the others of the splits are past the limit."""
        counts: dict[str, Any] = {"read": self.read, "empty": self.empty, "duplicate": self.duplicate}
        if self.contaminated_by_set:
            counts["contaminated"] = self.contaminated
            counts["contaminated_by_set"] = self.contaminated_by_set
        return {**counts, "past_limit": self.train + self.validation - documents}


class Intake:
    """Decides what becomes of each document of a corpus, in their order, and counts it.

    Args:
        sets: names of the evaluation sets that documents are compared with.
    """

    def __init__(self, validation_fraction: float, sets: Iterable[str] = ()) -> None:
        self.counts = CorpusCounts(dict.fromkeys(sets, 0))
        self._validation_fraction = validation_fraction
        # An empty name is SQLite's private temporary database: a cache first, a file when that is full.
        # `tokenizers` iterates from a thread of its own; only one thread at a time does.
        self._seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            f"PRAGMA cache_size = -{_DEDUPLICATION_CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID",
        ):
            self._seen.execute(statement)

    def is_new(self, digest: bytes) -> bool:
        """Whether a document that was read has text, and none before it had the same."""
        self.counts.read += 1
        if digest == NO_TEXT:
            self.counts.empty += 1
            return False
        is_new = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
        self.counts.duplicate += not is_new
        return is_new

    def split_of(self, digest: bytes, shared: int) -> str | None:
        """The split of a new document; none if it shares text with evaluation sets, one bit each."""
        if shared:
            self.counts.contaminated += 1
            for index, name in enumerate(self.counts.contaminated_by_set):
                self.counts.contaminated_by_set[name] += shared >> index & 1
            return None
        if in_validation_split(digest, self._validation_fraction):
            self.counts.validation += 1
            return VALIDATION
        self.counts.train += 1
        return TRAIN


class Corpus:
    """The documents of one source; can be iterated again, `counts` describes the latest pass."""

    def __init__(
        self, source: Source, validation_fraction: float, sets: EvaluationSets | None = None
    ) -> None:
        self.source = source
        self.validation_fraction = validation_fraction
        self.sets = sets or EvaluationSets({})
        self.counts = CorpusCounts({})

    @classmethod
    def from_recipe(cls, recipe: CorpusRecipe) -> Corpus:
        return cls(open_source(recipe), recipe.validation_fraction, EvaluationSets.find(recipe.decontaminate))

    def identity(self) -> dict[str, Any]:
        """What decides the documents and their split, as JSON values."""
        values = {**self.source.identity(), "validation_fraction": self.validation_fraction}
        # Absent where nothing is compared, so that corpora packed before keep their identity.
        return values | ({"decontaminate": self.sets.identity()} if self.sets.files else {})

    def __iter__(self) -> Iterator[Document]:
        intake = Intake(self.validation_fraction, self.sets.files)
        self.counts = intake.counts
        for raw in self.source.documents():
            digest, text = identified(raw)
            if intake.is_new(digest) and (split := intake.split_of(digest, self.sets.sharing(text))):
                yield Document(text, split)


def normalised(raw: str) -> bytes:
    """A document's text in NFC as UTF-8; nothing if it is only white space."""
    text = unicodedata.normalize("NFC", raw)
    # A lone surrogate (JSON can carry one) has no UTF-8 form: it becomes a question mark.
    return text.encode("utf-8", errors="replace") if text.strip() else b""


def identified(raw: str) -> tuple[bytes, str]:
    """The digest and the normalised text of a document; `NO_TEXT` if it is only white space."""
    data = normalised(raw)
    return hashlib.sha256(data).digest()[:DIGEST_BYTES] if data else NO_TEXT, data.decode("utf-8")


def in_validation_split(digest: bytes, fraction: float) -> bool:
    """Whether a document with this sha256 is held out: its first 8 bytes as a number in [0, 1)."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
