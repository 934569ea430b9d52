"""The gate seen from outside: what it is asked, the process it runs in, and its verdict on anyone's model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.repocard import metadata_load
from pydantic import BaseModel
from yaml import YAMLError

from ant_hf.card.eval_results import eval_result_problems
from ant_hf.data.tokenizer import end_of_text, load_tokenizer
from ant_hf.data.tokens import VALIDATION, PackedTokens, read_manifest, verify_shards
from ant_hf.errors import AntError, missing_file
from ant_hf.hub import HubClient
from ant_hf.release.files import file_problems, read_release
from ant_hf.release.publish import fetch_model
from ant_hf.utils.files import check_hash, file_sha256, inventory, read_json, read_sealed, write_text
from ant_hf.utils.names import (
    CARD,
    EVAL_RESULTS,
    FINAL,
    GATE,
    MANIFEST,
    RELEASE,
    RESULTS,
    RUN_RECORD,
    TOKENIZER,
    WEIGHTS,
)
from ant_hf.utils.stopping import phase

PASSED, REFUSED = "passed", "refused"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `vars` of it is its JSON in a report."""

    name: str
    passed: bool | None
    """None when there was nothing to check it against."""
    seen: str
    """The numbers or the reason, in one line."""
    numbers: dict[str, Any] = field(default_factory=dict)


class HeldOut(BaseModel, ser_json_inf_nan="constants"):
    """Text that the training never saw, and what the run recorded on it."""

    text: Path
    """JSON lines, a document each."""
    loss: float
    """In training, nats per token."""
    byte_perplexity: float
    tokens: int
    context_tokens: int


class Job(BaseModel):
    """What the gate's process is asked, as it reads it from its file."""

    folder: Path
    owner: str = ""
    """Hub account whose name is not a secret."""
    parameters: int | None = None
    """Counted by the training."""
    held_out: HeldOut | None = None
    loop_rate: float | None = None
    """Of the evaluation's greedy continuations."""
    languages: list[str] = []
    """ISO 639 codes of what the model was trained on, as far as the recipe or the card says."""


def verdict(checks: list[dict[str, Any]]) -> str:
    """`passed` unless a check failed."""
    return REFUSED if any(check["passed"] is False for check in checks) else PASSED


def refusal(what: Path | str, checks: list[dict[str, Any]], report: Path | None = None) -> AntError:
    """The error that lists every failed check with its numbers."""
    failed = "\n".join(f"  - {each['name']}: {each['seen']}" for each in checks if each["passed"] is False)
    where = f"\nThe whole report: {report}" if report else ""
    return AntError(f"{what} must not be published, because these checks failed:\n{failed}{where}")


def check_files(folder: Path, owner: str = "") -> Check:
    """The check of a folder's files as they are now."""
    problems = file_problems(folder, owner)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    kinds = [
        suffix[1:] for suffix in (".safetensors", ".gguf", ".onnx") if any(f.suffix == suffix for f in files)
    ]
    weights = " and ".join(kinds)
    seen = f"{len(files)} files, {size:,} bytes; {weights} only, no code, no paths, no tokens"
    return Check("files", not problems, "; ".join(problems) or seen, {"files": len(files), "bytes": size})


