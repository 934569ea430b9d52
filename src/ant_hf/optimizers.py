"""Muon for matrices and AdamW for the rest, as one optimizer the Trainer can checkpoint.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a
matrix before applying it. It has no meaning for norms and works badly for embeddings, which
therefore stay with AdamW. Each step costs five Newton-Schulz iterations a matrix, whatever the
batch, so that small batches pay a larger share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ant_hf.errors import AntError
from ant_hf.recipe import TrainingRecipe


class MuonAdamW(Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` behind one list of groups and one state.

    The parts share this optimizer's `param_groups` dictionaries and `state`, so schedulers,
    gradient scaling and `state_dict` see an ordinary optimizer.

    Args:
        matrices: 2-D parameters, updated by Muon.
        others: parameter groups for AdamW.
    """

    def __init__(
        self, matrices: list[nn.Parameter], others: list[dict[str, Any]], recipe: TrainingRecipe
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise AntError(
                "optimizer muon needs torch 2.9 or newer",
                seen=torch.__version__,
                hint="Run pip install -U torch, or use --set training.optimizer=adamw",
            )
        assert recipe.muon_learning_rate is not None
        self._muon = torch.optim.Muon(
            matrices, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay
        )
        self._adamw = AdamW(
            others,
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            fused=True,
        )
        # The base class fills every group with these defaults, so they must be none of the parts' own.
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        split = len(self._muon.param_groups)
        self._muon.param_groups = self.param_groups[:split]
        self._adamw.param_groups = self.param_groups[split:]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Loading replaces groups and state by new objects.
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss


def muon_adamw(model: nn.Module, decay_names: set[str], recipe: TrainingRecipe) -> MuonAdamW:
    """Group a model's parameters: matrices inside the layers to Muon, all else to AdamW.

    Args:
        decay_names: parameters that weight decay applies to (Trainer's own rule).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [(name, p) for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    groups = [
        {"params": [p for name, p in others if name in decay_names], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in others if name not in decay_names], "weight_decay": 0.0},
    ]
    return MuonAdamW(matrices, [group for group in groups if group["params"]], recipe)
