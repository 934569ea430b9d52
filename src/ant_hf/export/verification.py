"""A GGUF file read back by transformers, for its contents, and by llama.cpp, for its use."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.gguf import SAMPLING, TYPES, rounded
from ant_hf.export.llama_cpp import Questions, ask
from ant_hf.export.questions import (
    check_cost,
    check_greedy,
    check_texts,
    greedy_starts,
    nats,
    one_line,
    scored_ids,
)
from ant_hf.export.vocabulary import Vocabulary
from ant_hf.utils.console import quiet_libraries

WITHOUT_LLAMA_CPP = (
    "not verified in llama.cpp, because xllamacpp is not installed: pip install 'ant-hf[gguf]'"
)
# Names of chat templates that llama.cpp looks for.
_TEMPLATES = {"default", "tool_use"}
_CONVERSATION = (
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
)
# Of generation_config.json: what is written, or changes no text.
_WITHOUT_EFFECT = re.compile(
    r"_|(bos|eos|pad)_token_id|do_sample|max_|min_new|output_|return_|.*cache|transformers_"
)


def read_back(
    file: Path, model: PreTrainedModel, tokenizer: Any, kind: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a file with transformers' `gguf_file=` and compare it with what should be in it.

    Every weight must be the original one as the type rounds it, bit for bit, and so must the logits of
    a model with these weights. What plain English costs more than the original has the type's limit.

    Returns:
        The model of the file, and the figures.

    Raises:
        AntError: the file does not load, holds another model, or lost too much to rounding.
    """
    # The reader draws a bar that no setting turns off, and raises whatever the bytes lead it to.
    with (
        quiet_libraries(),
        contextlib.redirect_stderr(io.StringIO()),
        one_line(f"transformers cannot load {file.name}"),
    ):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    expected = copy.deepcopy(model)
    expected.load_state_dict(rounded(model, kind))
    for name, weight in expected.state_dict().items():
        if not torch.equal(weight, loaded.state_dict()[name]):
            raise AntError(f"{file.name} has another {name} than the model it was made from")
    sequences = scored_ids(tokenizer, model.config.max_position_embeddings)
    wanted, seen, original = (_logits(each, sequences) for each in (expected, loaded, model))
    if (worst := _largest_difference(wanted, seen)) > 0:
        raise AntError(
            f"{file.name} gives different logits than its weights should", seen=f"{worst:.2e} apart"
        )
    cost = nats(seen, sequences), nats(original, sequences), tokenizer, sequences
    return loaded, {
        "largest_logit_difference": _largest_difference(seen, original),
        "logits_standard_deviation": torch.cat(original).std().item(),
        **check_cost(file.name, kind.upper(), TYPES[kind].loss, *cost),
    }


