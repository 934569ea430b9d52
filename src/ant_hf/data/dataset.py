"""Packed tokens as a map-style dataset, and the order in which a run reads it.

Here the blocks are fixed and only their order changes; `repacking.py` cuts new ones each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ant_hf.data.tokens import PackedTokens
from ant_hf.errors import AntError

IGNORED_LABEL = -100


def check_one_block(split: str, tokens: int, sequence_length: int) -> None:
    """Refuse a split of fewer tokens than one block holds.

    Raises:
        AntError: it is too small.
    """
    if tokens < sequence_length:
        raise AntError(
            f"the {split} split is smaller than one block",
            seen=f"{tokens:,} tokens",
            expected=f"at least {sequence_length:,}",
            hint="Add text or lower training.sequence_length.",
        )


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Consecutive blocks of `sequence_length` tokens; together they hold every token once.

    The last block is filled with `pad_token_id`, which is not a target. Labels equal the inputs
    because Llama shifts them itself, so a block's first token is context only: one in 1,024.

    Raises:
        AntError: there are fewer tokens than one block holds.
    """

    def __init__(self, tokens: PackedTokens, sequence_length: int, pad_token_id: int) -> None:
        check_one_block(tokens.split, len(tokens), sequence_length)
        self.tokens = tokens
        self.sequence_length = sequence_length
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.sequence_length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, each int64 of shape (sequence_length,)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: rows[0] for name, rows in self.batch([index]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Several blocks: `input_ids` and `labels`, each int64 of shape (len(indices), sequence_length).

        Both are one tensor unless the padded block is among them. 256 blocks of 1,024
        take 0.8 ms, and 3.6 ms as single blocks put together, which a fast GPU would wait for.
        """
        ids = np.full((len(indices), self.sequence_length), self.pad_token_id, dtype=np.int64)
        lengths = [
            self.tokens.read_into(row, index * self.sequence_length)
            for row, index in zip(ids, indices, strict=True)
        ]
        input_ids = labels = torch.from_numpy(ids)
        if min(lengths) < self.sequence_length:
            labels = input_ids.clone()
            for row, length in zip(labels, lengths, strict=True):
                row[length:] = IGNORED_LABEL
        return {"input_ids": input_ids, "labels": labels}


class TrainingOrder(Dataset[dict[str, torch.Tensor]]):
    """All blocks of a run in the order they are trained on, shuffled again each epoch.

    Block `i` of the run is a pure function of the seed and `i`. Read front to back it gives the
    same global batches on one process or eight, and after any resume. A batch may span two epochs,
    so no epoch ends in a short batch and nothing is repeated to fill one.
    """

    def __init__(self, blocks: PackedDataset, length: int, seed: int) -> None:
        self.blocks = blocks
        self.length = length
        self.seed = seed
        self._epoch = -1
        self._permutation: np.ndarray[Any, np.dtype[np.int64]] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def block_index(self, position: int) -> int:
        """Which block of the packed split stands at `position` of the run."""
        epoch, offset = divmod(position, len(self.blocks))
        return int(self._epoch_permutation(epoch)[offset])

    def tokens_before(self, position: int) -> int:
        """Tokens in the first `position` blocks of the run; padding is not a token."""
        epoch, offset = divmod(position, len(self.blocks))
        last_block = len(self.blocks) - 1
        padded_blocks = epoch + int((self._epoch_permutation(epoch)[:offset] == last_block).sum())
        padding = len(self.blocks) * self.blocks.sequence_length - len(self.blocks.tokens)
        return position * self.blocks.sequence_length - padded_blocks * padding

    def _epoch_permutation(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng((self.seed, epoch)).permutation(len(self.blocks))
            self._epoch = epoch
        return self._permutation

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        if not 0 <= position < self.length:
            raise IndexError(position)
        return {name: rows[0] for name, rows in self.__getitems__([position]).items()}

    def __getitems__(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch, for torch's DataLoader, which asks for it by this name."""
        return self.blocks.batch([self.block_index(position) for position in positions])


def whole_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collator of TrainingOrder, whose batches come collated."""
    return batch
