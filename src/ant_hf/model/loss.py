"""The loss that training minimises, computed inside the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ant_hf.data.dataset import IGNORED_LABEL

Compiled = Literal["loss", "layers"]
"""What `torch.compile` takes: all that computes the loss; or one layer, whose code all layers share, and what
makes the loss of the logits."""


def return_loss_only(model: PreTrainedModel, z_loss: float, compiled: Compiled | None = None) -> None:
    """Make the model's `forward` with labels return the loss alone; without labels it stays as it was.

    Logits that leave the model cost: accelerate copies them into fp32, and a compiled model must write
    them out, 24 KB per token at a vocabulary of 4,096.

    The loss is the mean over targets of cross-entropy + `z_loss` x (log Z)^2, where Z is the softmax's
    denominator; the second term keeps logits from drifting (PaLM, Chowdhery et al. 2022, section 5,
    with 1e-4). Both terms share one log-sum-exp.

    Args:
        compiled: compile this, and nothing else, in the first training step.
    """
    z_loss_of = _cross_entropy_with_z
    if compiled == "layers":
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = _compiled_in_training(layer.forward)
        # Else the logits are copied into fp32 four times; compiled, they are read as they are.
        model.loss_function = _compiled_in_training(model.loss_function)
        z_loss_of = _compiled_in_training(z_loss_of)
    whole_forward = model.forward

    def loss_of(
        input_ids: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        if z_loss:
            logits = whole_forward(input_ids=input_ids, use_cache=False).logits
            return z_loss_of(logits, labels, num_items_in_batch, z_loss)
        loss: torch.Tensor = whole_forward(
            input_ids=input_ids, labels=labels, num_items_in_batch=num_items_in_batch, use_cache=False
        ).loss
        return loss

    if compiled == "loss":
        loss_of = torch.compile(loss_of)

    def forward(
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if labels is None:
            return whole_forward(input_ids=input_ids, **kwargs)
        return CausalLMOutputWithPast(loss=loss_of(input_ids, labels, num_items_in_batch))

    model.forward = forward


def _cross_entropy_with_z(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None,
    z_loss: float,
) -> torch.Tensor:
    """Mean over targets, from logits (batch, tokens, vocab_size) and labels (batch, tokens)."""
    logits = logits.float()
    # Label t belongs to the logits of t - 1; the last position has none.
    targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:]
    counted = targets != IGNORED_LABEL
    log_z = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    total = ((log_z - chosen + z_loss * log_z.square()) * counted).sum()
    return total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)


def _compiled_in_training(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Scoring has other shapes and no gradients; it would compile once more for each of them."""
    compiled = torch.compile(forward, dynamic=False)

    def either(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return either
