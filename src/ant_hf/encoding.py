"""Documents become token ids, a chunk at a time, in this process or ahead of it in worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ant_hf.corpus import Corpus, Document
from ant_hf.tokenizer import END_OF_TEXT

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
