"""Embedding rows against how often their tokens occur."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens, read_manifest
from ant_hf.errors import AntError
from ant_hf.utils.files import file_sha256
from ant_hf.utils.names import MANIFEST

# 64 MB of tokens at a time.
_PIECE = 32_000_000


@dataclass(frozen=True)
class Embeddings:
    """Norms of the embedding rows and counts of their tokens."""

    norms: np.ndarray
    """Euclidean norms, shape (vocab_size,)."""
    counts: np.ndarray
    """How often each token occurs in the counted tokens, shape (vocab_size,)."""
    counted: str
    """What was counted, in words."""
    from_training: bool
    """Whether the counted tokens are those of the training."""
    tied: bool

    @property
    def unseen(self) -> list[int]:
        """Ids that do not occur."""
        return np.flatnonzero(self.counts == 0).tolist()

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between norm and count of the tokens that occur; nan for fewer than three."""
        seen = self.counts > 0
        if seen.sum() < 3:
            return float("nan")
        by_norm, by_count = _ranks(self.norms[seen]), _ranks(self.counts[seen])
        if by_norm.std() == 0 or by_count.std() == 0:
            return float("nan")
        return float(np.corrcoef(by_norm, by_count)[0, 1])


def read_embeddings(
    model: PreTrainedModel, counts: np.ndarray, counted: str, from_training: bool
) -> Embeddings:
    """Put the input embeddings' norms beside the counts of their tokens, shape (vocab_size,)."""
    embeddings: Any = model.get_input_embeddings()
    weight = embeddings.weight.detach().double()
    norms = weight.norm(dim=1).cpu().numpy()
    return Embeddings(norms, counts, counted, from_training, bool(model.config.tie_word_embeddings))


def run_tokens(folder: Path, given: Path | None = None) -> Path | None:
    """The packed tokens of a model's training: those given, else those beside a run's final folder.

    Raises:
        AntError: the tokens given are missing, damaged, or of another tokenizer.
    """
    if given is None:
        beside = folder.resolve().parent / "tokens"
        return beside if (beside / MANIFEST).is_file() and fits_tokenizer(beside, folder) else None
    if not fits_tokenizer(given, folder):
        raise AntError(
            f"{given} was packed with another tokenizer than {folder} has",
            hint="Pass the tokens of the model's own run.",
        )
    return given


def fits_tokenizer(tokens: Path, folder: Path) -> bool:
    """Whether packed tokens were made with a model folder's tokenizer."""
    file = folder / "tokenizer.json"
    packed_with = read_manifest(tokens)["inputs"]["tokenizer_sha256"]
    return file.is_file() and bool(file_sha256(file) == packed_with)


def count_tokens(
    tokens: Path, vocab_size: int, advance: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """How often each token occurs in the training split, shape (vocab_size,).

    Args:
        advance: told the tokens newly counted and their total.
    """
    split = PackedTokens(tokens, TRAIN)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(split), _PIECE):
        piece = split.slice(start, start + _PIECE)
        counts += np.bincount(piece, minlength=vocab_size)[:vocab_size]
        advance(len(piece), len(split))
    return counts


def held_out_text(tokens: Path, tokenizer: Any, max_tokens: int) -> str:
    """The beginning of the validation split as text, documents on lines of their own; may be empty."""
    ids = PackedTokens(tokens, VALIDATION).slice(0, max_tokens).tolist()
    end = tokenizer.eos_token_id
    documents: list[list[int]] = [[]]
    for index in ids:
        if index == end:
            documents.append([])
        else:
            documents[-1].append(index)
    return "\n".join(tokenizer.decode(document) for document in documents if document).strip("\ufffd")


def _ranks(values: np.ndarray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Ranks, the mean rank for ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
