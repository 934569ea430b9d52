"""The gate: run as a process of its own that gets a folder of files, held-out text and the expected numbers.

`python -m ant_hf.release.gate JOB.json` writes the report that the job names. Nothing of the training
is in this process: what it finds, a stranger finds.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ant_hf.card.audit import count_parameters
from ant_hf.data.tokens import TokensInMemory
from ant_hf.evaluation.degeneration import generate, measure, prompts
from ant_hf.model.scoring import SAME_LOSS, score_tokens
from ant_hf.model.texts import ENGLISH, ROUND_TRIP
from ant_hf.release.checks import Check, as_json, verdict
from ant_hf.release.files import check_files, dangerous_files
from ant_hf.utils.files import file_sha256, read_json, write_json
from ant_hf.utils.metrics import TextScore
from ant_hf.utils.provenance import now


@dataclass(frozen=True)
class Loaded:
    """Model and tokenizer of one folder."""

    model: PreTrainedModel
    tokenizer: Any
    stored_parameters: int
    """Numbers in the safetensors files."""
    stored_dtype: torch.dtype
    """Of the largest tensor there."""


def load(
    folder: Path, dtype: torch.dtype, refuse: list[str] | None = None
) -> tuple[Loaded | None, list[Check]]:
    """Load through the Auto classes, without remote code and offline.

    Args:
        refuse: reasons not to try at all.

    Returns:
        None instead of the model if it does not load, and the checks made on the way.
    """
    name = "loading"
    reasons = [*(refuse or []), *_asks_for_code(folder)]
    if reasons:
        return None, [Check(name, False, "; ".join(reasons))]
    said: list[str] = []
    try:
        with _listening(said):
            both: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, trust_remote_code=False
            )
            model, info = both
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        stored_parameters, stored_dtype = _stored(folder)
    except Exception as error:  # whatever it is, a stranger would meet it too
        return None, [Check(name, False, f"does not load: {type(error).__name__}: {_one_line(error)}")]
    keys = {k: sorted(v) for k, v in info.items() if k.endswith("_keys") and v}
    problems = [f"{kind.replace('_', ' ')}: {', '.join(map(str, found[:3]))}" for kind, found in keys.items()]
    problems += [f"warning: {text}" for text in said]
    problems += _size_problem(model, tokenizer)
    seen = "; ".join(problems) or "Auto classes, no warning, no missing or unexpected key, no remote code"
    loaded = Loaded(model.eval(), tokenizer, stored_parameters, stored_dtype)
    return loaded, [Check(name, not problems, seen), _tied(model)]


def _size_problem(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    if len(tokenizer) <= model.config.vocab_size:
        return []
    return [f"the tokenizer has {len(tokenizer):,} entries, the model {model.config.vocab_size:,}"]


def _tied(model: Any) -> Check:
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    shared = head.data_ptr() == embeddings.data_ptr()
    declared = bool(model.config.tie_word_embeddings)
    seen = f"tie_word_embeddings is {declared}, the two tensors share storage: {shared}"
    return Check("tied weights", shared == declared, seen)


def _asks_for_code(folder: Path) -> list[str]:
    found = []
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in path.read_text(encoding="utf-8", errors="replace"):
            found.append(f"{name} asks for remote code (auto_map)")
    return found


def _stored(folder: Path) -> tuple[int, torch.dtype]:
    """Numbers in all safetensors files, read from their heads, and the dtype of the largest tensor."""
    total, largest, dtype = 0, -1, torch.float32
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                view = file.get_slice(key)
                count = 1
                for size in view.get_shape():
                    count *= size
                total += count
                if count > largest:
                    largest, dtype = count, _DTYPES.get(view.get_dtype(), torch.float32)
    return total, dtype


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Collect warnings of Python and of the libraries' loggers instead of showing them."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(_one_line(record.getMessage()))

    collector = Collector(logging.WARNING)
    loggers = [logging.getLogger("transformers"), logging.getLogger("huggingface_hub")]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    transformers_logging.disable_progress_bar()
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [collector], False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        said += [_one_line(item.message) for item in caught]
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:300]


def score_documents(
    loaded: Loaded, documents: list[str], context: int, batch_size: int, limit: int | None = None
) -> TextScore:
    """Encode, join with end-of-text as packing does, and score at most `limit` tokens.

    Its bytes are those of the decoded text of the scored tokens, special tokens left out.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document, add_special_tokens=False, split_special_tokens=True)
        ids += [end] if end is not None else []
        if limit is not None and len(ids) > limit:
            break
    ids = ids[: None if limit is None else limit + 1]
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # wrapped by a decorator of transformers
    no_lengths = [0] * model.config.vocab_size
    scores = score_tokens(model, TokensInMemory(ids), no_lengths, context=context, batch_size=batch_size)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    first = tokenizer.decode(ids[:1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    size = len(text.encode()) - len(first.encode())
    return replace(scores, bytes=max(size, 1))


# Every fourth of the evaluation's prompts: enough to see a collapse, a few seconds on a CPU.
_EVERY = 4


def greedy_loop_rate(loaded: Loaded) -> tuple[float, int]:
    """Share of continuations stuck in a loop, by the evaluation's own measure, and how many there were."""
    texts = prompts()[::_EVERY]
    outputs = generate(loaded.model, loaded.tokenizer, texts, sample=False)
    return measure(outputs, loaded.tokenizer.decode)["loop_rate"], len(outputs)


# "Well below" a uniform guess: at most this share of its nats a byte.
UNIFORM_SHARE = 0.9
# Float16 takes a CPU four times as long as float32; this many tokens are enough to see a difference.
_HALF_TOKENS = 8192
_BATCH = 8


def main(job_file: str) -> None:
    """Run the checks that a job asks for and write its report."""
    job = read_json(Path(job_file), "job of the gate", "It is written by ant-hf itself.")
    folder = Path(job["folder"])
    checks = run_checks(folder, job)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    report = {
        "schema": 1,
        "verdict": verdict(checks),
        "finished": now(),
        "sha256": {path.name: file_sha256(path) for path in files},
        "held_out_sha256": file_sha256(Path(job["held_out"])) if job.get("held_out") else None,
        "checks": as_json(checks),
    }
    write_json(Path(job["report"]), report)


def run_checks(folder: Path, job: dict[str, Any]) -> list[Check]:
    """All checks in order; what needs a loaded model is left out when it does not load."""
    files = check_files(folder, job.get("owner", ""))
    dangerous = dangerous_files(folder)
    loaded, checks = load(folder, torch.float32, refuse=dangerous)
    if loaded:
        checks.append(_parameters(loaded, job.get("parameters")))
        checks.append(_round_trip(loaded.tokenizer))
        if job.get("held_out"):
            checks += _held_out(folder, loaded, Path(job["held_out"]), job["expected"])
        checks.append(_english(loaded))
        checks.append(_generation(loaded, job.get("degeneration")))
    return [*checks, files]


def _parameters(loaded: Loaded, expected: int | None) -> Check:
    counted = loaded.model.num_parameters()
    figures = {"model": counted, "stored": loaded.stored_parameters}
    if loaded.model.config.model_type == "llama":
        formula = count_parameters(loaded.model.config.to_dict())
        figures |= {"formula": formula} if formula else {}
    figures |= {"run.json": expected} if expected else {}
    seen = ", ".join(f"{name} {count:,}" for name, count in figures.items())
    return Check("parameters", len(set(figures.values())) == 1, seen, figures)


def _round_trip(tokenizer: Any) -> Check:
    changed = [
        text
        for text in (*ROUND_TRIP, *ENGLISH)
        if tokenizer.decode(
            tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False
        )
        != text
    ]
    total = len(ROUND_TRIP) + len(ENGLISH)
    seen = f"{total - len(changed)} of {total} texts come back exactly"
    if changed:
        seen += f"; the first that does not: {changed[0][:40]!r}"
    return Check("tokenizer round trip", not changed, seen, {"texts": total, "changed": len(changed)})


def _held_out(folder: Path, loaded: Loaded, text: Path, expected: dict[str, Any]) -> list[Check]:
    """The recorded loss again, from the text on: exported tokenizer, exported weights."""
    # Not str.splitlines, which also cuts at the line separators that a text may hold.
    with text.open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    context, limit = expected["context_tokens"], expected["tokens"]
    full = score_documents(loaded, documents, context, _BATCH, limit)
    checks = [_loss("held-out loss, float32", full, expected["loss"])]
    stored = loaded.stored_dtype
    if stored != torch.float32:
        other, _ = load(folder, stored)
        if other:
            scores = score_documents(other, documents, context, _BATCH, limit)
            checks.append(_loss(f"held-out loss, {_name(stored)} (as stored)", scores, expected["loss"]))
    half, _ = load(folder, torch.float16)
    if half:
        prefix = score_documents(loaded, documents, context, _BATCH, min(limit, _HALF_TOKENS))
        scores = score_documents(half, documents, context, _BATCH, min(limit, _HALF_TOKENS))
        checks.append(_loss(f"first {scores.tokens:,} tokens, float16 (the snippet's)", scores, prefix.loss))
    checks.append(_units(full, expected["byte_perplexity"]))
    return [*checks, _uniform("held-out text against a uniform guess", full)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _loss(name: str, scores: TextScore, expected: float) -> Check:
    difference = scores.loss / expected - 1
    seen = (
        f"{scores.loss:.4f} nats a token over {scores.tokens:,} tokens, expected {expected:.4f} "
        f"({difference:+.3%}, at most {SAME_LOSS:.1%})"
    )
    numbers = {"loss": scores.loss, "expected": expected, "tokens": scores.tokens}
    return Check(name, bool(abs(difference) <= SAME_LOSS), seen, numbers)


def _units(scores: TextScore, recorded_byte_perplexity: float) -> Check:
    """ln(byte perplexity) x bytes a token = ln(token perplexity).

    The byte perplexity is the recorded one, from lengths of vocabulary entries; the bytes a token are
    counted here on the decoded text.
    """
    bytes_per_token = scores.bytes / scores.tokens
    implied = math.log(recorded_byte_perplexity) * bytes_per_token
    seen = (
        f"recorded byte perplexity {recorded_byte_perplexity:.4f} at {bytes_per_token:.4f} bytes a token is "
        f"{implied:.4f} nats a token; scored {scores.loss:.4f}"
    )
    agrees = math.isclose(implied, scores.loss, rel_tol=SAME_LOSS)
    return Check("byte and token perplexity agree", agrees, seen, {"implied_loss": implied})


def _uniform(name: str, scores: TextScore) -> Check:
    share = scores.loss / math.log(scores.vocab_size)
    seen = (
        f"byte perplexity {scores.byte_perplexity:.3f}, uniform guess {scores.uniform_byte_perplexity:.2f}; "
        f"{share:.0%} of its nats, at most {UNIFORM_SHARE:.0%}"
    )
    numbers = {"byte_perplexity": scores.byte_perplexity, "uniform": scores.uniform_byte_perplexity}
    return Check(name, share <= UNIFORM_SHARE, seen, numbers)


def _english(loaded: Loaded) -> Check:
    """Needs no data of the training, so that it works on anyone's model."""
    context = min(loaded.model.config.max_position_embeddings, 256)
    scores = score_documents(loaded, list(ENGLISH), context, 1)
    return _uniform("plain English against a uniform guess", scores)


def _generation(loaded: Loaded, recorded: dict[str, Any] | None) -> Check:
    from ant_hf.release.gate import greedy_loop_rate

    rate, prompts = greedy_loop_rate(loaded)
    name, numbers = "generation", {"loop_rate": rate, "prompts": prompts}
    seen = f"{rate:.0%} of {prompts} greedy continuations end in a loop"
    if recorded is None:
        return Check(name, None, f"{seen}; no rate on record to hold it to", numbers)
    expected = recorded["greedy"]["loop_rate"]
    # Three standard errors of a rate from this few prompts, never less than three prompts' worth: the error
    # of a recorded rate of 0 is 0, and one loop must not refuse a model.
    allowed = min(1.0, expected + max(3 * math.sqrt(expected * (1 - expected) / prompts), 3 / prompts))
    seen += f"; on record {expected:.1%}, at most {allowed:.0%} allowed"
    return Check(name, rate <= allowed, seen, numbers | {"recorded": expected, "allowed": allowed})


if __name__ == "__main__":
    main(sys.argv[1])
