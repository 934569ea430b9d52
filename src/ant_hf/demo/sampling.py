"""Several generations at once, token by token, each with random numbers of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.model.generation import CARD_SAMPLING

# What `generate` samples from when, as in the card's snippet, nothing is said.
TOP_K = 50
NO_NUMBERS = "its scores are not numbers"
LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.05, 2.0),
    "top_p": (0.05, 1.0),
    "repetition_penalty": (1.0, 3.0),
    "max_new_tokens": (1, 1024),
    "seed": (0, 2**32 - 1),
}


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens; the defaults are the public card's, seed 0.

    Raises:
        AntError: a value is not a number, or outside LIMITS.
    """

    temperature: float = CARD_SAMPLING["temperature"]
    top_p: float = CARD_SAMPLING["top_p"]
    repetition_penalty: float = CARD_SAMPLING["repetition_penalty"]
    max_new_tokens: int = 32
    seed: int = 0
    greedy: bool = False
    """Always the most probable token, after the repetition penalty; the rest then has no effect."""

    def __post_init__(self) -> None:
        for key in fields(self)[:-1]:
            value, (low, high) = getattr(self, key.name), LIMITS[key.name]
            kinds = int if isinstance(key.default, int) else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                what = "a whole number" if kinds is int else "a number"
                problem = f"{key.name.replace('_', ' ')} is {'empty' if value is None else 'out of range'}"
                raise AntError(problem, seen=value, expected=f"{what} from {low:g} to {high:,}")


@dataclass
class Generation:
    """One prompt's continuation so far; it may begin with tokens of an earlier one."""

    model: PreTrainedModel
    prompt_ids: list[int]
    sampling: Sampling
    context: int
    """Tokens that the model takes at once."""
    ids: list[int] = field(default_factory=list)
    """The new tokens, with the end-of-text token if it came."""
    nats: list[float] = field(default_factory=list)
    """-ln p of each new token before penalty and temperature: the model's own surprise."""
    finished: bool = False

    def __post_init__(self) -> None:
        self.kept = len(self.ids)
        """How many tokens there were at its start."""

    @property
    def room(self) -> int:
        """New tokens that the context had room for at its start."""
        return self.context - len(self.prompt_ids) - self.kept

    @property
    def ended(self) -> bool:
        """Whether its last token is one that ends a text."""
        end = self.model.generation_config.eos_token_id
        return bool(self.ids) and self.ids[-1] in (end if isinstance(end, list) else [end])


def generate_together(generations: Sequence[Generation]) -> Generator[None]:
    """Run generations side by side, filling them in; yields whenever some have grown.

    Closing the iterator stops them. Nothing is shared between two calls, so that people who generate
    at the same time get what each would get alone.

    Raises:
        AntError: a model failed.
    """
    news: queue.Queue[tuple[Generation, int, float] | Generation | Exception] = queue.Queue()
    stop = threading.Event()
    threads = [
        threading.Thread(target=_run, args=(generation, news, stop), name="generation", daemon=True)
        for generation in generations
    ]
    for thread in threads:
        thread.start()
    try:
        while not all(generation.finished for generation in generations):
            _take(news.get())
            # A page slower than the model gets several tokens at a time.
            while not news.empty():
                _take(news.get())
            yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def failure(error: Exception) -> AntError:
    """What is said of an error that is not the user's."""
    return AntError(f"the model failed: {' '.join(str(error).split())[:200] or type(error).__name__}")


def _take(item: tuple[Generation, int, float] | Generation | Exception) -> None:
    if isinstance(item, Exception):
        raise failure(item) from item
    if isinstance(item, Generation):
        item.finished = True
    else:
        generation, token_id, nats = item
        generation.ids.append(token_id)
        generation.nats.append(nats)


def _run(generation: Generation, news: queue.Queue[Any], stop: threading.Event) -> None:
    model, sampling = generation.model, generation.sampling
    if generation.ended or generation.room < 1:
        news.put(generation)
        return
    inputs = torch.tensor([generation.prompt_ids + generation.ids], device=model.device)
    # Every choice is made by our processors: whatever the model's own defaults are, they come on top.
    config = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=TOP_K,
        repetition_penalty=1.0,
        max_new_tokens=min(sampling.max_new_tokens, generation.room),
        pad_token_id=model.generation_config.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
    )

    def stopped(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), stop.is_set(), device=input_ids.device)

    try:
        model.generate(  # type: ignore[operator]
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Choice(generation, news)]),
            stopping_criteria=[stopped],
        )
    # Whatever happens in this thread must be said on the page.
    except Exception as error:
        news.put(error)
    else:
        news.put(generation)


def processors(sampling: Sampling) -> list[LogitsProcessor]:
    """Transformers' own, in `generate`'s order; the last one draws, so that the argmax is the sample.

    `generate` itself draws from torch's global random numbers, which several people cannot share.
    """
    penalty = transformers.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
    if sampling.greedy:
        return [penalty]
    temperature = transformers.TemperatureLogitsWarper(float(sampling.temperature))
    top_k, top_p = transformers.TopKLogitsWarper(TOP_K), transformers.TopPLogitsWarper(float(sampling.top_p))
    return [penalty, temperature, top_k, top_p, Draw(sampling.seed)]


class Draw(LogitsProcessor):
    """Add Gumbel noise: the largest of the sums is a draw from the softmax (Gumbel 1954).

    The noise is made on the CPU, so that a seed means the same on any device.
    """

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of shape (1, vocabulary), each plus -ln of an exponential variate."""
        noise = torch.empty(scores.shape).exponential_(generator=self._random)
        return scores - noise.clamp_min(torch.finfo(noise.dtype).tiny).log().to(scores)


class _Choice(LogitsProcessor):
    """Applies the processors, whose argmax `generate` takes, and sends that token with its surprise."""

    def __init__(self, generation: Generation, news: queue.Queue[Any]) -> None:
        self._generation, self._news = generation, news
        self._chain = LogitsProcessorList(processors(generation.sampling))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        log_p = torch.log_softmax(scores[0].float(), dim=-1)
        scores = self._chain(input_ids, scores)
        token_id = int(scores.argmax(dim=-1).item())
        if not (nats := -float(log_p[token_id])) < float("inf"):
            raise ValueError(NO_NUMBERS)
        self._news.put((self._generation, token_id, nats))
        return scores
