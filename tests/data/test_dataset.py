from collections import Counter

import numpy as np
import pytest
import torch

from ant_hf.data.dataset import PackedDataset, TrainingOrder
from ant_hf.data.tokens import TRAIN, PackedTokens
from ant_hf.errors import AntError


@pytest.fixture
def tokens(tiny_run):
    return PackedTokens(tiny_run / "tokens", TRAIN)


def test_blocks_hold_every_token_once(tokens):
    blocks = PackedDataset(tokens, 48, pad_token_id=1)
    kept = [block["input_ids"][block["labels"] != -100].numpy() for block in blocks]
    assert np.array_equal(np.concatenate(kept), tokens.slice(0, len(tokens)))
    assert {len(block["input_ids"]) for block in blocks} == {48}
    last = blocks[len(blocks) - 1]
    padding = last["labels"] == -100
    assert padding.any()
    assert (last["input_ids"][padding] == 1).all()


def test_order_visits_every_block_once_an_epoch_and_differs_between_epochs(tokens):
    blocks = PackedDataset(tokens, 64, pad_token_id=1)
    n = len(blocks)
    order = TrainingOrder(blocks, 3 * n, seed=5)
    epochs = [[order.block_index(e * n + i) for i in range(n)] for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = TrainingOrder(blocks, 3 * n, seed=5)
    assert [again.block_index(i) for i in reversed(range(3 * n))][::-1] == [
        block for epoch in epochs for block in epoch
    ]
    other = TrainingOrder(blocks, n, seed=6)
    assert [other.block_index(i) for i in range(n)] != epochs[0]


def test_tokens_before_counts_real_tokens(tokens):
    blocks = PackedDataset(tokens, 48, pad_token_id=1)
    n = len(blocks)
    order = TrainingOrder(blocks, 2 * n, seed=1)
    assert order.tokens_before(n) == len(tokens)
    assert order.tokens_before(2 * n) == 2 * len(tokens)
    counted = Counter()
    for position in range(2 * n):
        if position in (0, 1, n // 2, n + 3):
            assert order.tokens_before(position) == counted["tokens"]
        counted["tokens"] += int((order[position]["labels"] != -100).sum())


def test_less_text_than_one_block_is_refused(tokens):
    with pytest.raises(AntError, match="smaller than one block"):
        PackedDataset(tokens, len(tokens) + 1, pad_token_id=1)


def test_positions_outside_are_refused(tokens):
    order = TrainingOrder(PackedDataset(tokens, 64, 1), 10, seed=0)
    for position in (-1, 10):
        with pytest.raises(IndexError):
            order[position]


def test_a_batch_is_its_blocks(tokens):
    blocks = PackedDataset(tokens, 60, pad_token_id=3)
    order = TrainingOrder(blocks, 2 * len(blocks), seed=1)
    positions = range(len(blocks))  # a whole epoch, so the padded block is among them
    batch = order.__getitems__(positions)
    single = [order[position] for position in positions]
    for name in ("input_ids", "labels"):
        assert torch.equal(batch[name], torch.stack([block[name] for block in single]))
    assert (batch["labels"] == -100).any()
