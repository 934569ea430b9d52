"""The gate: run as a process of its own that gets a folder of files, held-out text and the expected numbers.

`python -m ant_hf.release.gate JOB.json` writes the report that the job names. Nothing of the training
is in this process: what it finds, a stranger finds.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from ant_hf.artefacts import file_sha256, read_json, write_json
from ant_hf.audit import count_parameters
from ant_hf.release.checks import Check, as_json, verdict
from ant_hf.release.files import check_files, dangerous_files
from ant_hf.release.loading import Loaded, load
from ant_hf.release.scoring import Scores, score_documents
from ant_hf.release.texts import ENGLISH, ROUND_TRIP
from ant_hf.run_record import now

# How far a reloaded loss may lie from the one recorded in training.
TOLERANCE = 0.005
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


def _loss(name: str, scores: Scores, expected: float) -> Check:
    difference = scores.loss / expected - 1
    seen = (
        f"{scores.loss:.4f} nats a token over {scores.tokens:,} tokens, expected {expected:.4f} "
        f"({difference:+.3%}, at most {TOLERANCE:.1%})"
    )
    numbers = {"loss": scores.loss, "expected": expected, "tokens": scores.tokens}
    return Check(name, bool(abs(difference) <= TOLERANCE), seen, numbers)


def _units(scores: Scores, recorded_byte_perplexity: float) -> Check:
    """ln(byte perplexity) x bytes a token = ln(token perplexity).

    The byte perplexity is the recorded one, from lengths of vocabulary entries; the bytes a token are
    counted here on the decoded text.
    """
    bytes_per_token = scores.decoded_bytes / scores.tokens
    implied = math.log(recorded_byte_perplexity) * bytes_per_token
    seen = (
        f"recorded byte perplexity {recorded_byte_perplexity:.4f} at {bytes_per_token:.4f} bytes a token is "
        f"{implied:.4f} nats a token; scored {scores.loss:.4f}"
    )
    agrees = math.isclose(implied, scores.loss, rel_tol=TOLERANCE)
    return Check("byte and token perplexity agree", agrees, seen, {"implied_loss": implied})


def _uniform(name: str, scores: Scores) -> Check:
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
    from ant_hf.release.loops import greedy_loop_rate

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
