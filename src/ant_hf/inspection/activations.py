"""What happens inside on a text: where heads look, which dimensions layers use, how large logits are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.inspection.weights import effective_rank, layers_of

# Attention of eager kernels takes heads x tokens^2 floats a layer.
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Activations:
    """Measured on one window of a text."""

    tokens: int
    entropy: np.ndarray
    """Attention entropy by layer and head as a share of that of even attention, shape (layers, heads)."""
    first_token_share: np.ndarray
    """Mean attention on the very first token, shape (layers, heads)."""
    hidden_rank: np.ndarray
    """Effective rank of the residual stream: embeddings, then after each layer, shape (layers + 1,)."""
    hidden_size: int
    logit_std: float
    """Standard deviation over the vocabulary, mean over the tokens."""
    logit_max: float
    """Largest logit over the mean of its place, mean over the tokens."""

    @property
    def rank_bound(self) -> int:
        """No text of so few tokens could show more dimensions than this."""
        return min(self.tokens - 1, self.hidden_size)


@torch.no_grad()
def read_activations(model: PreTrainedModel, token_ids: list[int]) -> Activations:
    """Run the first tokens of a text, at most the context and MAX_TOKENS, and measure on the way.

    Entropy is the mean over the places from the second on of H / ln(tokens that can be seen there): 1 is
    even attention, 0 is one token only. Hidden states are centred first; effective rank is Roy and
    Vetterli's (2007), of the singular values of the tokens x hidden_size matrix.

    Raises:
        AntError: fewer than two tokens.
    """
    ids = token_ids[: min(MAX_TOKENS, model.config.max_position_embeddings)]
    if len(ids) < 2:
        raise AntError("the text is too short to look into the model", seen=f"{len(ids)} tokens")
    inputs_1T = torch.tensor([ids], device=model.device)
    with _watching(model) as (attention, hidden):
        logits_TV = model(input_ids=inputs_1T, use_cache=False).logits[0].float()
    above = logits_TV.max(dim=-1).values - logits_TV.mean(dim=-1)
    return Activations(
        tokens=len(ids),
        entropy=np.stack([entropy for entropy, _ in attention]),
        first_token_share=np.stack([first for _, first in attention]),
        hidden_rank=np.array(hidden),
        hidden_size=model.config.hidden_size,
        logit_std=float(logits_TV.std(dim=-1).mean()),
        logit_max=float(above.mean()),
    )


@contextmanager
def _watching(model: PreTrainedModel) -> Iterator[tuple[list[tuple[np.ndarray, np.ndarray]], list[float]]]:
    """Collect what each layer shows while it runs, and keep none of its tensors.

    Only eager attention shows its weights.
    """
    attention: list[tuple[np.ndarray, np.ndarray]] = []
    hidden: list[float] = []

    def on_attention(module: Any, inputs: Any, output: Any) -> None:
        attention.append(_attention_figures(output[1][0]))

    def on_input(module: Any, inputs: Any) -> None:
        hidden.append(_hidden_rank(inputs[0][0]))

    def on_layer(module: Any, inputs: Any, output: Any) -> None:
        hidden.append(_hidden_rank((output[0] if isinstance(output, tuple) else output)[0]))

    layers: Any = layers_of(model)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    handles = [layers[0].register_forward_pre_hook(on_input)]
    handles += [layer.register_forward_hook(on_layer) for layer in layers]
    handles += [layer.self_attn.register_forward_hook(on_attention) for layer in layers]
    try:
        yield attention, hidden
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)


def _attention_figures(weights_HTT: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Normalised entropy and share on the first token by head, means over the places from the second on."""
    p_HTT = weights_HTT[:, 1:].float()
    even_T = torch.tensor([math.log(seen) for seen in range(2, p_HTT.shape[1] + 2)], device=p_HTT.device)
    entropy_HT = torch.special.entr(p_HTT).sum(-1) / even_T
    return entropy_HT.mean(-1).cpu().numpy(), p_HTT[:, :, 0].mean(-1).cpu().numpy()


def _hidden_rank(states_TC: torch.Tensor) -> float:
    centred_TC = states_TC.double() - states_TC.double().mean(0)
    return effective_rank(torch.linalg.svdvals(centred_TC).cpu().numpy())
