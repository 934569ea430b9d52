"""Whether a model reads from left to right: otherwise its scores are not likelihoods, and it cannot write."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError

_TOKENS = 8


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Change the last token of a few, and refuse a model that then says something else of those before it.

    BERT and its kin load as causal models too, but see the whole text at once.

    Raises:
        AntError: the model is not causal.
    """
    rows = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(1, _TOKENS + 1, device=model.device) * 7 % rows
    other = ids.clone()
    other[-1] = (other[-1] + 1) % rows
    first, second = (
        model(input_ids=each[None], use_cache=False).logits[0, :-1].float() for each in (ids, other)
    )
    # Of a causal model the two are equal but for rounding; what is not finite is refused where it is scored.
    if ((first - second).abs() > 1e-3 * first.abs().max()).any():
        kind = type(model).__name__
        raise AntError(
            f"the model is not a causal language model: {kind} reads a text from both sides",
            expected="a model that predicts each token from those before it, such as Llama or GPT-2",
            hint="Pass a causal language model.",
        )
