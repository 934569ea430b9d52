"""The mean of the weights of a run's last checkpoints, kept beside the latest of them.

One file, a third of a checkpoint without Muon, does for any number of checkpoints: the older ones need not be
there any more. Which steps count follows from the recipe alone, so that a checkpoint that a signal asked for
is not among them, and a run that was stopped and continued ends with the same mean.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ant_hf.recipe import TrainingRecipe
from ant_hf.utils.console import say
from ant_hf.utils.names import WEIGHTS

# Safetensors inside; with that suffix whoever loads the checkpoint would take it for a part of the model.
_MEAN = "mean.st"


def averaged_steps(recipe: TrainingRecipe) -> list[int]:
    """The steps whose checkpoints are averaged: the last ones of the recipe's intervals, and the end."""
    saves = [*range(recipe.save_steps, recipe.max_steps, recipe.save_steps), recipe.max_steps]
    return saves[-recipe.average_last :] if recipe.average_last else []


class RunningMean:
    """The mean so far, which grows by each checkpoint that counts."""

    def __init__(self, recipe: TrainingRecipe) -> None:
        self.steps: list[int] = []
        """Those that are in it."""
        self._wanted = averaged_steps(recipe)
        self._mean: dict[str, torch.Tensor] = {}

    def restore(self, checkpoint: Path, step: int, steps: list[int]) -> None:
        """Take over what `add` left in a checkpoint, and the steps that were in it."""
        if steps == [wanted for wanted in self._wanted if wanted <= step]:
            self.steps = steps
            self._mean = load_file(checkpoint / _MEAN) if steps else {}
        else:
            say(
                "warning",
                f"the checkpoints up to step {step:,} are not in the mean, because max_steps, save_steps or "
                "average_last was changed",
            )

    def add(self, checkpoint: Path, step: int) -> None:
        """Take in a checkpoint that Trainer has written, if it counts, and leave the mean in it."""
        if step in self._wanted:
            self.steps.append(step)
            for name, weights in load_file(checkpoint / WEIGHTS).items():
                mean = self._mean.setdefault(name, torch.zeros_like(weights, dtype=torch.float32))
                mean += (weights.float() - mean) / len(self.steps)
        if self._mean:
            save_file(self._mean, checkpoint / _MEAN)


def load_mean(model: torch.nn.Module, checkpoint: Path) -> None:
    """Give a model the mean that lies in a checkpoint; a tied projection follows."""
    model.load_state_dict(load_file(checkpoint / _MEAN), strict=False)
