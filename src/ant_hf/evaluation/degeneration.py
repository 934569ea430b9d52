"""Does the model fall into loops? 200 fixed prompts, greedy and with the public card's sampling.

Ant-5M's card says that it repeats single words without end, Ant-10M's that it no longer does. Neither
gives a number; these are the numbers such a claim needs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ant_hf.evaluation.results import DEGENERATION, interval
from ant_hf.model.encoding import added_ids, context_length, decode, encode
from ant_hf.model.generation import CARD_SAMPLING, generated

NEW_TOKENS = 128
SEED = 0
# A loop is at least this long and holds its span at least this often: three spaces are not a loop.
LOOP_TOKENS, LOOP_TIMES = 16, 3

_OPENINGS = (
    "The {}",
    "In the beginning the {}",
    "Nobody knew why the {}",
    "Scientists found that the {}",
    "Long ago, a {}",
    "How does a {} work? It",
    "The history of the {} starts",
    '"Look at the {}," she said,',
    "There are three kinds of {}:",
    "The best way to draw a {} is",
)
_SUBJECTS = (
    "river", "king", "teacher", "horse", "mountain", "ship", "small language model", "war", "tree", "city",
    "star", "law", "doctor", "number", "song", "island", "machine", "child", "book", "storm",
)  # fmt: skip


def prompts() -> list[str]:
    """The 200 prompts: twenty subjects in ten openings."""
    return [opening.format(subject) for subject in _SUBJECTS for opening in _OPENINGS]


@dataclass(frozen=True)
class Continuation:
    """What a model made of one prompt: token ids without padding or end token, and their text."""

    prompt: str
    ids: list[int]
    text: str


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str],
    sample: bool,
    batch_size: int = 50,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Continuation]:
    """Continue every prompt by up to 128 tokens, greedily or by the card's sampling from seed 0.

    The prompts must leave room in the model's context, see `no_room`.

    Raises:
        AntError: as `generated`.
    """
    torch.manual_seed(SEED)
    context = context_length(model, tokenizer)
    own_ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own_ends if isinstance(own_ends, list) else [own_ends])} - {None}
    # What stands before shorter prompts is masked; a model needs a token of its own there all the same.
    named = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
    rows = model.config.get_text_config(decoder=True).vocab_size
    pad = next(token for token in named if token is not None and token < rows)
    if ends:
        ends.add(pad)
    settings = {"do_sample": True, **CARD_SAMPLING} if sample else {"do_sample": False}
    encoded = [[*added_ids(tokenizer), *encode(tokenizer, text)] for text in texts]
    if _reads_padding(model, encoded, pad):
        batch_size = 1
    outputs: list[Continuation] = []
    for start in range(0, len(texts), batch_size):
        batch = encoded[start : start + batch_size]
        length = max(map(len, batch))
        ids = generated(
            model,
            **_padded(model, batch, length, pad),
            max_new_tokens=min(NEW_TOKENS, context - length),
            pad_token_id=pad,
            **settings,
        )[:, length:]
        for prompt, row in zip(texts[start : start + batch_size], ids.tolist(), strict=True):
            kept = list(itertools.takewhile(lambda token: token not in ends, row))
            outputs.append(Continuation(prompt, kept, decode(tokenizer, kept)))
        progress(len(batch), len(texts))
    return outputs


def _padded(model: PreTrainedModel, rows: list[list[int]], length: int, pad: int) -> dict[str, torch.Tensor]:
    """Rows of one length, with masked tokens before the shorter ones."""
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=model.device)
    seen = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return {"input_ids": ids, "attention_mask": seen}


def _reads_padding(model: PreTrainedModel, rows: list[list[int]], pad: int) -> bool:
    """Whether masked tokens before a text change its continuation: RWKV, for one, takes no mask."""
    shortest, longest = min(rows, key=len), max(map(len, rows))
    alone, padded = (
        generated(
            model,
            **_padded(model, [shortest], length, pad),
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=pad,
            output_logits=True,
            return_dict_in_generate=True,
        )
        .logits[0][0]
        .float()
        for length in (len(shortest), longest)
    )
    # Rounding in 16 bits moves them by a hundredth.
    return bool((alone - padded).abs().max() > 0.05 * alone.std())


def no_room(tokenizer: Any, texts: Sequence[str], context: int) -> str | None:
    """Why a model with so many tokens of context cannot continue the prompts; None: it can."""
    if (longest := max(len(tokenizer.encode(text)) for text in texts)) < context:
        return None
    return (
        f"degeneration, because its prompts have up to {longest} tokens and the model's context is {context}"
    )


def loop_period(ids: Sequence[int]) -> int | None:
    """Length in tokens of the span that the text repeats to its end, if it does.

    The shortest p for which the last max(16, 3 p) tokens or more each equal the one p before them.
    """
    for period in range(1, len(ids) // LOOP_TIMES + 1):
        run = period
        while run < len(ids) and ids[-run - 1] == ids[-run - 1 + period]:
            run += 1
        if run >= max(LOOP_TOKENS, LOOP_TIMES * period):
            return period
    return None


def loop_lines(outputs: dict[str, list[Continuation]]) -> Iterator[dict[str, Any]]:
    """Continuations for samples.jsonl: prompt, output, and whether it ends in a loop."""
    for name, continuations in outputs.items():
        for output in continuations:
            yield {
                "set": DEGENERATION,
                "task": DEGENERATION,
                "generation": name,
                "prompt": output.prompt,
                "output": output.text,
                "loops": loop_period(output.ids) is not None,
            }


def longest_repeated_span(ids: Sequence[int]) -> int:
    """Tokens of the longest span that occurs twice in the text, the two not overlapping."""
    best, size = 0, len(ids)
    # row[j]: length of the common suffix of ids[:i] and ids[:j], j > i.
    row = [0] * (size + 1)
    for i in range(1, size + 1):
        for j in range(size, i, -1):
            row[j] = min(row[j - 1] + 1, j - i) if ids[i - 1] == ids[j - 1] else 0
            best = max(best, row[j])
    return best


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of distinct word n-grams among all (distinct-n of Li et al. 2016), over all texts."""
    grams = [gram for text in texts for gram in zip(*(text.split()[k:] for k in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def invalid_utf8_share(texts: Sequence[str]) -> float:
    """Share of characters that are not valid UTF-8; a character cut off at the very end is forgiven."""
    whole = [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in texts]
    characters = sum(map(len, whole))
    return sum(text.count("\N{REPLACEMENT CHARACTER}") for text in whole) / characters if characters else 0.0


def measure(outputs: Sequence[Continuation], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """All figures of one way of generating, as JSON values; `loop_rate` is the one for the table."""
    texts = [output.text for output in outputs]
    loops = [output.ids[-period:] for output in outputs if (period := loop_period(output.ids))]
    looped = Counter(word for loop in loops for word in set(decode(loop).split()))
    spans = [longest_repeated_span(output.ids) for output in outputs]
    rate = len(loops) / len(outputs)
    stderr = math.sqrt(rate * (1 - rate) / len(outputs))
    return {
        "outputs": len(outputs),
        "loop_rate": rate,
        "stderr": stderr,
        "interval": interval(rate, stderr, len(outputs)),
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        "longest_repeated_span": max(spans),
        "mean_longest_repeated_span": sum(spans) / len(spans),
        "looped_words": [list(item) for item in looped.most_common(10)],
        "invalid_utf8_share": invalid_utf8_share(texts),
        "empty_outputs": sum(not output.ids for output in outputs),
    }


def summary(outputs: dict[str, list[Continuation]], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """The record of both ways of generating, with their settings."""
    return {
        "prompts": len(outputs["greedy"]),
        "max_new_tokens": NEW_TOKENS,
        "loop": f"a span repeated to the end, {LOOP_TIMES} times or more, over {LOOP_TOKENS} tokens or more",
        "greedy": measure(outputs["greedy"], decode),
        "sampled": {**measure(outputs["sampled"], decode), "settings": {**CARD_SAMPLING, "seed": SEED}},
    }
