"""One model's text on the page: its prompt, what the model made of it, and the fragments of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ant_hf.demo.sampling import NO_NUMBERS, Generation, Sampling
from ant_hf.errors import AntError
from ant_hf.evaluation.degeneration import loop_period
from ant_hf.inspection.fragments import Candidate, Fragment, next_tokens, read_text, vocabulary
from ant_hf.model.encoding import decode, first_ids
from ant_hf.model.generation import encode_prompt
from ant_hf.model.loading import Subject

PROMPT = "The basic principles of small language models require"
EXAMPLES = ["Once upon a time", "A volcano is", "The king said", "Water is made of"]
# Candidates that are told of a place.
CANDIDATES = 8


@dataclass
class Text:
    """One model's text."""

    subject: Subject
    prompt: str
    given: list[Fragment]
    """The prompt's; none if the tokenizer is of a kind whose fragments cannot be separated."""
    generation: Generation

    def again(self, sampling: Sampling, count: int, *more: tuple[int, float]) -> Text:
        """The same up to its first `count` new tokens; then `more`, ids with their nats."""
        old = self.generation
        ids, nats = old.ids[:count] + [it[0] for it in more], old.nats[:count] + [it[1] for it in more]
        new = Generation(old.model, old.prompt_ids, sampling, old.context, ids, nats)
        return Text(self.subject, self.prompt, self.given, new)

    @property
    def made(self) -> str:
        """What the model has written so far."""
        generation, tokenizer = self.generation, self.subject.tokenizer
        # Decoded together, because a tokenizer may need what comes before to place a space.
        before, whole = (
            decode(tokenizer, ids, skip_special_tokens=True)
            for ids in (generation.prompt_ids, generation.prompt_ids + generation.ids)
        )
        text = whole[len(before) :]
        # The next token may finish the character.
        return text if generation.finished else text.rstrip("\N{REPLACEMENT CHARACTER}")

    @property
    def loop(self) -> str | None:
        """A sentence about the loop that the model is in."""
        if not (period := loop_period(self.generation.ids)):
            return None
        again = decode(self.subject.tokenizer, self.generation.ids[-period:])
        return f'The text is in a loop: it repeats the last {period} tokens again and again: "{again}"'

    def facts(self, seconds: float) -> str:
        """Lengths, speed, mean surprise, seed, and why it ended.

        Args:
            seconds: since its generation began.
        """
        generation, limit = self.generation, self.generation.sampling.max_new_tokens
        count, room = len(generation.nats), generation.room
        parts = [f"{len(generation.prompt_ids)} + {count} tokens"]
        if new := count - generation.kept:
            parts.append(f"{new / seconds:.0f} tokens/s")
        if count:
            parts.append(f"mean surprise {sum(generation.nats) / count:.2f} nats")
        parts.append("greedy" if generation.sampling.greedy else f"seed {generation.sampling.seed}")
        if generation.ended:
            parts.append("the model ended the text")
        elif generation.finished and room < limit:
            parts.append(f"the context had room for {room} of {limit} new tokens")
        return ", ".join(parts)

    def fragments(self) -> list[Fragment]:
        """Those of the prompt, then the new ones."""
        if not self.given:
            return []
        entries, made, start = vocabulary(self.subject.tokenizer), [], self.given[-1].end
        for token_id, nats in zip(self.generation.ids, self.generation.nats, strict=False):
            raw = entries.of(token_id)
            made.append(Fragment(token_id, raw, entries.text(token_id), nats, start, start + len(raw)))
            start += len(raw)
        return [*self.given, *made]

    def considered(self, index: int) -> list[Candidate]:
        """What the model found most probable in a fragment's place; nothing where nothing comes before."""
        model, tokenizer = self.subject.model, self.subject.tokenizer
        if (place := index - len(self.given)) >= 0:
            before = self.generation.prompt_ids + self.generation.ids[:place]
        else:
            # As the prompt was read.
            before = first_ids(tokenizer) + [fragment.token_id for fragment in self.given[:index]]
        return next_tokens(model, tokenizer, before, CANDIDATES).candidates if before else []


def start_text(subject: Subject, prompt: str, sampling: Sampling) -> Text:
    """The text of a prompt, before anything is made of it.

    Raises:
        AntError: as `encode_prompt`; an empty prompt also where the tokenizer puts something before it.
        ValueError: the model's scores are not numbers.
    """
    if not prompt:
        raise AntError("the prompt is empty", hint="Write a few words for the model to continue from.")
    ids, given = encode_prompt(subject.model, subject.tokenizer, prompt), []
    if _can_be_told_apart(subject):
        given = read_text(subject.model, subject.tokenizer, prompt, top=0).fragments
    if any(math.isnan(fragment.nats or 0.0) for fragment in given):
        raise ValueError(NO_NUMBERS)
    return Text(subject, prompt, given, Generation(subject.model, ids, sampling, subject.context_length))


def _can_be_told_apart(subject: Subject) -> bool:
    try:
        vocabulary(subject.tokenizer)
    except AntError:
        return False
    return True