def _logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits of each sequence, shape (positions, vocabulary)."""
    with torch.no_grad():
        return [model(torch.tensor([list(ids)])).logits[0] for ids in sequences]


def _largest_difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max((ours - theirs).abs().max().item() for ours, theirs in zip(left, right, strict=True))


def run_in_llama_cpp(
    file: Path,
    model: PreTrainedModel,
    loaded: PreTrainedModel,
    tokenizer: Any,
    vocabulary: Vocabulary,
    kind: str,
    threads: int,
) -> dict[str, Any]:
    """Compare llama.cpp with Transformers: tokens, greedy outputs, likelihoods, ends, the chat template.

    Args:
        model: what the file was made of, for the likelihoods.
        loaded: the weights that are in the file, for the greedy outputs.

    Returns:
        The figures; among them the ends of a text that llama.cpp lacks or has alone, and whether both
        programs put a chat into the template alike (None where Transformers cannot, or without one).

    Raises:
        AntError: anything differs by more than the type's tolerance.
    """
    program, context = f"llama.cpp with {file.name}", model.config.max_position_embeddings
    texts, ends = check_texts(), vocabulary.ends
    names = vocabulary.names(vocabulary.named)
    texts += [f"a{name} b {name}1" for name in names if not any(name in text for text in texts)]
    starts, new_tokens = greedy_starts(tokenizer, context)
    template = vocabulary.chat_templates.get("default")
    questions = Questions(
        texts=texts,
        prompts=starts,
        scored=scored_ids(tokenizer, context),
        endings=sorted({*vocabulary.named, *ends, *vocabulary.other_ends}),
        conversation=_CONVERSATION if template else (),
        speed_batches=(1,),
        new_tokens=new_tokens,
        context=min(max(context, 64), 512),
        threads=threads,
        vocab_size=model.config.vocab_size,
    )
    answers = ask(file, questions)
    pairs = zip(texts, answers.tokens, strict=True)
    if differ := [text for text, ids in pairs if tokenizer(text)["input_ids"] != ids]:
        raise AntError(
            f"llama.cpp turns {len(differ)} of {len(texts)} texts into other tokens with {file.name}",
            seen=min(differ, key=len)[:80],
            hint="Export to ONNX, which leaves the tokenizer as it is: --to onnx",
        )
    if missed := [index for index in ends if index not in answers.ends]:
        raise AntError(f"{program} does not end a text where the model does", seen=vocabulary.names(missed))
    if template not in (None, answers.chat_template):
        raise AntError(
            f"{program} reads another chat template than the tokenizer has", seen=answers.chat_template[:200]
        )
    others = vocabulary.other_ends
    stops, tie = [*answers.ends, *others], TYPES[kind].tie
    figures = check_greedy(program, loaded, tokenizer, context, answers.greedy, stops, tie)
    ours = nats(_logits(model, questions.scored), questions.scored)
    theirs = -torch.tensor([each for scores in answers.log_likelihoods for each in scores])
    return figures | {
        "texts": len(texts),
        "texts_with_equal_tokens": len(texts),
        "ends": vocabulary.names(ends),
        "ends_left_out": vocabulary.names(index for index in others if index not in answers.ends),
        "ends_of_llama_cpp_alone": vocabulary.names({*answers.ends} - {*ends, *others}),
        "chat_alike": _alike(tokenizer, answers.conversation) if template else None,
        "scored_tokens": sum(len(ids) - 1 for ids in questions.scored),
        **check_cost(program, kind.upper(), TYPES[kind].loss, theirs, ours, tokenizer, questions.scored),
        "tokens_per_second": answers.tokens_per_second["1"],
        "threads": threads,
    }


def _alike(tokenizer: Any, theirs: str | None) -> bool | None:
    """Whether Transformers puts the conversation into the template as llama.cpp did; None if it cannot."""
    try:
        ours = tokenizer.apply_chat_template(_CONVERSATION, tokenize=False, add_generation_prompt=True)
    # A template may raise anything, and many do for a role they do not know.
    except Exception:
        return None
    # llama.cpp leaves out the beginning that it puts before every text.
    start = tokenizer.bos_token or ""
    return theirs is not None and ours.removeprefix(start) == theirs.removeprefix(start)


def notes(model: PreTrainedModel, vocabulary: Vocabulary, run: dict[str, Any] | None) -> list[str]:
    """What the files do not hold, and what llama.cpp does otherwise with them, one sentence each.

    Args:
        run: the figures of llama.cpp, if it was run.
    """
    lines = [] if run else [WITHOUT_LLAMA_CPP]
    if missing := run["ends_left_out"] if run else vocabulary.names(vocabulary.other_ends):
        lines.append(
            f"GGUF has room for three end-of-text tokens; llama.cpp does not stop at {', '.join(missing)}"
        )
    if run and (more := run["ends_of_llama_cpp_alone"]):
        lines.append(f"llama.cpp also stops at {', '.join(more)}, which generation_config.json does not name")
    if others := sorted(vocabulary.chat_templates.keys() - _TEMPLATES):
        lines.append(f"llama.cpp ignores the chat templates named {', '.join(others)}")
    if run and run["chat_alike"] is False:
        lines.append("llama.cpp fills in the chat template differently than Transformers")
    given: Any = model.generation_config
    settings = {name for name in given.to_diff_dict() if not _WITHOUT_EFFECT.match(name)} - SAMPLING.keys()
    if settings:
        lines.append(
            f"GGUF has no place for these settings of generation_config.json: {', '.join(sorted(settings))}"
        )
    return lines
