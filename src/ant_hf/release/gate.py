"""The gate: run as a process of its own that gets a folder of files, held-out text and the expected numbers.

`python -m ant_hf.release.gate JOB.json` writes gate.json beside its job. Nothing of the training is in this
process: what it finds, a stranger finds.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ant_hf.card.audit import count_parameters
from ant_hf.data.tokens import TokensInMemory
from ant_hf.errors import AntError
from ant_hf.evaluation.degeneration import generate, measure, prompts
from ant_hf.export.exporting import graphs_beside
from ant_hf.model.causality import check_causal
from ant_hf.model.encoding import added_ids, context_length, decode, encode
from ant_hf.model.loading import from_pretrained
from ant_hf.model.scoring import SAME_LOSS, check_finite, described_start, score_text, score_tokens
from ant_hf.model.texts import ENGLISH, ROUND_TRIP
from ant_hf.release.files import dangerous_files
from ant_hf.release.verify import Check, HeldOut, Job, check_files, verdict
from ant_hf.utils.files import file_sha256, write_json
from ant_hf.utils.metrics import TextScore
from ant_hf.utils.names import CONFIG, GATE, ONNX
from ant_hf.utils.provenance import now

# "Well below" a uniform guess: at most this share of its nats per byte.
UNIFORM_SHARE = 0.9
# Float16 takes a CPU three to four times as long as float32; this many tokens are enough to see a difference.
_HALF_TOKENS = 32_768
_BATCH = 8
# Every fourth of the evaluation's prompts: enough to see a collapse, a few seconds on a CPU.
_EVERY = 4
_ENGLISH = "plain English against a uniform guess"
# Rotary frequencies are computed; Transformers ignores those of old files.
_INV_FREQ = r"rotary_emb\.inv_freq"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def main(job_file: Path) -> None:
    """Run the checks that a job asks for and write their report beside it."""
    job = Job.model_validate_json(job_file.read_text(encoding="utf-8"))
    checks = [vars(check) for check in run_checks(job)]
    files = sorted(path for path in job.folder.iterdir() if path.suffix in (".safetensors", ".json"))
    report = {
        "schema": 1,
        "verdict": verdict(checks),
        "finished": now(),
        "sha256": {path.name: file_sha256(path) for path in files},
        "held_out_sha256": file_sha256(job.held_out.text) if job.held_out else None,
        "checks": checks,
    }
    write_json(job_file.with_name(GATE), report)


def run_checks(job: Job) -> list[Check]:
    """All checks in order; what needs a loaded model is left out when it does not load."""
    files = check_files(job.folder, job.owner)
    loaded, loading = load(job.folder, torch.float32)
    checks = [loading]
    if loaded:
        checks += _attempt("reads from left to right", lambda: check_causal(loaded.model) or [])
        checks += _attempt("tied weights", lambda: [_tied(loaded.model)])
        checks += _attempt("parameters", lambda: [_parameters(loaded, job.parameters)])
        checks += _attempt("tokenizer round trip", lambda: [_round_trip(loaded.tokenizer)])
        if held_out := job.held_out:
            checks += _attempt("held-out loss", lambda: _held_out(job.folder, loaded, held_out))
        checks += _attempt(_ENGLISH, lambda: [_english(loaded, job.languages)])
        checks += _attempt("generation", lambda: [_generation(loaded, job.loop_rate)])
    if (job.folder / ONNX).is_dir():
        checks += _attempt("ONNX", lambda: [_onnx(job.folder)])
    return [*checks, files]


def _attempt(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """What looking finds; a model that breaks down under it fails, and the other checks continue."""
    try:
        return look()
    except Exception as error:  # whatever it is, a stranger would meet it too
        reason = str(error) if isinstance(error, AntError) else f"{type(error).__name__}: {error}"
        return [Check(name, False, _one_line(reason))]


@dataclass(frozen=True)
class Loaded:
    """Model and tokenizer of one folder."""

    model: PreTrainedModel
    tokenizer: Any
    stored_parameters: int
    """In the safetensors files."""
    stored_dtype: torch.dtype
    """Of the largest tensor there."""


def load(folder: Path, dtype: torch.dtype) -> tuple[Loaded | None, Check]:
    """Load through the Auto classes, without remote code and offline, unless a file there could run code.

    Returns:
        The model, None if it does not load, and the check of the loading.
    """
    name, refused = "loading", dangerous_files(folder)
    for file in (CONFIG, "tokenizer_config.json"):
        path = folder / file
        if path.is_file() and "auto_map" in path.read_text(encoding="utf-8", errors="replace"):
            refused.append(f"{file} needs remote code (auto_map)")
    if refused:
        return None, Check(name, False, "; ".join(refused))
    said: list[str] = []
    try:
        with _listening(said):
            model, tokenizer, info = from_pretrained(folder, dtype)
        loaded = Loaded(model, tokenizer, *_stored(folder, model))
    except AntError as error:
        return None, Check(name, False, _one_line(error))
    except Exception as error:  # whatever it is, a stranger would meet it too
        return None, Check(
            name, False, f"the model does not load: {type(error).__name__}: {_one_line(error)}"
        )
    keys = {k: sorted(v) for k, v in info.items() if k.endswith("_keys") and v}
    problems = [f"{kind.replace('_', ' ')}: {', '.join(map(str, found[:3]))}" for kind, found in keys.items()]
    problems += [f"warning: {text}" for text in said]
    if len(tokenizer) > (size := model.config.get_text_config(decoder=True).vocab_size):
        problems.append(f"the tokenizer has {len(tokenizer):,} entries, the model {size:,}")
    seen = (
        "; ".join(problems)
        or "loaded by the Auto classes; no warning, missing or unexpected key, or remote code"
    )
    return loaded, Check(name, not problems, seen)


def _stored(folder: Path, model: Any) -> tuple[int, torch.dtype]:
    """Parameters in all safetensors files, read from their heads, and the dtype of the largest tensor.

    A tied tensor that is stored under both its names counts once, and buffers, which old files hold, do not.
    """
    tensors: dict[str, tuple[int, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                view = file.get_slice(name)
                tensors[name] = math.prod(view.get_shape()), view.get_dtype()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in model.named_buffers()}
    ignored = [_INV_FREQ, *(model._keys_to_ignore_on_load_unexpected or ())]
    counted: dict[object, int] = {}
    for name, (count, _) in tensors.items():
        # Files of the model without its head lack the prefix, others have it.
        prefix = f"{model.base_model_prefix}."
        names = (name, prefix + name, name.removeprefix(prefix))
        known = next((id(parameters[each]) for each in names if each in parameters), None)
        if known or not (buffers & {*names} or any(re.search(each, name) for each in ignored)):
            counted[known or name] = count
    _, dtype = max(tensors.values(), key=lambda tensor: tensor[0], default=(0, "F32"))
    return sum(counted.values()), _DTYPES.get(dtype, torch.float32)


@contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Collect warnings of Python and of the libraries' loggers instead of showing them."""
    heard = BufferingHandler(capacity=1_000_000)
    heard.setLevel(logging.WARNING)
    loggers = [logging.getLogger("transformers"), logging.getLogger("huggingface_hub")]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    transformers_logging.disable_progress_bar()
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [heard], False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        said += [_one_line(record.getMessage()) for record in heard.buffer]
        said += [_one_line(item.message) for item in caught]
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:300]


