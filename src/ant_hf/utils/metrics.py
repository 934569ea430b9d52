"""The log of a run, and the loss of a text in every unit. Imports no torch: cards and plots need none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import read_json_rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out.

    Raises:
        AntError: the file cannot be read, or a line before the last is damaged (names the line).
    """
    rows = []
    for where, row in read_json_rows(path, may_be_cut=True) if path.exists() else ():
        if type(row.get("step")) is not int:
            raise AntError(f"{where}, is not a row of metrics", seen=str(row)[:80])
        rows.append(row)
    return rows


@dataclass(frozen=True)
class TextScore:
    """Summed loss over a text; special tokens are scored and count no bytes."""

    nats: float
    tokens: int
    bytes: int
    vocab_size: int

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss): a token's perplexity, to be compared only under one tokenizer."""
        return exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / (math.log(2) * self.bytes)

    @property
    def byte_perplexity(self) -> float:
        """2 ** bits_per_byte, as lm-eval's `wikitext` defines it."""
        return exp(self.nats / self.bytes)

    @property
    def uniform_byte_perplexity(self) -> float:
        """What guessing every token with equal probability would score on this text."""
        return float(self.vocab_size ** (self.tokens / self.bytes))

    def metrics(self) -> dict[str, float]:
        """The figures as they are logged."""
        names = ("loss", "perplexity", "bits_per_byte", "byte_perplexity")
        return {name: getattr(self, name) for name in names}


def exp(value: float) -> float:
    """E to the power of nats, infinite where a float ends."""
    return math.exp(value) if value < 700 else math.inf


def before_and_after(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Label, and bits per byte before and after a fine-tuning, of each text that was scored.

    Args:
        before: `final` and `general` of the model that the run began with.
        now: the same of the run's own.
    """
    label = "the text, trained on" if "split" in now["final"] else "the text, held out"
    rows = [(label, before["final"]["bits_per_byte"], now["final"]["bits_per_byte"])]
    if before.get("general") and now.get("general"):
        old, new = before["general"], now["general"]
        rows.append((f"general: {new['text']}", old["bits_per_byte"], new["bits_per_byte"]))
    return rows
