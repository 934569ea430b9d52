"""A source becomes a stream of documents: NFC, no duplicates, each on a fixed side of the split.

A mix takes them in turn from its parts. The side is decided by the document's own hash, so that adding text
never moves a validation document into the training split; a corpus of too few documents for that is cut
(`cutting.py`).
Documents that quote an evaluation set are left out where the recipe names such sets. Duplicates, equal but
for line ends and white space around them, are found through a private SQLite database that spills to disk:
slower than a set, but its memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import heapq
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ant_hf.data.cutting import CUT_VERSION, SMALLEST_TEXT, Cut
from ant_hf.data.decontamination import EvaluationSets
from ant_hf.data.sources import Source, open_source
from ant_hf.data.tokens import TRAIN, VALIDATION
from ant_hf.errors import AntError
from ant_hf.recipe import CorpusRecipe

# Of two sha256: enough of one to tell documents apart, and what decides the side of another.
_TELLS_APART, _DECIDES = 16, 8
DIGEST_BYTES = _TELLS_APART + _DECIDES
# Stands for the digest of a document without text.
NO_TEXT = bytes(DIGEST_BYTES)
_DEDUPLICATION_CACHE_KIB = 128 * 1024
# Held out by their hash, whole documents of so few may be any share of the text: it is cut where the share
# is off by this factor.
_FEW_DOCUMENTS, _FAR_OFF = 20, 2.5


class Document(NamedTuple):
    """One text, normalised to NFC, and the split it belongs to."""

    text: str
    split: str
    part: int = 0
    """Number of the part of a mix that it is from."""

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
    cut: dict[str, int] = field(default_factory=dict)
    """Of a corpus that was cut: `characters`, blocks `held_out`, `repeated` paragraphs that are left out."""
    spelled: Counter[str] = field(default_factory=Counter)
    """How often the documents kept spell out special tokens or have traces of a fault; in no manifest."""

    def as_written(self, documents: int) -> dict[str, Any]:
        """For a manifest whose shards hold so many documents; the others of the splits are past the limit."""
        counts: dict[str, Any] = {"read": self.read, "empty": self.empty, "duplicate": self.duplicate}
        if self.contaminated_by_set:
            counts["contaminated"] = self.contaminated
            counts["contaminated_by_set"] = self.contaminated_by_set
        if self.cut:
            counts["cut"] = self.cut
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
        row = (digest[:_TELLS_APART],)
        is_new = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", row).rowcount == 1
        self.counts.duplicate += not is_new
        return is_new

    def split_of(self, digest: bytes, shared: int, is_held_out: bool | None = None) -> str | None:
        """The split of a new document; none if it shares text with evaluation sets, one bit each.

        Args:
            is_held_out: its side where that is decided already.
        """
        if shared:
            self.counts.contaminated += 1
            for index, name in enumerate(self.counts.contaminated_by_set):
                self.counts.contaminated_by_set[name] += shared >> index & 1
            return None
        if is_held_out is None:
            is_held_out = in_validation_split(digest[_TELLS_APART:], self._validation_fraction)
        if is_held_out:
            self.counts.validation += 1
            return VALIDATION
        self.counts.train += 1
        return TRAIN


class Corpus:
    """The documents of one source; can be iterated again, `counts` describes the latest pass.

    Args:
        is_cut: whether the documents are cut, because no whole one falls on one of the sides; None: so far as
            reading on until both sides have a document shows.
    """

    def __init__(
        self,
        source: Source,
        validation_fraction: float,
        sets: EvaluationSets | None = None,
        is_cut: bool | None = False,
    ) -> None:
        self.source = source
        self.validation_fraction = validation_fraction
        self.sets = sets or EvaluationSets({})
        self.counts = CorpusCounts({})
        self._is_cut = is_cut

    @classmethod
    def from_recipe(cls, recipe: CorpusRecipe) -> Corpus:
        sets = EvaluationSets.find(recipe.decontaminate)
        if not recipe.parts:
            return cls(open_source(recipe), recipe.validation_fraction, sets, is_cut=None)
        parts = {
            name: Corpus(open_source(part), recipe.validation_fraction, is_cut=None)
            for name, part in recipe.parts.items()
        }
        weights = [part.weight for part in recipe.parts.values()] if recipe.max_tokens else None
        return MixedCorpus(parts, weights, sets)

    @property
    def members(self) -> Sequence[Corpus]:
        """The corpora of one source each that this is made of."""
        return [self]

    def text_bytes(self) -> int | None:
        """About how much text there is, where that is known without reading it."""
        sizes = [member.source.text_bytes() for member in self.members]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def is_cut(self) -> bool:
        if self._is_cut is None:
            self._is_cut = bool(self.validation_fraction) and self._is_split_badly()
        return self._is_cut

    def _is_split_badly(self) -> bool:
        """Whether a side of the split gets no document, or, of few, a share far from the one asked for."""
        characters, count = {False: 0, True: 0}, 0
        for digest, text in map(identified, self.source.documents()):
            if digest != NO_TEXT:
                count += 1
                side = in_validation_split(digest[_TELLS_APART:], self.validation_fraction)
                characters[side] += len(text)
            if all(characters.values()) and count > _FEW_DOCUMENTS:
                return False
        if not all(characters.values()):
            return count > 0
        total, wanted = sum(characters.values()), self.validation_fraction
        is_far = not wanted / _FAR_OFF < characters[True] / total < wanted * _FAR_OFF
        return count <= _FEW_DOCUMENTS and is_far and total >= 2 * SMALLEST_TEXT

    def identity(self, made_before: Any = None) -> dict[str, Any]:
        """What decides the documents and their split, as JSON values.

        Args:
            made_before: the identity that something was made of: it says whether this text is cut, unread.
        """
        values = {**self.source.identity(), "validation_fraction": self.validation_fraction}
        # Absent where nothing is compared or cut, so that corpora packed before keep their identity.
        values |= {"decontaminate": self.sets.identity()} if self.sets.files else {}
        if made_before and made_before.items() >= values.items():
            self._is_cut = "cut" in made_before
        return values | ({"cut": CUT_VERSION} if self.is_cut else {})

    def __iter__(self) -> Iterator[Document]:
        intake = Intake(self.validation_fraction, self.sets.files)
        self.counts = intake.counts
        for part, raw, is_held_out in self._documents(intake.counts):
            digest, text = identified(raw)
            if intake.is_new(digest) and (
                split := intake.split_of(digest, self.sets.sharing(text), is_held_out)
            ):
                yield Document(text, split, part)

    def _documents(self, counts: CorpusCounts) -> Iterator[tuple[int, str, bool | None]]:
        """Each document with its part's number, and its side where that is decided already."""
        if not self.is_cut:
            return ((0, raw, None) for raw in self.source.documents())
        cut = self._cut
        for name in ("characters", "held_out", "repeated"):
            counts.cut[name] = counts.cut.get(name, 0) + getattr(cut, name)
        return ((0, raw, side) for raw, side in cut.documents(self._different_texts(counts)))

    @cached_property
    def _cut(self) -> Cut:
        counts, texts = CorpusCounts({}), [0, 0]

        def counted() -> Iterator[str]:
            for text in self._different_texts(counts):
                texts[0] += 1
                texts[1] += len(text)
                yield text

        if cut := Cut.of(counted(), self.validation_fraction):
            return cut
        seen = f"{texts[1]:,} characters"
        if counts.duplicate:
            raise AntError(
                f"of {counts.duplicate + texts[0]:,} documents {counts.duplicate:,} repeat another, and the "
                "rest is too short to hold a part of it out",
                seen=seen,
                hint="Check how the corpus was made, or add different text.",
            )
        raise AntError(
            "the corpus is too short, or repeats itself too much, to hold a part of it out",
            seen=seen,
            expected=f"at least {SMALLEST_TEXT:,}, in different paragraphs",
            hint="Add more text.",
        )

    def _different_texts(self, counts: CorpusCounts) -> Iterator[str]:
        """Each text once; counts the others. Those who cut them are few, so memory holds their digests."""
        seen = {NO_TEXT}
        for digest, text in map(identified, self.source.documents()):
            if digest not in seen:
                seen.add(digest)
                yield text
            else:
                counts.read += 1
                counts.empty += digest == NO_TEXT
                counts.duplicate += digest != NO_TEXT


