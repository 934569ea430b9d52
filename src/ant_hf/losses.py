"""The training loss where it is more than the model's own: cross-entropy with a z-loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ant_hf.dataset import IGNORED_LABEL


def cross_entropy_with_z_loss(coefficient: float) -> Callable[..., torch.Tensor]:
    """For `Trainer(compute_loss_func=...)`: cross-entropy + coefficient x (log Z)^2, mean over targets.

    Z is the softmax's denominator; the term keeps logits from drifting (PaLM, Chowdhery et al. 2022,
    section 5, with 1e-4). Both terms share one log-sum-exp.
    """

    def loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        # Label t belongs to the logits of t - 1; the last position has none.
        targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:]
        counted = targets != IGNORED_LABEL
        logits = outputs.logits.float()
        log_z = logits.logsumexp(-1)
        chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        total = ((log_z - chosen + coefficient * log_z.square()) * counted).sum()
        mean: torch.Tensor = total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
        return mean

    return loss
