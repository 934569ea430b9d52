"""Who owns an output folder: a new run, the same run to go on with, or another one to be refused."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.artefacts import read_json, write_json
from ant_hf.checkpoints import latest_checkpoint
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.report import say

RUN_RECORD = "run.json"
METRICS = "metrics.jsonl"
FINAL = "final"
PLOTS = "plots"
# May differ between a run and its continuation: they change what is shown or stored, not the weights.
_FREE_KEYS = {
    "sample_prompt",
    "training.cpu_threads",
    "training.dataloader_num_workers",
    "training.eval_max_tokens",
    "training.eval_steps",
    "training.hub_always_push",
    "training.hub_model_id",
    "training.hub_private_repo",
    "training.hub_strategy",
    "training.logging_steps",
    "training.push_to_hub",
    "training.report_to",
    "training.save_steps",
    "training.save_total_limit",
}


@dataclass(frozen=True)
class RunFolder:
    """An output folder that was found fit for a recipe."""

    path: Path
    record: dict[str, Any]
    """run.json of the run to go on with; empty for a new one."""
    checkpoint: Path | None
    """Newest checkpoint of the run to go on with."""

    @property
    def is_finished(self) -> bool:
        return self.record.get("status") == "finished"

    def write_record(self, values: dict[str, Any]) -> None:
        write_json(self.path / RUN_RECORD, values)


def open_run_folder(recipe: Recipe, fresh: bool = False) -> RunFolder:
    """Decide what a folder's contents mean for this recipe.

    Args:
        fresh: remove the run that is there; tokenizer and tokens stay, they have checks of their own.

    Raises:
        AntError: the folder holds another run (names what differs), or files that are no run.
    """
    path = Path(recipe.output_dir)
    if path.exists() and not path.is_dir():
        raise AntError(f"output_dir {path} is a file", hint="Set another: --output-dir FOLDER")
    if not (path / RUN_RECORD).is_file():
        if latest_checkpoint(path) or (path / FINAL).exists():
            raise AntError(
                f"{path} holds checkpoints without a {RUN_RECORD}",
                hint="Set another folder: --output-dir FOLDER",
            )
        return RunFolder(path, {}, None)
    if fresh:
        say(f"fresh       removing the run in {path}")
        _remove_run(path)
        return RunFolder(path, {}, None)
    record = read_json(path / RUN_RECORD, "run record", f"Start over with --fresh, or remove {path}.")
    differences = _differences(record.get("recipe"), recipe.model_dump())
    if differences:
        listing = "\n".join(f"  - {line}" for line in differences)
        raise AntError(
            f"{path} holds another run, {record.get('name')!r}, {record.get('status')}, "
            f"started {record.get('started')}:\n{listing}\nSet another folder with --output-dir, "
            "or remove that run with --fresh"
        )
    return RunFolder(path, record, latest_checkpoint(path))


def _remove_run(path: Path) -> None:
    for child in [*path.glob("checkpoint-*"), path / FINAL, path / PLOTS, path / "tensorboard"]:
        shutil.rmtree(child, ignore_errors=True)
    for name in (METRICS, RUN_RECORD):
        (path / name).unlink(missing_ok=True)


def _differences(before: Any, now: dict[str, Any]) -> list[str]:
    old, new = _flat(before if isinstance(before, dict) else {}), _flat(now)
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in _FREE_KEYS
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