class MixedCorpus(Corpus):
    """The documents of several corpora, taken from them in turn.

    A document that is in two of them counts for the one that gives it first.

    Args:
        parts: by name, in the order of their numbers.
        weights: of their characters in what is read, as long as none of them has come to its end; None for
            equal ones. They matter where the text is not read to its end.
    """

    def __init__(
        self, parts: Mapping[str, Corpus], weights: Sequence[float] | None, sets: EvaluationSets | None = None
    ) -> None:
        self.parts, self._weights = parts, weights
        first = self.members[0]
        super().__init__(first.source, first.validation_fraction, sets)

    @property
    def members(self) -> Sequence[Corpus]:
        return list(self.parts.values())

    def identity(self, made_before: Any = None) -> dict[str, Any]:
        before = made_before.get("parts", {}) if made_before else {}
        parts = {name: part.identity(before.get(name)) for name, part in self.parts.items()}
        values: dict[str, Any] = {"source": "mix", "parts": parts}
        values |= {"weights": list(self._weights)} if self._weights else {}
        return values | ({"decontaminate": self.sets.identity()} if self.sets.files else {})

    def _documents(self, counts: CorpusCounts) -> Iterator[tuple[int, str, bool | None]]:
        weights = self._weights or [1.0] * len(self.parts)
        # By the text that a part has given for its weight, least first.
        waiting = [(0.0, part) for part in range(len(weights))]
        streams = [self._named(name, counts) for name in self.parts]
        while waiting:
            given, part = waiting[0]
            document = next(streams[part], None)
            if document is None:
                heapq.heappop(waiting)
                continue
            heapq.heapreplace(waiting, (given + len(document[1]) / weights[part], part))
            yield part, *document[1:]

    def _named(self, name: str, counts: CorpusCounts) -> Iterator[tuple[int, str, bool | None]]:
        try:
            yield from self.parts[name]._documents(counts)
        except AntError as error:
            raise AntError(f"part {name!r} of the mix: {error}") from None


def normalised(raw: str) -> bytes:
    """A document's text in NFC as UTF-8; nothing if it is only white space."""
    text = unicodedata.normalize("NFC", raw)
    # A lone surrogate (JSON can carry one) has no UTF-8 form: it becomes a question mark.
    return text.encode("utf-8", errors="replace") if text.strip() else b""


def identified(raw: str) -> tuple[bytes, str]:
    """The digest and the normalised text of a document; `NO_TEXT` if it is only white space.

    Line ends do not count in it; nor does white space around the text where documents are told apart.
    """
    data = normalised(raw)
    if not data:
        return NO_TEXT, ""
    text = data.decode("utf-8")
    lines = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    side = hashlib.sha256(lines.encode() if lines is not text else data).digest()
    core = lines.strip().strip("\ufeff")
    same = side if len(core) == len(lines) else hashlib.sha256(core.encode()).digest()
    return same[:_TELLS_APART] + side[:_DECIDES], text


def in_validation_split(digest: bytes, fraction: float) -> bool:
    """Whether a document with this sha256 is held out: its first 8 bytes as a number in [0, 1)."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
