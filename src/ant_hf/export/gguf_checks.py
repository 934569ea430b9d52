"""A GGUF file read back by transformers, for its contents, and by llama.cpp, for its use."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.gguf_tensors import rounded
from ant_hf.export.greedy import check_greedy, room_for
from ant_hf.export.llama_cpp import Questions, ask
from ant_hf.export.texts import check_texts, greedy_prompts
from ant_hf.model.texts import ENGLISH
from ant_hf.utils.quiet import quiet_libraries

_SCORED_TOKENS = 48


@dataclass(frozen=True)
class Tolerance:
    """How far a type may lie from the model it was made of."""

    logits: float
    """Largest difference of a logit, in standard deviations of the logits."""
    tie: float
    """Where greedy outputs part: how near the two tokens' logits must be for it to be rounding."""
    nats: float
    """Difference of the mean log-likelihood of a token."""


# llama.cpp multiplies F16 with activations rounded to F16, and Q8_0 with activations rounded to 8 bits.
TOLERANCES = {
    "f32": Tolerance(0.0, 1e-3, 1e-3),
    "f16": Tolerance(0.01, 0.02, 0.005),
    "q8_0": Tolerance(0.1, 0.1, 0.02),
}


def scored_ids(tokenizer: Any, context: int) -> list[list[int]]:
    """Token ids of a page of plain English, a beginning of each of its paragraphs."""
    length = min(context, _SCORED_TOKENS)
    return [tokenizer(text, add_special_tokens=False)["input_ids"][:length] for text in ENGLISH]


def read_back(
    file: Path, model: PreTrainedModel, tokenizer: Any, kind: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a file with transformers' `gguf_file=` and compare it with what should be in it.

    Every weight must be the original one as the type rounds it, bit for bit, and so must the logits of
    a model with these weights; against the original the type's tolerance holds.

    Returns:
        The model of the file, and the figures.

    Raises:
        AntError: the file does not load, or holds another model.
    """
    # The reader draws a bar that no setting turns off.
    with quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
        # Its reader raises whatever the bytes lead it to.
        except Exception as error:
            raise AntError(
                f"transformers does not load {file.name}: {' '.join(str(error).split())}"
            ) from None
    expected = copy.deepcopy(model)
    expected.load_state_dict(rounded(model, kind))
    for name, weight in expected.state_dict().items():
        if not torch.equal(weight, loaded.state_dict()[name]):
            raise AntError(f"{file.name} holds another {name} than the model it was made of")
    sequences = scored_ids(tokenizer, model.config.max_position_embeddings)
    wanted, seen, original = (_logits(m, sequences) for m in (expected, loaded, model))
    if not torch.equal(wanted, seen):
        worst = (wanted - seen).abs().max().item()
        raise AntError(f"{file.name} gives other logits than its weights should", seen=f"{worst:.2e} apart")
    difference, spread = (seen - original).abs().max().item(), original.std().item()
    if difference > TOLERANCES[kind].logits * spread:
        raise AntError(
            f"{file.name} is too far from the model it was made of",
            seen=f"logits up to {difference:.3g} apart",
            expected=f"at most {TOLERANCES[kind].logits * spread:.3g} in {kind.upper()}",
            hint="Leave this type out with --type",
        )
    return loaded, {"largest_logit_difference": difference, "logits_standard_deviation": spread}


def _logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits of all positions of all sequences, shape (positions, vocabulary)."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([list(ids)])).logits[0] for ids in sequences])


def _mean_loss(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> float:
    """Nats of a token after the first, over all sequences."""
    losses = [
        torch.nn.functional.cross_entropy(
            _logits(model, [ids])[:-1], torch.tensor(list(ids)[1:]), reduction="none"
        )
        for ids in sequences
    ]
    return torch.cat(losses).mean().item()


def run_in_llama_cpp(
    file: Path, model: PreTrainedModel, loaded: PreTrainedModel, tokenizer: Any, kind: str, threads: int
) -> dict[str, Any]:
    """Hold llama.cpp to Transformers: tokens of every check text, greedy outputs, likelihoods.

    Args:
        model: what the file was made of, for the likelihoods.
        loaded: the weights that are in the file, for the greedy outputs.

    Raises:
        AntError: anything differs by more than the type's tolerance.
    """
    texts, prompts = check_texts(), greedy_prompts()
    context = model.config.max_position_embeddings
    sequences = scored_ids(tokenizer, context)
    questions = Questions(
        texts, prompts, sequences, (1,), room_for(prompts, tokenizer, context), min(context, 512),
        threads, model.config.vocab_size,
    )  # fmt: skip
    answers = ask(file, questions)
    _compare_tokens(file, texts, tokenizer, answers.tokens)
    outputs = dict(zip(prompts, answers.greedy, strict=True))
    figures = check_greedy(
        f"llama.cpp with {file.name}", loaded, tokenizer, outputs, questions.new_tokens, TOLERANCES[kind].tie
    )
    count = sum(map(len, answers.log_likelihoods))
    theirs = -sum(map(sum, answers.log_likelihoods)) / count
    ours = _mean_loss(model, sequences)
    if abs(theirs - ours) > TOLERANCES[kind].nats:
        raise AntError(
            f"llama.cpp finds plain English as likely with {file.name} as another model would",
            seen=f"{theirs:.4f} nats a token",
            expected=f"{ours:.4f} within {TOLERANCES[kind].nats}",
        )
    return figures | {
        "texts": len(texts),
        "texts_with_equal_tokens": len(texts),
        "scored_tokens": count,
        "nats_per_token": theirs,
        "nats_per_token_difference": theirs - ours,
        "tokens_per_second": answers.tokens_per_second["1"][0],
        "threads": threads,
    }


def _compare_tokens(file: Path, texts: Sequence[str], tokenizer: Any, tokens: list[list[int]]) -> None:
    differ = [text for text, ids in zip(texts, tokens, strict=True) if tokenizer(text)["input_ids"] != ids]
    if differ:
        raise AntError(
            f"llama.cpp cuts {len(differ)} of {len(texts)} texts otherwise with {file.name}",
            seen=min(differ, key=len)[:80],
            hint="Export to ONNX, which leaves the tokenizer as it is: --to onnx",
        )
