"""A run's plan and one micro-batch of it, on random tokens and in a folder that is thrown away."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ant_hf.data.dataset import PackedDataset, TrainingOrder
from ant_hf.data.tokens import TRAIN, PackedTokens
from ant_hf.recipe import Recipe
from ant_hf.train.setup import set_up
from ant_hf.train.trainer import AntTrainer, RunData
from ant_hf.utils.console import is_first_process, say
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import METRICS


class _RandomTokens(PackedTokens):
    """Stands in for packed text in a dry run, which needs shapes and no data."""

    def __init__(self, length: int, vocab_size: int) -> None:
        self.split, self._length, self._vocab_size = TRAIN, length, vocab_size

    def __len__(self) -> int:
        return self._length

    def read_into(self, row: np.ndarray[Any, Any], start: int) -> int:
        row[:] = np.random.default_rng(start).integers(self._vocab_size, size=len(row))
        return len(row)


def dry_run(recipe: Recipe) -> None:
    """Print the plan and run one micro-batch at full shape; write nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        setup = set_up(recipe, Path(scratch))
        arguments = setup.arguments
        arguments.max_steps, arguments.gradient_accumulation_steps = 1, 1
        arguments.save_strategy = arguments.eval_strategy = "no"
        arguments.report_to = []
        arguments.disable_tqdm = True
        blocks_at_once = setup.plan.per_device_batch_size * setup.plan.num_processes
        tokens = _RandomTokens(blocks_at_once * recipe.training.sequence_length, setup.config.vocab_size)
        order = TrainingOrder(PackedDataset(tokens, recipe.training.sequence_length, 0), blocks_at_once, 0)
        trainer = AntTrainer(setup, RunData(order, tokens, [1] * setup.config.vocab_size), {})
        trainer.train()
        loss = read_metrics(Path(scratch) / METRICS)[0]["loss"] if is_first_process() else 0.0
        say(
            f"dry run     one micro-batch of {blocks_at_once} blocks took {trainer.meter.seconds:.1f} s, "
            f"loss {loss:.2f} on random tokens (ln vocab_size = {np.log(setup.config.vocab_size):.2f}); "
            "nothing was written"
        )
