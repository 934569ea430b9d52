"""Files of a corpus encoded one by one, and put together as if they had been read in one go.

A part keeps what one process would have known of each document (hash, tokens, bytes, characters), so that
duplicates over all files, the split and the limit are decided when the parts are put together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ant_hf.artefacts import check_file, file_sha256, read_sealed, whole_folder, write_sealed
from ant_hf.corpus import (
    DIGEST_BYTES,
    CorpusCounts,
    Document,
    SeenDigests,
    in_validation_split,
    normalised,
)
from ant_hf.decontamination import EvaluationSets, named
from ant_hf.disk import writing
from ant_hf.encoding import CHUNK_CHARACTERS, EncodedChunk, Encoder, chunks
from ant_hf.sources import Source

# Parts of another format lie under other names.
PART_FORMAT = 2
_IDS, _ROWS, _PART = "ids.bin", "documents.bin", "part.json"
# One row a document read. No ids: white space only (all zero), a duplicate within its file, or
# contaminated (with the evaluation sets that share text with it, one bit each).
_ROW = np.dtype([
    ("digest", f"V{DIGEST_BYTES}"), ("tokens", "<u4"), ("bytes", "<u4"), ("characters", "<u4"),
    ("sets", "<u8"),
])  # fmt: skip


def is_encoded(part: Path) -> bool:
    """Whether a part is there, which it is as a whole or not at all."""
    return (part / _PART).is_file()


def encode_file(
    source: Source, part: Path, encoder: Encoder, sets: EvaluationSets | None = None
) -> tuple[int, int]:
    """Write the part of one file; documents that share text with evaluation sets are not encoded.

    Returns:
        Documents read, and tokens.
    """
    rows: list[tuple[bytes, int, int, int, int]] = []
    tokens = 0
    with writing("encoded files", part.parent, lambda: 2 * tokens), whole_folder(part) as partial:
        with (partial / _IDS).open("wb") as ids, (partial / _ROWS).open("wb") as handle:
            for documents in chunks(_documents(source, sets, rows)):
                chunk = encoder.encode(documents, {})
                ids.write(chunk.ids.astype("<u2", copy=False).tobytes())
                tokens += len(chunk.ids)
                lengths = iter(chunk.lengths)
                table = np.array(rows, dtype=_ROW)
                table["tokens"] = [next(lengths) if row[2] else 0 for row in rows]
                handle.write(table.tobytes())
                rows.clear()
        read = (partial / _ROWS).stat().st_size // _ROW.itemsize
        hashes = {name: file_sha256(partial / name) for name in (_IDS, _ROWS)}
        write_sealed(partial / _PART, {"documents": read, "tokens": tokens, "sha256": hashes})
    return read, tokens


def _documents(
    source: Source, sets: EvaluationSets | None, rows: list[tuple[bytes, int, int, int, int]]
) -> Iterator[Document]:
    """The documents of a file to encode; leaves a row for each read, also for those that are none."""
    seen = SeenDigests()
    for text in source.documents():
        data = normalised(text)
        digest = hashlib.sha256(data).digest()[:DIGEST_BYTES]
        if not data or not seen.add(digest):
            rows.append((digest if data else bytes(DIGEST_BYTES), 0, 0, 0, 0))
            continue
        document = Document(data.decode("utf-8"), False)
        if sets and (shared := sets.sharing(document.text)):
            rows.append((digest, 0, 0, 0, shared))
            continue
        rows.append((digest, 0, len(data), len(document.text), 0))
        yield document


def merged(
    parts: Iterable[Path], validation_fraction: float, evaluation_sets: Sequence[str] = ()
) -> Iterator[EncodedChunk]:
    """The chunks that encoding the corpus in one process gives: cut by the same count of characters.

    Args:
        parts: in the order of their files.
        evaluation_sets: names of those the parts were compared with.

    Raises:
        AntError: a part is damaged; names the file.
    """
    counts, seen = CorpusCounts.beginning(evaluation_sets), SeenDigests()
    ids: list[np.ndarray[Any, np.dtype[np.uint16]]] = []
    sizes: list[int] = []
    validation: list[bool] = []
    characters = 0

    def chunk() -> EncodedChunk:
        lengths = [len(piece) for piece in ids]
        joined = np.concatenate([np.empty(0, dtype=np.uint16), *ids])
        return EncodedChunk(counts.as_dict(), joined, lengths, sizes, validation)

    for part in parts:
        for digest, piece, size, length, shared in _rows(part):
            counts.read += 1
            if digest == bytes(DIGEST_BYTES):
                counts.empty += 1
                continue
            if not (len(piece) or shared) or not seen.add(digest):
                counts.duplicate += 1
                continue
            if shared:
                counts.add_contaminated(named(shared, evaluation_sets))
                continue
            held_out = in_validation_split(digest, validation_fraction)
            counts.validation += held_out
            counts.train += not held_out
            ids.append(piece)
            sizes.append(size)
            validation.append(held_out)
            characters += length
            if characters >= CHUNK_CHARACTERS:
                yield chunk()
                ids, sizes, validation, characters = [], [], [], 0
    yield chunk()


def _rows(part: Path) -> Iterator[tuple[bytes, np.ndarray[Any, np.dtype[np.uint16]], int, int, int]]:
    """Digest, ids, bytes, characters and sharing sets of each document of a part, checked first."""
    hint = f"Remove {part} and run the same command again."
    values = read_sealed(part / _PART, "encoded file", hint, unsealed_format=None)
    for name, expected in values["sha256"].items():
        check_file(part / name, expected, "is damaged", hint)
    ids = (
        np.fromfile(part / _IDS, dtype="<u2") if not values["tokens"] else np.memmap(part / _IDS, "<u2", "r")
    )
    start = 0
    with (part / _ROWS).open("rb") as handle:
        # A few thousand at a time: a large file has millions.
        while piece := handle.read(4096 * _ROW.itemsize):
            for row in np.frombuffer(piece, dtype=_ROW).tolist():
                digest, tokens, size, characters, shared = row
                yield digest, ids[start : start + tokens], size, characters, shared
                start += tokens
