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
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ant_hf.data.decontamination import EvaluationSets, named
from ant_hf.data.sources import Source, open_source
from ant_hf.recipe import CorpusRecipe

# Of a sha256, enough to tell documents apart.
DIGEST_BYTES = 16
_DEDUPLICATION_CACHE_KIB = 128 * 1024


class Document(NamedTuple):
    """One text, normalised to NFC, and the split it belongs to."""

    text: str
    is_validation: bool


@dataclass
class CorpusCounts:
    """Where every document read went: read = empty + duplicate + contaminated + train + validation."""

    read: int = 0
    empty: int = 0
    duplicate: int = 0
    train: int = 0
    validation: int = 0
    contaminated: int = 0
    contaminated_by_set: dict[str, int] = field(default_factory=dict)
    """A document that shares text with two sets counts for both; empty where nothing was compared."""

    @classmethod
    def beginning(cls, sets: Iterable[str]) -> CorpusCounts:
        """Nothing read yet, and these evaluation sets to compare with."""
        return cls(contaminated_by_set=dict.fromkeys(sets, 0))

    def add_contaminated(self, names: list[str]) -> None:
        self.contaminated += 1
        for name in names:
            self.contaminated_by_set[name] += 1

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.contaminated_by_set:
            del values["contaminated"], values["contaminated_by_set"]
        return values


class Corpus:
    """The documents of one source; can be iterated again, `counts` describes the latest pass."""

    def __init__(
        self, source: Source, validation_fraction: float, evaluation_sets: EvaluationSets | None = None
    ) -> None:
        self.source = source
        self.validation_fraction = validation_fraction
        self.evaluation_sets = evaluation_sets
        self.counts = CorpusCounts()

    @classmethod
    def from_recipe(cls, recipe: CorpusRecipe) -> Corpus:
        sets = EvaluationSets.find(recipe.decontaminate) if recipe.decontaminate else None
        return cls(open_source(recipe), recipe.validation_fraction, sets)

    def identity(self) -> dict[str, Any]:
        """What decides the documents and their split, as JSON values."""
        values = {**self.source.identity(), "validation_fraction": self.validation_fraction}
        # Absent where nothing is compared, so that corpora packed before keep their identity.
        return values | ({"decontaminate": self.evaluation_sets.identity()} if self.evaluation_sets else {})

    def __iter__(self) -> Iterator[Document]:
        sets = self.evaluation_sets
        self.counts = CorpusCounts.beginning(sets.names if sets else ())
        seen = SeenDigests()
        for raw in self.source.documents():
            self.counts.read += 1
            data = normalised(raw)
            if not data:
                self.counts.empty += 1
                continue
            digest = hashlib.sha256(data).digest()
            if not seen.add(digest[:DIGEST_BYTES]):
                self.counts.duplicate += 1
                continue
            text = data.decode("utf-8")
            if sets and (shared := sets.sharing(text)):
                self.counts.add_contaminated(named(shared, sets.names))
                continue
            is_validation = in_validation_split(digest, self.validation_fraction)
            if is_validation:
                self.counts.validation += 1
            else:
                self.counts.train += 1
            yield Document(text, is_validation)


def normalised(raw: str) -> bytes:
    """A document's text in NFC as UTF-8; nothing if it is only white space."""
    text = unicodedata.normalize("NFC", raw)
    # A lone surrogate (JSON can carry one) has no UTF-8 form: it becomes a question mark.
    return text.encode("utf-8", errors="replace") if text.strip() else b""


def in_validation_split(digest: bytes, fraction: float) -> bool:
    """Whether a document with this sha256 is held out: its first 8 bytes as a number in [0, 1)."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class SeenDigests:
    """A set of digests of `DIGEST_BYTES` in bounded memory."""

    def __init__(self) -> None:
        # An empty name is SQLite's private temporary database: a cache first, a file when that is full.
        # `tokenizers` iterates from a thread of its own; only one thread at a time does.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in (
            f"cache_size = -{_DEDUPLICATION_CACHE_KIB}",
            "journal_mode = OFF",
            "synchronous = OFF",
        ):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, digest: bytes) -> bool:
        """Remember a digest; False if it was there already."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
