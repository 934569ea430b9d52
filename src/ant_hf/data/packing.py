"""Documents become token ids, a chunk at a time, in this process or ahead of it in worker processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from ant_hf.data.corpus import Corpus, Document
from ant_hf.data.tokenizer import END_OF_TEXT
from ant_hf.data.tokens import FORMAT_VERSION, TRAIN, VALIDATION, read_manifest
from ant_hf.utils.disk import writing
from ant_hf.utils.files import check_made_of, file_sha256, fingerprint, whole_folder, write_sealed
from ant_hf.utils.hardware import available_cores
from ant_hf.utils.names import MANIFEST

# Text a worker gets at once: large enough to hide the transfer, small enough to stay in cache.
CHUNK_CHARACTERS = 1 << 19
_CHUNKS_AHEAD = 3


@dataclass(frozen=True)
class EncodedChunk:
    """Documents as ids: `ids` is all of them in a row, the lists have one entry each.

    The last of a corpus may hold none: it carries the counts of what was read after the one before.
    """

    counts: dict[str, int]
    """The corpus's counts when the last of these documents had been read; at the end, those of all of it."""

    ids: np.ndarray[Any, np.dtype[np.uint16]]
    lengths: list[int]
    sizes: list[int]
    validation: list[bool]


class Encoder:
    """A tokenizer that puts an end-of-text token after each document.

    Args:
        tokenizer_file: a `tokenizer.json` that `load_tokenizer` accepts.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        # The processes are the parallelism; threads inside each would only compete.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        # A document that spells out a special token is text and not a command.
        self._tokenizer.encode_special_tokens = True
        end_of_text = self._tokenizer.token_to_id(END_OF_TEXT)
        assert end_of_text is not None, "load_tokenizer checked it"
        self._end_of_text: int = end_of_text

    def encode(self, documents: list[Document], counts: dict[str, int]) -> EncodedChunk:
        """Encode any number of documents, also none."""
        texts = [document.text for document in documents]
        pieces, lengths = [np.empty(0, dtype=np.uint16)], []
        for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = encoding.ids
            ids.append(self._end_of_text)
            pieces.append(np.array(ids, dtype=np.uint16))
            lengths.append(len(ids))
        return EncodedChunk(
            counts=counts,
            ids=np.concatenate(pieces),
            lengths=lengths,
            sizes=[len(text.encode()) for text in texts],
            validation=[document.is_validation for document in documents],
        )


_worker_encoder: Encoder


def _start_worker(tokenizer_file: Path) -> None:
    global _worker_encoder
    _worker_encoder = Encoder(tokenizer_file)


def _encode(documents: list[Document], counts: dict[str, int]) -> EncodedChunk:
    return _worker_encoder.encode(documents, counts)


def encoded(corpus: Corpus, tokenizer_file: Path, workers: int) -> Iterator[EncodedChunk]:
    """Encoded chunks in the order of the corpus, at most a few ahead of the consumer."""
    # Spawned and not forked: the parent may have threads (torch, tokenizers) that a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer_file,)) as pool:
        pending: deque[Future[EncodedChunk]] = deque()
        try:
            for documents in chunks(corpus):
                pending.append(pool.submit(_encode, documents, corpus.counts.as_dict()))
                if len(pending) > workers * _CHUNKS_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of `CHUNK_CHARACTERS` or a little more; the last is smaller, and may hold none."""
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    yield chunk


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