def score_documents(
    loaded: Loaded, documents: list[str], context: int, batch_size: int, limit: int = sys.maxsize
) -> TextScore:
    """Encode, join with end-of-text as packing does, and score at most `limit` tokens.

    Its bytes are those of the decoded text of the scored tokens, special tokens left out.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for document in documents:
        ids += [*added_ids(tokenizer), *encode(tokenizer, document)]
        ids += [end] if end is not None else []
        if len(ids) > limit:
            break
    ids = ids[: limit + 1]
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # wrapped by a decorator of transformers
    no_lengths = [0] * model.config.vocab_size
    scores = score_tokens(model, TokensInMemory(ids), no_lengths, context=context, batch_size=batch_size)
    text, first = (decode(tokenizer, part, skip_special_tokens=True) for part in (ids, ids[:1]))
    size = len(text.encode()) - len(first.encode())
    return replace(scores, bytes=max(size, 1))


def _tied(model: Any) -> Check:
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    shared = head.data_ptr() == embeddings.data_ptr()
    declared = bool(model.config.tie_word_embeddings)
    seen = f"tie_word_embeddings is {declared}, the two tensors share storage: {shared}"
    return Check("tied weights", shared == declared, seen)


def _parameters(loaded: Loaded, expected: int | None) -> Check:
    config = loaded.model.config
    figures = {
        "model": loaded.model.num_parameters(),
        "stored": loaded.stored_parameters,
        "formula": count_parameters(config.to_dict()) if config.model_type == "llama" else None,
        "run.json": expected,
    }
    known = {name: count for name, count in figures.items() if count is not None}
    seen = ", ".join(f"{name} {count:,}" for name, count in known.items())
    return Check("parameters", len(set(known.values())) == 1, seen, known)


def _round_trip(tokenizer: Any) -> Check:
    texts = (*ROUND_TRIP, *ENGLISH)
    back = [decode(tokenizer, encode(tokenizer, text)) for text in texts]
    changed = [text for text, again in zip(texts, back, strict=True) if text != again]
    seen = f"{len(texts) - len(changed)} of {len(texts)} texts come back exactly"
    if changed:
        seen += f"; the first that does not: {changed[0][:40]!r}"
    return Check("tokenizer round trip", not changed, seen, {"texts": len(texts), "changed": len(changed)})


def _held_out(folder: Path, loaded: Loaded, expected: HeldOut) -> list[Check]:
    """The recorded loss again, from the text on: exported tokenizer, exported weights."""
    # Not str.splitlines, which also cuts at the line separators that a text may hold.
    with expected.text.open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]

    def score(loaded: Loaded, limit: int = expected.tokens) -> TextScore:
        return score_documents(loaded, documents, expected.context_tokens, _BATCH, limit)

    full, stored = score(loaded), loaded.stored_dtype
    checks = [_loss("held-out loss, float32", full, expected.loss)]
    if stored not in (torch.float32, torch.float16) and (other := load(folder, stored)[0]):
        name = f"held-out loss, {str(stored).removeprefix('torch.')} (as stored)"
        checks.append(_loss(name, score(other), expected.loss))
    if half := load(folder, torch.float16)[0]:
        limit = min(expected.tokens, _HALF_TOKENS)
        prefix, scores = score(loaded, limit), score(half, limit)
        whose = "as stored" if stored == torch.float16 else "the snippet's"
        checks.append(_loss(f"first {scores.tokens:,} tokens, float16 ({whose})", scores, prefix.loss))
    checks.append(_units(full, expected.byte_perplexity))
    return [*checks, _uniform("held-out text against a uniform guess", full)]


def _loss(name: str, scores: TextScore, expected: float) -> Check:
    difference = check_finite(scores).loss / expected - 1
    seen = (
        f"{scores.loss:.4f} nats per token over {scores.tokens:,} tokens, expected {expected:.4f} "
        f"({difference:+.3%}, at most {SAME_LOSS:.1%})"
    )
    numbers = {"loss": scores.loss, "expected": expected, "tokens": scores.tokens}
    return Check(name, bool(abs(difference) <= SAME_LOSS), seen, numbers)


def _units(scores: TextScore, recorded_byte_perplexity: float) -> Check:
    """ln(byte perplexity) x bytes per token = ln(token perplexity).

    The byte perplexity is the recorded one, from lengths of vocabulary entries; the bytes per token are
    counted here on the decoded text.
    """
    bytes_per_token = scores.bytes / scores.tokens
    implied = math.log(recorded_byte_perplexity) * bytes_per_token
    seen = (
        f"recorded byte perplexity {recorded_byte_perplexity:.4f} at {bytes_per_token:.4f} bytes per token "
        f"is {implied:.4f} nats per token; scored {scores.loss:.4f}"
    )
    agrees = math.isclose(implied, scores.loss, rel_tol=SAME_LOSS)
    return Check("byte and token perplexity agree", agrees, seen, {"implied_loss": implied})


def _uniform(name: str, scores: TextScore) -> Check:
    share, byte = scores.loss / math.log(scores.vocab_size), scores.byte_perplexity
    figure = (
        f"byte perplexity {byte:.3f}" if byte < 1e6 else f"{scores.nats / scores.bytes:.3g} nats per byte"
    )
    seen = (
        f"{figure}, uniform guess {scores.uniform_byte_perplexity:.2f}; "
        f"{f'{share:.0%}' if share < 100 else 'more than 10,000%'} of its nats, at most {UNIFORM_SHARE:.0%}"
    )
    # JSON has no infinity.
    numbers = {
        "byte_perplexity": byte if math.isfinite(byte) else None,
        "uniform": scores.uniform_byte_perplexity,
        "share": share,
        "allowed": UNIFORM_SHARE,
    }
    return Check(name, share <= UNIFORM_SHARE, seen, numbers)


def _english(loaded: Loaded, languages: list[str]) -> Check:
    """Needs no data of the training, so that it works on anyone's model; counts for English ones alone."""
    model, tokenizer = loaded.model, loaded.tokenizer
    context = min(context_length(model, tokenizer), 256)
    parts = [score_text(model, tokenizer, text, context) for text in ENGLISH]
    nats, tokens, size = (sum(getattr(part, key) for part in parts) for key in ("nats", "tokens", "bytes"))
    check = _uniform(_ENGLISH, TextScore(nats, tokens, size, parts[0].vocab_size))
    seen = f"{check.seen}; {described_start(tokenizer)}"
    if not any(re.match(r"en(g|glish)?\b", each.lower()) for each in languages):
        whose = f"the model's is {', '.join(languages)}" if languages else "neither recipe nor card names one"
        return replace(check, passed=None, seen=f"{seen}. This counts only for English models: {whose}")
    return replace(check, seen=seen)