def write_held_out(run: dict[str, Any], tokens: Path, tokenizer: Path, target: Path) -> None:
    """Decode the validation split with the tokenizer that packed it, one JSON object per document.

    As text again, so that the gate starts where a reader starts. Stops once it covers the tokens that the
    recorded loss was measured on.

    Raises:
        AntError: tokens or tokenizer are not those of the run.
    """
    problem, hint = f"{tokens} is not what this run was trained on", "Pass the right folder: --tokens FOLDER"
    check_hash(problem, file_sha256(tokens / MANIFEST), run["sha256"]["tokens"], hint)
    verify_shards(tokens)
    packed_with = read_manifest(tokens)["inputs"]["tokenizer_sha256"]
    problem = f"{tokenizer} is not the tokenizer that packed {tokens}"
    check_hash(problem, file_sha256(tokenizer / TOKENIZER), packed_with)
    loaded = load_tokenizer(tokenizer)
    end = loaded.token_to_id(end_of_text(tokenizer))
    assert end is not None
    split = PackedTokens(tokens, run["final"].get("split", VALIDATION))
    wanted = min(len(split), run["final"]["tokens"] + 1)
    ids = split.slice(0, len(split))
    # Where text was cut the last document has no end: with this one it is found like the others.
    ids = np.append(ids, ids.dtype.type(end))
    with target.open("w", encoding="utf-8") as handle:
        start = 0
        for stop in np.flatnonzero(ids == end).tolist():
            if start >= wanted:
                break
            text = loaded.decode(ids[start:stop].tolist())
            handle.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            start = stop + 1


def ask_gate(
    folder: Path, run: dict[str, Any] | None, tokens: Path | None, owner: str = ""
) -> dict[str, Any]:
    """The gate's report on a folder, checked against what its records and a run's packed tokens say.

    Args:
        run: the record of the run that trained it.
        tokens: packed by that run, their tokenizer beside them; without, no loss is reproduced.

    Raises:
        AntError: the tokens are not those of the run, or the process died before it could report.
    """
    job = Job(folder=folder.resolve(), owner=owner, parameters=run["parameters"]["total"] if run else None)
    job.languages = _languages(folder, run)
    if (folder / RESULTS).is_file():
        loops = read_json(folder / RESULTS, "results", "").get("degeneration")
        job.loop_rate = loops["greedy"]["loop_rate"] if loops else None
    with tempfile.TemporaryDirectory() as scratch:
        if run and tokens:
            text = Path(scratch) / "held_out.jsonl"
            write_held_out(run, tokens, tokens.parent / "tokenizer", text)
            loss = run["final"]["loss_in_training"]
            job.held_out = HeldOut.model_validate(run["final"] | {"text": text, "loss": loss})
        return run_gate(job, Path(scratch))


def _languages(folder: Path, run: dict[str, Any] | None) -> list[str]:
    """Those of the run's recipe, else those of the card's metadata; none where nobody says."""
    if run and (language := run["recipe"]["corpus"].get("language")):
        return [language]
    card = folder / CARD
    try:
        # The Hub's own reader of the YAML head.
        found = (metadata_load(card) or {}).get("language") if card.is_file() else None
    except (ValueError, OSError, YAMLError):
        return []
    return [str(each) for each in (found if isinstance(found, list) else [found]) if each]


