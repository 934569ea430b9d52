"""The three files of an evaluation, written next to the model: whole, or as they were before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import check_file, file_sha256, read_json, read_sealed, write_json, write_sealed
from ant_hf.utils.names import RESULTS

HARNESS_RESULTS = "lm_eval_results.json"
SAMPLES = "samples.jsonl"
SCHEMA = 1
# What must agree before new figures may stand beside old ones.
_FIXED = ("dtype", "device", "context_length", "bos_policy", "limit", "data", "versions")


def previous_results(folder: Path, identity: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
    """The results already in the folder; empty when there are none.

    Raises:
        AntError: they belong to another model or to other conditions; names what differs.
    """
    path = folder / RESULTS
    if not path.exists():
        return {}
    hint = "Pass --fresh to measure anew, or --output-dir to keep both."
    values = read_sealed(path, "evaluation results", hint, unsealed_format=None)
    try:
        if values["schema"] != SCHEMA:
            raise AntError(f"{path} has another form", seen=values["schema"], expected=str(SCHEMA), hint=hint)
        old = {**values["model"], **values["conditions"]}
        new = {**identity, **conditions}
        for key in ("weights_sha256", "tokenizer_sha256", "config_sha256", *_FIXED):
            if old[key] != new[key]:
                raise AntError(
                    f"{path} was measured with another {key.replace('_', ' ')}",
                    seen="none" if old[key] is None else old[key],
                    expected="none" if new[key] is None else str(new[key]),
                    hint=hint,
                )
    except (KeyError, TypeError):
        raise AntError(f"{path} is damaged", hint=hint) from None
    for name, sha256 in values["files"].items():
        own = folder / name
        if own.exists():
            hint = f"Remove {own} to go on without what it holds of earlier sets."
            check_file(own, sha256, "was changed after it was written", hint)
    return values


def write_results(folder: Path, values: dict[str, Any]) -> None:
    """Write results.json, with the hashes of the two other files."""
    files = [folder / name for name in (HARNESS_RESULTS, SAMPLES)]
    values["files"] = {path.name: file_sha256(path) for path in files if path.is_file()}
    write_sealed(folder / RESULTS, values)


def merge_harness_results(folder: Path, values: dict[str, Any], keep: bool) -> None:
    """Write lm-eval's own file; with `keep`, beside what an earlier command measured."""
    path = folder / HARNESS_RESULTS
    if keep and path.is_file():
        old = read_json(path, "lm-eval results", "Pass --fresh to measure anew.")
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(old.get(key), dict):
                values[key] = {**old[key], **value}
    write_json(path, values)


def merge_samples(folder: Path, lines: list[dict[str, Any]], keep: bool) -> None:
    """Write samples.jsonl; with `keep`, the lines of tasks that were not measured now stay."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {line["task"] for line in lines}
    path = folder / SAMPLES
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as handle:
        if keep and path.is_file():
            with path.open(encoding="utf-8") as old:
                handle.writelines(line for line in old if json.loads(line)["task"] not in tasks)
        for line in lines:
            handle.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    temporary.replace(path)
