"""What a score may be held to be: standard errors, floors, and the identity of the perplexities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.metrics import exp

ABOVE, BELOW, UNCLEAR = "above", "below", "indistinguishable"


@dataclass(frozen=True)
class Floor:
    """The accuracy that takes no model: `value` is a fraction, `kind` says how it is reached."""

    value: float
    kind: str


def accuracy_floor(choices: Sequence[int], answers: Sequence[Any]) -> Floor:
    """Guessing uniformly, or always answering the most frequent class where that scores more.

    Where the answer stands at one position in every document (SciQ, BLiMP), the position was given by
    whoever wrote the task file and is no class: then only the uniform guess counts.

    Args:
        choices: number of choices of each document.
        answers: index of the right choice of each document.
    """
    uniform = sum(1 / count for count in choices) / len(choices)
    counts = Counter(answers)
    majority = max(counts.values()) / len(answers)
    if len(counts) > 1 and majority > uniform:
        return Floor(majority, "majority class")
    return Floor(uniform, "uniform guess")


def verdict(value: float, stderr: float, floor: float) -> str:
    """Above or below the floor only when two standard errors say so."""
    if value - floor > 2 * stderr:
        return ABOVE
    return BELOW if floor - value > 2 * stderr else UNCLEAR


@dataclass(frozen=True)
class TextScores:
    """One pass over a text: summed nats, with the counts that the perplexities divide by.

    `bytes` and `words` are those of the original documents, as lm-eval counts them; `scored_bytes` are
    those of the text that was scored (lm-eval's `wikitext` undoes its tokenisation first).
    """

    nats: tuple[float, ...]
    """By document."""
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    words: tuple[int, ...]
    scored_bytes: tuple[int, ...]

    def figures(self, vocab_size: int) -> dict[str, Any]:
        """All perplexities with their standard errors, and the level of a uniform guess.

        They are one quantity in several units:
        nats = tokens * ln(token_perplexity) = bytes * ln(byte_perplexity)
             = bytes * ln(2) * bits_per_byte = words * ln(word_perplexity).
        """
        nats, tokens, size, words = map(sum, (self.nats, self.tokens, self.bytes, self.words))
        uniform = tokens * math.log(vocab_size) / size
        per_byte, per_byte_error = nats / size, self._ratio_error(self.bytes)
        return {
            "nats": nats,
            "tokens": tokens,
            "bytes": size,
            "words": words,
            "scored_bytes": sum(self.scored_bytes),
            "nats_per_token": nats / tokens,
            "nats_per_token_stderr": self._ratio_error(self.tokens),
            "token_perplexity": exp(nats / tokens),
            "bits_per_byte": per_byte / math.log(2),
            "bits_per_byte_stderr": per_byte_error / math.log(2),
            "byte_perplexity": exp(per_byte),
            "byte_perplexity_stderr": exp(per_byte) * per_byte_error,
            "word_perplexity": exp(nats / words),
            "word_perplexity_stderr": exp(nats / words) * self._ratio_error(self.words),
            "bytes_per_token": size / tokens,
            "uniform_guess_byte_perplexity": exp(uniform),
            "broken": per_byte >= uniform,
        }

    def _ratio_error(self, counts: Sequence[int]) -> float:
        """Standard error of sum(nats) / sum(counts) over documents (the ratio estimator's, Cochran 1977)."""
        n = len(counts)
        if n < 2:
            return 0.0
        ratio = sum(self.nats) / sum(counts)
        squares = sum((x - ratio * y) ** 2 for x, y in zip(self.nats, counts, strict=True))
        return math.sqrt(squares * n / (n - 1)) / sum(counts)


def check_identity(figures: dict[str, Any], harness: dict[str, float], where: str) -> str:
    """The identity that links the perplexities, in figures; refuses when a reported one breaks it.

    Args:
        harness: lm-eval's own word_perplexity, byte_perplexity and bits_per_byte of the same pass.

    Raises:
        AntError: two of them do not describe the same nats.
    """
    nats = {
        "tokens * nats_per_token": figures["tokens"] * figures["nats_per_token"],
        "tokens * ln(token_perplexity)": figures["tokens"] * math.log(figures["token_perplexity"]),
        "bytes * ln(byte_perplexity)": figures["bytes"] * math.log(harness["byte_perplexity"]),
        "bytes * ln(2) * bits_per_byte": figures["bytes"] * math.log(2) * harness["bits_per_byte"],
        "words * ln(word_perplexity)": figures["words"] * math.log(harness["word_perplexity"]),
    }
    for name, value in nats.items():
        # A perplexity too large for a float says nothing about the nats.
        if math.isfinite(value) and not math.isclose(value, figures["nats"], rel_tol=1e-6):
            raise AntError(
                f"{where}: the perplexities disagree",
                seen=f"{name} = {value:,.3f} nats",
                expected=f"{figures['nats']:,.3f}",
            )
    return f"{' = '.join(nats)} = {figures['nats']:.6g} nats"
