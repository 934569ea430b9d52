"""Evaluation sets by their 13-word runs, so that documents which quote them stay out of the corpus.

Two texts share a run when thirteen consecutive words are equal without case, punctuation and Unicode
form, the criterion of GPT-3 (Brown et al. 2020, appendix C). Markup such as WikiText-2's " @-@ " falls
away with the punctuation. Texts of fewer words cannot be found this way: a short question that a
document quotes stays in. It costs 60 ms per megabyte, on the one process that reads the corpus.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ant_hf.data.readers import kind_of
from ant_hf.errors import AntError, missing_file
from ant_hf.utils.files import file_sha256, read_json_rows, strings_in
from ant_hf.utils.names import expand_home
from ant_hf.utils.stopping import phase

NGRAM_WORDS = 13
# One bit a set.
_MOST_SETS = 64
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# A table of 16 MB answers for nearly every run of a document that it is in no set.
_TABLE_BITS = 24
_TO_SPACE = bytes(byte if byte >= 128 or chr(byte).isalnum() else 32 for byte in range(256))
# Beyond ASCII, which a table of bytes cuts faster.
_OTHER_THAN_WORDS = re.compile(r"[^\x00-\x7f\w]+")
# How words are told apart, for those who kept what was compared.
_WORDS = "NFKC, lower case, letters and digits"

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


class _Runs(NamedTuple):
    """The 13-word runs of all sets together."""

    hashes: Hashes
    """Sorted, shape (runs,)."""
    owners: Hashes
    """Which sets have the run, one bit each, shape (runs,)."""
    table: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class EvaluationSets:
    """Sets by name, a JSONL file each, read when the first text is compared with them; may be none."""

    files: dict[str, Path]

    @classmethod
    def find(cls, folder: str | Path | None) -> EvaluationSets:
        """The JSONL files of a folder, packed or not; every text in them counts, whatever its field.

        Raises:
            AntError: the folder is missing, or has no JSONL file or too many.
        """
        if folder is None:
            return cls({})
        path = Path(expand_home(folder))
        if not path.is_dir():
            raise missing_file(path, "folder of evaluation sets", "Set corpus.decontaminate to a folder.")
        files: dict[str, Path] = {}
        # Of a set that is there packed and unpacked, the unpacked file is read, as evaluation does.
        for file in sorted(path.iterdir()):
            if kind_of(file) == ".jsonl":
                files.setdefault(file.name[: file.name.lower().rindex(".jsonl")], file)
        if not 0 < len(files) <= _MOST_SETS:
            raise AntError(
                f"corpus.decontaminate: {path} has {len(files)} JSONL files",
                expected=f"1 to {_MOST_SETS}, one for each evaluation set",
            )
        return cls(files)

    def identity(self) -> dict[str, Any]:
        """What decides which documents are left out, as JSON values."""
        sha256 = {name: file_sha256(file) for name, file in self.files.items()}
        return {"ngram_words": NGRAM_WORDS, "words": _WORDS, "sets": sha256}

    def sharing(self, text: str) -> int:
        """The sets that share a run with a text, one bit each in their order; 0 for none.

        Raises:
            AntError: a set has no documents, or a line that is not a JSON object; on the first call.
        """
        if not self.files:
            return 0
        known = self._runs
        runs = run_hashes(text)
        runs = runs[known.table[_slots(runs)]]
        if not len(runs) or not len(known.hashes):
            return 0
        places = np.minimum(np.searchsorted(known.hashes, runs), len(known.hashes) - 1)
        return int(np.bitwise_or.reduce(known.owners[places][known.hashes[places] == runs]))

    @cached_property
    def _runs(self) -> _Runs:
        found = []
        with phase(
            "reading the evaluation sets", "What was finished before is kept. Run the same command again."
        ):
            for file in self.files.values():
                texts = [run_hashes(text) for _, row in read_json_rows(file) for text in strings_in(row)]
                if not texts:
                    raise AntError(
                        f"{file} does not contain any documents",
                        hint="Fill it, or move it out of the folder.",
                    )
                found.append(np.concatenate(texts))
        bits = [np.full(len(runs), 1 << index, dtype=np.uint64) for index, runs in enumerate(found)]
        hashes, inverse = np.unique(np.concatenate(found), return_inverse=True)
        owners = np.zeros(len(hashes), dtype=np.uint64)
        np.bitwise_or.at(owners, inverse, np.concatenate(bits))
        table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        table[_slots(hashes)] = True
        return _Runs(hashes, owners, table)


def _slots(hashes: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def run_hashes(text: str) -> Hashes:
    """A 64-bit hash of every run of 13 words, shape (words - 12,), or (0,) for a shorter text."""
    if not text.isascii():
        # A quotation in another Unicode form, or with other quotation marks and spaces, is one all the same.
        text = _OTHER_THAN_WORDS.sub(" ", unicodedata.normalize("NFKC", text))
    words = text.lower().encode("utf-8", errors="replace").translate(_TO_SPACE).split()
    codes = np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))
    count = max(0, len(codes) - NGRAM_WORDS + 1)
    hashes = codes[:count].copy()
    for offset in range(1, NGRAM_WORDS):
        # Overflow is the modulus of this polynomial.
        hashes *= _MULTIPLIER
        hashes += codes[offset : offset + count]
    return hashes
