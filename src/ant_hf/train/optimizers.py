"""Muon for matrices and AdamW for the rest, as one optimizer the Trainer can checkpoint.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of a
matrix before applying it. It has no meaning for norms and works badly for embeddings, which
therefore stay with AdamW. Each step costs five Newton-Schulz iterations a matrix, whatever the
batch, so that small batches pay a larger share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from ant_hf.recipe import TrainingRecipe


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with all matrices of one shape in one product: the same update, fewer kernels.

    Ant-10M has 84 matrices in four shapes; one by one they are, counted in torch's source, some 3,000
    kernels per step to launch. State and groups are those of torch.optim.Muon.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)  # torch's own handles the pieces that FSDP leaves on a process
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters: list[torch.Tensor] = []
            gradients: list[torch.Tensor] = []
            momenta: list[torch.Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            if parameters:
                self._update(group, parameters, gradients, momenta)
        return loss

    def _update(
        self,
        group: dict[str, Any],
        parameters: list[torch.Tensor],
        gradients: list[torch.Tensor],
        momenta: list[torch.Tensor],
    ) -> None:
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, parameter in enumerate(parameters):
            shapes.setdefault((parameter.shape[0], parameter.shape[1]), []).append(index)
        for (rows, columns), indices in shapes.items():
            stacked = torch.stack([updates[index] for index in indices])
            directions = _orthogonalise(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
            # The rule torch calls "original": a tall matrix moves further.
            rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
            torch._foreach_add_(
                [parameters[index] for index in indices],
                # In the parameters' type, or foreach falls back to one kernel each.
                list(directions.to(parameters[0].dtype)),
                alpha=-rate,
            )


def _orthogonalise(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Push all singular values towards 1 by Newton-Schulz iterations in 16 bits (Jordan et al. 2024).

    Args:
        matrices: shape (count, rows, columns).
        coefficients: a, b, c of the iteration X <- aX + b(XX^T)X + c(XX^T)^2 X.

    Returns:
        Of the same shape, in 16 bits, contiguous.
    """
    a, b, c = coefficients
    x = matrices.to(_iteration_dtype(matrices.device))
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    # Foreach updates of parameters and directions with other strides fall back to one kernel each.
    return x.mT.contiguous() if tall else x


def _iteration_dtype(device: torch.device) -> torch.dtype:
    """bf16, but fp16 on a GPU below SM 8.0, which only emulates bf16; singular values stay near 1 in both."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


class MuonAdamW(Optimizer):
    """Muon and `torch.optim.AdamW` behind one list of groups and one state.

    The parts share this optimizer's `param_groups` dictionaries and `state`, so schedulers,
    gradient scaling and `state_dict` see an ordinary optimizer.

    Args:
        matrices: 2-D parameters, updated by Muon.
        others: parameter groups for AdamW.
    """

    def __init__(
        self, matrices: list[nn.Parameter], others: list[dict[str, Any]], recipe: TrainingRecipe
    ) -> None:
        assert recipe.muon_learning_rate is not None
        self._muon = BatchedMuon(matrices, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay)
        self._adamw = AdamW(
            others, lr=recipe.learning_rate, betas=(recipe.adam_beta1, recipe.adam_beta2), fused=True
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
        loss = None if closure is None else torch.enable_grad()(closure)()
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
