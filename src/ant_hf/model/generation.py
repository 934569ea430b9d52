"""Continue a prompt with the sampling settings of the public card."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError

# The public card's snippet.
CARD_SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.5}


def encode_prompt(model: PreTrainedModel, tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt; names of special tokens in it are read as plain text, as in training.

    Raises:
        AntError: the prompt is empty, no valid Unicode, or leaves no room in the model's context.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise AntError(f"the prompt is no valid Unicode: {error}") from None
    ids = tokenizer(prompt, split_special_tokens=True, verbose=False)["input_ids"]
    if not ids:
        raise AntError("the prompt is empty", hint="Write a few words for the model to go on from.")
    if len(ids) >= (context := model.config.max_position_embeddings):
        raise AntError(
            f"the prompt has {len(ids):,} tokens and the model takes at most {context - 1:,}",
            hint=f"Its context of {context:,} must hold one new token too; shorten the prompt.",
        )
    return list(ids)


def generate_sample(model: PreTrainedModel, tokenizer: Any, prompt: str, seed: int = 0) -> str:
    """Continue a prompt by up to 64 tokens with the public card's sampling settings.

    Raises:
        AntError: as `encode_prompt`.
    """
    ids = encode_prompt(model, tokenizer, prompt)
    inputs = torch.tensor([ids], device=model.device)
    torch.manual_seed(seed)
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(64, model.config.max_position_embeddings - len(ids)),
            do_sample=True,
            **CARD_SAMPLING,
        )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