def run_gate(job: Job, scratch: Path) -> dict[str, Any]:
    """Start the gate's own process, offline, in an empty working directory.

    Raises:
        AntError: the process died before it could report.
    """
    write_text(scratch / "job.json", job.model_dump_json())
    result = subprocess.run(  # noqa: S603 (our own module)
        [sys.executable, "-m", "ant_hf.release.gate", str(scratch / "job.json")],
        cwd=scratch,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise AntError(
            "the process that checks the model failed", seen=said[-1], hint="Run the same command again."
        )
    return read_json(scratch / GATE, "gate report", "")


def tokens_of(run: dict[str, Any], run_dir: Path) -> Path:
    """Where a run has its packed tokens."""
    return Path(run["recipe"]["data_dir"] or run_dir) / "tokens"


@phase("verifying", "Nothing was changed. Run the same command again.")
def verify(
    model: str | Path,
    tokens: str | Path | None = None,
    *,
    revision: str | None = None,
    client: HubClient | None = None,
) -> dict[str, Any]:
    """Run the gate on any model, against whatever records there are.

    Args:
        model: a run's final folder, a release, any other model folder, or a Hub repository.
        tokens: folder of the run's packed tokens, for the recorded held-out loss.
        revision: commit, tag or branch of the repository.
        client: reads the repository; default: with the token that huggingface_hub finds, or without.

    Returns:
        The report, as in gate.json: `verdict` is `passed` or `refused`, `checks` say why.

    Raises:
        AntError: there is no model, or no such tokens; or this is a checkpoint, which nobody publishes.
    """
    # Brings torch, which those who publish do not need.
    from ant_hf.model.loading import is_checkpoint, is_here, model_folder

    left_out = list[str]()
    if is_here(str(model)):
        folder = model_folder(model)
    else:
        fetched, left_out = fetch_model(client or HubClient(anonymous=True), str(model), revision)
        folder = model_folder(fetched)
    run_dir = folder.resolve().parent
    if is_checkpoint(folder) and (run_dir / RUN_RECORD).is_file():
        final = run_dir / FINAL
        raise AntError(
            f"{folder} is a checkpoint: it holds the state of a training and cannot be published",
            hint=f"Verify {final} when the run is finished. ant-hf evaluate accepts checkpoints.",
        )
    run, packed = _run_of(folder)
    if tokens:
        packed = Path(tokens)
        if not packed.is_dir():
            raise missing_file(tokens, "folder of packed tokens", "Pass the run's: --tokens FOLDER")
        if run is None:
            raise AntError(
                f"--tokens needs the {RUN_RECORD} of the run, with its loss, and {folder} has none",
                hint="Leave --tokens out, or pass a run's final folder.",
            )
    report = ask_gate(folder, run, packed)
    checks = report["checks"]
    if not report["held_out_sha256"]:
        reason = "there is no held-out text here" if run else f"there is no {RUN_RECORD} with a recorded loss"
        seen = f"{reason}; pass --tokens FOLDER of the run's tokens" if run else reason
        checks.insert(-2, vars(Check("held-out loss", None, seen)))
    if (folder / RELEASE).is_file():
        checks.append(vars(_hashes(folder)))
    if (folder / EVAL_RESULTS).is_dir() and (folder / RESULTS).is_file():
        checks.append(vars(_leaderboards(folder)))
    if left_out:
        seen = f"unsafe files beside the model: {', '.join(left_out)}"
        checks.append(vars(Check("files not downloaded", False, seen)))
    return report | {"verdict": verdict(checks)}


def _run_of(folder: Path) -> tuple[dict[str, Any] | None, Path | None]:
    """The record of the run that trained a model, and the packed tokens if it lies in that run's folder.

    The record lies inside a release, or beside a `final` folder whose weights it names.
    """
    run_dir, hint = folder.resolve().parent, "Remove it to verify the model without it."
    own, beside = (
        read_sealed(path, "run record", hint) if path.is_file() else None
        for path in (folder / RUN_RECORD, run_dir / RUN_RECORD)
    )
    # A file of this name may be another program's, and a run of ours has no final model before it ends.
    if own is None and beside and (folder / WEIGHTS).is_file():
        named = beside.get("final", {}).get("weights_sha256")
        own = beside if named == file_sha256(folder / WEIGHTS) else None
    packed = tokens_of(beside, run_dir) if beside and beside.get("status") == "finished" else None
    return own, packed if packed and packed.is_dir() else None


def _leaderboards(folder: Path) -> Check:
    """The files for the Hub's leaderboards against the results."""
    problems = eval_result_problems(folder, read_json(folder / RESULTS, "results", ""))
    count = len([*(folder / EVAL_RESULTS).iterdir()])
    seen = "; ".join(problems) or f"{count} in {EVAL_RESULTS}, as in {RESULTS}"
    return Check("results for leaderboards", not problems, seen)


def _hashes(folder: Path) -> Check:
    """The files against the hashes of release.json."""
    files, there = read_release(folder, "Make it again: ant-hf card")["files"], inventory(folder)
    wrong = [name for name in files if there.get(name, {}).get("sha256") != files[name]["sha256"]]
    seen = f"differ from {RELEASE}: {', '.join(wrong)}" if wrong else f"{len(files)} files as in {RELEASE}"
    return Check("hashes", not wrong, seen)
