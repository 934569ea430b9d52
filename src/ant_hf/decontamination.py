"""Evaluation sets by their 13-word runs, so that documents which quote them stay out of the corpus.

Two texts share a run when thirteen consecutive words are equal without case and punctuation, the
criterion of GPT-3 (Brown et al. 2020, appendix C). Markup such as WikiText-2's " @-@ " falls away with
the punctuation. Texts of fewer words cannot be found this way: a short question that a document
quotes stays in. It costs 50 ms a megabyte, on the one process that reads the corpus.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ant_hf.artefacts import file_sha256
from ant_hf.errors import AntError, missing_file
from ant_hf.readers import read_json_rows

NGRAM_WORDS = 13
# One bit a set.
_MOST_SETS = 64
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# A table of 16 MB answers for nearly every run of a document that it is in no set.
_TABLE_BITS = 24
_TO_SPACE = bytes(byte if byte >= 128 or chr(byte).isalnum() else 32 for byte in range(256))
# Dashes and curly quotes, in UTF-8.
_GENERAL_PUNCTUATION = re.compile(rb"\xe2\x80[\x80-\xbf]")

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class EvaluationSets:
    """The 13-word runs of several sets."""

    names: tuple[str, ...]
    sha256: tuple[str, ...]
    hashes: Hashes
    """Of every run, sorted, shape (runs,)."""
    owners: Hashes
    """Which sets have the run, one bit each, shape (runs,)."""
    _table: np.ndarray[Any, np.dtype[np.bool_]]

    @classmethod
    def read(cls, folder: str | Path) -> EvaluationSets:
        """The JSONL files of a folder, one set each; every text in them counts, whatever its field.

        Raises:
            AntError: the folder is missing, has no JSONL file or too many, or a line is no JSON object.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise missing_file(path, "folder of evaluation sets", "Set corpus.decontaminate to a folder.")
        files = sorted(path.glob("*.jsonl"))
        if not 0 < len(files) <= _MOST_SETS:
            raise AntError(
                f"{path} has {len(files)} JSONL files", expected=f"1 to {_MOST_SETS}, one a set of documents"
            )
        return cls.of({file.name.removesuffix(".jsonl"): file for file in files})

    @classmethod
    def of(cls, files: dict[str, Path]) -> EvaluationSets:
        """Sets by name."""
        found = [_runs_of(file) for file in files.values()]
        owners = [np.full(len(runs), 1 << index, dtype=np.uint64) for index, runs in enumerate(found)]
        runs, owner = np.concatenate(found), np.concatenate(owners)
        order = np.argsort(runs, kind="stable")
        hashes, first = np.unique(runs[order], return_index=True)
        merged = np.bitwise_or.reduceat(owner[order], first) if len(hashes) else owner
        table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        table[_slots(hashes)] = True
        sha256 = tuple(file_sha256(file) for file in files.values())
        return cls(tuple(files), sha256, hashes, merged, table)

    def identity(self) -> dict[str, Any]:
        """What decides which documents are left out, as JSON values."""
        return {"ngram_words": NGRAM_WORDS, "sets": dict(zip(self.names, self.sha256, strict=True))}

    def sharing(self, text: str) -> int:
        """The sets that share a run with a text, one bit each; 0 for none."""
        runs = run_hashes(text)
        runs = runs[self._table[_slots(runs)]]
        if not len(runs) or not len(self.hashes):
            return 0
        places = np.minimum(np.searchsorted(self.hashes, runs), len(self.hashes) - 1)
        return int(np.bitwise_or.reduce(self.owners[places][self.hashes[places] == runs]))


def named(bits: int, names: Sequence[str]) -> list[str]:
    """The sets behind the bits of `EvaluationSets.sharing`."""
    return [name for index, name in enumerate(names) if bits >> index & 1]


def _runs_of(file: Path) -> Hashes:
    texts = [run_hashes(text) for _, row in read_json_rows(file) for text in _texts(row)]
    if not texts:
        raise AntError(f"{file} holds no documents", hint="Fill it, or move it out of the folder.")
    return np.concatenate(texts)


def _slots(hashes: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def run_hashes(text: str) -> Hashes:
    """A 64-bit hash of every run of 13 words, shape (words - 12,), or (0,) for a shorter text."""
    data = _GENERAL_PUNCTUATION.sub(b" ", text.lower().encode("utf-8", errors="replace"))
    words = data.translate(_TO_SPACE).split()
    codes = np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))
    count = max(0, len(codes) - NGRAM_WORDS + 1)
    hashes = codes[:count].copy()
    for offset in range(1, NGRAM_WORDS):
        # Overflow is the modulus of this polynomial.
        hashes *= _MULTIPLIER
        hashes += codes[offset : offset + count]
    return hashes


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