def _generation(loaded: Loaded, recorded: float | None) -> Check:
    """How many greedy continuations are stuck in a loop, by the evaluation's own measure."""
    name, texts, tokenizer = "generation", prompts()[::_EVERY], loaded.tokenizer
    longest = max(len(tokenizer(text)["input_ids"]) for text in texts)
    if longest >= (context := context_length(loaded.model, tokenizer)):
        seen = f"the prompts have up to {longest} tokens, too many for a context of {context}"
        return Check(name, None, seen)
    outputs = generate(loaded.model, tokenizer, texts, sample=False)
    rate, count = measure(outputs, partial(decode, tokenizer))["loop_rate"], len(outputs)
    numbers = {"loop_rate": rate, "prompts": count}
    seen = f"{rate:.0%} of {count} greedy continuations end in a loop"
    if recorded is None:
        return Check(name, None, f"{seen}; there is no recorded rate to compare it with", numbers)
    # Three standard errors of a rate from this few prompts, never less than three prompts' worth: the error
    # of a recorded rate of 0 is 0, and one loop must not refuse a model.
    allowed = min(1.0, recorded + max(3 * math.sqrt(recorded * (1 - recorded) / count), 3 / count))
    seen += f"; recorded: {recorded:.1%}, allowed: at most {allowed:.0%}"
    return Check(name, rate <= allowed, seen, numbers | {"recorded": recorded, "allowed": allowed})


def _onnx(folder: Path) -> Check:
    """Graphs against the record of their verification, and that against the files that a reader gets."""
    graphs, problems = graphs_beside(folder)
    seen = f"{len(graphs)} graphs made from these weights, as verified in ONNX Runtime"
    return Check("ONNX", not problems, "; ".join(problems) or seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
