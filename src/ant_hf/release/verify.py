"""The gate on anything: a run's final folder, a release, or a model that someone else published."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError, missing_file
from ant_hf.release.build import Sources, expected_scores, run_gate, write_held_out
from ant_hf.release.checks import Check, as_json, from_json, verdict
from ant_hf.utils.files import file_sha256, read_json, read_sealed
from ant_hf.utils.names import RELEASE, RESULTS, RUN_RECORD


def verify_folder(
    folder: Path, tokens: Path | None = None, only_there: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run the gate on a folder with whatever there is to hold it to.

    Args:
        tokens: packed tokens of the run, for the recorded held-out loss.
        only_there: further files of the repository, not downloaded, that have no place beside a model.

    Returns:
        The report, as in gate.json.
    """
    if not (folder / "config.json").is_file():
        raise missing_file(folder, "model folder", "Pass a folder with config.json, or a Hub repository.")
    run = _run_record(folder)
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(folder, run, tokens, Path(scratch))
        report = run_gate(folder, job, Path(scratch))
    checks = from_json(report["checks"])
    if not job.get("held_out"):
        reason = "no held-out text here" if run else "no run.json, so no loss on record"
        checks.insert(-2, Check("held-out loss", None, f"{reason}; pass --tokens FOLDER of the run's tokens"))
    if (folder / RELEASE).is_file():
        checks.append(_hashes(folder))
    if only_there:
        checks.append(
            Check("files not downloaded", False, f"not safe beside a model: {', '.join(only_there)}")
        )
    return report | {"checks": as_json(checks), "verdict": verdict(checks)}


def _run_record(folder: Path) -> dict[str, Any] | None:
    """run.json inside a release, or beside a `final` folder whose weights it names."""
    for path in (folder / RUN_RECORD, folder.resolve().parent / RUN_RECORD):
        if path.is_file():
            record = read_sealed(path, "run record", "Remove it to verify without it.")
            weights = folder / "model.safetensors"
            named = record.get("final", {}).get("weights_sha256")
            if path.parent == folder or (weights.is_file() and named == file_sha256(weights)):
                return record
    return None


def _job(folder: Path, run: dict[str, Any] | None, tokens: Path | None, scratch: Path) -> dict[str, Any]:
    job: dict[str, Any] = {}
    if tokens and not tokens.is_dir():
        raise missing_file(tokens, "folder of packed tokens", "Pass the run's: --tokens FOLDER")
    if (folder / RESULTS).is_file():
        job["degeneration"] = read_json(folder / RESULTS, "results", "").get("degeneration")
    if run is None:
        if tokens:
            raise AntError("--tokens needs the run.json that says what the loss was", seen=str(folder))
        return job
    job["parameters"] = run["parameters"]["total"]
    try:
        sources = Sources.of(folder, tokens)
        tokens, tokenizer = sources.tokens, sources.tokenizer
    except AntError:
        # A release folder knows no run folder around it.
        tokenizer = tokens.parent / "tokenizer" if tokens else folder
    if tokens and tokens.is_dir():
        write_held_out(run, tokens, tokenizer, scratch / "held_out.jsonl")
        job["held_out"] = str(scratch / "held_out.jsonl")
        job["expected"] = expected_scores(run)
    return job


def _hashes(folder: Path) -> Check:
    """The files against the hashes of release.json."""
    files = read_json(folder / RELEASE, "release record", "").get("files", {})
    wrong = [
        name
        for name, expected in files.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != expected["sha256"]
    ]
    seen = f"differ from {RELEASE}: {', '.join(wrong)}" if wrong else f"{len(files)} files as in {RELEASE}"
    return Check("hashes", not wrong, seen)
