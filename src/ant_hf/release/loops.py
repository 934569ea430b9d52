"""Whether greedy continuations of a few fixed prompts end in loops."""

from __future__ import annotations

from ant_hf.evaluation.degeneration import generate, measure, prompts
from ant_hf.release.loading import Loaded

# Every fourth of the evaluation's prompts: enough to see a collapse, a few seconds on a CPU.
_EVERY = 4


def greedy_loop_rate(loaded: Loaded) -> tuple[float, int]:
    """Share of continuations stuck in a loop, by the evaluation's own measure, and how many there were."""
    texts = prompts()[::_EVERY]
    outputs = generate(loaded.model, loaded.tokenizer, texts, sample=False)
    return measure(outputs, loaded.tokenizer.decode)["loop_rate"], len(outputs)
