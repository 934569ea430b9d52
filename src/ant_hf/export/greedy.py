"""Whether another program's greedy output is the model's own, and how near it was where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError

NEW_TOKENS = 32


def room_for(prompts: Sequence[str], tokenizer: Any, context: int) -> int:
    """How many tokens to generate after each prompt.

    Raises:
        AntError: the longest prompt fills the model's context.
    """
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    if (room := min(NEW_TOKENS, context - longest)) < 1:
        raise AntError("the check's prompts fill the model's context", seen=f"{context} tokens")
    return room


def check_greedy(
    file: str,
    model: PreTrainedModel,
    tokenizer: Any,
    outputs: dict[str, list[int]],
    new_tokens: int,
    tie: float,
) -> dict[str, Any]:
    """Hold greedy outputs to the model: each token must be the likeliest after those before it.

    One forward pass an output says for every token what `generate` would have chosen there.

    Args:
        outputs: ids by prompt, with or without the end of the text.
        tie: the largest gap of two logits, in nats, that counts as equally likely; an output may part there.

    Raises:
        AntError: an output parts where the model was sure.
    """
    gaps = []
    for prompt, ids in outputs.items():
        gap = _gap(model, tokenizer, prompt, ids, new_tokens)
        if gap is not None and gap > tie:
            raise AntError(
                f"{file} continues {prompt!r} otherwise than the model",
                seen=tokenizer.decode(ids),
                expected=f"the model's greedy output, or logits at most {tie} apart (here {gap:.3g})",
            )
        gaps += [] if gap is None else [gap]
    return {
        "prompts": len(outputs),
        "new_tokens": new_tokens,
        "prompts_with_equal_output": len(outputs) - len(gaps),
        "largest_logit_gap_where_they_part": max(gaps, default=None),
    }


def _gap(
    model: PreTrainedModel, tokenizer: Any, prompt: str, output: Sequence[int], new_tokens: int
) -> float | None:
    """Logits between the model's choice and the other one where they first differ; None if nowhere."""
    end, start = tokenizer.eos_token_id, tokenizer(prompt)["input_ids"]
    chosen = list(output)
    if end in chosen:
        chosen = chosen[: chosen.index(end) + 1]
    elif len(chosen) < new_tokens and end is not None:
        # It stopped by itself.
        chosen.append(end)
    with torch.no_grad():
        logits = model(torch.tensor([[*start, *chosen[:-1]]])).logits[0, len(start) - 1 :]
    best = logits.argmax(dim=-1).tolist()
    for place, (ours, theirs) in enumerate(zip(best, chosen, strict=True)):
        if ours != theirs:
            return float((logits[place, ours] - logits[place, theirs]).item())
    return None
