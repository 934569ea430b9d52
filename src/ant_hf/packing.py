"""Documents become flat uint16 shards and a manifest that accounts for every document and token.

An end-of-text token follows each document, and blocks later run across documents: no position is
wasted, at the price that attention can see the end of an unrelated text. Encoding runs a bounded
number of chunks ahead, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from ant_hf.artefacts import check_made_of, file_sha256, fingerprint, whole_folder, write_sealed
from ant_hf.corpus import Corpus
from ant_hf.disk import writing
from ant_hf.encoding import EncodedChunk, encoded
from ant_hf.processes import available_cores
from ant_hf.tokens import FORMAT_VERSION, MANIFEST, TRAIN, VALIDATION, read_manifest

SHARD_TOKENS = 1 << 26


@dataclass
class SplitCounts:
    """What one split holds; `tokens` counts one end-of-text token a document."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)


def pack(
    corpus: Corpus,
    tokenizer_dir: Path,
    folder: Path,
    max_tokens: int | None = None,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    show_progress: bool = True,
) -> tuple[dict[str, Any], bool]:
    """Write `train-*.bin`, `validation-*.bin` and the manifest, or reuse those that are there.

    Args:
        max_tokens: stop after the document with which the training split reaches this many.
        workers: encoding processes; default one a core.

    Returns:
        The manifest, and whether it was there already.

    Raises:
        AntError: the folder holds tokens made of something else, or the corpus is unusable.
    """
    inputs = packing_inputs(corpus, tokenizer_dir, max_tokens)
    if manifest := packed_before(folder, inputs):
        return manifest, True
    stream = encoded(corpus, tokenizer_dir / "tokenizer.json", workers or available_cores())
    room = RoomNeeded(corpus.source.text_bytes(), max_tokens)
    return write_tokens(stream, folder, inputs, room, shard_tokens, show_progress), False


def packing_inputs(corpus: Corpus, tokenizer_dir: Path, max_tokens: int | None) -> dict[str, Any]:
    """What decides every packed token, as JSON values."""
    return {
        "format_version": 1,
        "corpus": corpus.identity(),
        "tokenizer_sha256": file_sha256(tokenizer_dir / "tokenizer.json"),
        "max_tokens": max_tokens,
    }


def packed_before(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that holds these tokens already; None where there is none.

    Raises:
        AntError: the folder holds tokens made of something else.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    check_made_of(folder, "tokens", manifest, inputs)
    return manifest


def write_tokens(
    stream: Iterable[EncodedChunk],
    folder: Path,
    inputs: dict[str, Any],
    room: RoomNeeded,
    shard_tokens: int = SHARD_TOKENS,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Write encoded documents, in the order of the corpus, as shards and a manifest.

    Args:
        stream: at least one chunk.

    Returns:
        The manifest.
    """
    max_tokens = inputs["max_tokens"]
    with ExitStack() as stack:
        stack.enter_context(writing("the packed tokens", folder, room.bytes))
        partial = stack.enter_context(whole_folder(folder))
        writers = {
            name: stack.enter_context(_SplitWriter(partial, name, shard_tokens))
            for name in (TRAIN, VALIDATION)
        }
        with tqdm(desc="packing", unit="B", unit_scale=True, disable=not show_progress, leave=False) as bar:
            for chunk in stream:
                counts = chunk.counts
                room.read += sum(chunk.sizes)
                room.written += 2 * len(chunk.ids)
                past_limit = _write(chunk, writers, max_tokens)
                bar.update(sum(chunk.sizes))
                if past_limit:
                    break
        splits = {name: writer.close() for name, writer in writers.items()}
        counts["past_limit"] = counts.pop("train") + counts.pop("validation") - _documents(splits)
        manifest = {
            "format_version": FORMAT_VERSION,
            "inputs_sha256": fingerprint(inputs),
            "inputs": inputs,
            "dtype": "uint16",
            "documents": counts,
            "splits": {name: vars(split) for name, split in splits.items()},
        }
        write_sealed(partial / MANIFEST, manifest)
    return manifest


class RoomNeeded:
    """Bytes all shards will take, from what was read and written so far."""

    def __init__(self, text_bytes: int | None, max_tokens: int | None) -> None:
        self._text_bytes, self._max_tokens = text_bytes, max_tokens
        self.read = self.written = 0

    def bytes(self) -> int:
        estimates = [2 * self._max_tokens] if self._max_tokens else []
        if self._text_bytes and self.read:
            estimates.append(self.written * self._text_bytes // self.read)
        return max(min(estimates, default=0), self.written)


def _documents(splits: dict[str, SplitCounts]) -> int:
    return sum(split.documents for split in splits.values())


def _write(chunk: EncodedChunk, writers: dict[str, _SplitWriter], max_tokens: int | None) -> int:
    """Hand a chunk's documents to their splits; returns how many lie past the limit."""
    position = 0
    for index, (length, size) in enumerate(zip(chunk.lengths, chunk.sizes, strict=True)):
        if max_tokens is not None and writers[TRAIN].counts.tokens >= max_tokens:
            return len(chunk.lengths) - index
        writer = writers[VALIDATION if chunk.validation[index] else TRAIN]
        writer.add(chunk.ids[position : position + length], size)
        position += length
    return 0


class _SplitWriter:
    """Appends documents to shards of at most `shard_tokens`, hashing as it goes."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        self.counts = SplitCounts()
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._handle: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._in_shard = 0

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            # Left open by an error; closing flushes, which on a full disk fails once more.
            with suppress(OSError):
                self._handle.close()

    def add(self, ids: np.ndarray[Any, np.dtype[np.uint16]], size: int) -> None:
        self.counts.documents += 1
        self.counts.tokens += len(ids)
        self.counts.bytes += size
        while len(ids):
            if self._handle is None:
                name = f"{self._split}-{len(self.counts.shards):05d}.bin"
                self._handle = (self._folder / name).open("wb")
            piece = ids[: self._shard_tokens - self._in_shard].astype("<u2", copy=False).tobytes()
            self._handle.write(piece)
            self._digest.update(piece)
            self._in_shard += len(piece) // 2
            ids = ids[len(piece) // 2 :]
            if self._in_shard == self._shard_tokens:
                self._finish_shard()

    def close(self) -> SplitCounts:
        self._finish_shard()
        return self.counts

    def _finish_shard(self) -> None:
        if self._handle is None:
            return
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        name = Path(self._handle.name).name
        self.counts.shards.append(
            {"file": name, "tokens": self._in_shard, "sha256": self._digest.hexdigest()}
        )
        self._handle, self._digest, self._in_shard = None, hashlib.sha256(), 0
