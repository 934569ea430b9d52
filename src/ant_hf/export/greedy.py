"""Greedy outputs of a model, and how near two of them were where they part."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def continue_greedily(model: PreTrainedModel, tokenizer: Any, prompt: str, new_tokens: int) -> list[int]:
    """Ids of a greedy continuation, without the end of the text."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return without_end(output[0, inputs["input_ids"].shape[1] :].tolist(), tokenizer)


def without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Ids up to the end of the text."""
    return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids


def first_difference(
    model: PreTrainedModel, tokenizer: Any, prompt: str, ours: list[int], theirs: list[int]
) -> float | None:
    """Where two outputs part: the gap between the logits of the two tokens; None when they are the same.

    Args:
        theirs: may end with the end of the text; ours does not.
    """
    end = tokenizer.eos_token_id
    theirs = without_end(theirs, tokenizer)
    if ours == theirs:
        return None
    pairs = zip([*ours, end], [*theirs, end], strict=False)
    place = next(place for place, (a, b) in enumerate(pairs) if a != b)
    ids = torch.tensor([tokenizer(prompt)["input_ids"] + ours[:place]])
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    other = [*theirs, end][place]
    return float((logits.max() - logits[other]).item())
